"""The step model against counts by hand, transformers' own modules on the meta device, and torch's FLOP counter."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dtp_ros.errors import ConfigError
from dtp_ros.models import openvla, spatialvla_network, tabletop_network
from dtp_ros.models.registry import model_names
from dtp_ros.study import step_model
from dtp_ros.study.roofline import (
    BFLOAT16,
    FLOAT32,
    MODES,
    PRECISIONS,
    Encoder,
    Machine,
    Transformer,
    Vla,
    pass_seconds,
    passes,
    step_seconds,
)
from dtp_ros.study.step_model import ACCEPTED, MACHINES, MODELS, main, measured_machine, processor, table

SMALL = Vla("small", Transformer(2, 4, 2, 1, 2, 8), vocabulary=10, choices=5, prompt_tokens=8, action_tokens=3)
HALF = next(p for p in PRECISIONS if p.name == "bfloat16")
BY_NAME = {model.name: model for model in MODELS}
SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip


def machine(bandwidth=1.0, rate=1.0):
    return Machine("m", bandwidth, {FLOAT32: rate, BFLOAT16: rate}, 1e12, "a test")


def count(*modules):
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def flops(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def test_a_pass_counted_by_hand():
    """A layer: 48 weights of attention, 96 of the MLP; 3 rows after 5; five of the head's ten rows, 20."""
    assert SMALL.decoder.parameters == 288
    # 2 * 3 * 288, and 2 layers * 2 heads * 3 rows * 8 keys * (2 products of 2 * 2 operations), and the head.
    operations = 1728 + 768 + 40
    num_bytes = 2 * (288 + 20) + 2 * 2 * (2 * 8 * 1 * 2)
    assert pass_seconds(SMALL, machine(1e9, 1.0), HALF, 3, 5) == operations
    assert pass_seconds(SMALL, machine(1.0, 1e9), HALF, 3, 5) == num_bytes
    assert SMALL.parameters == 288 + 80
    cache = 2 * 2 * (2 * 11 * 1 * 2)
    assert SMALL.memory(HALF) == 2 * 368 + cache
    # Only the layers are quantised: int8 has a byte a weight, int4 five bits. 3 weights that idle, 4 in float32.
    int8, int4 = (next(p for p in PRECISIONS if p.name == name) for name in ("int8", "int4"))
    seeing = replace(SMALL, encoders=(Encoder(7, 1.0, idle=3), Encoder(4, 1.0, float32=True)))
    assert seeing.memory(int8) == 288 + 2 * 80 + 2 * 10 + 4 * 4 + cache
    assert seeing.memory(int4) == 180 + 2 * 80 + 2 * 10 + 4 * 4 + cache
    assert pass_seconds(seeing, machine(1.0, 1e9), int4, 3, 5) == 180 + 2 * 20 + 2 * 2 * (2 * 8 * 1 * 2)


def test_passes_counted_by_hand():
    assert passes("off", 8, 3) == [(8, 0, 1), (1, 8, 1), (1, 9, 1)]
    assert passes("per_step", 8, 3) == [(8, 0, 1), (3, 7, 1), (2, 9, 1)]
    kept = [(8, 0, 1), (2, 7, 1), (2, 8, 1), (1, 8, 0.25), (1, 9, 0.25), (1, 9, 1)]
    assert passes("per_token action", 8, 3, accepted=0.75) == kept
    assert passes("per_token all", 8, 3) == [(8, 0, 1), (1, 8, 1), (1, 9, 1), (8, 0, 1), (9, 0, 1), (10, 0, 1)]


def test_a_single_token_has_nothing_to_follow_it():
    assert passes("off", 8, 1) == [(8, 0, 1)]
    assert passes("per_step", 8, 1) == passes("per_token action", 8, 1) == [(8, 0, 1), (1, 7, 1)]
    assert passes("per_token all", 8, 1) == [(8, 0, 1), (8, 0, 1)]


@pytest.mark.parametrize("options", [{"mode": "twice"}, {"accepted": 1.5}, {"tokens": 0}, {"prompt": 0}])
def test_what_is_out_of_range_is_said(options):
    with pytest.raises(ConfigError, match="valid"):
        passes(**{"mode": "off", "prompt": 8, "tokens": 3, **options})


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
@pytest.mark.parametrize("mode", MODES)
def test_fewer_bytes_never_take_longer(model, mode):
    for where in MACHINES:
        seconds = [step_seconds(model, where, precision, mode, ACCEPTED) for precision in PRECISIONS]
        assert all(more >= less > 0 for more, less in pairwise(seconds))
        faster = replace(where, bandwidth=2 * where.bandwidth)
        assert step_seconds(model, faster, HALF, mode) <= step_seconds(model, where, HALF, mode)
        assert step_seconds(model, where, HALF, mode) >= step_seconds(model, where, HALF, "off")


def test_failed_speculations_cost_a_row_each():
    model, where = BY_NAME["nora"], MACHINES[0]
    sure, never = (step_seconds(model, where, HALF, "per_token action", share) for share in (1.0, 0.0))
    rows = sum(pass_seconds(model, where, HALF, 1, 97 + i) for i in range(6))
    assert never - sure == pytest.approx(rows)


def test_every_model_of_the_registry_is_there():
    assert sorted(BY_NAME) == sorted(model_names())


def nora():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
        "intermediate_size": 11008, "vocab_size": 151665 + 2048,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "patch_size": 14,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    whole = Qwen2_5_VLForConditionalGeneration(config)
    return whole, whole.model.language_model


def zoe():
    from transformers import ZoeDepthConfig

    stages = ["stage6", "stage12", "stage18", "stage24"]
    beit = {
        "model_type": "beit", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "image_size": 384, "patch_size": 16, "use_relative_position_bias": True,
        "reshape_hidden_states": False, "out_features": stages, "layer_scale_init_value": 0.1,
    }  # fmt: skip
    return ZoeDepthConfig(backbone=None, backbone_config=beit, backbone_hidden_size=1024)


def spatialvla():
    from transformers import Gemma2Config, SiglipVisionConfig

    text = Gemma2Config(
        hidden_size=2304, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        intermediate_size=9216, vocab_size=257153 + 8194 - 2, tie_word_embeddings=False,
    )  # fmt: skip
    config = spatialvla_network.SpatialVlaConfig(
        text, SiglipVisionConfig(**SIGLIP), zoe(), "bfloat16", 2, 8, 257152, 257153, 8194
    )
    network = spatialvla_network.SpatialVlaNetwork(config)
    network.spatial_embed_tokens = None  # merged into the embeddings once loaded
    return network, network.language_model.model


def univla():
    from transformers import Emu3ForCausalLM, Emu3TextConfig, Emu3VQVAE, Emu3VQVAEConfig

    text = Emu3TextConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=184622, tie_word_embeddings=False,
    )  # fmt: skip
    language, vision = Emu3ForCausalLM(text), Emu3VQVAE(Emu3VQVAEConfig())
    return nn.ModuleList([language, vision]), language.model


def openvla_network():
    from transformers import LlamaConfig

    siglip = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362}
    dino = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0}
    text = LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, vocab_size=32064,
        tie_word_embeddings=False,
    )  # fmt: skip
    network = openvla.OpenVlaNetwork((dino, siglip), text)
    return network, network.language_model.model


def pi0_fast():
    from transformers import GemmaConfig, GemmaForCausalLM, SiglipVisionConfig, SiglipVisionModel

    text = GemmaConfig(
        hidden_size=2048, num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1, head_dim=256,
        intermediate_size=16384, vocab_size=257152, tie_word_embeddings=True,
    )  # fmt: skip
    language = GemmaForCausalLM(text)
    parts = [language, SiglipVisionModel(SiglipVisionConfig(**SIGLIP)), nn.Linear(1152, 2048)]
    return nn.ModuleList(parts), language.model


def tabletop():
    network = tabletop_network.TabletopNetwork(tabletop_network.TabletopConfig(vocabulary=30))
    return network, network.language_model


BUILD = {
    "nora": nora, "spatialvla": spatialvla, "univla": univla, "openvla": openvla_network, "pi0_fast": pi0_fast,
    "tabletop": tabletop,
}  # fmt: skip


@pytest.mark.parametrize("name", BUILD)
def test_weights_and_operations_are_those_of_the_real_model(name):
    with torch.device("meta"):
        whole, text_model = BUILD[name]()
        tied = BY_NAME[name].tied
        if tied and hasattr(whole, "tie_weights"):
            whole.tie_weights()
        assert BY_NAME[name].parameters == pytest.approx(count(whole), rel=0.01)
        text_model.set_attn_implementation("eager")
        rows = torch.zeros(1, 96, text_model.config.hidden_size)
        mask = torch.zeros(1, 1, 96, 96)  # given, or transformers reads positions, which a meta tensor has none of
        counted = flops(lambda: text_model.eval()(inputs_embeds=rows, attention_mask=mask, use_cache=False))
    assert BY_NAME[name].decoder.operations(96) == pytest.approx(counted, rel=0.02)


def test_operations_of_the_encoders_are_those_that_torch_counts():
    from transformers import (
        Emu3VQVAE,
        Emu3VQVAEConfig,
        SiglipVisionConfig,
        SiglipVisionModel,
        ZoeDepthForDepthEstimation,
    )

    with torch.device("meta"):
        siglip = SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).eval()
        projector = nn.Linear(1152, 2048)
        depth = ZoeDepthForDepthEstimation(zoe()).eval()
        emu = Emu3VQVAE(Emu3VQVAEConfig()).encoder.eval()
        tower = flops(lambda: projector(siglip(pixel_values=torch.zeros(1, 3, 224, 224)).last_hidden_state))
        assert BY_NAME["pi0_fast"].encoders[0].operations == pytest.approx(tower, rel=0.02)
        counted = flops(lambda: depth(pixel_values=torch.zeros(1, 3, 384, 384)))
        assert BY_NAME["spatialvla"].encoders[1].operations == pytest.approx(counted, rel=0.01)
        counted = flops(lambda: emu(torch.zeros(1, 4, 3, 256, 256)))
        assert BY_NAME["univla"].encoders[0].operations == pytest.approx(counted, rel=0.01)
        assert BY_NAME["univla"].encoders[0].parameters == pytest.approx(count(emu), rel=0.01)


def test_a_processor_s_name_tells_kinds_apart(tmp_path):
    cpuinfo, capability = tmp_path / "cpuinfo", torch.backends.cpu.get_cpu_capability()
    cpuinfo.write_text(
        "".join(f"processor\t: {n}\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: A CPU\n\n" for n in "01")
    )
    assert processor(torch.device("cpu"), cpuinfo) == f"A CPU, family 25, model 17, {capability}"
    assert processor(torch.device("cpu"), tmp_path / "none").endswith(f", {capability}")


def test_what_does_not_fit_is_said():
    lines = list(table([replace(MACHINES[1], memory=12e9)], [BY_NAME["univla"]], PRECISIONS))
    rows = [line for line in lines if line.startswith("| univla")]
    assert [("does not fit" in row) for row in rows] == [True, True, False, False]


@pytest.mark.long
def test_the_command_measures_the_machine_and_prints_a_row_a_model_and_precision(capsys, monkeypatch):
    machines = []
    monkeypatch.setattr(
        step_model, "measured_machine", lambda device: machines.append(measured_machine(device)) or machines[0]
    )
    monkeypatch.setattr("sys.argv", ["step_model", "--device", "cpu", "--models", "nora", "--precisions", "int4"])
    main()
    output = capsys.readouterr().out
    assert output.count("| nora | int4") == 1 + len(MACHINES)
    (here,) = machines
    assert here.bandwidth > 1e8
    assert min(here.rates.values()) > 1e8
    assert here.memory > 1e8

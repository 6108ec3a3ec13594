"""OpenVLA beside the original's code (tools/dump_reference) and the stock models, on the same tiny weights."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.models import images
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.pruning.config import PruningConfig

HERE = Path(__file__).resolve().parent
TOOL = HERE.parents[1] / "tools/dump_reference/openvla.py"
INSTRUCTION = "put the spoon on the towel"
DEFAULTS = model_defaults("openvla")
CLEAN = PruningConfig(**{key: DEFAULTS[key] for key in PruningConfig.__dataclass_fields__} | {"variant": "off"})


@pytest.fixture(scope="module")
def dump() -> dict[str, np.ndarray]:
    with np.load(HERE / "dumps/openvla.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("dump_reference_openvla", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(openvla_folder) -> dict[str, torch.Tensor]:
    return {
        name: value.float() for path in openvla_folder.glob("*.safetensors") for name, value in load_file(path).items()
    }


def published(tool, case):
    """The adapter as the dump's case was run, and its observation."""
    adapter = load_adapter(
        "openvla", "tiny", device="cpu", preprocess="reference", options={"statistics_key": tool.STATISTICS[case]}
    )
    return adapter, Observation((tool.picture(*tool.SIZES[case]),), tool.INSTRUCTIONS[case])


# --- the original, run on the same weights ---------------------------------------------------------------------------


def test_the_dump_is_of_these_weights(openvla_folder, dump):
    """Where the writer of the tiny checkpoint changes, tools/dump_reference/openvla.py must run again."""
    digest = hashlib.sha256()
    for path in sorted(openvla_folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == str(dump["weights"])


@pytest.mark.parametrize("case", range(3))
def test_inputs_equal_the_originals(tool, dump, case):
    adapter, observation = published(tool, case)
    assert adapter.prompt_ids(observation.instruction)[0] == dump[f"{case}_input_ids"].tolist()
    assert np.array_equal(adapter.pixels(observation)[:, ::9, ::11], dump[f"{case}_pixels"])
    embeddings = adapter.prepare(observation).embeddings[0, ::5].numpy()
    scale = np.abs(dump[f"{case}_embeddings"]).max()
    assert np.abs(embeddings - dump[f"{case}_embeddings"]).max() < 1e-6 * scale


@pytest.mark.parametrize("case", range(3))
def test_the_evaluations_images_and_prompt_are_ours(tool, dump, case):
    """The published WidowX evaluation itself, in TensorFlow.

    With libjpeg's accurate DCT on both sides one pixel in a thousand is one level away; TensorFlow's own decoder has
    the fast one, up to 12 levels away on these hard pictures. The crop is the same to the bit.
    """
    image = tool.picture(*tool.SIZES[case])
    own = images.lanczos3(images.jpeg_round_trip(image), 224)[::9, ::11].astype(int)
    difference = np.abs(own - dump[f"{case}_accurate"])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001
    assert np.abs(own - dump[f"{case}_widowx"]).max() <= 12
    assert np.abs(own - dump[f"{case}_widowx"]).mean() < 1.5
    assert np.array_equal(images.centre_crop(image, 0.9, 224)[::9, ::11], dump[f"{case}_cropped"])
    prompt = f"In: What action should the robot take to {tool.INSTRUCTIONS[case].lower()}?\nOut:"
    assert str(dump[f"{case}_prompt"]) == prompt


@pytest.mark.parametrize("name", ["free", "restricted"])
@pytest.mark.parametrize("case", range(3))
def test_logits_tokens_and_actions_equal_the_originals(tool, dump, case, name):
    """Greedy over all ids, as published, and over the action ids: the same seven tokens, logits within 1e-4."""
    adapter, observation = published(tool, case)
    prompt, ids = adapter.prepare(observation), []
    embeddings = prompt.embeddings
    for t in range(7):
        with torch.no_grad():
            states = adapter.text_model(inputs_embeds=embeddings).last_hidden_state
        logits = adapter.logits(states)[0, -1]
        assert np.abs(logits[31744:32000].numpy() - dump[f"{case}_{name}_logits"][t]).max() < 1e-4
        assert np.abs(logits[::50].numpy() - dump[f"{case}_{name}_others"][t]).max() < 1e-4
        allowed = adapter.vocabulary.action_ids if name == "restricted" else torch.arange(32064)
        ids.append(int(allowed[logits[allowed].argmax()]))
        embeddings = torch.cat([embeddings, adapter.embed(torch.tensor([ids[-1:]]))], dim=1)
    assert ids == dump[f"{case}_{name}_ids"].tolist()
    if name == "restricted":
        action = dump[f"{case}_restricted_action"]
        np.testing.assert_allclose(adapter.decode(ids)[0, :6], action[:6], atol=1e-12)
        assert adapter.decode(ids)[0, 6] == min(max(action[6], 0), 1)


@pytest.mark.parametrize("case", range(3))
def test_the_engine_without_pruning_gives_the_originals_tokens(tool, dump, case):
    adapter, observation = published(tool, case)
    result = DtpPolicy(adapter).step(observation, CLEAN, GenerationConfig())
    assert [token.token_id for token in result.trace.tokens] == dump[f"{case}_restricted_ids"].tolist()


# --- the stock models of transformers --------------------------------------------------------------------------------


def separate(weights, prefix, block, names):
    """Query, key and value of a fused projection under a stock model's names."""
    for kind in ("weight", "bias"):
        parts = weights[f"{prefix}.attn.qkv.{kind}"].chunk(3)
        yield from ((f"{block}.{name}.{kind}", part) for name, part in zip(names, parts, strict=True))


def copied(weights, prefix, block, pairs):
    for theirs, ours in pairs:
        for kind in ("weight", "bias"):
            yield f"{block}.{theirs}.{kind}", weights[f"{prefix}.{ours}.{kind}"]


def stock_dino(weights, pixels):
    config = Dinov2WithRegistersConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, mlp_ratio=4, image_size=224, patch_size=14,
        num_register_tokens=4, hidden_act="gelu", attn_implementation="eager",
    )  # fmt: skip
    model = Dinov2WithRegistersModel(config).eval()
    new = any(".q_proj." in name for name in model.state_dict())  # the names of transformers from 5.2x on
    query, out = ("", "o_proj") if new else ("attention.", "output.dense")
    heads = ("q_proj", "k_proj", "v_proj") if new else ("query", "key", "value")
    root, state = "vision_backbone.featurizer", {}
    for i in range(4):
        block, prefix = f"encoder.layer.{i}", f"{root}.blocks.{i}"
        state |= separate(weights, prefix, f"{block}.attention", [f"{query}{name}" for name in heads])
        pairs = [("norm1", "norm1"), ("norm2", "norm2"), (f"attention.{out}", "attn.proj"),
                 ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]  # fmt: skip
        state |= copied(weights, prefix, block, pairs)
        for j in (1, 2):
            state[f"{block}.layer_scale{j}.lambda1"] = weights[f"{prefix}.ls{j}.scale_factor"]
    positions = weights[f"{root}.pos_embed"]
    state |= copied(weights, f"{root}", "embeddings.patch_embeddings", [("projection", "patch_embed.proj")])
    state |= {
        "embeddings.cls_token": weights[f"{root}.cls_token"],
        "embeddings.register_tokens": weights[f"{root}.reg_token"],
        "embeddings.mask_token": torch.zeros(1, 48),
        "embeddings.position_embeddings": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1),
    }
    state |= {f"layernorm.{kind}": weights[f"{root}.norm.{kind}"] for kind in ("weight", "bias")}
    model.load_state_dict(state)
    return model(pixels, output_hidden_states=True).hidden_states[-2][:, 5:]


def stock_siglip(weights, pixels):
    config = SiglipVisionConfig(
        hidden_size=36, intermediate_size=134, num_hidden_layers=3, num_attention_heads=2, image_size=224,
        patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6, vision_use_head=False, attn_implementation="eager",
    )  # fmt: skip
    root = "vision_backbone.fused_featurizer"
    state = {"embeddings.position_embedding.weight": weights[f"{root}.pos_embed"][0]}
    state |= copied(weights, root, "embeddings", [("patch_embedding", "patch_embed.proj")])
    state |= {f"post_layernorm.{kind}": weights[f"{root}.norm.{kind}"] for kind in ("weight", "bias")}
    for i in range(3):
        block, prefix = f"encoder.layers.{i}", f"{root}.blocks.{i}"
        state |= separate(weights, prefix, f"{block}.self_attn", ("q_proj", "k_proj", "v_proj"))
        pairs = [("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("self_attn.out_proj", "attn.proj"),
                 ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]  # fmt: skip
        state |= copied(weights, prefix, block, pairs)
    model = SiglipVisionModel(config).eval()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in model.state_dict()) else ""
    model.load_state_dict({f"{prefix}{name}": value for name, value in state.items()})
    return model(pixels, output_hidden_states=True).hidden_states[-2]


def test_logits_equal_the_stock_models_eager_forward(openvla, weights, openvla_folder, photo):
    """DINOv2 with registers, SigLIP (exact GELU) and Llama of transformers, given the weights under their names."""
    observation = Observation((photo,), INSTRUCTION)
    pixels = torch.from_numpy(openvla.pixels(observation))[None]
    with torch.no_grad():
        x = torch.cat([stock_dino(weights, pixels[:, :3]), stock_siglip(weights, pixels[:, 3:])], dim=-1)
        for i in (1, 2, 3):
            x = functional.linear(x, weights[f"projector.fc{i}.weight"], weights[f"projector.fc{i}.bias"])
            x = functional.gelu(x) if i < 3 else x
        ids = torch.tensor([openvla.prompt_ids(INSTRUCTION)[0]])
        text_config = json.loads((openvla_folder / "config.json").read_text())["text_config"]
        llama = LlamaForCausalLM(LlamaConfig.from_dict({**text_config, "torch_dtype": "float32"})).eval()
        llama.set_attn_implementation("eager")
        prefix = "language_model."
        llama.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        text = llama.get_input_embeddings()(ids)
        expected = llama(inputs_embeds=torch.cat([text[:, :1], x, text[:, 1:]], dim=1)).logits
        prompt = openvla.prepare(observation)
        states = openvla.text_model(inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids)
    logits = openvla.logits(states.last_hidden_state)
    assert logits.dtype == torch.float32
    assert logits.shape == expected.shape == (1, 277, 32064)
    assert (logits - expected).abs().max() < 1e-4


def test_bfloat16_on_the_cpu_is_close(openvla, photo):
    half = load_adapter("openvla", "tiny", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    rows = []
    for adapter in (openvla, half):
        with torch.no_grad():
            states = adapter.text_model(inputs_embeds=adapter.prepare(Observation((photo,), INSTRUCTION)).embeddings)
            rows.append(adapter.logits(states.last_hidden_state)[0, -1])
    assert rows[1].dtype == torch.float32
    assert torch.corrcoef(torch.stack(rows))[0, 1] > 0.95

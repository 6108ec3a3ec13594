"""Every way in which a UniVLA checkpoint can be broken, or be another's, and what is said of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dtp_ros.errors import CheckpointError, ConfigError
from dtp_ros.models import emu3_vision
from dtp_ros.models.registry import load_adapter

FIRST, SHARD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
VISION = "vision_tokenizer/model.safetensors"
FAST = "fast_bridge_t5_s50"


@pytest.fixture
def damaged(univla_folder, tmp_path) -> Callable[..., Path]:
    """A copy of the tiny checkpoint (by links: a file is replaced, never written to) without some files."""

    def copy(*without: str) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(univla_folder, folder, copy_function=os.link)
        for name in without:
            (folder / name).unlink()
        return folder

    return copy


def load(folder: Path, **options: object):
    """Without asking any hub or address: the fallbacks are a folder that holds nothing."""
    nothing = folder.parent / "nothing"
    nothing.mkdir(exist_ok=True)
    names = ("vision_tokenizer", "text_tokenizer", "fast_tokenizer", "statistics")
    return load_adapter(
        "univla", str(folder), device="cpu", options={**dict.fromkeys(names, str(nothing)), "subfolder": "", **options}
    )


def rewrite(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def set_json(path: Path, **values: object) -> None:
    rewrite(path, json.dumps({**json.loads(path.read_text()), **values}))


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("config.json", "config.json"),
        ("norm_stats.json", "norm_stats.json"),
        ("emu3.tiktoken", "emu3.tiktoken"),
        ("emu3_vision_tokens.txt", "emu3_vision_tokens.txt"),
        ("model.safetensors.index.json", "model.safetensors.index.json"),
        (SHARD, SHARD),
        (f"{FAST}/tokenizer.json", "tokenizer.json"),
        (f"{FAST}/processor_config.json", "processor_config.json"),
        ("vision_tokenizer/config.json", "config.json"),
        ("vision_tokenizer/preprocessor_config.json", "preprocessor_config.json"),
        (VISION, "model.safetensors"),
    ],
)
def test_a_missing_file_is_named(damaged, name, named):
    with pytest.raises(CheckpointError, match=re.escape(named)) as error:
        load(damaged(name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["config.json", "norm_stats.json", f"{FAST}/tokenizer.json", "vision_tokenizer/config.json"]
)
def test_a_broken_json_file_is_named(damaged, name):
    folder = damaged()
    rewrite(folder / name, (folder / name).read_text()[:60])
    with pytest.raises(CheckpointError, match=rf"{re.escape(Path(name).name)} is not JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "openvla"}, r"model_type 'openvla' \(valid here: 'Emu3'\)"),  # OpenDriveLab's UniVLA is one
        ({"model_type": "qwen2_5_vl"}, r"model_type 'qwen2_5_vl'"),
        ({"architectures": ["Emu3ForCausalLM"]}, r"looks like Emu3 itself \(Emu3ForCausalLM\), not UniVLA"),
        ({"action_experts": True}, "no UniVLA has action_experts"),
        ({"hidden_size": "wide"}, "is not a valid configuration"),
        ({"vocab_size": 184622}, r"has 184622 tokens, not 151854 and the 1024 codes of"),
        ({"hidden_size": 64}, r"has shape \[152878, 32\], the model needs \[152878, 64\]"),
    ],
)
def test_another_models_configuration_is_refused(damaged, values, message):
    folder = damaged()
    set_json(folder / "config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_an_incomplete_configuration_is_refused(damaged):
    folder = damaged()
    raw = json.loads((folder / "config.json").read_text())
    del raw["num_key_value_heads"]
    rewrite(folder / "config.json", json.dumps(raw))
    with pytest.raises(CheckpointError, match="not a valid configuration: 'num_key_value_heads'"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"model_type": "vqgan"}, "model_type 'vqgan'.*valid here: 'Emu3VisionVQ'"),
        ("config.json", {"ch_mult": "1"}, "is incomplete"),
        ("config.json", {"codebook_size": 512}, r"has shape \[1024, 4\], the model needs \[512, 4\]"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5]}, "not three numbers each"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, 0.0]}, "not three numbers each"),
        ("preprocessor_config.json", {"image_mean": None}, "not three numbers each"),
    ],
)
def test_another_image_tokeniser_is_refused(damaged, name, values, message):
    folder = damaged()
    set_json(folder / "vision_tokenizer" / name, **values)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("path", "key"), [(SHARD, "model.layers.3.mlp.up_proj.weight"), (VISION, "encoder.down.3.attn.0.q.weight")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(damaged, path, key, value):
    folder = damaged()
    edit(folder / path, lambda tensors: tensors[key][5, 7].fill_(value))
    with pytest.raises(CheckpointError, match=rf"{re.escape(key)} holds values that are not finite"):
        load(folder)


def test_missing_unexpected_and_misshapen_weights_are_named(damaged):
    folder = damaged()
    edit(folder / SHARD, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lacks the weights lm_head\.weight$"):
        load(folder)
    edit(folder / SHARD, lambda tensors: tensors.update({"action_decoder.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"weights that this model has not: action_decoder\.weight"):
        load(folder)
    edit(folder / VISION, lambda tensors: tensors.pop("decoder.mid.attn_1.proj_out.weight"))
    with pytest.raises(CheckpointError, match=r"lacks the weights decoder\.middle_block\.attn_1\.out_proj\.weight$"):
        load(folder)


def test_a_truncated_shard_is_named(damaged):
    folder = damaged()
    data = (folder / FIRST).read_bytes()
    (folder / FIRST).unlink()
    (folder / FIRST).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=f"{FIRST} is truncated"):
        load(folder)


def test_other_tokenizers_are_refused(damaged):
    folder = damaged()
    ranks, vision = folder / "emu3.tiktoken", folder / "emu3_vision_tokens.txt"
    rewrite(vision, vision.read_text().replace("<|image token|>\n", ""))
    with pytest.raises(CheckpointError, match=r"emu3_vision_tokens\.txt does not begin with <\|image token\|>"):
        load(folder)
    rewrite(ranks, "".join(ranks.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match=r"emu3\.tiktoken has 151642 tokens, not the 151643 of Emu3"):
        load(folder)


def test_a_wrong_statistics_key_lists_the_keys(damaged):
    folder = damaged()
    raw = json.loads((folder / "norm_stats.json").read_text())["norm_stats"]
    set_json(folder / "norm_stats.json", norm_stats={**raw, "libero": raw["bridge_robot"]})
    with pytest.raises(CheckpointError, match=r"no statistics 'kuka' \(valid: bridge_robot, libero\)"):
        load(folder, statistics_key="kuka")
    assert load(folder, statistics_key="libero").horizon == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"q01": None}, "q01 and q99 of bridge_robot are not seven numbers each"),
        ({"q01": [0.0] * 6}, "not seven numbers each"),
        ({"q01": [2.0] * 7}, "not seven numbers each, finite and ascending"),
        ({"q99": [float("nan")] * 7}, "not seven numbers each, finite and ascending"),
        ({"q99": ["x"] * 7}, "has no numbers q01, q99"),
    ],
)
def test_broken_statistics_are_named(damaged, values, message):
    folder = damaged()
    stats = json.loads((folder / "norm_stats.json").read_text())["norm_stats"]["bridge_robot"]
    set_json(folder / "norm_stats.json", norm_stats={"bridge_robot": {**stats, **values}})
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_statistics_of_another_form_are_refused(damaged):
    folder = damaged()
    rewrite(folder / "norm_stats.json", json.dumps({"bridge_orig": {}}))
    with pytest.raises(CheckpointError, match=r"no statistics 'bridge_robot' \(valid: none\)"):
        load(folder)


def test_parts_may_lie_elsewhere(damaged, univla_folder):
    """As they are published: the policy in a subfolder of its repository, everything else in places of its own."""
    folder = damaged()
    repository = folder.parent / "UniVLA"
    (repository / "BRIDGE").mkdir(parents=True)
    for name in ("config.json", "model.safetensors.index.json", FIRST, SHARD):
        (folder / name).rename(repository / "BRIDGE" / name)
    adapter = load(
        repository, subfolder="BRIDGE", vision_tokenizer=str(folder / "vision_tokenizer"), text_tokenizer=str(folder),
        fast_tokenizer=(univla_folder / FAST).as_uri(), statistics=univla_folder.as_uri(),
    )  # fmt: skip
    whole = load(univla_folder)
    ids = torch.tensor([[5, 151854]])
    assert adapter.embed(ids).equal(whole.embed(ids))
    assert adapter._assets.text.encode("spoon") == whole._assets.text.encode("spoon")


def test_every_weight_of_the_image_tokeniser_has_a_published_name():
    """Renames worked out by hand, one of each kind."""
    pairs = {
        "encoder.conv_in.weight": "encoder.conv_in.weight",
        "encoder.down.0.block.1.norm1.bias": "encoder.down_block.down.0.block.1.norm1.bias",
        "encoder.down.3.attn.1.norm.weight": "encoder.down_block.down.3.attn_norms.1.weight",
        "encoder.down.3.attn.0.proj_out.bias": "encoder.down_block.down.3.attn.0.out_proj.bias",
        "encoder.mid.attn_1.k.weight": "encoder.middle_block.attn_1.k_proj.weight",
        "encoder.mid.attn_1.norm.bias": "encoder.middle_block.attn_norm.bias",
        "decoder.mid.attn_1.norm.norm_layer.weight": "decoder.middle_block.attn_norm.norm_layer.weight",
        "decoder.up.3.attn.2.norm.conv_y.weight": "decoder.up_block.up.3.attn_norms.2.conv_y.weight",
        "decoder.up.1.upsample.conv.bias": "decoder.up_block.up.1.upsample.conv.bias",
        "quantize.embedding.weight": "quantize.embedding.weight",
    }
    assert {name: emu3_vision.rename(name) for name in pairs} == pairs


def test_the_decoder_is_not_kept(univla_folder):
    names = {name.partition(".")[0] for name, _ in load(univla_folder)._assets.vision._model.named_parameters()}
    assert names == {"encoder", "quantize", "quant_conv"}


def test_preprocess_has_one_choice(univla_folder):
    with pytest.raises(ConfigError, match="valid: simpler"):
        load_adapter("univla", str(univla_folder), preprocess="widowx")


def test_progress_ascends_to_one_and_names_the_shards(univla_folder):
    seen: list[tuple[str, float]] = []
    load_adapter("univla", str(univla_folder), progress=lambda message, fraction: seen.append((message, fraction)))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert 0.0 <= fractions[0] < fractions[-1] == 1.0
    assert any(SHARD in message for message, _ in seen)


@pytest.mark.long
def test_the_checkpoint_is_the_same_in_every_process(univla_folder, tmp_path):
    code = "import sys, pathlib, dtp_ros.models.tiny_univla as t; t.write_tiny_univla(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    files = sorted(path.relative_to(univla_folder) for path in univla_folder.rglob("*") if path.is_file())
    assert len(files) == 12
    assert sum((univla_folder / file).stat().st_size for file in files) < 40e6
    for file in files:
        assert (univla_folder / file).read_bytes() == (tmp_path / file).read_bytes(), file

"""Each way in which an OpenVLA checkpoint can be broken, foreign, or laid out otherwise."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from dtp_ros.errors import CheckpointError
from dtp_ros.models import openvla as model
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.tiny import tiny_checkpoint
from dtp_ros.models.tiny_openvla import write_tiny_openvla

VISION, TEXT, HEAD = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
FUSED = "vision_backbone.fused_featurizer"


@pytest.fixture(scope="module")
def whole(cache):
    return tiny_checkpoint("openvla", write_tiny_openvla)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


def load(folder, **kwargs):
    return load_adapter("openvla", str(folder), device="cpu", **kwargs)


def edit_json(folder, name, change):
    path = folder / name
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def edit(folder, shard, change):
    tensors = load_file(folder / shard)
    change(tensors)
    save_file(tensors, folder / shard, metadata={"format": "pt"})


def test_the_published_architecture_has_the_published_number_of_weights():
    """The hub counts 7,541,237,184 values in 982 tensors; 43 of these lie behind the features that are read."""
    config = LlamaConfig.from_dict({"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000})
    with torch.device("meta"):
        network = model.OpenVlaNetwork(list(model.TOWERS.values()), config)

    def mlp(width, inner):
        return 2 * width * inner + inner + width

    def block(width, inner):
        return 4 * width + 4 * width * width + 4 * width + mlp(width, inner)

    dino = block(1024, 4096) + 2 * 1024 + 2 * 1024  # last block, its two scales, norm
    siglip = block(1152, 4304) + 2 * 1152
    pool = 1152 + 4 * (1152 * 1152 + 1152) + 2 * 1152 + mlp(1152, 4304)
    parameters = [p.numel() for p in network.parameters()]
    assert sum(parameters) + dino + siglip + pool == 7_541_237_184
    assert len(parameters) + (14 + 2) + (12 + 2) + 13 == 982


def test_the_tiny_checkpoint_is_the_same_in_every_process(whole, tmp_path):
    code = "import sys, pathlib, dtp_ros.models.tiny_openvla as t; t.write_tiny_openvla(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    files = sorted(path.name for path in whole.iterdir())
    assert len(files) == 11
    assert sum((whole / file).stat().st_size for file in files) < 15e6
    for file in files:
        assert len({hashlib.sha256((root / file).read_bytes()).digest() for root in (whole, tmp_path)}) == 1, file


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer.json", VISION, TEXT, "model.safetensors.index.json"]
)
def test_half_a_checkpoint_names_the_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load(folder)


@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "tokenizer.json", "dataset_statistics.json", TEXT],
)
def test_a_truncated_file_is_named(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("shard", "name"),
    [
        (VISION, f"{FUSED}.blocks.1.attn.qkv.weight"),
        (TEXT, "projector.fc2.weight"),
        (TEXT, "language_model.model.layers.3.mlp.up_proj.weight"),
        (HEAD, "language_model.lm_head.weight"),
    ],
)
def test_weights_that_are_not_finite_are_refused(folder, shard, name, value):
    edit(folder, shard, lambda tensors: tensors[name][5].fill_(value))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} holds values .* not finite"):
        load(folder)


def test_weights_behind_the_features_are_not_needed(folder, whole):
    """SigLIP's pooling, both towers' last block and norm: nothing reads them, there or not."""

    def drop(tensors):
        behind = [name for name in tensors if re.search(r"attn_pool|featurizer\.norm|blocks\.3|fused.*blocks\.2", name)]
        assert len(behind) == 43
        for name in behind:
            del tensors[name]

    edit(folder, VISION, drop)
    pruned, plain = (dict(load(f).network.named_parameters()) for f in (folder, whole))
    assert pruned.keys() == plain.keys()
    assert all(pruned[name].equal(plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("shard", "name"),
    [
        (VISION, "vision_backbone.featurizer.blocks.2.ls1.scale_factor"),
        (VISION, "vision_backbone.featurizer.reg_token"),
        (VISION, f"{FUSED}.blocks.1.norm2.bias"),
        (TEXT, "projector.fc3.bias"),
        (TEXT, "language_model.model.layers.15.self_attn.k_proj.weight"),
        (HEAD, "language_model.lm_head.weight"),
    ],
)
def test_missing_unexpected_and_misshapen_weights_are_named(folder, shard, name):
    kept = load_file(folder / shard)[name]
    edit(folder, shard, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"lacks the weights {re.escape(name)}$"):
        load(folder)
    edit(folder, shard, lambda tensors: tensors.update({name: torch.cat([kept, kept])}))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} has shape"):
        load(folder)
    edit(folder, shard, lambda tensors: tensors.update({name: kept, f"{name}_x": kept.clone()}))
    with pytest.raises(CheckpointError, match=rf"weights that this model has not: {re.escape(name)}_x"):
        load(folder)


def test_one_file_of_float32_loads_too(folder, whole):
    """As a fine-tuned model may be saved: no index, another type of number."""
    tensors = {}
    for shard in (VISION, TEXT, HEAD):
        tensors |= {name: value.float() for name, value in load_file(folder / shard).items()}
        (folder / shard).unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    one, three = load(folder), load(whole)
    assert all(p.equal(q) for p, q in zip(one.network.parameters(), three.network.parameters(), strict=True))


def test_another_model_is_named_by_its_type(folder):
    edit_json(folder, "config.json", lambda raw: raw.update(model_type="qwen2_5_vl"))
    with pytest.raises(CheckpointError, match=r"model_type 'qwen2_5_vl' \(valid here: 'openvla'\)"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timm_model_ids": ["vit_so400m_patch14_siglip_224"], "use_fused_vision_backbone": False}, "timm_model_ids"),
        ({"image_sizes": [384, 384]}, r"image_sizes = \[384, 384\] \(valid: \[224, 224\]"),
        ({"image_resize_strategy": "letterbox"}, "image_resize_strategy = 'letterbox'"),
        ({"timm_model_args": [{"depth": 3}]}, "timm_model_args"),
        ({"n_action_bins": None}, "incomplete"),
        ({"n_action_bins": 40000}, "40000 action bins in 32000 tokens"),
        ({"text_config": {"hidden_size": "many"}}, "no valid text_config"),
        ({"text_config": None}, "no valid text_config"),
    ],
)
def test_relatives_of_openvla_and_broken_settings_are_refused(folder, change, message):
    edit_json(folder, "config.json", lambda raw: raw.update(change))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_openvla_oft_is_named(folder):
    (folder / "action_head--150000_checkpoint.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="looks like OpenVLA-OFT"):
        load(folder)


@pytest.mark.parametrize("change", [{"means": [[0.5] * 3]}, {"stds": [[0.0] * 3] * 2}, {"means": "grey"}])
def test_a_broken_preprocessor_is_refused(folder, change):
    edit_json(folder, "preprocessor_config.json", lambda raw: raw.update(change))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        load(folder)


def test_another_tokenizer_is_refused(folder):
    edit_json(folder, "tokenizer.json", lambda raw: raw["model"]["vocab"].update({"▁": 9999, "#": 29871}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not Llama-2's: id 29871"):
        load(folder)


@pytest.mark.parametrize("name", ["dataset_statistics.json", "config.json"])
def test_a_wrong_statistics_key_lists_the_keys(folder, name):
    if name == "config.json":
        (folder / "dataset_statistics.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{name} has no .*'kuka' \(valid: bridge_orig, fractal20220817_data\)"):
        load(folder, options={"statistics_key": "kuka"})


def test_statistics_of_the_fine_tuning_go_before_those_of_the_configuration(folder):
    """As in the published evaluation and server; without the file those of config.json serve."""

    def widen(raw):
        raw["bridge_orig"]["action"]["q99"][0] = 0.5

    edit_json(folder, "dataset_statistics.json", widen)
    highest = [31744] * 7
    assert load(folder).decode(highest)[0, 0] == pytest.approx(-0.0287 + 0.5287 * (1 - 0.5 / 255))
    (folder / "dataset_statistics.json").unlink()
    assert load(folder).decode(highest)[0, 0] == pytest.approx(-0.0287 + 0.057 * (1 - 0.5 / 255))


def test_without_a_mask_the_gripper_is_scaled_too(folder):
    """The original's default; from q01 = 0 to q99 = 1 the lowest bin is closed and the highest is open."""
    edit_json(folder, "dataset_statistics.json", lambda raw: raw["bridge_orig"]["action"].pop("mask"))
    adapter = load(folder)
    assert adapter.decode([31872] * 7)[0, 6] == pytest.approx(0.5)
    assert adapter.decode([31744] * 7)[0, 6] == pytest.approx(1 - 0.5 / 255)


@pytest.mark.parametrize("change", [{"q01": [0.0] * 14}, {"q99": [-1.0] * 7}, {"q01": None}])
def test_broken_statistics_are_refused(folder, change):
    def broken(raw):
        raw["bridge_orig"]["action"].update(change)
        if change == {"q01": None}:
            del raw["bridge_orig"]["action"]["q01"]

    edit_json(folder, "dataset_statistics.json", broken)
    with pytest.raises(CheckpointError, match=r"dataset_statistics\.json: bridge_orig\.action"):
        load(folder)


def test_no_statistics_at_all_are_refused(folder):
    (folder / "dataset_statistics.json").unlink()
    edit_json(folder, "config.json", lambda raw: raw.pop("norm_stats"))
    with pytest.raises(CheckpointError, match=r"config\.json has no statistics 'bridge_orig'"):
        load(folder)


def test_progress_ascends_to_one_and_names_the_shards(whole):
    seen: list[tuple[str, float]] = []
    load(whole, progress=lambda message, fraction: seen.append((message, fraction)))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert all(any(shard in message for message, _ in seen) for shard in (VISION, TEXT, HEAD))

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dtp_ros.errors import CheckpointError, ConfigError, DeviceError
from dtp_ros.models import checkpoint
from dtp_ros.models.registry import load_adapter

SHARD = "model-00002-of-00002.safetensors"


def load(folder):
    return load_adapter("nora", str(folder), device="cpu")


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
     "norm_stats.json", "model-00001-of-00002.safetensors", SHARD, "fast/tokenizer.json", "fast/processor_config.json",
     "model.safetensors.index.json"],
)  # fmt: skip
def test_half_a_checkpoint_names_the_missing_file(damaged, name):
    with pytest.raises(CheckpointError) as error:
        load(damaged(name))
    assert name.rpartition("/")[2] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "norm_stats.json", "model.safetensors.index.json", "tokenizer.json"])
def test_a_broken_json_file_is_named(damaged, name):
    folder = damaged()
    (folder / name).write_text((folder / name).read_text()[:100])
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load(folder)


def test_a_truncated_shard_is_named(damaged):
    folder = damaged()
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=f"{SHARD} is truncated"):
        load(folder)


def edit(folder, change):
    tensors = load_file(folder / SHARD)
    change(tensors)
    save_file(tensors, folder / SHARD, metadata={"format": "pt"})


def poison(value):
    def change(tensors):
        tensors["model.layers.3.mlp.up_proj.weight"][5, 7] = value

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(damaged, value):
    folder = damaged()
    edit(folder, poison(value))
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.mlp\.up_proj\.weight holds values .* not finite"):
        load(folder)


def test_missing_unexpected_and_misshapen_weights_are_named(damaged):
    folder = damaged()
    edit(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"lacks the weights model\.language_model\.norm\.weight$"):
        load(folder)
    edit(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[65\], the model needs \[64\]"):
        load(folder)
    edit(folder, lambda tensors: tensors.update({"model.norm.bias": torch.ones(64)}))
    with pytest.raises(CheckpointError, match=r"holds weights that this model has not: model\.norm\.bias"):
        load(folder)


def test_another_model_is_named_by_its_type(damaged):
    folder = damaged()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "paligemma"}))
    with pytest.raises(CheckpointError, match=r"model_type 'paligemma' \(valid here: 'qwen2_5_vl'\)"):
        load(folder)


def test_a_plain_qwen_is_not_nora(damaged):
    folder = damaged()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 151936}))
    with pytest.raises(CheckpointError, match="151936 tokens, not the 153713"):
        load(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "pytorch_model.bin"])
def test_an_index_that_names_other_files_is_refused(damaged, name):
    folder = damaged()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not a safetensors file beside it"):
        load(folder)


@pytest.mark.parametrize("name", ["/nowhere/nora", "nora", "a/b/c", "./nora"])
def test_what_is_no_folder_and_no_hub_id_is_refused(name):
    with pytest.raises(CheckpointError, match="neither a folder, nor a hub id"):
        load_adapter("nora", name)


def test_failed_loading_leaves_the_default_dtype_alone(damaged):
    with pytest.raises(CheckpointError):
        load_adapter("nora", str(damaged(SHARD)), dtype="bfloat16")
    assert torch.get_default_dtype() == torch.float32


def test_a_gpu_that_only_emulates_bfloat16_gets_float32(monkeypatch):
    """As a T4: torch says by default that bfloat16 is supported, since it can be emulated."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    cuda = torch.device("cuda")
    assert checkpoint.resolve_dtype("auto", cuda, "bfloat16") == torch.float32
    assert checkpoint.resolve_dtype("auto", cuda, "float16") == torch.float16
    with pytest.raises(DeviceError, match=r"'bfloat16' on Tesla T4 \(valid there: float32, float16\)"):
        checkpoint.resolve_dtype("bfloat16", cuda, "bfloat16")


def test_devices_and_dtypes_that_are_not_there_are_refused():
    cpu = torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no CUDA device"):
            load_adapter("nora", "tiny", device="cuda")
        assert checkpoint.resolve_device("auto") == cpu
    with pytest.raises(DeviceError, match=r"'float16' on the CPU \(valid there: auto, float32, bfloat16, int8, int4\)"):
        load_adapter("nora", "tiny", device="cpu", dtype="float16")
    with pytest.raises(ConfigError, match="valid: auto, cpu, cuda"):
        checkpoint.resolve_device("gpu")
    with pytest.raises(ConfigError, match="valid: auto, float32, float16, bfloat16, int8, int4"):
        checkpoint.resolve_dtype("int2", cpu, "bfloat16")
    assert checkpoint.resolve_dtype("auto", cpu, "bfloat16") == torch.float32
    assert checkpoint.resolve_dtype("auto", torch.device("cuda"), "float16") == torch.float16


def test_progress_ascends_to_one_and_names_the_shards(nora_folder):
    seen: list[tuple[str, float]] = []
    load_adapter("nora", str(nora_folder), progress=lambda message, fraction: seen.append((message, fraction)))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert 0.0 <= fractions[0] < fractions[-1] == 1.0
    assert any(SHARD in message for message, _ in seen)


HUB = """
import json, shutil, sys
from pathlib import Path
from dtp_ros.errors import CheckpointError
from dtp_ros.models.checkpoint import commit_of
from dtp_ros.models.registry import load_adapter

source, home = Path(sys.argv[1]), Path(sys.argv[2])

def store(owner, name, revision, ignore=()):
    repository = home / "hub" / f"models--{owner}--{name}"
    snapshot = repository / "snapshots" / revision
    shutil.copytree(source, snapshot, ignore=shutil.ignore_patterns(*ignore))
    names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
    files = {name: {"size": (snapshot / name).stat().st_size, "blob_id": "e" * 40} for name in names}
    files["README.md"] = {"size": 3, "blob_id": "f" * 40}  # of the repository, and not wanted
    (repository / "trees").mkdir()
    (repository / "trees" / f"{revision}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)

def attempt(*args, **kwargs):
    try:
        print("horizon", load_adapter(*args, **kwargs).horizon)
    except CheckpointError as error:
        print("refused:", error)

attempt("nora", "declare-lab/nora")
store("declare-lab", "nora", "a" * 40)
attempt("nora", "declare-lab/nora")
store("declare-lab", "nora-long", "c" * 40, ("norm_stats.json",))
attempt("nora", "declare-lab/nora-long", revision="c" * 40)
of_hub = [("nora", ""), ("nora", "main"), ("nora-long", "c" * 40)]
of_hub = [commit_of(f"declare-lab/{name}", revision) for name, revision in of_hub]
print([commit[:1] for commit in of_hub], [commit_of(str(source)), commit_of("tiny")])
if sys.argv[3] == "1":
    attempt("nora", "declare-lab/nora", revision="b" * 40)
    store("someone", "half", "d" * 40, ("fast", "model-00002*"))
    attempt("nora", "someone/half")
    source = source / "fast"
    store("physical-intelligence", "fast", "ec4d7aa71691cac0b8bed6942be45684db2110f4")
    attempt("nora", "someone/half")
"""


@pytest.mark.parametrize("offline", ["1", pytest.param("0", marks=pytest.mark.long)])
def test_hub_ids_come_from_the_hubs_cache_or_say_why_not(nora_folder, tmp_path, offline):
    """A hub that cannot be reached (nothing listens at its address), and a cache as huggingface_hub lays it out."""
    home = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(nora_folder), str(tmp_path), offline],
        env={**os.environ, **home}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "refused: checkpoint declare-lab/nora at main cannot be had from the hub: it cannot be reached, and no "
        "whole copy is in the cache",
        "horizon 1",
        "horizon 5",
        "['a', 'a', 'c'] ['', '']",
    ], done.stderr
    if offline == "1":
        assert lines[4].startswith(f"refused: checkpoint declare-lab/nora at {'b' * 40} cannot be had")
        assert "physical-intelligence/fast at ec4d7aa7" in lines[5]
        assert SHARD in lines[6]

"""UniVLA's three published repositories, in a cache as huggingface_hub lays it out, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HUB = """
import shutil, sys
from pathlib import Path
from dtp_ros.errors import CheckpointError
from dtp_ros.models.registry import load_adapter, model_defaults

source, home = Path(sys.argv[1]), Path(sys.argv[2])
options = {**model_defaults("univla")["options"], "fast_tokenizer": str(source / "fast_bridge_t5_s50")}
options["statistics"] = str(source)

def store(name, revision, files, under=""):
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / revision / under
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(source / file, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)

def attempt():
    try:
        print("loaded", load_adapter("univla", "Yuqi1997/UniVLA", device="cpu", options=options).horizon)
    except CheckpointError as error:
        print("refused:", error)

attempt()
policy = ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
policy = (*policy, "model-00002-of-00002.safetensors")
store("Yuqi1997/UniVLA", "a" * 40, policy, options["subfolder"])
attempt()
store("BAAI/Emu3-Stage1", options["text_revision"], ("emu3.tiktoken", "emu3_vision_tokens.txt"))
attempt()
vision = [f"vision_tokenizer/{name}" for name in ("config.json", "preprocessor_config.json", "model.safetensors")]
store("BAAI/Emu3-VisionTokenizer", options["vision_revision"], vision)
attempt()
"""


@pytest.mark.long
def test_the_published_repositories_come_from_the_hubs_cache_or_are_named(univla_folder, tmp_path):
    """Offline, with a cache as huggingface_hub lays it out: three repositories, the policy in a folder of its own."""
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(univla_folder), str(tmp_path)],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert lines[0].startswith("refused: checkpoint Yuqi1997/UniVLA at main cannot be had from the hub")
    assert lines[1].startswith("refused: checkpoint BAAI/Emu3-Stage1 at 36cf688d")
    assert lines[2].startswith("refused: checkpoint BAAI/Emu3-VisionTokenizer at c81f916a")
    assert lines[3] == "loaded 5"

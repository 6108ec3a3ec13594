"""make bench: host memory while a checkpoint of 1 GB loads, over the size of its weights, for each model.

The checkpoint is the model's tiny one, the MLPs of its language model widened by random bfloat16 weights, in four
shards. A process of its own loads the tiny one first (libraries count once), then the large one, in bfloat16 (or as
--dtype says) on the CPU; its peak is the kernel's (VmHWM, mapped files too), less what was there before, over the size
of the weights in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dtp_ros.models import pi0_fast
from dtp_ros.models.quantise import GROUP
from dtp_ros.models.registry import load_adapter, model_names
from dtp_ros.models.tiny import cache_folder

WEIGHT_BYTES = 1_050_000_000
SHARDS = 4
LIMIT = 1.3
MLP = re.compile(r"(?!.*visual).*layers\.\d+\.mlp\.(gate|up|down)_proj\.weight")
WIDTH = "DTP_BENCH_WIDTH"  # pi0-FAST's config.json names a variant, not a width: the child has to be told


def main() -> int:
    """Print and write the figures; 1 where a model needs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench/loading.json"))
    parser.add_argument("--dtype", choices=("bfloat16", "int8", "int4"), default="bfloat16")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, folder = options.child
        print(json.dumps(measure(name, folder, options.dtype)))
        return 0
    names = [name for name in model_names() if name != "tabletop"]  # 12 MB, one size only
    figures = {name: bench(name, options.dtype) for name in names}
    for name, figure in figures.items():
        print(f"{name:11} {figure['weights'] / 1e9:.2f} GB of weights, peak {figure['ratio']:.2f} times that")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(figure["ratio"] > LIMIT for figure in figures.values()))


def bench(name: str, dtype: str) -> dict[str, Any]:
    """Write the large checkpoint, load it in a process of its own, and remove it."""
    load_adapter(name, "tiny", device="cpu")  # writes the tiny checkpoint
    tiny = max((cache_folder() / "tiny").glob(f"{name}-*"), key=lambda folder: folder.stat().st_mtime)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as draft:
        folder = Path(draft) / "checkpoint"
        shutil.copytree(tiny, folder)
        width = enlarge(folder)
        command = [sys.executable, __file__, "--dtype", dtype, "--child", name, str(folder)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, WIDTH: str(width)})
    figure: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return figure


def enlarge(folder: Path) -> int:
    """Widen the MLPs of the language model until the weights are large, in shards; returns the width."""
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if file.name.startswith("model")]
    weights = {key: value.bfloat16() for file in files for key, value in load_file(file).items()}
    narrow = [key for key in weights if MLP.match(key)]
    hidden, layers = min(weights[narrow[0]].shape), len(narrow) // 3
    width = -(-WEIGHT_BYTES // (2 * 3 * hidden * layers * GROUP)) * GROUP
    generator = torch.Generator().manual_seed(0)
    for key in narrow:
        shape = (hidden, width) if "down" in key else (width, hidden)
        weights[key] = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
    for file in files:
        file.unlink()
    keys = list(weights)
    weight_map: dict[str, str] = {}
    for i in range(SHARDS):
        shard = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        save_file({key: weights[key] for key in keys[i::SHARDS]}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(keys[i::SHARDS], shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config.get("text_config") or {}):
        if "intermediate_size" in part:
            part["intermediate_size"] = width
    (folder / "config.json").write_text(json.dumps(config))
    return width


def measure(name: str, folder: str, dtype: str) -> dict[str, Any]:
    """Load it here: bytes of weights, peak memory over them, and seconds."""
    load_adapter(name, "tiny", device="cpu", dtype=dtype)
    pi0_fast.VARIANTS["tiny"][0]["intermediate_size"] = int(os.environ[WIDTH])  # type: ignore[index]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, began = resident("VmRSS"), time.monotonic()
    options = {"convention": "libero"} if name == "pi0_fast" else {}
    adapter = load_adapter(name, folder, device="cpu", dtype=dtype, options=options)
    peak, seconds = resident("VmHWM") - before, time.monotonic() - began
    size = sum(p.numel() * p.element_size() for p in adapter.text_model.parameters())  # as bfloat16, also if quantised
    return {"weights": size, "ratio": round(peak / size, 3), "seconds": round(seconds, 1)}


def resident(field: str) -> int:
    """A figure of /proc/self/status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(main())

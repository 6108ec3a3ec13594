"""Peak memory of steps, in a process of its own: `python -m benchmarks.memory --model nora --steps dtp`.

On CUDA torch's own count. On the CPU the kernel's (VmHWM, begun anew once the weights are there), less what the process
had before the weights: weights, caches and what a step needs on the way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.models import RandomAdapter, random_adapter
from benchmarks.shapes import SHAPES
from benchmarks.steps import clean_run, dtp_run, setting
from dtp_ros.models.base import Observation

DTP_SETTINGS = (("per_step", "action"), ("per_token", "action"), ("per_step", "all"))


def peak_bytes(model: str, steps: str, device: torch.device, dtype: str) -> int:
    """Bytes at the peak of the steps `clean`, or `dtp` (the largest of DTP_SETTINGS), measured in another process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--model", model, "--steps", steps]
    command += ["--device", device.type, "--dtype", dtype]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(answer.stdout.splitlines()[-1])["peak"])


def main() -> None:
    """The child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=list(SHAPES), required=True)
    parser.add_argument("--steps", choices=["clean", "dtp"], required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    device = torch.device(options.device)
    # A run of a tenth of a step's kind, so that the libraries' own buffers count as theirs.
    torch.nn.functional.linear(torch.ones(2, 64), torch.ones(64, 64))
    before = resident("VmRSS")
    adapter = random_adapter(SHAPES[options.model], getattr(torch, options.dtype), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    run(adapter, options.steps)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM") - before
    print(json.dumps({"peak": peak}))


def run(adapter: RandomAdapter, steps: str) -> None:
    """The steps to be measured."""
    with torch.inference_mode():
        prompt = adapter.prepare(Observation((), "", stamp=0.0))
        if steps == "clean":
            clean_run(adapter, prompt)
            return
        for schedule, scope in DTP_SETTINGS:
            dtp_run(adapter, prompt, setting(adapter.shape.config, schedule, scope))


def resident(field: str) -> int:
    """A figure of /proc/self/status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()

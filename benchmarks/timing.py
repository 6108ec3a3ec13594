"""Interleaved measuring: what is compared is run in turns, so that a slow minute of the machine meets all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dtp_ros.study.step_model import processor

Seconds = Mapping[str, Sequence[float]]
BLOCK_BYTES = 1 << 29  # far beyond any cache


@dataclass(frozen=True)
class Estimate:
    """Median and quartiles of `runs` numbers."""

    value: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Estimate:
        """Of the numbers themselves."""
        low, middle, high = (float(x) for x in np.percentile(numbers, [25, 50, 75]))
        return cls(middle, low, high, len(numbers))


def interleave(
    runs: Mapping[str, Callable[[int], object]], repeats: int, device: torch.device, limits: Mapping[str, int]
) -> dict[str, list[float]]:
    """Seconds of each of `runs`, run in turns (A B C A B C ...) after one round that warms up.

    Each gets the number of the round (0 in the warm-up too). limits: names of what takes long, and is run in the first
    so many rounds only; on the CPU the others warm up for it. On CUDA a measurement ends when the device is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        if name not in limits or device.type == "cuda":
            timed(run, 0, device)
    for turn in range(repeats):
        for name, run in runs.items():
            if turn < limits.get(name, repeats):
                seconds[name].append(timed(run, turn, device))
    return seconds


def timed(run: Callable[[int], object], turn: int, device: torch.device) -> float:
    """Seconds of one run."""
    synchronize(device)
    begin = time.perf_counter()
    run(turn)
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(seconds: Seconds, above: str, *below: str) -> Estimate:
    """The median of the ratios of one round's measurements, `above` over the sum of `below`.

    Not the ratio of the medians: a neighbour on the machine slows whole rounds, which leaves a round's ratio alone,
    and the rounds' prompts differ, which both sides of a ratio share.
    """
    rounds = zip(seconds[above], *(seconds[name] for name in below), strict=False)
    return Estimate.of([first / sum(others) for first, *others in rounds])


def read_bandwidth(device: torch.device, repeats: int = 9) -> float:
    """Bytes/s of a float32 sum over half a GB: reading alone, as decoding reads its weights."""
    block = torch.ones(BLOCK_BYTES // 4, device=device)
    return BLOCK_BYTES / _least(lambda: block.sum(), repeats, device)


def copy_bandwidth(device: torch.device, repeats: int = 9) -> float:
    """Bytes/s, read and written, of a copy of half a GB."""
    source = torch.ones(BLOCK_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * BLOCK_BYTES / _least(lambda: target.copy_(source), repeats, device)


def _least(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The least time of several: what the machine can do, when nobody else wants it."""
    return min(timed(lambda _: run(), 0, device) for _ in range(repeats + 1))


def set_threads(count: int | None) -> int:
    """Let torch use `count` threads, or as many as there are cores; returns how many."""
    torch.set_num_threads(count or os.cpu_count() or 1)
    return torch.get_num_threads()


def machine(device: torch.device, dtype: str) -> dict[str, Any]:
    """What was measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "processor": processor(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "dtype": dtype,
        "torch": torch.__version__,
        "sum, GB/s read": round(read_bandwidth(device) / 1e9, 1),
        "copy, GB/s read and written": round(copy_bandwidth(device) / 1e9, 1),
    }

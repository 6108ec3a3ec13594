"""Wall time of the stages of a step, without making the CPU wait for the GPU between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = ("prepare", "prefill", "analyse", "refine", "decode")


class StageClock:
    """Adds up the time of each stage of one step.

    On CUDA the stages are marked by events in the stream and read once, at the end: the queue of kernels never drains
    for the sake of a figure. Elsewhere by the monotonic clock.

    prepare: inputs and vision tower. prefill: the clean prefill. analyse: region, pattern, detection, and the clean
    pass that gives the figures of a whole step. refine: every pass under a mask. decode: clean single-token passes,
    choice of tokens, ids to actions, ensembling.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._events: list[tuple[str, torch.Event, torch.Event]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside as part of the stage `name`, one of STAGES; not to be nested."""
        if self._device.type == "cuda":
            begin = self._mark()
            yield
            self._events.append((name, begin, self._mark()))
        else:
            begin_time = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin_time

    def _mark(self) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far, and `total` since the clock was made; waits for the device."""
        if self._events:
            torch.cuda.synchronize(self._device)
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._events.clear()
        return {**self._seconds, "total": time.perf_counter() - self._start}

"""make bench: how the time of a step grows with image tokens, words of the prompt and action tokens.

`python -m benchmarks.growth` measures a random model of 0.1 B parameters and draws docs/performance_growth.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import RandomAdapter, random_adapter
from benchmarks.shapes import Shape, growing
from benchmarks.steps import clean_run, dtp_run, setting
from benchmarks.timing import Estimate, interleave, set_threads
from dtp_ros.models.base import Observation, Prompt

SETTINGS: Mapping[str, tuple[str, str]] = {
    "per_step, action": ("per_step", "action"),
    "per_token, action": ("per_token", "action"),
    "per_token, all": ("per_token", "all"),
}
CLEAN = "without DTP"
LONG = 1024  # prompt tokens from which a prefill a token is run once only


@dataclass(frozen=True)
class Sweep:
    """What is varied, and how."""

    axis: str
    values: Sequence[int]
    shape: Callable[[int], Shape]

    def up_to(self, largest: int) -> Sweep:
        """Without the larger values."""
        return replace(self, values=[value for value in self.values if value <= largest])


SWEEPS: Mapping[str, Sweep] = {
    "image": Sweep("image tokens", (64, 256, 1024, 4096), lambda n: growing(image_side=round(n**0.5))),
    "prompt": Sweep("words of the prompt", (16, 64, 256, 1024), lambda n: growing(words=n)),
    "action": Sweep("action tokens", (2, 4, 8, 16, 32), lambda n: growing(tokens=n)),
}
Curves = dict[str, list[float]]


def measure(sweep: Sweep, repeats: int, device: torch.device, dtype: torch.dtype) -> Curves:
    """Median seconds of a step, for each setting a list over the values of the sweep."""
    curves: Curves = {name: [] for name in (CLEAN, *SETTINGS)}
    for value in sweep.values:
        shape = sweep.shape(value)
        adapter = random_adapter(shape, dtype, device)
        with torch.inference_mode():
            prompt = adapter.prepare(Observation((), ""))
            runs = dict(_runs(adapter, prompt))
            limits = {"per_token, all": 1} if shape.prompt_tokens > LONG else {}
            seconds = interleave(runs, repeats, device, limits)
        for name, times in seconds.items():
            curves[name].append(Estimate.of(times).value)
        print(f"{value} {sweep.axis}:", {name: round(values[-1], 3) for name, values in curves.items()}, flush=True)
    return curves


def _runs(adapter: RandomAdapter, prompt: Prompt) -> Iterator[tuple[str, Callable[[int], object]]]:
    yield CLEAN, lambda _: clean_run(adapter, prompt)
    for name, (schedule, scope) in SETTINGS.items():
        yield name, partial(_step, adapter, prompt, schedule, scope)


def _step(adapter: RandomAdapter, prompt: Prompt, schedule: str, scope: str, _turn: int) -> None:
    dtp_run(adapter, prompt, setting(adapter.shape.config, schedule, scope))


def draw(curves: Mapping[str, Curves], path: Path, title: str) -> None:
    """A column a sweep: above the time of a step, below that over the time without DTP."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7 * len(curves), 5.6), layout="constrained")
    axes = figure.subplots(2, len(curves), sharex="col", squeeze=False)
    for column, (name, lines) in enumerate(curves.items()):
        values = SWEEPS[name].values[: len(lines[CLEAN])]
        for label, seconds in lines.items():
            ratios = [value / clean for value, clean in zip(seconds, lines[CLEAN], strict=True)]
            for row, heights in enumerate(([1e3 * value for value in seconds], ratios)):
                axes[row, column].plot(values, heights, marker="o", markersize=3, label=label)
        _finish(axes[0, column], axes[1, column], SWEEPS[name].axis, values)
    axes[0, 0].set_ylabel("time of a step, ms")
    axes[1, 0].set_ylabel("over the time without DTP")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=80)


def _finish(above: Any, below: Any, label: str, values: Sequence[int]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    above.set_xscale("log", base=2)
    below.set_xticks(values, [str(value) for value in values])
    below.set_xlabel(label)
    for axis in (above, below):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)


def main() -> None:
    """Measure, draw, and keep the numbers beside what `make bench` writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--largest", type=int, default=4096, help="leave out larger values")
    parser.add_argument("--picture", type=Path, default=Path("docs/performance_growth.png"))
    parser.add_argument("--json", type=Path, default=Path("out/bench/growth.json"))
    options = parser.parse_args()
    set_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    sweeps = {name: SWEEPS[name].up_to(options.largest) for name in options.sweeps}
    curves = {name: measure(sweep, options.repeats, device, dtype) for name, sweep in sweeps.items()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(curves, indent=2) + "\n", encoding="utf-8")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
    draw(curves, options.picture, f"a random model of 0.1 B parameters, {options.dtype}, {where}")


if __name__ == "__main__":
    main()

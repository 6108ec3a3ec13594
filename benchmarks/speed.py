"""make bench: what DTP costs, over the same engine without it, over the paper's recipe, and over stock `generate`.

`python -m benchmarks.speed` measures three random models of about half a billion parameters, writes
docs/performance.json, and puts the table into docs/performance.md. Every figure is a ratio of things run in turns.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import figures as fig
from benchmarks import report
from benchmarks.memory import peak_bytes
from benchmarks.models import RandomAdapter, random_adapter
from benchmarks.paper_recipe import paper_step, stock_generate
from benchmarks.shapes import SHAPES
from benchmarks.steps import clean_run, dtp_run, prefill_run, setting
from benchmarks.timing import Estimate, interleave, machine, read_bandwidth, set_threads
from dtp_ros.engine.types import StepTrace
from dtp_ros.models.base import Observation, Prompt
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.pruning.detect import distracting_tokens
from dtp_ros.study.roofline import PRECISIONS
from dtp_ros.study.step_model import MACHINES, MODELS, measured_machine, table

PROMPTS = 8
HEAVY = ("token_all", "recipe_all")  # a prefill a token: on a CPU the others warm up for it
PUBLISHED = ("bfloat16", "int8", "int4")  # precisions in the page's table of predictions


class ModelBench:
    """One model, the steps that are compared, and what they gave. To be used without gradients."""

    def __init__(self, adapter: RandomAdapter) -> None:
        self.adapter = adapter
        # By name and round: the round that warms up is the first one's twin.
        self.traces: dict[str, dict[int, StepTrace]] = defaultdict(dict)
        self.ids: dict[str, dict[int, list[int]]] = defaultdict(dict)
        self._prompts = [adapter.prepare(Observation((), "", stamp=float(i))) for i in range(PROMPTS)]

    def runs(self) -> dict[str, Callable[[int], None]]:
        """What is measured, by its name in figures.RATIOS; each takes the number of the round, which has a prompt."""
        adapter, config = self.adapter, self.adapter.shape.config
        action = setting(config, "per_step", "action")
        by_token = setting(config, "per_token", "action")
        by_all = setting(config, "per_token", "all")
        entropy = replace(action, tolerance_mode="min_entropy")
        return {
            "prefill": lambda turn: prefill_run(adapter, self._prompt(turn)),
            "clean": self._keep("clean", lambda prompt: clean_run(adapter, prompt)),
            "off": self._dtp("off", replace(action, variant="off")),
            "step_action": self._dtp("step_action", action),
            "min_entropy": self._dtp("min_entropy", entropy),
            "step_all": self._dtp("step_all", setting(config, "per_step", "all")),
            "token_action": self._dtp("token_action", by_token),
            "token_action_sequential": self._dtp("token_action_sequential", by_token, speculative=False),
            "recipe": self._keep("recipe", lambda prompt: paper_step(adapter, prompt, by_token)),
            "recipe_all": self._keep("recipe_all", lambda prompt: paper_step(adapter, prompt, by_all)),
            "stock": self._keep("stock", lambda prompt: stock_generate(adapter.whole, prompt, adapter.shape.tokens)),
            "token_all": self._dtp("token_all", by_all),
        }

    def notes(self) -> dict[str, str]:
        """What each measurement must be read with."""
        notes = {name: fig.firing(list(traces.values())) for name, traces in self.traces.items() if name != "off"}
        if "min_entropy" in notes:
            chosen = self.traces["min_entropy"].values()
            distinct = [distinct_masks(trace, self.adapter.shape.config) for trace in chosen]
            notes["min_entropy"] += f", {sum(distinct) / len(distinct):.1f} distinct masks"
        for name, other in (("off", "clean"), ("recipe", "token_action"), ("recipe_all", "token_all")):
            turns = self.ids[name].keys() & self.ids[other].keys()
            if turns:
                same = sum(self.ids[name][turn] == self.ids[other][turn] for turn in turns)
                notes[name] = f"same tokens in {same} of {len(turns)} steps"
        return notes

    def _prompt(self, turn: int) -> Prompt:
        return self._prompts[turn % PROMPTS]

    def _dtp(self, name: str, config: PruningConfig, *, speculative: bool = True) -> Callable[[int], None]:
        return partial(self._step, name, config, speculative)

    def _step(self, name: str, config: PruningConfig, speculative: bool, turn: int) -> None:
        ids, trace = dtp_run(self.adapter, self._prompt(turn), config, speculative=speculative)
        self.ids[name][turn] = ids
        self.traces[name][turn] = trace

    def _keep(self, name: str, step: Callable[[Prompt], list[int]]) -> Callable[[int], None]:
        def run(turn: int) -> None:
            ids = self.ids[name][turn] = step(self._prompt(turn))
            if len(ids) != self.adapter.shape.tokens:
                raise RuntimeError(f"{name} gave {len(ids)} tokens (valid: {self.adapter.shape.tokens})")

        return run


def distinct_masks(trace: StepTrace, config: PruningConfig) -> int:
    """How many different masks the grid of tolerances gives for the first token of a step."""
    pattern = torch.from_numpy(trace.tokens[0].pattern).flatten()
    region = torch.from_numpy(trace.region).flatten()
    masks = (distracting_tokens(pattern, region, tolerance, config.max_pruned) for tolerance in config.tolerance_grid)
    return len({tuple(mask.tolist()) for mask in masks})


def measure_time(name: str, options: argparse.Namespace, device: torch.device) -> list[fig.Figure]:
    """Build a model and measure the figures of time."""
    adapter = random_adapter(SHAPES[name], getattr(torch, options.dtype), device)
    shape = adapter.shape
    print(
        f"{name}: {adapter.parameters / 1e9:.3f} B parameters, {shape.prompt_tokens} prompt tokens, "
        f"{shape.image_tokens} of the image, {shape.tokens} action tokens",
        flush=True,
    )
    with torch.inference_mode():
        bench = ModelBench(adapter)
        runs = {key: run for key, run in bench.runs().items() if not options.only or key in options.only}
        limits = dict.fromkeys(HEAVY, options.repeats)
        seconds = interleave(runs, options.repeats, device, limits)
    kind = device.type
    for key, values in seconds.items():
        print(f"  {key:24} {1e3 * Estimate.of(values).value:9.1f} ms  {bench.notes().get(key, '')}", flush=True)
    found = fig.ratio_figures(name, seconds, kind, bench.notes())
    if {"clean", "prefill"} <= set(seconds):
        read_seconds = adapter.read_bytes / read_bandwidth(device)
        found.append(fig.reading_figure(name, seconds, shape.tokens, read_seconds, kind))
    if "clean" in seconds:
        found.append(fig.figure(name, "clean step", Estimate.of(seconds["clean"]), kind, unit="s"))
    accepted = fig.accepted_share(bench.traces["token_action"].values()) or 0.0
    precision = next(p for p in PRECISIONS if p.name == options.dtype)
    at_hand = measured_machine(device, options.dtype)
    return found + fig.prediction_figures(adapter.sizes(), seconds, at_hand, precision, accepted, kind)


def measure_memory(name: str, options: argparse.Namespace, device: torch.device) -> fig.Figure:
    """The figure of memory, from two processes."""
    clean, dtp = (peak_bytes(name, steps, device, options.dtype) for steps in ("clean", "dtp"))
    note = f"{clean / 1e9:.2f} GB without DTP, weights included"
    return fig.figure(name, fig.MEMORY, Estimate.of([dtp / clean]), device.type, note=note)


def measure_node(device: torch.device) -> fig.Figure:
    """What ROS adds to the model's step, ms; the device has another bound."""
    from benchmarks import node_overhead

    steps = node_overhead.run()
    estimate = Estimate.of([step.overhead for step in steps])
    late = float(np.percentile([step.overhead for step in steps], 95))
    return fig.figure("node", fig.NODE, estimate, device.type, unit="ms", note=f"95 % within {late:.1f} ms")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="default: as many as there are cores")
    parser.add_argument(
        "--only", nargs="+", default=[], help="measurements (clean, step_action, ...), `memory`, `node`"
    )
    parser.add_argument("--json", type=Path, default=Path("docs/performance.json"))
    parser.add_argument("--table", type=Path, default=Path("docs/performance.md"))
    return parser.parse_args(arguments)


def main() -> int:
    """Measure, print and write. Bounds that do not hold are said, and are no failure: machines differ."""
    options = parse()
    device = torch.device(options.device)
    set_threads(options.threads)
    about = machine(device, options.dtype)
    print(about, flush=True)
    found: list[fig.Figure] = []
    for name in options.models:
        if not options.only or set(options.only) - {"memory", "node"}:
            found += measure_time(name, options, device)
        if not options.only or "memory" in options.only:
            found.append(measure_memory(name, options, device))
    if not options.only or "node" in options.only:
        found.append(measure_node(device))
    report.write(found, about, options.json, options.table)
    models = [model for model in MODELS if model.name != "tabletop"]  # the start of kernels is all of its time
    precisions = [precision for precision in PRECISIONS if precision.name in PUBLISHED]
    report.replace_between(options.table, "predictions", list(table(MACHINES, models, precisions)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

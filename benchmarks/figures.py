"""What is compared with what, and what is promised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.timing import Estimate, Seconds, ratio
from dtp_ros.engine.types import StepTrace
from dtp_ros.study.roofline import Machine, Precision, Vla, step_seconds


@dataclass(frozen=True)
class Target:
    """A bound on a figure on each kind of device, or None; `at_least` bounds from below."""

    cpu: float | None = None
    cuda: float | None = None
    at_least: bool = False

    def on(self, device: str) -> float | None:
        """The bound on a kind of device, `cpu` or `cuda`."""
        return self.cuda if device == "cuda" else self.cpu


TARGETS: Mapping[str, Target] = {
    "capture on / off": Target(1.05, 1.03),
    "per_step action / clean": Target(1.15, 1.10),
    "per_step all / (clean + prefill)": Target(1.05, 1.05),
    "per_token action / clean": Target(1.45, 1.25),
    "per_token action, speculative / sequential": Target(0.75, 0.65),
    "per_token all / clean": Target(),
    "min_entropy / fixed, per_step action": Target(1.8, 1.3),
    "paper's recipe / per_token action": Target(2.0, 4.0, at_least=True),
    "paper's recipe, action rows only / per_token action": Target(),
    "paper's recipe / per_token all": Target(),
    "stock generate / clean": Target(1.0, 3.0, at_least=True),
    "time of a token / time to read its weights": Target(None, 1.5),
    "peak memory, DTP / clean": Target(1.10, 1.10),
    "image stamp to command, less the model's step": Target(15.0, 10.0),
    "clean step": Target(),
    "step model, clean": Target(),
    "step model, per_step action": Target(),
    "step model, per_token action": Target(),
    "step model, per_token all": Target(),
}
# Figures that are the ratio of one measurement to another, or to the sum of several.
RATIOS: Mapping[str, tuple[str, ...]] = {
    "capture on / off": ("off", "clean"),
    "per_step action / clean": ("step_action", "clean"),
    "per_step all / (clean + prefill)": ("step_all", "clean", "prefill"),
    "per_token action / clean": ("token_action", "clean"),
    "per_token action, speculative / sequential": ("token_action", "token_action_sequential"),
    "per_token all / clean": ("token_all", "clean"),
    "min_entropy / fixed, per_step action": ("min_entropy", "step_action"),
    "paper's recipe / per_token action": ("recipe_all", "token_action"),
    "paper's recipe, action rows only / per_token action": ("recipe", "token_action"),
    "paper's recipe / per_token all": ("recipe_all", "token_all"),
    "stock generate / clean": ("stock", "clean"),
}
# What the step model calls what was measured.
PREDICTED: Mapping[str, str] = {
    "clean": "off", "step_action": "per_step", "token_action": "per_token action", "token_all": "per_token all",
}  # fmt: skip
NODE = "image stamp to command, less the model's step"
MEMORY = "peak memory, DTP / clean"
READING = "time of a token / time to read its weights"


@dataclass(frozen=True)
class Figure:
    """A measured figure, as it is published: its median and quartiles, the bound, and what else must be known."""

    name: str
    value: float
    target: float | None
    unit: str
    runs: int
    quartiles: tuple[float, float]
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def row(self) -> dict[str, Any]:
        """As JSON, rounded."""
        return {**asdict(self), "value": round(self.value, 3), "quartiles": [round(q, 3) for q in self.quartiles]}


def figure(model: str, name: str, estimate: Estimate, device: str, unit: str = "ratio", note: str = "") -> Figure:
    """A figure with its bound on this kind of device."""
    target = TARGETS[name]
    quartiles = (estimate.low, estimate.high)
    bound, least = target.on(device), target.at_least
    return Figure(f"{model}: {name}", estimate.value, bound, unit, estimate.runs, quartiles, least, note)


def ratio_figures(model: str, seconds: Seconds, device: str, notes: Mapping[str, str]) -> list[Figure]:
    """The figures of RATIOS that were measured; notes: by the name of the upper measurement."""
    return [
        figure(model, name, ratio(seconds, *parts), device, note=notes.get(parts[0], ""))
        for name, parts in RATIOS.items()
        if set(parts) <= set(seconds)
    ]


def reading_figure(model: str, seconds: Seconds, tokens: int, read_seconds: float, device: str) -> Figure:
    """How near decoding is to reading its weights once a token; read_seconds: that, at the measured bandwidth."""
    rounds = zip(seconds["clean"], seconds["prefill"], strict=False)
    each = [(clean - prefill) / (tokens - 1) for clean, prefill in rounds]
    note = f"{1e3 * float(np.median(each)):.1f} ms a token"
    return figure(model, READING, Estimate.of([s / read_seconds for s in each]), device, note=note)


def prediction_figures(
    model: Vla, seconds: Seconds, machine: Machine, precision: Precision, accepted: float, device: str
) -> list[Figure]:
    """How far the step model is off: predicted over measured, less 1. accepted: share of speculations that held."""
    found = []
    for name, mode in PREDICTED.items():
        if name not in seconds:
            continue
        predicted = step_seconds(model, machine, precision, mode, accepted)
        estimate = Estimate.of([predicted / s - 1 for s in seconds[name]])
        label = "clean" if mode == "off" else "per_step action" if mode == "per_step" else mode
        note = f"predicted {1e3 * predicted:.0f} ms"
        found.append(figure(model.name, f"step model, {label}", estimate, device, unit="relative error", note=note))
    return found


def accepted_share(traces: Iterable[StepTrace]) -> float | None:
    """Mean share of speculations that held, or None where none was made."""
    shares = [trace.accepted for trace in traces if trace.accepted is not None]
    return float(np.mean(shares)) if shares else None


def firing(traces: Sequence[StepTrace]) -> str:
    """How often DTP fired, the mean number of image tokens masked, and how often that changed a token, in words."""
    tokens = [token for trace in traces for token in trace.tokens]
    if not tokens:
        return ""
    pruned = np.array([token.pruned for token in tokens])
    changed = np.mean([token.token_id != token.clean_id for token in tokens])
    words = f"fires at {np.mean(pruned > 0):.0%}, masks {pruned.mean():.1f}, changes {changed:.0%} of tokens"
    accepted = accepted_share(traces)
    return words if accepted is None else f"{words}, accepts {accepted:.0%}"

"""Plots of a training. Needs matplotlib (requirements/study.txt)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

PANELS: Mapping[str, tuple[str, float]] = {  # figure of training.jsonl: axis, factor
    "action": ("cross entropy of the actions (nats)", 1.0),
    "source_error": ("error of the source's position, median (mm)", 1e3),
    "pointing": ("loss of pointing (nats)", 1.0),
}


def write_training_curve(log: Path, batch: int, picture: Path) -> None:
    """Plot the losses of `training.jsonl` over the frames seen, on what was trained on and on held-out frames."""
    from matplotlib.figure import Figure

    # A training that was resumed may have written a step twice: the last counts.
    records = {r["step"]: r for r in map(json.loads, log.read_text(encoding="utf-8").splitlines())}
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (name, (label, factor)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for key, style, said in ((name, "-", "training"), (f"validation_{name}", "o", "held out, averaged weights")):
            steps, values = _series(records, key)
            axes.plot([s * batch / 1e3 for s in steps], [factor * v for v in values], style, markersize=3, label=said)
        axes.set(xlabel="frames seen (thousands)", title=label, yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].legend()
    figure.savefig(picture, dpi=100)


def _series(records: Mapping[int, Mapping[str, float]], key: str) -> tuple[Sequence[int], Sequence[float]]:
    there = {step: record[key] for step, record in sorted(records.items()) if key in record}
    return list(there), list(there.values())

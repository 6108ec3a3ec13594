"""Pictures of unimportant attention as the paper's Fig. 5: how it is distributed, and how it goes over an episode."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from dtp_ros.study.attention import LEAST, Attention, Series, TaskEpisodes, resampled, stem
from dtp_ros.study.figures import BLUE, DPI, ORANGE, FigureError
from dtp_ros.study.statistics import Estimate, mean

BINS = 20  # of an episode's length
BLOCKS = 40  # of absolute steps, at most
STYLES = {"failure": (ORANGE, "-"), "success": (BLUE, "--")}


@dataclass(frozen=True)
class Curve:
    """A mean over episodes with its interval, at each place x."""

    x: tuple[float, ...]
    means: tuple[Estimate, ...]


def over_length(episodes: Sequence[Series], bins: int = BINS) -> Curve:
    """Over the share of an episode's length that has passed, 0 ... 1, at the middle of each bin."""
    columns = np.stack([resampled(series, bins) for series in episodes]).T
    return Curve(tuple((i + 0.5) / bins for i in range(bins)), tuple(mean(column.tolist()) for column in columns))


def over_steps(episodes: Sequence[Series], width: int) -> Curve:
    """Over steps of the policy, in blocks of `width`, at the middle of each.

    It ends when fewer than half of the episodes (or than two) still run: later means would be of the slow ones alone.
    """
    x, means = [], []
    for start in range(0, max(len(series) for series in episodes), width):
        block = [float(part.mean()) for series in episodes if len(part := series[start : start + width])]
        if len(block) < max(LEAST, len(episodes) / 2):
            break
        x.append(start + (width - 1) / 2)
        means.append(mean(block))
    return Curve(tuple(x), tuple(means))


def write_figures(attention: Attention, out: Path) -> list[Path]:
    """One PNG a benchmark, a row a task; returns the paths. Raises FigureError without matplotlib."""
    paths: list[Path] = []
    for benchmark, tasks in groupby(attention.tasks, key=lambda task: task.benchmark):
        name = re.sub(r"\W+", "_", benchmark).strip("_")
        path = out / f"{stem(attention.arm)}_{name}.png"
        paths.append(path if path not in paths else out / f"{path.stem}_{len(paths)}.png")
        drawn(list(tasks), f"{benchmark}, arm {attention.arm}").savefig(paths[-1], dpi=DPI)
    return paths


def drawn(tasks: Sequence[TaskEpisodes], title: str) -> Any:
    """A figure with a row a task: every episode's mean with its box, then means and intervals over length and steps."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError:
        raise FigureError("figures need matplotlib: pip install -r requirements/study.txt") from None
    layout = ConstrainedLayoutEngine(h_pad=0.08)  # inches
    figure = Figure(figsize=(12, 1.0 + 2.7 * len(tasks)), layout=layout)
    grid = figure.subplots(len(tasks), 3, squeeze=False, sharey="row", width_ratios=(1, 2, 2))
    for row, task in zip(grid, tasks, strict=True):
        groups = {"failure": task.failures, "success": task.successes}
        _distributions(row[0], groups)
        for outcome, episodes in groups.items():
            _curve(row[1], over_length(episodes), outcome)
            longest = max(len(series) for series in (*task.failures, *task.successes))
            _curve(row[2], over_steps(episodes, -(-longest // BLOCKS)), outcome)
        row[2].axvline(task.common - 0.5, color="grey", linestyle=":", label="end of the shortest episode")
        row[0].set_ylabel("unimportant attention")
        row[1].set_title(textwrap.fill(task.task, 90))
    for axes, label in zip(grid[-1], ("", "share of the episode's length", "step of the policy"), strict=True):
        axes.set_xlabel(label)
    handles, labels = grid[0][2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"Unimportant attention: {title}")
    return figure


def _distributions(axes: Any, groups: Mapping[str, Sequence[Series]]) -> None:
    rng = np.random.default_rng(0)  # only to spread points sideways
    for place, (outcome, episodes) in enumerate(groups.items()):
        colour, _ = STYLES[outcome]
        values = [float(series.mean()) for series in episodes]
        axes.plot(place + rng.uniform(-0.25, 0.25, len(values)), values, ".", color=colour, alpha=0.4, markersize=4)
        line = {"color": "black", "linewidth": 1.2}
        axes.boxplot(
            [values],
            positions=[place],
            widths=0.6,
            showfliers=False,
            boxprops=line,
            medianprops=line,
            whiskerprops=line,
        )
    axes.set_xticks(range(len(groups)), [f"{name}\n(n = {len(episodes)})" for name, episodes in groups.items()])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(alpha=0.3, axis="y")


def _curve(axes: Any, curve: Curve, outcome: str) -> None:
    colour, line = STYLES[outcome]
    axes.plot(curve.x, [m.value for m in curve.means], line, color=colour, label=f"{outcome}, mean and 95 % interval")
    axes.fill_between(
        curve.x, [m.low for m in curve.means], [m.high for m in curve.means], color=colour, alpha=0.2, linewidth=0
    )
    axes.grid(alpha=0.3)

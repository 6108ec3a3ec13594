"""Figures of a study. Needs matplotlib (requirements/study.txt)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtp_ros.errors import DtpError
from dtp_ros.study import comparison
from dtp_ros.study.comparison import Summary
from dtp_ros.study.log import Episode
from dtp_ros.study.setups import entropy_arms, fixed_tolerances, setups
from dtp_ros.study.statistics import Estimate

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, PINK, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#666666"
COLORS = (GREY, BLUE, GREEN, ORANGE, PINK, SKY)
DPI = 120
ASIDE = 0.2  # from the curves to what stands beside them, in their length


class FigureError(DtpError):
    """A figure that cannot be drawn."""


@dataclass(frozen=True)
class Curve:
    """A figure of `Summary` against the tolerance; `compared`: whether it is drawn without pruning too."""

    figure: str
    label: str
    color: str
    compared: bool = True


@dataclass(frozen=True)
class Panel:
    """A row of the figure; factor: from the figure's unit to the axis'."""

    label: str
    factor: float
    curves: tuple[Curve, ...]


PANELS = (
    Panel("episodes (%)", 100.0, (Curve("success", "success", BLUE), Curve("grasp", "grasp", ORANGE))),
    Panel("fire rate (%)", 100.0, (Curve("fire_rate", "fire rate", GREEN, compared=False),)),
    Panel(
        "entropy (nats)",
        1.0,
        (
            Curve("entropy_clean", "before pruning", GREY),
            Curve("entropy_refined", "after pruning", PINK, compared=False),
        ),
    ),
    Panel("change (nats)", 1.0, (Curve("change", "entropy after - before", SKY, compared=False),)),
    Panel(
        "score",
        1.0,
        (Curve("score_clean", "before pruning", GREY), Curve("score_refined", "after pruning", PINK, compared=False)),
    ),
)


def write_sweep(episodes: Sequence[Episode], folder: Path, name: str = "sweep", baseline: str = "off") -> list[Path]:
    """The paper's Figure 4, one PNG a section: success, fire rate, entropy and score against tolerance, by task.

    Bands and bars are intervals at 95 %. The baseline stands at the left with a dashed line across, and the tolerance
    of least entropy at the right.
    Raises FigureError without matplotlib.
    """
    written = []
    for title, section in comparison.sections(episodes).items():
        tasks, tolerances = comparison.groups(section, baseline), fixed_tolerances(section)
        if not tolerances:
            continue
        figure = _figure(max(1.0 + 2.6 * len(tasks), 5.0), 10.0)
        figure.suptitle(title)
        grid = figure.subplots(len(PANELS), len(tasks), sharex=True, sharey="row", squeeze=False)
        ticks = sorted(set(tolerances.values()))
        gap = ASIDE * max(ticks[-1] - ticks[0], 0.5)
        aside = dict.fromkeys(entropy_arms(section), ticks[-1] + gap)
        aside |= {baseline: ticks[0] - gap} if baseline in setups(section) else {}
        drawn: set[str] = set()
        for column, (task, group) in enumerate(tasks.items()):
            summaries = comparison.summaries(group.episodes)
            drawn |= {name for summary in summaries.values() for name in summary.figures}
            grid[0, column].set_title(_wrapped(task), fontsize=9)
            grid[-1, column].set_xlabel("tolerance")
            grid[-1, column].tick_params(axis="x", labelsize=8)
            for axes, panel in zip(grid[:, column], PANELS, strict=True):
                _draw_panel(axes, panel, summaries, tolerances, baseline, aside)
        labels = {tick: f"{tick:g}" for tick in ticks[:: 1 + len(ticks) // 6]}
        labels |= {place: arm if arm == baseline else "auto" for arm, place in aside.items()}
        grid[-1, 0].set_xticks(list(labels), list(labels.values()))
        for axes, panel in zip(grid[:, 0], PANELS, strict=True):
            axes.set_ylabel(panel.label)
        _legend_of_sweep(figure, aside, drawn, baseline)
        written.append(_saved(figure, folder, name, title))
    return written


def write_ablation(
    episodes: Sequence[Episode], folder: Path, name: str = "ablation", baseline: str = "off"
) -> list[Path]:
    """The paper's Table 4 as bars, one PNG a section: success and grasp of each variant, by task, with intervals.

    Raises FigureError without matplotlib.
    """
    written = []
    for title, section in comparison.sections(episodes).items():
        groups = comparison.groups(section, baseline)
        tasks = {task: comparison.summaries(group.episodes) for task, group in groups.items()}
        arms = list(setups(section))
        grasp = all("grasp" in summary.figures for found in tasks.values() for summary in found.values())
        rows = ("success", "grasp") if grasp else ("success",)
        figure = _figure(max(2.0 + (0.4 + 0.22 * len(arms)) * len(tasks), 6.0), 1.2 + 2.6 * len(rows))
        figure.suptitle(title)
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for axes, row in zip(grid, rows, strict=True):
            for place, arm in enumerate(arms):
                _draw_bars(axes, [found.get(arm) for found in tasks.values()], row, place, len(arms), arm)
            axes.set(ylabel=f"{row} (%)", ylim=(0, 100))
            axes.grid(alpha=0.3, axis="y")
            axes.set_axisbelow(True)
        grid[-1].set_xticks(range(len(tasks)), [_wrapped(task) for task in tasks], fontsize=8)
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(arms), 3))
        written.append(_saved(figure, folder, name, title))
    return written


def _draw_panel(
    axes: Any,
    panel: Panel,
    summaries: Mapping[str, Summary],
    tolerances: Mapping[str, float],
    baseline: str,
    aside: Mapping[str, float],
) -> None:
    """One task's curves; aside: places on the axis of tolerances of arms that have none."""
    width = max(max(tolerances.values()) - min(tolerances.values()), 0.5)
    for index, curve in enumerate(panel.curves):
        found = {
            arm: summary.figures[curve.figure].map(lambda value: panel.factor * value)
            for arm, summary in summaries.items()
            if curve.figure in summary.figures
        }
        line = [(tolerance, found[arm]) for arm, tolerance in tolerances.items() if arm in found]
        places = [tolerance for tolerance, _ in line]
        axes.plot(places, [e.value for _, e in line], "o-", color=curve.color, markersize=3, linewidth=1.2)
        if len(line) == 1:  # a band of no width cannot be seen
            axes.errorbar(places, [e.value for _, e in line], _errors([e for _, e in line]), color=curve.color)
        axes.fill_between(places, [e.low for _, e in line], [e.high for _, e in line], color=curve.color, alpha=0.18)
        if not curve.compared:
            found.pop(baseline, None)
        for arm, place in aside.items():
            if arm in found:
                mark, errors = "s" if arm == baseline else "D", _errors([found[arm]])
                beside = place + 0.04 * width * (index - (len(panel.curves) - 1) / 2)
                axes.errorbar([beside], [found[arm].value], errors, fmt=mark, color=curve.color, markersize=4)
        if baseline in found:
            axes.axhline(found[baseline].value, linestyle="--", color=curve.color, linewidth=1.0)
    axes.grid(alpha=0.3)


def _legend_of_sweep(figure: Any, aside: Collection[str], drawn: Collection[str], baseline: str) -> None:
    """What is drawn: arms beside the curves, and figures of `Summary`."""
    from matplotlib.lines import Line2D

    curves = {curve.label: curve.color for panel in PANELS for curve in panel.curves if curve.figure in drawn}
    handles = [Line2D([], [], marker="o", markersize=3, color=color, label=label) for label, color in curves.items()]
    if baseline in aside:
        said = f"{baseline}: no pruning"
        handles.append(Line2D([], [], linestyle="--", marker="s", markersize=4, color="black", label=said))
    if set(aside) - {baseline}:
        said = "auto: least entropy"
        handles.append(Line2D([], [], linestyle="", marker="D", markersize=4, color="black", label=said))
    columns = 3 if figure.get_figwidth() < 8 else 4
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)


def _draw_bars(axes: Any, summaries: Sequence[Summary | None], row: str, place: int, arms: int, label: str) -> None:
    width = 0.8 / arms
    there = [(task, summary.figures[row]) for task, summary in enumerate(summaries) if summary is not None]
    rates = [rate.map(lambda value: 100 * value) for _, rate in there]
    places = [task + (place - (arms - 1) / 2) * width for task, _ in there]
    color = COLORS[place % len(COLORS)]
    axes.bar(places, [rate.value for rate in rates], width, color=color, alpha=0.8, label=label)
    axes.errorbar(places, [rate.value for rate in rates], _errors(rates), fmt="none", ecolor="black", elinewidth=0.9)


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths below and above. A bootstrap interval of few values may leave its mean out, which makes no length."""
    return [[max(0.0, e.value - e.low) for e in estimates], [max(0.0, e.high - e.value) for e in estimates]]


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise FigureError("figures need matplotlib: pip install -r requirements/study.txt") from None
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: Any, folder: Path, name: str, title: str) -> Path:
    words = re.sub(r"[^\w.=-]+", "_", title.partition(",")[0])
    path = folder / f"{name}_{words}.png"
    figure.savefig(path, dpi=DPI)
    return path


def _wrapped(task: str) -> str:
    return "\n".join(textwrap.wrap(task.replace("_", " "), 22))

"""Unimportant attention of failures and successes (paper, section 4.4 and Fig. 5), from logs and recordings alike.

As in the paper, the Mann-Whitney test compares the two outcomes; an episode counts once, with its mean over steps.
Two things can make a difference that is none, and each gets an answer of its own:

* **Length.** A failure runs to its time limit, a success ends: their means are over different phases of a task. So the
  comparison is made once more over the first n steps, n being the length of the task's shortest episode, whichever way
  it ended. Every episode then gives the same steps and none is left out. A median of the successes' lengths would keep
  more steps, but half of the successes would not have them all; and the shortest success, which mostly is that episode,
  has been through every phase within its n steps.
* **Tasks.** A task that fails more often and looks different for its picture alone makes a difference between outcomes
  over all tasks. So all tasks together are compared within tasks (`stratified.van_elteren`); the comparison of
  everything with everything, which the paper has, is given beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtp_ros.errors import DtpError
from dtp_ros.study.log import Episode, arms, by_task
from dtp_ros.study.statistics import Estimate, MannWhitney, holm, mann_whitney, mean
from dtp_ros.study.stratified import Stratified, van_elteren

FIGURE = "unimportant_attention"
REGION = ("top_k", "sigma", "relevance_layers", "weights")  # constants on which the figure itself depends
LEAST = 2  # episodes of each outcome, to have an interval
PHASES = ("first third", "middle third", "last third")

Series = NDArray[np.float64]  # [steps], one value a step of the policy
Part = Callable[["TaskEpisodes", Series], float]


class AttentionError(DtpError):
    """Episodes in which unimportant attention cannot be compared."""


@dataclass(frozen=True)
class TaskEpisodes:
    """Unimportant attention at each step of the episodes of one task; failures first. Steps without it are left out."""

    benchmark: str
    task: str
    failures: tuple[Series, ...]
    successes: tuple[Series, ...]

    @property
    def common(self) -> int:
        """The number of steps that all episodes have."""
        return min(len(series) for series in (*self.failures, *self.successes))

    @property
    def is_comparable(self) -> bool:
        """Whether both outcomes occur often enough."""
        return min(len(self.failures), len(self.successes)) >= LEAST

    def figures(self, part: Part) -> tuple[list[float], list[float]]:
        """One figure an episode, of the failures and of the successes."""
        return [part(self, series) for series in self.failures], [part(self, series) for series in self.successes]


@dataclass(frozen=True)
class Contrast:
    """Failures against successes in one figure an episode.

    failures, successes: means by task. tests: by task; corrected: their p values as one family (Holm).
    within: all tasks, compared within tasks.
    """

    failures: tuple[Estimate, ...]
    successes: tuple[Estimate, ...]
    tests: tuple[MannWhitney, ...]
    corrected: tuple[float, ...]
    within: Stratified


@dataclass(frozen=True)
class Attention:
    """All comparisons of one arm. tasks: the comparable ones; others: those with too few of one outcome.

    models: what acted. region: the constants of the important region, where they are known. whole: means over whole
    episodes; common: over the steps that all episodes of a task have. pooled: whole episodes of all tasks as one group.
    phases, common_phases: thirds of both, by `PHASES`. held: both, of those episodes alone in which the right object
    was ever held, or None where too few say so: failures that never get so far are of another phase of the task.
    """

    arm: str
    models: tuple[str, ...]
    region: tuple[str, ...]
    tasks: tuple[TaskEpisodes, ...]
    others: tuple[TaskEpisodes, ...]
    whole: Contrast
    common: Contrast
    pooled: MannWhitney
    phases: tuple[Stratified, ...]
    common_phases: tuple[Stratified, ...]
    held: tuple[Stratified, Stratified] | None


def analyse(episodes: Iterable[Episode], arm: str = "off") -> Attention:
    """Compare the outcomes under one arm; `off` is the model's own attention. Raises AttentionError."""
    given = list(episodes)
    chosen = [episode for episode in given if episode.arm == arm]
    if not chosen:
        raise AttentionError(f"no episode was run under {arm!r} (there are: {', '.join(arms(given)) or 'none at all'})")
    groups, tasks = _groups(chosen)
    if not tasks:
        counts = ", ".join(f"{g.task}: {len(g.failures)} and {len(g.successes)}" for g in groups)
        raise AttentionError(f"no task has {LEAST} failures and {LEAST} successes under {arm!r} ({counts})")
    pooled = mann_whitney(*([figure for task in tasks for figure in task.figures(_whole)[i]] for i in (0, 1)))
    assert isinstance(pooled, MannWhitney)
    _, held = _groups([episode for episode in chosen if episode.grasped])
    return Attention(
        arm=arm,
        models=tuple(sorted({_model(episode) for episode in chosen})),
        region=tuple(sorted({region for episode in chosen if (region := _region(episode))})),
        tasks=tuple(tasks),
        others=tuple(group for group in groups if not group.is_comparable),
        whole=_contrast(tasks, _whole),
        common=_contrast(tasks, _common),
        pooled=pooled,
        phases=tuple(_within(tasks, _third(i, common=False)) for i in range(3)),
        common_phases=tuple(_within(tasks, _third(i, common=True)) for i in range(3)),
        held=(_within(held, _whole), _within(held, _common)) if held else None,
    )


def resampled(series: Series, bins: int) -> Series:
    """Means over equal parts of an episode's length, [bins]: each step lasts 1 / len(series), its value with it.

    Their mean is that of the series; an episode of fewer steps than bins fills them all.
    """
    steps = len(series)
    integral = np.concatenate([[0.0], np.cumsum(series)]) / steps
    parts: Series = np.diff(np.interp(np.linspace(0, 1, bins + 1), np.arange(steps + 1) / steps, integral)) * bins
    return parts


def write_attention(episodes: Iterable[Episode], arm: str, out: Path) -> list[Path]:
    """`attention.md` and one picture a benchmark in folder `out`; returns their paths. Raises AttentionError.

    Of another arm than `off` they have its name.
    """
    from dtp_ros.study.attention_figure import write_figures
    from dtp_ros.study.attention_report import section

    attention = analyse(episodes, arm)
    out.mkdir(parents=True, exist_ok=True)
    pictures = write_figures(attention, out)
    text = out / f"{stem(arm)}.md"
    text.write_text(section(attention, [picture.name for picture in pictures]), encoding="utf-8")
    return [text, *pictures]


def _groups(episodes: Sequence[Episode]) -> tuple[list[TaskEpisodes], list[TaskEpisodes]]:
    """All tasks, and those that are comparable."""
    groups = [_grouped(*key, group) for key, group in sorted(by_task(episodes).items())]
    return groups, [group for group in groups if group.is_comparable]


def _grouped(benchmark: str, task: str, episodes: Sequence[Episode]) -> TaskEpisodes:
    for ways in ({_model(episode) for episode in episodes}, {_region(episode) for episode in episodes}):
        if len(ways) > 1:
            raise AttentionError(
                f"{benchmark}, {task} has episodes of {' and '.join(sorted(ways))}: analyse them apart"
            )
    series = [(episode.success, np.asarray(episode.series[FIGURE], dtype=np.float64)) for episode in episodes]
    series = [(success, found) for success, values in series if (found := values[np.isfinite(values)]).size]
    failures, successes = (tuple(s for success, s in series if success == outcome) for outcome in (False, True))
    return TaskEpisodes(benchmark, task, failures, successes)


def _model(episode: Episode) -> str:
    return " ".join(str(episode.setup[key]) for key in ("model", "checkpoint") if episode.setup.get(key))


def _region(episode: Episode) -> str:
    return ", ".join(f"{name} = {episode.setup[name]}" for name in REGION if name in episode.setup)


def stem(arm: str) -> str:
    """How the files of an arm's report begin."""
    return "attention" if arm == "off" else "attention_" + re.sub(r"[^\w.=-]+", "_", arm)


def _whole(_: TaskEpisodes, series: Series) -> float:
    return float(series.mean())


def _common(task: TaskEpisodes, series: Series) -> float:
    return float(series[: task.common].mean())


def _third(number: int, *, common: bool) -> Part:
    def part(task: TaskEpisodes, series: Series) -> float:
        return float(resampled(series[: task.common] if common else series, len(PHASES))[number])

    return part


def _contrast(tasks: Sequence[TaskEpisodes], part: Part) -> Contrast:
    figures = [task.figures(part) for task in tasks]
    failures, successes = (tuple(mean(groups[i]) for groups in figures) for i in (0, 1))
    # Every one is made: the tasks are comparable.
    tests = tuple(test for groups in figures if isinstance(test := mann_whitney(*groups), MannWhitney))
    return Contrast(failures, successes, tests, tuple(holm([test.p for test in tests])), _within(tasks, part))


def _within(tasks: Sequence[TaskEpisodes], part: Part) -> Stratified:
    found = van_elteren([task.figures(part) for task in tasks])
    assert found is not None  # each of the tasks is comparable
    return found

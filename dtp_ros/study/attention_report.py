"""What `attention.analyse` found, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dtp_ros.study.attention import LEAST, PHASES, Attention, Contrast, TaskEpisodes
from dtp_ros.study.statistics import MannWhitney
from dtp_ros.study.stratified import Stratified
from dtp_ros.study.tables import number, p_value, table

SIGNIFICANT = 0.05

_HEAD = """
## Unimportant attention of failures and successes, arm `{arm}`

The visual attention that lies outside the important region (sum of A over U in the clean pattern, mean over a step's
tokens; paper, section 4.4). An episode counts once, with its mean over steps. The effect is P(failure > success), the
share of pairs of a failure and a success in which the failure has more; 0.5 is no difference. Tests are Mann-Whitney,
two-sided, with p corrected for the number of tests of their table (Holm); in brackets 95 % intervals. Acted: {models}.
{region}
"""

_COMMON = """
Failures last longer than successes, so a mean over whole episodes is over different phases of a task. Over the steps
that every episode of the task has (as many as its shortest has, whichever way that ended) length cannot make a
difference. What failures do later it cannot see: if only whole episodes differ, either may be the reason.
"""

_TOGETHER = """
All tasks together. Within tasks: van Elteren's test, by ranks within each task, so that differences between tasks do
not count. "Held" are the episodes in which the right object was ever held: failures that never got so far are in
another phase of the task. All episodes as one group is how the paper reads; there a task that fails often and looks
different makes a difference between outcomes.
"""

_PHASES = """
When: P(failure > success) within tasks by phase. The paper finds the largest difference in the middle. Thirds of whole
episodes are thirds of different lengths of time in failures and successes; those of the common steps are not.
"""


def section(attention: Attention, pictures: Sequence[str] = ()) -> str:
    """A section of a report. pictures: their names, as links."""
    parts = [
        _HEAD.format(
            arm=attention.arm,
            models=", ".join(attention.models) or "an unnamed model",
            region=f"The important region: {'; '.join(attention.region)}." if attention.region else "",
        ),
        "**Whole episodes.** " + _verdict(attention.whole),
        _by_task(attention, attention.whole, lambda _: "all"),
        "**Common steps.** " + _verdict(attention.common),
        _COMMON.strip(),
        _by_task(attention, attention.common, lambda task: f"first {task.common}"),
        _TOGETHER.strip(),
        _together(attention),
        _PHASES.strip(),
        _phases(attention),
        _left_out(attention.others),
        *(f"![unimportant attention of failures and successes]({picture})" for picture in pictures),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _verdict(contrast: Contrast) -> str:
    clear = [
        test.superiority.value > 0.5
        for test, p in zip(contrast.tests, contrast.corrected, strict=True)
        if p < SIGNIFICANT
    ]
    more, tests = sum(clear), len(contrast.tests)
    less = len(clear) - more
    return (
        f"Of {tests} comparisons, each within a task of a benchmark, failures have more unimportant attention in "
        f"{more} and less in {less}; no difference is shown in {tests - more - less}."
    )


def _by_task(attention: Attention, contrast: Contrast, steps: Callable[[TaskEpisodes], str]) -> str:
    rows = [
        [
            task.benchmark, task.task, steps(task), str(test.first), str(test.second), number(failures),
            number(successes), number(test.superiority), p_value(test.p), p_value(corrected),
        ]
        for task, failures, successes, test, corrected in zip(
            attention.tasks, contrast.failures, contrast.successes, contrast.tests, contrast.corrected, strict=True
        )
    ]  # fmt: skip
    names = ["benchmark", "task", "steps", "failures", "successes", "mean of failures", "mean of successes",
             "P(failure > success)", "p", "p (Holm)"]  # fmt: skip
    return table(names, rows)


def _together(attention: Attention) -> str:
    def row(name: str, steps: str, test: Stratified | MannWhitney) -> list[str]:
        return [name, steps, str(test.first), str(test.second), number(test.superiority), p_value(test.p)]

    held = [
        row("within tasks, held", steps, test)
        for steps, test in zip(("all", "common"), attention.held or (), strict=False)
    ]
    return table(
        ["compared", "steps", "failures", "successes", "P(failure > success)", "p"],
        [
            row("within tasks", "all", attention.whole.within),
            row("within tasks", "common", attention.common.within),
            *held,
            row("all episodes as one group", "all", attention.pooled),
        ],
    )


def _phases(attention: Attention) -> str:
    rows = [
        [name, number(whole.superiority), number(common.superiority)]
        for name, whole, common in zip(PHASES, attention.phases, attention.common_phases, strict=True)
    ]
    return table(["phase", "of whole episodes", "of the common steps"], rows)


def _left_out(others: Sequence[TaskEpisodes]) -> str:
    if not others:
        return ""
    named = "; ".join(f"{t.benchmark}, {t.task}: {len(t.failures)} and {len(t.successes)}" for t in others)
    return f"Not compared, as they do not have {LEAST} failures and {LEAST} successes: {named}."

"""Reports of a study in Markdown, made from its log alone. Nothing is printed without its interval."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dtp_ros.study import comparison, figures, log, statistics
from dtp_ros.study.comparison import BASELINE, BEGINNING, COVERAGE, Choice, Group, Summary, Versus
from dtp_ros.study.log import Episode
from dtp_ros.study.setups import CHECKPOINT, constants, entropy_arms, families, fixed_tolerances, setups
from dtp_ros.study.tables import MISSING, number, p_value, percent, points, table

RANDOM = ("random_all", "random_unimportant")
ABLATED = ("no_gaussian", *RANDOM)
_COLUMNS = {
    "pruning": "episodes with pruning",
    "fire_rate": "fire rate",
    "pruned": "pruned tokens",
    "entropy_clean": "entropy clean (nats)",
    "entropy_refined": "entropy refined (nats)",
    "change": "refined - clean (nats)",
    "first_change": "the same, first step",
    "raised": "it rose, of steps that prune",
    "attention": "unimportant attention, first steps",
    "score_clean": "score clean",
    "score_refined": "score refined",
    "held": "steps without an action",
}
_RATES = ("pruning", "fire_rate", "raised", "held")
_NOTES = f"""## How to read this

* Every arm begins the same episodes in the same way, so that arms are compared episode by episode: `gained` are those \
that only this arm solved, `lost` those that only the other one solved. All rows of a table are over the same episodes.
* In brackets are intervals at 95 %: Wilson's for rates, Bonett and Price's (2012) for differences of rates (in \
percentage points), bootstraps over episodes (BCa, 9999 samples, fixed seed) for means. They hold for these tasks: \
episodes are a sample, tasks are not.
* `p` is of the exact McNemar test, two-sided; `p (Holm)` is corrected for all the tests of its table, not for the \
number of tables: they are to explore with. The test that confirms is the one on the held-out half. The interval and \
the exact test may differ at the border, where the test is the stricter one.
* The fire rate is the share of action tokens for which anything was pruned, in the mean over steps and episodes; \
pruned tokens are the largest number of image tokens that were cut for one action token of a step. Entropy (Eq. 6) and \
score (Eq. 7: 1 is certain, 0 knows nothing) are means over an episode's tokens, before and after pruning. Where runs \
part, arms see different images: clean figures differ between arms too, and only `refined - clean` says what pruning \
did at the same steps; in the first step all arms see the same. Unimportant attention (sum of A over U, clean) is that \
of an episode's first steps, {BEGINNING} at most.
* The random variants draw anew for each episode, step and token, from a fixed seed."""


def write_reports(episodes: Sequence[Episode], folder: Path, baseline: str = BASELINE) -> list[Path]:
    """Write what the log holds, a sweep, an ablation or both, in Markdown and as figures; the files.

    A log of several checkpoints, or of constants that no study varies, gets a report for each.
    Raises LogError where it is empty, and FigureError without matplotlib, after the Markdown.
    """
    if not episodes:
        raise log.LogError("the log has no episode (valid: at least one)")
    folder.mkdir(parents=True, exist_ok=True)
    found = [(name, sweep_report, figures.write_sweep, chosen) for name, chosen in sweeps(episodes).items()]
    found += [(name, ablation_report, figures.write_ablation, chosen) for name, chosen in ablations(episodes).items()]
    for name, report, _, chosen in found:
        (folder / f"{name}.md").write_text(report(chosen, baseline), encoding="utf-8")
    written = []
    for name, _, draw, chosen in found:
        path, pictures = folder / f"{name}.md", draw(chosen, folder, name, baseline)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n## Figures\n\n" + "".join(f"![{p.stem}]({p.name})\n\n" for p in pictures))
        written += [path, *pictures]
    return written


def sweeps(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """The sweeps of a log by file name: no pruning, fixed tolerances, the tolerance of least entropy."""
    found = {}
    for name, family in families(episodes).items():
        chosen = [e for e in family if e.setup.get("variant") not in ABLATED]
        ablated = {float(e.setup["tolerance"]) for e in family if e.setup.get("variant") in ABLATED}
        fixed = set(fixed_tolerances(chosen).values())
        if chosen and (len(fixed) > 1 or fixed - ablated or entropy_arms(chosen) or len(chosen) == len(family)):
            found[_file("sweep", name)] = chosen
    return found


def ablations(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """The ablations of a log by file name: no pruning, and every variant, at one tolerance."""
    found = {}
    for name, family in families(episodes).items():
        tolerances = {float(e.setup["tolerance"]) for e in family if e.setup.get("variant") in ABLATED}
        fixed = fixed_tolerances(family)
        for tolerance in sorted(tolerances):
            at = f"tolerance {tolerance}" if len(tolerances) > 1 else ""
            found[_file("ablation", name, at)] = [
                e
                for e in family
                if e.setup.get("variant") == "off"
                or (e.setup.get("tolerance") == tolerance and (e.arm in fixed or e.setup.get("variant") in ABLATED))
            ]
    return found


def sweep_report(episodes: Sequence[Episode], baseline: str = BASELINE) -> str:
    """Success against tolerance (the paper's Figure 4), and the choice of one (Eq. 9), in Markdown."""
    parts = ["# Success against tolerance", *_what_was_run(episodes, baseline)]
    suites = comparison.suites(episodes)
    for suite, members in suites.items():
        of = f", {suite}" if len(suites) > 1 else ""
        parts += _chosen(f"## The choice of the tolerance{of}", comparison.choice(members, baseline), baseline, members)
    for title, section in comparison.sections(episodes).items():
        parts.append(f"## {title}")
        for name, group in comparison.groups(section, baseline).items():
            parts += [f"### {name}", *_compared(group, baseline), _figures(comparison.summaries(group.episodes))]
    return "\n\n".join([*parts, _NOTES]) + "\n"


def ablation_report(episodes: Sequence[Episode], baseline: str = BASELINE) -> str:
    """The variants of the paper's Table 4, in Markdown; each is tested against no pruning and against DTP."""
    method = next(iter(fixed_tolerances(episodes)), None)
    against = [baseline, *([method] if method else [])]
    parts = ["# What is pruned: the variants", *_what_was_run(episodes, baseline)]
    for title, section in comparison.sections(episodes).items():
        parts += [f"## {title}", _by_task(section, baseline), *_counts(section, method)]
        for name, group in comparison.groups(section, baseline).items():
            parts += [f"### {name}", *_tested(group, against), _figures(comparison.summaries(group.episodes))]
    return "\n\n".join([*parts, _NOTES]) + "\n"


def _what_was_run(episodes: Sequence[Episode], baseline: str) -> list[str]:
    alike, differing = constants(episodes)
    first = [name for name in CHECKPOINT if name in alike]
    listed = [*first, *sorted(alike.keys() - set(first))]
    names = sorted({name for own in differing.values() for name in own})
    counts = {arm: sum(e.arm == arm for e in episodes) for arm in differing}
    rows = [
        [f"`{arm}`", str(counts[arm]), *(own.get(name, MISSING) for name in names)] for arm, own in differing.items()
    ]
    return [
        "## What was run",
        "\n".join(f"* {name.replace('_', ' ')}: {alike[name]}" for name in listed),
        table(["arm", "episodes", *(name.replace("_", " ") for name in names)], rows),
        *_parted_early(episodes, baseline),
    ]


def _parted_early(episodes: Sequence[Episode], baseline: str) -> list[str]:
    """Whether arms differ in what they prune alone, in words."""
    found = comparison.parted_early(episodes, baseline)
    if not found:
        return []
    said = f"Until an arm first prunes it must do what `{baseline}` does. "
    pairs, parted = sum(pairs for _, pairs in found.values()), sum(count for count, _ in found.values())
    if not parted:
        return [f"{said}In all {pairs} pairs in which it did not prune at once it did."] if pairs else []
    which = ", ".join(f"`{arm}` ({count} of {own})" for arm, (count, own) in found.items() if count)
    return [
        f"{said}**In {parted} of {pairs} pairs it did not**: {which}. These were run on another processor, or on one "
        "that does not repeat itself: what parts them is not pruning alone. Run both arms on one machine."
    ]


def _chosen(title: str, choice: Choice | None, baseline: str, episodes: Sequence[Episode]) -> list[str]:
    if choice is None:
        return [title, "No tolerance is chosen: no episode of the tuning half was run under a fixed tolerance."]
    count = len({episode.key for episode in choice.group.episodes})
    rows = [[f"`{arm}`", percent(success)] for arm, success in choice.tuning.items()]
    return [
        title,
        f"Chosen by success on the tuning half, {count} episodes (of every two neighbours one, by lot); of equal "
        "tolerances the larger. The other half has no part in the choice, and this test of it is the one that "
        "confirms; the tables below are over both halves.",
        table(["arm", "success on the tuning half"], rows),
        *_left_out(choice.group),
        f"**Tolerance {choice.tolerance:g}** (`{choice.arm}`). {_confirmed(choice, baseline)}",
        *_held_out(choice, baseline, episodes),
    ]


def _confirmed(choice: Choice, baseline: str) -> str:
    if choice.confirmed is None:
        return f"No test confirms it: no episode of the held-out half was run under both it and `{baseline}`."
    test, (before, after) = choice.confirmed.test, choice.success
    verdict = "differ at the 5 % level" if test.p < 0.05 else "are not shown to differ at the 5 % level"
    return (
        f"On the {test.pairs} held-out episodes `{baseline}` solves {percent(before)} and `{choice.arm}` "
        f"{percent(after)}: a difference of {points(test.difference)} percentage points, gained / lost "
        f"{test.gained} / {test.lost}, p {'' if test.p < 0.001 else '= '}{p_value(test.p)} (exact McNemar test). "
        f"The two {verdict}."
    )


def _held_out(choice: Choice, baseline: str, episodes: Sequence[Episode]) -> list[str]:
    """The difference for each of several benchmarks, where no more is tested."""
    if choice.confirmed is None:
        return []
    held_out = [e for e in episodes if e.held_out and e.arm in (baseline, choice.arm)]
    rows = [
        [title, str(found.test.pairs), points(found.test.difference), f"{found.test.gained} / {found.test.lost}"]
        for title, section in comparison.sections(held_out).items()
        for found in comparison.versus(section, [baseline])
    ]
    header = ["held-out half", "pairs", "difference, points", "gained / lost"]
    return [table(header, rows)] if len(rows) > 1 else []


def _compared(group: Group, baseline: str) -> list[str]:
    """A row an arm: its success, and the test against the baseline."""
    summaries, tests = comparison.summaries(group.episodes), comparison.versus(group.episodes, [baseline])
    by_arm = {test.arm: test for test in tests}
    grasp = all("grasp" in summary.figures for summary in summaries.values())
    rows = []
    for arm, summary in summaries.items():
        row = [f"`{arm}`", str(summary.episodes), *([percent(summary.figures["grasp"])] if grasp else [])]
        rows.append([*row, percent(summary.figures["success"]), *_test(by_arm.get(arm))])
    first = ["arm", "episodes", "grasp", "success"] if grasp else ["arm", "episodes", "success"]
    header = [*first, *_tests(f"difference to `{baseline}`, points")]
    return [table(header, rows), *_left_out(group)]


def _tested(group: Group, against: Sequence[str]) -> list[str]:
    """A row a test, all of one family."""
    tests = comparison.versus(group.episodes, against)
    if not tests:
        said = f"Nothing is compared: no episode is shared with {' or '.join(f'`{arm}`' for arm in against)}."
        return [said, *_left_out(group)]
    rows = [[f"`{test.arm}`", f"`{test.against}`", *_test(test)] for test in tests]
    return [table(["arm", "against", *_tests("difference, points")], rows), *_left_out(group)]


def _tests(difference: str) -> list[str]:
    return ["pairs", difference, "gained / lost", "p", "p (Holm)"]


def _test(versus: Versus | None) -> list[str]:
    if versus is None:
        return [MISSING] * len(_tests(""))
    test = versus.test
    changed = f"{test.gained} / {test.lost}"
    return [str(test.pairs), points(test.difference), changed, p_value(test.p), p_value(versus.corrected)]


def _left_out(group: Group) -> list[str]:
    """What a table does not show, in words."""
    said = []
    if group.left_out:
        said.append(f"Left out: {group.left_out} episodes that not all of these arms have.")
    if group.partial:
        few = ", ".join(f"`{arm}` ({count} of {group.whole})" for arm, count in sorted(group.partial.items()))
        said.append(f"Not compared, with less than {COVERAGE:.0%} of the episodes: {few}.")
    return said


def _figures(summaries: Mapping[str, Summary]) -> str:
    """The table of what the method did."""
    rows = []
    for arm, summary in summaries.items():
        cells = {name: summary.figures.get(name) for name in _COLUMNS}
        shown = [percent(cell) if name in _RATES else number(cell) for name, cell in cells.items()]
        rows.append([f"`{arm}`", *shown])
    return table(["arm", *_COLUMNS.values()], rows)


def _by_task(episodes: Sequence[Episode], baseline: str) -> str:
    """The paper's Table 4: grasp and success of each arm, for each task."""
    columns: list[str] = []
    rows: dict[str, list[str]] = {arm: [f"`{arm}`"] for arm in setups(episodes)}
    for task, group in comparison.groups(episodes, baseline).items():
        summaries = comparison.summaries(group.episodes)
        said = all("grasp" in summary.figures for summary in summaries.values())
        count = max((summary.episodes for summary in summaries.values()), default=0)
        for figure in ("grasp", "success") if said else ("success",):
            columns.append(f"{task} ({count}): {figure}")
            for arm, row in rows.items():
                row.append(percent(summaries[arm].figures[figure]) if arm in summaries else MISSING)
    return table(["arm", *columns], list(rows.values()))


def _counts(episodes: Sequence[Episode], method: str | None) -> list[str]:
    """Whether the random variants prune as many tokens as DTP."""
    if method is None:
        return ["DTP itself was not run at this tolerance: nothing is compared with it."]
    of_arm, summaries, rows = setups(episodes), comparison.summaries(episodes), []
    # With a mask for each token prefixes part within a step, and of a step the log has its largest mask only.
    counted = all(e.setup.get("mask_schedule") == "per_step" for e in episodes if e.arm == method)
    shared = [arm for arm, setup in of_arm.items() if setup.get("variant") != "off" and _share(episodes, method, arm)]
    for arm in shared:
        pairs = log.paired(episodes, method, arm)
        difference = same = MISSING
        if arm != method and len(pairs) > 1:
            means = zip(*[(one.mean("pruned"), two.mean("pruned")) for one, two in pairs], strict=True)
            difference = number(statistics.mean_difference(*means))
        if counted and of_arm[arm].get("variant") in RANDOM:
            equal = sum(one.series["pruned"][0] == two.series["pruned"][0] for one, two in pairs)
            same = percent(statistics.wilson(equal, len(pairs)))
        row = [f"`{arm}`", str(len(pairs)), number(summaries[arm].figures.get("pruned")), difference]
        rows.append([*row, same] if counted else row)
    header = ["arm", "pairs", "pruned tokens", f"difference to `{method}`"]
    first = "; at the first step, which all arms share, counts must be the same" if counted else ""
    return [
        "The random variants draw as many image tokens as DTP would prune for the same action token in the same "
        f"situation. Episodes part once an action differs, so that means may differ{first}.",
        table([*header, f"as many as `{method}` at the first step"] if counted else header, rows),
    ]


def _share(episodes: Sequence[Episode], one: str, other: str) -> bool:
    return not {e.key for e in episodes if e.arm == one}.isdisjoint(e.key for e in episodes if e.arm == other)


def _file(*words: str) -> str:
    """A name for a file of any words, such as the path of a checkpoint."""
    return "_".join(part for word in words if (part := re.sub(r"[^\w.=-]+", "_", word).strip("_")))

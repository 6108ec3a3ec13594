"""`make evidence LOGS="out/study/episodes.jsonl ..."`: add logs of a study to docs/evidence, and make all of it anew.

Writes each setting's log (`<setting>.jsonl.xz`), reports, figures and outcomes, and the tables of docs/evidence.md. An
arm is published when it and `off` have all episodes; others are named and left for later. What was tried beside the
study has a folder there, with its own `off`: `make evidence BESIDE=variants LOGS=...` writes its logs, outcomes, a page
of comparisons a setting, and tables. Sentences are not written here: read them again after each run.
"""

from __future__ import annotations

import argparse
import lzma
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dtp_ros.errors import DtpError
from dtp_ros.sim.tasks import SETTINGS, TASKS
from dtp_ros.study import comparison, log, outcomes, statistics
from dtp_ros.study.attention import write_attention
from dtp_ros.study.comparison import BASELINE
from dtp_ros.study.log import Episode, LogError
from dtp_ros.study.report import write_reports
from dtp_ros.study.setups import setups
from dtp_ros.study.tables import MISSING, number, p_value, percent, points, table

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "evidence"
OVERVIEW = "All settings at a glance"
PER_TASK = 100  # episodes
HEADER = (
    "arm", "success", "grasp", f"difference to `{BASELINE}`, points", "gained / lost", "p (exact McNemar)",
    "episodes that prune", "steps that prune", "tokens pruned a step", "entropy, refined - clean (nats)",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish; 0 where it was done, 1 with one line where it could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="*", type=Path, help="logs to add; without any, what is published is made anew")
    parser.add_argument("--beside", default="", metavar="NAME", help="what was tried beside the study, and is no arm")
    options = parser.parse_args(arguments)
    folder, beside = FOLDER / options.beside, options.beside.replace("_", " ")
    try:
        folder.mkdir(exist_ok=True)
        before = sorted(folder.glob("*.jsonl.xz"))
        together = by_setting(log.read([*before, *options.log]))
        settings = {name: whole(members, not options.beside) for name, members in together.items()}
        settings = {name: members for name, members in settings.items() if members}
        require_kept(by_setting(log.read(before)), settings)
        # Tables come first: that names a section that is missing.
        write_tables(FOLDER.with_suffix(".md"), settings, beside)
        write_logs(folder, settings)
        episodes = [episode for members in settings.values() for episode in members]
        outcomes.write(folder / "outcomes.json", episodes)
        for name, members in settings.items() if options.beside else ():
            (folder / f"{name}.md").write_text(beside_page(f"{beside}, {name}", members), encoding="utf-8")
        if not options.beside:
            for path in [*folder.glob("*.md"), *folder.glob("*.png")]:
                path.unlink()
            for path in [*write_reports(episodes, folder), *write_attention(episodes, BASELINE, folder)]:
                print(path)
    except (DtpError, OSError) as error:
        print(f"publish_evidence: {error}", file=sys.stderr)
        return 1
    return 0


def by_setting(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes of `tabletop_lookalike` as `lookalike`, in the order of the settings. Raises LogError for others."""
    known = [f"tabletop_{name}" for name in SETTINGS]
    if others := sorted({e.benchmark for e in episodes} - set(known)):
        raise LogError(f"{others[0]} is no setting of the evidence (valid: {', '.join(known)})")
    names = [name for name in SETTINGS if any(e.benchmark == f"tabletop_{name}" for e in episodes)]
    return {name: [e for e in episodes if e.benchmark == f"tabletop_{name}"] for name in names}


def whole(episodes: Sequence[Episode], study: bool) -> list[Episode]:
    """A setting's episodes without the arms that lack some of their baseline's; what is left out is printed.

    study: whether these are arms of the study, which has `PER_TASK` episodes of each task. Raises LogError for arms of
    two machines or checkpoints.
    """
    if study:
        episodes = [e for e in episodes if e.episode < PER_TASK]
    kept: list[Episode] = []
    keys = {arm: {e.key for e in episodes if e.arm == arm} for arm in log.arms(episodes)}
    wanted = keys.get(BASELINE, set())
    enough = len(wanted) == PER_TASK * len(TASKS) or not study
    for arm, own in keys.items():
        if enough and wanted and own == wanted and not (study and "=" in arm):  # with a constant of its own: a variant
            kept += [e for e in episodes if e.arm == arm]
        else:
            print(f"left out: {episodes[0].benchmark}, {arm}: {len(own)} episodes, {BASELINE}: {len(wanted)}")
    for name in ("checkpoint", "processor"):
        values = sorted({str(e.setup[name]) for e in kept if name in e.setup})
        if len(values) > 1:
            raise LogError(f"{episodes[0].benchmark} was run with {name} {' and '.join(values)} (valid: one)")
    for arm, (parted, pairs) in comparison.parted_early(kept, BASELINE).items():
        if parted:
            raise LogError(
                f"{episodes[0].benchmark}, {arm}: {parted} of {pairs} episodes part from {BASELINE} before anything is "
                "pruned: they were run on different machines; run them on one"
            )
    return kept


def require_kept(before: Mapping[str, Sequence[Episode]], after: Mapping[str, Sequence[Episode]]) -> None:
    """Raises LogError where an arm that is published would not be any more."""
    for name, members in before.items():
        if lost := [arm for arm in log.arms(members) if arm not in log.arms(after.get(name, []))]:
            raise LogError(
                f"{name}: {', '.join(lost)} would be lost: with these logs it does not have {BASELINE}'s episodes "
                "(valid: the same for every arm; what was run on others has a folder of its own, --beside)"
            )


def write_logs(folder: Path, settings: Mapping[str, Sequence[Episode]]) -> None:
    """A packed log a setting."""
    for name, members in settings.items():
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "episodes.jsonl"
            for episode in members:
                log.append(path, episode)
            packed = lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
        (folder / f"{name}.jsonl.xz").write_bytes(packed)


def write_tables(page: Path, settings: Mapping[str, Sequence[Episode]], beside: str) -> None:
    """Put each table in the place of the one in its section. Raises LogError where there is none."""
    text = page.read_text(encoding="utf-8")
    for title, new in tables(settings, beside).items():
        section = re.search(rf"(?ms)^### {re.escape(title)}\n(?:(?!^#).)*?(?P<table>^\| arm \|.*?\n)\n", text)
        if section is None:
            raise LogError(f"{page} has no section '### {title}' with a table that begins '| arm |'")
        text = text[: section.start("table")] + new + "\n" + text[section.end("table") :]
    page.write_text(text, encoding="utf-8")


def tables(settings: Mapping[str, Sequence[Episode]], beside: str) -> dict[str, str]:
    """Every table by the title of its section: `lookalike`, or `variants, lookalike` of what was tried beside."""
    found = {} if beside else {OVERVIEW: overview_table(settings)}
    before = f"{beside}, " if beside else ""
    return found | {before + name: summary_table(members) for name, members in settings.items()}


def overview_table(settings: Mapping[str, Sequence[Episode]]) -> str:
    """A row an arm, a column a setting, and one for those episodes of all settings that every arm has."""
    episodes = [episode for members in settings.values() for episode in members]
    columns = {**settings, "all settings": comparison.shared(episodes).episodes}
    rows = {arm: [f"`{arm}`"] for arm in setups(episodes)}
    for members in columns.values():
        summaries = comparison.summaries(members)
        differences = {found.arm: points(found.test.difference) for found in comparison.versus(members, [BASELINE])}
        for arm, row in rows.items():
            first = percent(summaries[arm].figures["success"]) if arm == BASELINE else MISSING
            row.append(differences.get(arm, first))
    return table(["arm", *columns], rows.values())


def summary_table(episodes: Sequence[Episode]) -> str:
    """A row an arm, over all tasks."""
    summaries = comparison.summaries(episodes)
    tests = {found.arm: found.test for found in comparison.versus(episodes, [BASELINE])}
    rows = []
    for arm, summary in summaries.items():
        figures = summary.figures
        solved = sum(e.success for e in episodes if e.arm == arm)
        row = [f"`{arm}`", f"{solved}/{summary.episodes}: {percent(figures['success'])}", percent(figures.get("grasp"))]
        if arm in tests:
            test = tests[arm]
            row += [points(test.difference), f"{test.gained} / {test.lost}", p_value(test.p)]
            row += [percent(figures["pruning"]), percent(figures.get("steps"))]
            row += [number(figures.get("pruned")), number(figures.get("change"))]
        rows.append(row + [""] * (len(HEADER) - len(row)))
    return table(HEADER, rows)


def beside_page(title: str, episodes: Sequence[Episode]) -> str:
    """Each arm by task, against the baseline, and against what it is a change of; tests are corrected by table."""
    arms = list(setups(episodes))
    changed = [(arm, unchanged(arm)) for arm in arms if unchanged(arm) in arms]
    parts = {
        "Success by task": task_table(episodes),
        f"Against `{BASELINE}`": versus_table(episodes, [(arm, BASELINE) for arm in arms if arm != BASELINE]),
    }
    if changed:
        parts["Against `dtp` of the same tolerance and with the model's constants"] = versus_table(episodes, changed)
    return f"# {title}\n\n" + "\n\n".join(f"## {head}\n\n{text}" for head, text in parts.items()) + "\n"


def unchanged(arm: str) -> str:
    """`dtp 0.25` of `dtp 0.25 top_k=14` and of `random_all 0.25`; "" where there is no such arm."""
    variant, _, rest = arm.partition(" ")
    plain = f"dtp {rest.split(' ')[0]}"
    return plain if rest and variant != "min_entropy" and plain != arm else ""


def task_table(episodes: Sequence[Episode]) -> str:
    """How many episodes each arm solved, a column a task."""
    tasks, rows = sorted({e.task for e in episodes}), []
    for arm in setups(episodes):
        own = {task: [e.success for e in episodes if (e.arm, e.task) == (arm, task)] for task in tasks}
        rows.append([f"`{arm}`", *(percent(statistics.wilson(sum(won), len(won))) for won in own.values())])
    return table(["arm", *tasks], rows)


def versus_table(episodes: Sequence[Episode], pairs: Sequence[tuple[str, str]]) -> str:
    """A row a pair (arm, other): the arm's success less the other's; Holm's correction is over the rows."""
    tests = []
    for arm, other in pairs:
        both = log.paired(episodes, other, arm)
        tests.append(statistics.paired_test([one.success for one, _ in both], [two.success for _, two in both]))
    corrected = statistics.holm([test.p for test in tests])
    header = ["arm", "against", "pairs", "difference, points", "gained / lost", "p (exact McNemar)", "p, Holm"]
    rows = []
    for (arm, other), test, p in zip(pairs, tests, corrected, strict=True):
        row = [f"`{arm}`", f"`{other}`", str(test.pairs), points(test.difference), f"{test.gained} / {test.lost}"]
        rows.append([*row, p_value(test.p), p_value(p)])
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(main())

"""`make evidence LOGS="out/study/episodes.jsonl ..."`: add logs of a study to docs/evidence, and make all of it anew.

Writes each setting's log (`<setting>.jsonl.xz`), reports, figures and outcomes, and the tables of docs/evidence.md. An
arm is published when it and `off` have all episodes; others are named and left for later. Sentences are not written
here: read them again after each run.
"""

from __future__ import annotations

import argparse
import lzma
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dtp_ros.errors import DtpError
from dtp_ros.sim.tasks import SETTINGS, TASKS
from dtp_ros.study import comparison, log, outcomes
from dtp_ros.study.attention import write_attention
from dtp_ros.study.comparison import BASELINE
from dtp_ros.study.log import Episode, LogError
from dtp_ros.study.report import write_reports
from dtp_ros.study.tables import MISSING, number, p_value, percent, points, table

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "evidence"
OVERVIEW = "All settings at a glance"
VARIANTS, HIDDEN = "variants", "hidden_tokens"  # what was tried beside the study, each with a log of its own
PER_TASK = 100  # episodes
BESIDE_VARIANTS = ("dtp 0.25", "dtp 0.5")
HEADER = (
    "arm", "success", "grasp", f"difference to `{BASELINE}`, points", "gained / lost", "p (exact McNemar)",
    "episodes that prune", "steps that prune", "tokens pruned a step", "entropy, refined - clean (nats)",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish; 0 where it was done, 1 with one line where it could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="*", type=Path, help="logs to add; without any, what is published is made anew")
    options = parser.parse_args(arguments)
    try:
        published = whole(log.read([*sorted(FOLDER.glob("*.jsonl.xz")), *options.log]))
        parts = grouped(published, part_of)
        write_tables(FOLDER.with_suffix(".md"), parts)  # first: it names a section that is missing
        write_logs(parts)
        for path in [*FOLDER.glob("*.md"), *FOLDER.glob("*.png")]:
            path.unlink()
        outcomes.write(FOLDER / "outcomes.json", published)
        study = [episode for name, members in parts.items() if name in SETTINGS for episode in members]
        for path in [*write_reports(study, FOLDER), *write_attention(study, BASELINE, FOLDER)]:
            print(path)
    except (DtpError, OSError) as error:
        print(f"publish_evidence: {error}", file=sys.stderr)
        return 1
    return 0


def part_of(episode: Episode) -> str:
    """The published log that an episode belongs to: its setting's, or one of what was tried beside the study."""
    if episode.setup["checkpoint"] != "shipped":
        return HIDDEN
    return VARIANTS if "=" in episode.arm else setting_of(episode)


def setting_of(episode: Episode) -> str:
    """`lookalike` of `tabletop_lookalike`."""
    return episode.benchmark.removeprefix("tabletop_")


def grouped(episodes: Sequence[Episode], key: Callable[[Episode], str]) -> dict[str, list[Episode]]:
    """Episodes by `key`, in its order."""
    return {name: [e for e in episodes if key(e) == name] for name in sorted({key(e) for e in episodes})}


def whole(episodes: Sequence[Episode]) -> list[Episode]:
    """Without the arms that lack episodes of their baseline; what is left out is printed.

    A variant may have one half of them, on which it was tried or confirmed. Raises LogError for arms of two machines.
    """
    kept: list[Episode] = []
    count = PER_TASK * len(TASKS)
    for name, members in grouped(episodes, lambda e: f"{e.benchmark}, {e.setup['checkpoint']}").items():
        wanted = {e.key: e.held_out for e in members if e.arm == BASELINE}
        halves = [{key for key, held_out in wanted.items() if held_out == half} for half in (False, True)]
        for arm in log.arms(members):
            own = [e for e in members if e.arm == arm]
            keys = {e.key for e in own}
            if len(wanted) == count and (keys == wanted.keys() or ("=" in arm and keys in halves)):
                kept += own
            else:
                print(f"left out: {name}, {arm}: {len(own)} of {count} episodes, {BASELINE}: {len(wanted)}")
        for arm, (parted, pairs) in comparison.parted_early(members, BASELINE).items():
            if parted:
                raise LogError(
                    f"{name}, {arm}: {parted} of {pairs} episodes part from {BASELINE} before anything is pruned: they "
                    "were run on different machines; run them on one"
                )
    return kept


def write_logs(parts: Mapping[str, Sequence[Episode]]) -> None:
    """A packed log a part."""
    for name, members in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "episodes.jsonl"
            for episode in members:
                log.append(path, episode)
            packed = lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
        (FOLDER / f"{name}.jsonl.xz").write_bytes(packed)


def write_tables(page: Path, parts: Mapping[str, Sequence[Episode]]) -> None:
    """Put each table in the place of the one in its section. Raises LogError where there is none."""
    text = page.read_text(encoding="utf-8")
    for title, new in tables(parts).items():
        section = re.search(rf"(?ms)^### {re.escape(title)}\n(?:(?!^#).)*?(?P<table>^\| arm \|.*?\n)\n", text)
        if section is None:
            raise LogError(f"{page} has no section '### {title}' with a table that begins '| arm |'")
        text = text[: section.start("table")] + new + "\n" + text[section.end("table") :]
    page.write_text(text, encoding="utf-8")


def tables(parts: Mapping[str, Sequence[Episode]]) -> dict[str, str]:
    """Every table of the page by the title of its section."""
    settings = {name: parts[name] for name in SETTINGS if name in parts}
    found = {OVERVIEW: overview_table(settings)}
    found |= {name: summary_table(members) for name, members in settings.items()}
    for name, members in grouped(parts.get(VARIANTS, []), setting_of).items():
        beside = [e for e in settings[name] if e.arm in (BASELINE, *BESIDE_VARIANTS)]
        for half in (False, True):
            shown = [e for e in members if e.held_out == half]
            if shown:
                title = f"Variants in {name}, {log.HALVES[1 + half].replace('_', '-')} half"
                found[title] = summary_table([*(e for e in beside if e.held_out == half), *shown])
    for name, members in grouped(parts.get(HIDDEN, []), setting_of).items():
        found[f"Trained with hidden tokens, {name}"] = summary_table(members)
    return found


def overview_table(settings: Mapping[str, Sequence[Episode]]) -> str:
    """A row an arm, a column a setting, and one for those episodes of all settings that every arm has."""
    episodes = [episode for members in settings.values() for episode in members]
    columns = {**settings, "all settings": comparison.shared(episodes).episodes}
    rows = {arm: [f"`{arm}`"] for arm in comparison.setups(episodes)}
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
            row += [percent(figures["pruning"]), percent(figures.get("fire_rate"))]
            row += [number(figures.get("pruned")), number(figures.get("change"))]
        rows.append(row + [""] * (len(HEADER) - len(row)))
    return table(HEADER, rows)


if __name__ == "__main__":
    sys.exit(main())

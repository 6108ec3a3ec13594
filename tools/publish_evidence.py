"""`make evidence LOGS="out/study/episodes.jsonl ..."`: add logs of a study to docs/evidence, and make all of it anew.

Writes each setting's log (`<setting>.jsonl.xz`), reports, figures and outcomes, and the tables of docs/evidence.md. An
arm is published when it has all episodes that `off` has; others are named and left for later. Sentences are not written
here: read them again after each run.
"""

from __future__ import annotations

import argparse
import lzma
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dtp_ros.errors import DtpError
from dtp_ros.sim.tasks import SETTINGS
from dtp_ros.study import comparison, log, outcomes
from dtp_ros.study.attention import write_attention
from dtp_ros.study.comparison import BASELINE
from dtp_ros.study.log import Episode, LogError
from dtp_ros.study.report import write_reports
from dtp_ros.study.tables import MISSING, number, p_value, percent, points, table

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "evidence"
OVERVIEW = "All settings at a glance"
HEADER = (
    "arm", "success", "grasp", f"difference to `{BASELINE}`, points", "gained / lost", "p (exact McNemar)",
    "steps that prune", "tokens pruned a step", "entropy, refined - clean (nats)",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish; 0 where it was done, 1 with one line where it could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="*", type=Path, help="logs to add; without any, what is published is made anew")
    options = parser.parse_args(arguments)
    try:
        published = whole(log.read([*sorted(FOLDER.glob("*.jsonl.xz")), *options.log]))
        write_tables(FOLDER.with_suffix(".md"), published)  # first: it names a section that is missing
        write_logs(published)
        for path in [*FOLDER.glob("*.md"), *FOLDER.glob("*.png")]:
            path.unlink()
        outcomes.write(FOLDER / "outcomes.json", published)
        for path in [*write_reports(published, FOLDER), *write_attention(published, BASELINE, FOLDER)]:
            print(path)
    except (DtpError, OSError) as error:
        print(f"publish_evidence: {error}", file=sys.stderr)
        return 1
    return 0


def whole(episodes: Sequence[Episode]) -> list[Episode]:
    """Without the arms of a benchmark that lack episodes of its baseline; what is left out is printed."""
    kept: list[Episode] = []
    for benchmark, members in of_benchmarks(episodes).items():
        wanted = {e.key for e in members if e.arm == BASELINE}
        for arm in log.arms(members):
            own = [e for e in members if e.arm == arm]
            if wanted and {e.key for e in own} == wanted:
                kept += own
            else:
                print(f"left out: {benchmark}, {arm}: {len(own)} episodes where {BASELINE} has {len(wanted)}")
    return kept


def of_benchmarks(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes by benchmark, which is a setting here."""
    return {name: [e for e in episodes if e.benchmark == name] for name in sorted({e.benchmark for e in episodes})}


def setting_of(benchmark: str) -> str:
    """`lookalike` of `tabletop_lookalike`."""
    return benchmark.removeprefix("tabletop_")


def write_logs(episodes: Sequence[Episode]) -> None:
    """A packed log a setting."""
    for benchmark, members in of_benchmarks(episodes).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "episodes.jsonl"
            for episode in members:
                log.append(path, episode)
            packed = lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
        (FOLDER / f"{setting_of(benchmark)}.jsonl.xz").write_bytes(packed)


def write_tables(page: Path, episodes: Sequence[Episode]) -> None:
    """Put each table in the place of the one in its section. Raises LogError where there is none."""
    text = page.read_text(encoding="utf-8")
    tables = {OVERVIEW: overview_table(episodes)}
    tables |= {setting_of(name): summary_table(members) for name, members in of_benchmarks(episodes).items()}
    for title, new in tables.items():
        section = re.search(rf"(?ms)^### {title}\n(?:(?!^#).)*?(?P<table>^\| arm \|.*?\n)\n", text)
        if section is None:
            raise LogError(f"{page} has no section '### {title}' with a table that begins '| arm |'")
        text = text[: section.start("table")] + new + "\n" + text[section.end("table") :]
    page.write_text(text, encoding="utf-8")


def overview_table(episodes: Sequence[Episode]) -> str:
    """A row an arm, a column a setting, and one for those episodes of all settings that every arm has."""
    settings = of_benchmarks(episodes)
    columns = {name: settings[f"tabletop_{name}"] for name in SETTINGS if f"tabletop_{name}" in settings}
    columns["all settings"] = list(comparison.shared(episodes).episodes)
    rows = {arm: [f"`{arm}`"] for arm in comparison.setups(episodes)}
    for members in columns.values():
        summaries = comparison.summaries(members)
        differences = {found.arm: points(found.test.difference) for found in comparison.versus(members, [BASELINE])}
        for arm, row in rows.items():
            first = percent(summaries[arm].figures["success"]) if arm == BASELINE else MISSING
            row.append(differences.get(arm, first))
    return table(["arm", *columns], rows.values())


def summary_table(episodes: Sequence[Episode]) -> str:
    """A row an arm, over all tasks of a setting."""
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
            row += [percent(figures.get("fire_rate")), number(figures.get("pruned")), number(figures.get("change"))]
        rows.append(row + [""] * (len(HEADER) - len(row)))
    return table(HEADER, rows)


if __name__ == "__main__":
    sys.exit(main())

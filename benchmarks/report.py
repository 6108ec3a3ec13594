"""Measured figures as JSON, and as a Markdown table between two marks of a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure


def write(found: Sequence[Figure], about: dict[str, Any], json_file: Path, page: Path) -> None:
    """Print the table, write the JSON, and replace the page's table, where there is such a page."""
    lines = table(found)
    print("\n".join(lines))
    missed = [figure.name for figure in found if figure.met is False]
    print(f"{len(missed)} beyond their bounds: {', '.join(missed)}" if missed else "all bounds hold")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "figures": [figure.row() for figure in found]}
    json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    machine = ", ".join(f"{key} {value}" for key, value in about.items())
    replace_between(page, "figures", [f"Machine: {machine}.", "", *lines])


def table(found: Sequence[Figure]) -> list[str]:
    """Lines of a Markdown table: a row a figure, a column a model, the bound in its own column; the node's below it."""
    node = [figure for figure in found if figure.name.startswith("node: ")]
    found = [figure for figure in found if figure not in node]
    models = list(dict.fromkeys(figure.name.split(": ")[0] for figure in found))
    names = list(dict.fromkeys(figure.name.split(": ")[1] for figure in found))
    by_name = {figure.name: figure for figure in found}
    lines = [f"| figure | bound | {' | '.join(models)} |", "|---|---|" + "---|" * len(models)]
    for name in names:
        cells = [by_name.get(f"{model}: {name}") for model in models]
        bound = next(_bound(cell) for cell in cells if cell)
        lines.append(f"| {name} | {bound} | {' | '.join(_cell(cell) for cell in cells)} |")
    return [*lines, "", *(f"N{figure.name[1:]}: {_cell(figure)} ({_bound(figure)})." for figure in node)]


def _bound(figure: Figure) -> str:
    if figure.target is None:
        return "-"
    return f"{'at least' if figure.at_least else 'at most'} {figure.target:g}"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if figure.unit == "relative error":
        return f"{100 * figure.value:+.0f} %; {figure.note}"
    unit = "" if figure.unit == "ratio" else f" {figure.unit}"
    low, high = figure.quartiles
    spread = f" ({low:.2f} ... {high:.2f})" if figure.runs > 1 else ""
    value = f"**{figure.value:.2f}{unit}**" if figure.met is False else f"{figure.value:.2f}{unit}"
    return f"{value}{spread}" + (f"; {figure.note}" if figure.note else "")


def replace_between(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->` in a page; nothing without the page.

    Raises ValueError where a mark is missing.
    """
    if not page.exists():
        return
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{page} lacks {begin} or {end}")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{after}"]), encoding="utf-8")

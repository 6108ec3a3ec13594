"""Figures as Markdown. What has no interval has no cell: every function here takes it with the figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from dtp_ros.study.statistics import Estimate

MISSING = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(rate: Estimate | None) -> str:
    """A rate, 0 ... 1, and its interval, in percent."""
    if rate is None:
        return MISSING
    # Adding zero makes no -0.0 of what rounds to it.
    value, low, high = (round(100 * x, 1) + 0.0 for x in (rate.value, rate.low, rate.high))
    return f"{value:.1f} % ({low:.1f} ... {high:.1f})"


def points(difference: Estimate | None) -> str:
    """A difference of rates, -1 ... 1, and its interval, in percentage points."""
    if difference is None:
        return MISSING
    value, low, high = (round(100 * x, 1) + 0.0 for x in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} ({low:+.1f} ... {high:+.1f})"


def number(figure: Estimate | None) -> str:
    """A figure and its interval, with two digits of the interval's width."""
    if figure is None:
        return MISSING
    width = figure.high - figure.low
    if width <= 0:
        return f"{figure.value:.3g} ({figure.low:.3g} ... {figure.high:.3g})"
    digits = min(max(1 - math.floor(math.log10(width)), 0), 4)
    value, low, high = (round(x, digits) + 0.0 for x in (figure.value, figure.low, figure.high))
    return f"{value:.{digits}f} ({low:.{digits}f} ... {high:.{digits}f})"


def p_value(p: float | None) -> str:
    """A p value: three digits where they matter."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3g}" if p < 0.1 else f"{p:.2f}"

"""Reads the tables of a report, and what a test in them must say."""

from math import comb


def tables(text):
    """Every table, as a heading and rows of {column: cell}."""
    found, heading = [], ""
    for block in text.split("\n\n"):
        if block.startswith("#"):
            heading = block.lstrip("# ")
        elif block.startswith("|"):
            header, rule, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
            assert set(rule) == {"---"}
            found.append((heading, [dict(zip(header, row, strict=True)) for row in rows]))
    return found


def row_of(text, heading, arm, column):
    """The first row of an arm under a heading whose table has the column."""
    for title, rows in tables(text):
        for row in rows:
            if title == heading and row.get("arm") == f"`{arm}`" and column in row:
                return row
    raise AssertionError(f"no {arm} with {column} under {heading}")


def exact(gained, lost):
    changed = gained + lost
    return min(1.0, 2 * sum(comb(changed, i) for i in range(min(gained, lost) + 1)) / 2**changed)

"""How recorded episodes ended, as a person wrote it down: CSV with a header, or one JSON object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dtp_ros.study.recording import BagError

Label = tuple[str, int]  # name of the recording, number of the episode in it, from 0
COLUMNS = ("bag", "episode", "success")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read(path: Path) -> dict[Label, bool]:
    """Success by recording and episode. Raises BagError naming file and line."""
    labels: dict[Label, bool] = {}
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        if set(row) != set(COLUMNS):
            raise BagError(f"{where} has {', '.join(map(str, row)) or 'nothing'} (valid: {', '.join(COLUMNS)})")
        success = _WORDS.get(str(row["success"]).strip().lower())
        if success is None:
            raise BagError(f"{where}: success = {row['success']!r} is not known (valid: {', '.join(_WORDS)})")
        label = str(row["bag"]).strip(), _number(row["episode"], where)
        if labels.setdefault(label, success) != success:
            raise BagError(f"{where}: episode {label[1]} of {label[0]} was said to have ended otherwise above")
    return labels


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and content of each line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BagError(f"labels {path} cannot be read: {error}") from None
    if not text.lstrip().startswith("{"):
        table = csv.DictReader(text.splitlines(), restkey="too much")
        yield from ((table.line_num, {str(k).strip(): v for k, v in row.items()}) for row in table)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BagError(f"{path}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise BagError(f"{path}, line {number} is no JSON object with {', '.join(COLUMNS)}")
        yield number, row


def _number(value: object, where: str) -> int:
    text = str(value).strip()
    if not text.isdecimal():
        raise BagError(f"{where}: episode = {value!r} is not the number of an episode (valid: 0, 1, ...)")
    return int(text)

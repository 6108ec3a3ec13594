"""Small files that a model's authors publish in their source repository only."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from dtp_ros.errors import CheckpointError
from dtp_ros.models.tiny import cache_folder

TIMEOUT = 30.0  # s


def folder_of(source: str, files: Sequence[str]) -> Path:
    """Folder with `files`: a local one, or the user's cache of those under an https address, downloaded once.

    The address should name a commit: what is in the cache is not asked for again. Raises CheckpointError where there is
    no such folder or address.
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return folder
    if re.match(r"(https|file)://", source) is None:
        raise CheckpointError(f"{source!r}, for {', '.join(files)}, is neither a folder nor an https address")
    cache = cache_folder() / "files" / hashlib.sha256(source.encode()).hexdigest()[:12]
    for name in files:
        if not (cache / name).is_file():
            _download(f"{source.rstrip('/')}/{name}", cache / name)
    return cache


def _download(address: str, path: Path) -> None:
    """Whole or not at all, whoever else downloads it at the same time."""
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            data = answer.read()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(draft).replace(path)
    except OSError as error:
        raise CheckpointError(f"{address} cannot be had: {error}") from error

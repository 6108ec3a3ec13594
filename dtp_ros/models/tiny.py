"""Tiny random checkpoints in the real layout, written once to the user's cache and loaded like any other."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from dtp_ros.errors import CheckpointError
from dtp_ros.models.checkpoint import Progress, no_progress

TINY = "tiny"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/dtp_ros, or ~/.cache/dtp_ros."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtp_ros"


def tiny_checkpoint(name: str, write: Callable[[Path], None], progress: Progress = no_progress) -> Path:
    """Folder of the tiny checkpoint `name`, written by `write` where it is not in the cache yet.

    The folder is named after the source of the module that writes it, so that changed code writes anew. It appears
    whole or not at all: of several processes that write at once, one wins and the others use its files.
    Raises CheckpointError where the cache cannot be written.
    """
    source = Path(write.__code__.co_filename)
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / "tiny" / f"{name}-{version}"
    if folder.is_dir():
        return folder
    progress(f"writing the tiny {name} checkpoint to {folder}", 0.0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(f"the tiny checkpoint cannot be written to {folder}: {error}") from error
    try:
        write(draft)
        draft.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise CheckpointError(f"the tiny checkpoint cannot be written to {folder}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    progress(f"wrote the tiny {name} checkpoint", 1.0)
    return folder

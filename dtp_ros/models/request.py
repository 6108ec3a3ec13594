"""What the registry asks of a model's loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models.tiny import TINY, tiny_checkpoint

FETCHED = 0.4  # of the progress, when the files are there and the weights are read


@dataclass(frozen=True)
class LoadRequest:
    """The arguments of `registry.load_adapter`, with the model's defaults filled in; a loader checks what they mean.

    options: the adapter's own settings, all of them.
    """

    checkpoint: str
    revision: str
    device: str
    dtype: str
    preprocess: str
    options: Mapping[str, Any]
    progress: ckpt.Progress

    def folder(self, name: str, write_tiny: Callable[[Path], None], files: Sequence[str], subfolder: str = "") -> Path:
        """Folder of the checkpoint, its files fetched where it is a hub id, or the tiny one of model `name`.

        files, subfolder: as `checkpoint.resolve` takes them. Raises CheckpointError.
        """
        progress = ckpt.stage(self.progress, 0.0, FETCHED)
        if self.checkpoint == TINY:
            return tiny_checkpoint(name, write_tiny, progress)
        return ckpt.resolve(self.checkpoint, self.revision, files, progress, subfolder=subfolder)

    def reading(self, low: float = FETCHED, high: float = 1.0) -> ckpt.Progress:
        """Progress while weights are read, between two shares of the whole."""
        return ckpt.stage(self.progress, low, high)

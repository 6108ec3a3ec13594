"""What the registry asks of a model's loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models import quantise
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

    def __post_init__(self) -> None:
        quantise.require_library(self.dtype)  # before anything is fetched

    @property
    def quantised(self) -> bool:
        """Whether the matrices of the decoder's layers are to be whole numbers."""
        return self.dtype in ckpt.DTYPES and ckpt.DTYPES[self.dtype].bits > 0

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

    def blank_model(self, place: torch.device, kind: torch.dtype) -> AbstractContextManager[None]:
        """`checkpoint.blank_model` on `place`; on the host where the weights are quantised on their way there."""
        return ckpt.blank_model(quantise.HOST if self.quantised else place, kind)

    def load_weights(
        self,
        model: nn.Module,
        decoder: nn.Module,
        folder: Path,
        rename: Callable[[str], str],
        tied: Mapping[str, str],
        progress: ckpt.Progress,
        *,
        unused: Callable[[str], bool] = lambda key: False,
    ) -> None:
        """`checkpoint.load_weights`; where `dtype` says so the layers of `decoder`, a part of `model`, are quantised.

        Raises CheckpointError, and ConfigError for a matrix that cannot be quantised.
        """
        load = partial(ckpt.load_weights, model, folder, rename, tied, progress, unused=unused)
        if not self.quantised:
            return load()
        place = ckpt.resolve_device(self.device)
        quantise.load_quantised(model, decoder, self.dtype, place, lambda filled: load(filled=filled))

"""Keys and values, written in place.

transformers' dynamic cache is copied whole for each token. This one keeps one block of memory for all layers, takes
rows back by forgetting their number, and moves a row in all layers at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from dtp_ros.errors import CaptureError


class RowCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """A cache of `length` rows with room for more; a pass writes its rows behind them.

    The length is set by whoever runs the passes. Rows beyond it are there until a pass writes over them.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_Layer(self, index) for index in range(num_layers)])
        self.length = 0
        self._room = 0
        self._block: Tensor | None = None  # [layers, keys and values, batch, heads, room, width]

    def reserve(self, room: int) -> None:
        """Make room for so many rows in all, before a pass."""
        self._room = max(self._room, room)
        old = self._block
        if old is not None and old.shape[-2] < self._room:
            self._block = old.new_empty((*old.shape[:-2], self._room, old.shape[-1]))
            self._block[..., : self.length, :] = old[..., : self.length, :]

    def write(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows [B, H_kv, n, d] of one layer; the keys and values of all its rows, [B, H_kv, length + n, d].

        Raises CaptureError where layers differ in heads or width.
        """
        if self._block is None:
            shape = len(self.layers), 2, *keys.shape[:2], self._room, keys.shape[-1]
            self._block = keys.new_empty(shape)
        block, stop = self._of_layer(index, keys), self.length + keys.shape[-2]
        block[0, ..., self.length : stop, :] = keys
        block[1, ..., self.length : stop, :] = values
        return block[0, ..., :stop, :], block[1, ..., :stop, :]

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target` in every layer."""
        if self._block is not None:
            self._block[..., target, :] = self._block[..., source, :]

    def take(self, other: RowCache, length: int, batch: int = 1) -> None:
        """Begin with the first `length` rows of `other`, which holds one batch, `batch` times."""
        if length and other._block is not None:
            rows = other._block[..., :length, :].expand(-1, -1, batch, -1, -1, -1)
            self._block = rows.new_empty((*rows.shape[:-2], max(self._room, length), rows.shape[-1]))
            self._block[..., :length, :] = rows
            self.length = length

    def select(self, index: int) -> None:
        """Keep one of a batch."""
        if self._block is not None:
            self._block = self._block[:, :, index : index + 1].clone()

    def _of_layer(self, index: int, keys: Tensor) -> Tensor:
        """Keys and values of one layer, [2, B, H_kv, room, d]."""
        assert self._block is not None
        block: Tensor = self._block[index]
        if keys.shape[1] != block.shape[2] or keys.shape[-1] != block.shape[-1]:
            raise CaptureError(
                f"layer {index} has {keys.shape[1]} key heads of width {keys.shape[-1]} (valid here: layers that are "
                f"alike, as the first, {block.shape[2]} of {block.shape[-1]})"
            )
        return block

    def rows(self) -> Tensor:
        """A view of what is kept, [layers, 2, B, H_kv, length, d]."""
        return torch.empty(0) if self._block is None else self._block[..., : self.length, :]


class _Layer(DynamicLayer):  # type: ignore[misc]
    """What one decoder layer sees of a `RowCache`."""

    def __init__(self, cache: RowCache, index: int) -> None:
        super().__init__()
        self._cache = cache
        self._index = index

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Called by the layer's attention."""
        return self._cache.write(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        """Rows before this pass."""
        return self._cache.length

"""One forward pass of the language model over a cache, with what is to be read on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dtp_ros.engine.cache import RowCache
from dtp_ros.engine.capture import RowRecorder, RowRequest, captured_states
from dtp_ros.models.base import VlaAdapter

if TYPE_CHECKING:
    from dtp_ros.engine.prefix import Prefix

SPARE = 16  # rows of a cache beyond the sequence: those that are tried and not kept, and padding


@dataclass(frozen=True)
class Request:
    """Rows to run behind those that are in a cache, and what is to be read.

    embeddings: [B, n, hidden]. position_ids: int64 [..., n]. mask: bool [B or 1, 1, n, rows in the cache + n].
    columns: image tokens, int64 [N_v]. attention: layer -> which of the n rows, int64 [r].
    states: layers after which the residual stream is read.
    plain_causal: whether the mask says no more than that row i sees keys 0 ... i.
    """

    embeddings: Tensor
    position_ids: Tensor
    mask: Tensor
    columns: Tensor
    attention: Mapping[int, Tensor]
    states: tuple[int, ...] = ()
    plain_causal: bool = False


@dataclass(frozen=True)
class Output:
    """What a pass gave; to be used before the next one, which may write over it.

    hidden: last hidden states [B, n, hidden]. attention: layer -> float32 [H, r, N_v]. states: layer -> [B, n, hidden].
    """

    hidden: Tensor
    attention: Mapping[int, Tensor]
    states: Mapping[int, Tensor]


class Passes:
    """Passes of whatever shape they come in."""

    static = False

    def __init__(self, adapter: VlaAdapter) -> None:
        self._adapter = adapter
        self.prefix: Prefix | None = None
        """What the last clean prefill leaves to the next one."""

    def cache(self, room: int, role: int) -> RowCache:
        """An empty cache with room for `room` rows; role: 0 of the clean chain, 1 of the masked one."""
        cache = RowCache(self._adapter.num_layers)
        cache.reserve(room)
        return cache

    def run(self, request: Request, cache: RowCache) -> Output:
        """Write the rows behind those of `cache`, whose length stays; raises CaptureError where none was captured."""
        cache.reserve(cache.length + request.embeddings.shape[1])
        return self._forward(request, cache)

    def _forward(self, request: Request, cache: RowCache) -> Output:
        model = self._adapter.text_model
        recorder = RowRecorder(RowRequest(request.columns, request.attention)) if request.attention else None
        with captured_states(self._adapter.layers(), request.states) as states:
            output = model(
                inputs_embeds=request.embeddings,
                position_ids=request.position_ids,
                attention_mask=request.mask,
                past_key_values=cache,
                use_cache=True,
                row_recorder=recorder,
                plain_causal=request.plain_causal,
            )
        implementation = str(getattr(getattr(model, "config", None), "_attn_implementation", "unknown"))
        recorded = {} if recorder is None else recorder.recorded(implementation)
        return Output(output.last_hidden_state, recorded, states)

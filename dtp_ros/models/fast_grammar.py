"""The grammar of FAST tokens: at each position, only those that can still become actions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtp_ros.errors import ActionDecodeError, CheckpointError
from dtp_ros.models.action_tokens import ROUNDING, FastCodec

_MAX_CODE = 0x10FFFF


@dataclass(frozen=True)
class _Continuations:
    """What each token adds after some pending bytes of a character; K tokens, the first D coefficients of each.

    coefficients [K, D] and lengths [K]; tail_low, tail_high [K]: the coefficients that the unfinished character at the
    end can still become (a pair around 0 where there is none); whole: all coefficients of tokens that hold more than
    D - 1; usable [K]: whether the bytes are the beginning of some text.
    """

    coefficients: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tail_low: NDArray[np.int64]
    tail_high: NDArray[np.int64]
    has_tail: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    whole: dict[int, NDArray[np.int64]]


def _split_text(data: bytes) -> tuple[str, bytes] | None:
    """Whole characters and the bytes of an unfinished one; None where this is not the beginning of any text."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        return decoder.decode(data), decoder.getstate()[0]
    except UnicodeDecodeError:
        return None


def _code_span(head: bytes) -> tuple[int, int]:
    """Smallest and largest code of the characters that begin with `head` (1 to 3 bytes, well formed)."""
    size = 2 if head[0] < 0xE0 else 3 if head[0] < 0xF0 else 4
    code = head[0] & (0xFF >> (size + 1))
    for byte in head[1:]:
        code = code << 6 | byte & 0x3F
    free = 6 * (size - len(head))
    smallest = (0x80, 0x800, 0x10000)[size - 2]
    return max(code << free, smallest), min(code << free | (1 << free) - 1, _MAX_CODE)


class FastGrammar:
    """Only tokens that fit the coefficients still missing, and an end exactly when none is (`Grammar`).

    A sequence that this grammar completes always decodes, and every prefix of a sequence that decodes is allowed; so
    greedy under the grammar equals unrestricted greedy wherever that decodes. There is always a next token: missing
    coefficients may be 0, and each byte that a coefficient needs is a token by itself.
    Each token adds a byte at least, so the sequence never exceeds `codec.max_tokens`.

    codec: the FAST code; first_id: the model's id of FAST id 0; end_ids: the model's end ids.
    Raises CheckpointError where a byte is not a token by itself.
    """

    def __init__(self, codec: FastCodec, first_id: int, end_ids: Sequence[int]) -> None:
        needed = {byte for code in codec.codes for byte in chr(code).encode()}
        single = {token[0] for token in codec.token_bytes if len(token) == 1}
        if needed - single:
            raise CheckpointError(f"the FAST vocabulary lacks the single bytes {sorted(needed - single)}")
        self._codec = codec
        self._first_id = first_id
        self._end = torch.tensor(sorted(end_ids), dtype=torch.int64)
        self._cache: dict[bytes, _Continuations] = {}

    def allowed(self, ids: Sequence[int]) -> Tensor:
        """Ids that may follow the action tokens `ids` (model ids): int64 [M], ascending, M >= 1.

        Raises ActionDecodeError where `ids` is not the beginning of a sequence that decodes.
        """
        split = _split_text(self._codec.bytes_of(ids, self._first_id))
        if split is None or len(split[0]) + bool(split[1]) > self._codec.size:
            raise ActionDecodeError(f"{list(ids)} is not the beginning of {self._codec.size} coefficients")
        text, pending = split
        done = np.array([ord(character) for character in text], dtype=np.int64) + self._codec.min_token
        values = self._codec.partial_values(done)
        if len(done) == self._codec.size:
            return self._end
        low, high = self._intervals(values, len(done))
        fits = self._fitting(self._continuations(pending), done, low, high)
        return torch.from_numpy(np.flatnonzero(fits) + self._first_id)

    def _intervals(self, values: NDArray[np.float64], start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lowest and highest coefficient at each of the next positions, at most one a dimension: int64 [<= D]."""
        codec = self._codec
        positions = np.arange(start, min(start + codec.dimensions, codec.size))
        frequency, dimension = positions // codec.dimensions, positions % codec.dimensions
        step, value = codec.basis[frequency], values[:, dimension].T
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.stack([(-codec.value_limit - value) / step, (codec.value_limit - value) / step])
        ends[:, np.abs(step) < ROUNDING] = np.array([[-np.inf], [np.inf]])
        limit = codec.coefficient_limits[frequency]
        low = np.maximum(np.ceil(ends.min(axis=0).max(axis=1) - ROUNDING), np.maximum(-limit, codec.min_token))
        high = np.minimum(np.floor(ends.max(axis=0).min(axis=1) + ROUNDING), limit)
        # 0 never leaves what the checked prefix has reached; only rounding could say otherwise.
        return np.minimum(low, 0).astype(np.int64), np.maximum(high, 0).astype(np.int64)

    def _fitting(
        self, after: _Continuations, done: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each token keeps every coefficient, and what its last bytes can become, within reach: bool [K]."""
        missing, width = self._codec.size - len(done), len(low)
        fits = after.usable & (after.lengths + after.has_tail <= missing)
        for j in range(width):
            column = after.coefficients[:, j]
            fits &= (after.lengths <= j) | ((low[j] <= column) & (column <= high[j]))
            ends_here = after.has_tail & (after.lengths == j)
            fits &= ~ends_here | ((after.tail_low <= high[j]) & (low[j] <= after.tail_high))
        for token in after.whole.keys() & set(np.flatnonzero(fits).tolist()):
            fits[token] = self._whole_token_fits(after, token, done)
        return fits

    def _whole_token_fits(self, after: _Continuations, token: int, done: NDArray[np.int64]) -> bool:
        """The same for a token that reaches a second frequency of a dimension, by trying it."""
        longer = np.concatenate([done, after.whole[token]])
        try:
            values = self._codec.partial_values(longer)
        except ActionDecodeError:
            return False
        if not after.has_tail[token]:
            return True
        low, high = self._intervals(values, len(longer))
        return bool(after.tail_low[token] <= high[0] and low[0] <= after.tail_high[token])

    def _continuations(self, pending: bytes) -> _Continuations:
        if pending not in self._cache:
            self._cache[pending] = self._tabulate(pending)
        return self._cache[pending]

    def _tabulate(self, pending: bytes) -> _Continuations:
        codec = self._codec
        count, width = len(codec.token_bytes), codec.dimensions
        table = _Continuations(
            coefficients=np.zeros((count, width), dtype=np.int64),
            lengths=np.zeros(count, dtype=np.int64),
            tail_low=np.zeros(count, dtype=np.int64),
            tail_high=np.zeros(count, dtype=np.int64),
            has_tail=np.zeros(count, dtype=np.bool_),
            usable=np.zeros(count, dtype=np.bool_),
            whole={},
        )
        for token, data in enumerate(codec.token_bytes):
            split = _split_text(pending + data)
            if split is None or not data:
                continue
            text, tail = split
            found = np.array([ord(character) for character in text], dtype=np.int64) + codec.min_token
            table.usable[token] = True
            table.lengths[token] = len(found)
            table.coefficients[token, : min(len(found), width)] = found[:width]
            if len(found) >= width:
                table.whole[token] = found
            if tail:
                table.has_tail[token] = True
                table.tail_low[token], table.tail_high[token] = np.array(_code_span(tail)) + codec.min_token
        return table

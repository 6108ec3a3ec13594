"""The text before the image, whose keys and values are the same from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_ros.engine.cache import RowCache
from dtp_ros.engine.sequence import TokenSequence

WORTH = 0.1  # of the sequence; less is not kept, since behind a prefix the prefill needs a mask, which costs more


@dataclass(frozen=True)
class Prefix:
    """The first m tokens of a prompt, and what a causal model made of them.

    embeddings: [m, hidden]. position_ids: int64 [..., m]. cache: their keys and values.
    states: layer -> residual stream [N_p, hidden] of the instruction, where relevance is read from it (Eq. 2).
    """

    embeddings: Tensor
    position_ids: Tensor
    cache: RowCache
    states: Mapping[int, Tensor]

    @classmethod
    def of(cls, sequence: TokenSequence, cache: RowCache, states: Mapping[int, Tensor]) -> Prefix | None:
        """What the prefill of `sequence` leaves to the next step; None where too little comes before the image,
        or a number is not finite. Waits for the device, but only where the text is new.

        states: layer -> residual stream [N_p, hidden] of the instruction.
        """
        length = sequence.text_length
        if length < len(sequence) * WORTH:
            return None
        kept = RowCache(sequence.adapter.num_layers)
        kept.take(cache, length)
        # Kernels may carry a NaN of the image to rows that do not see it: that is not to outlast its step.
        if not all(bool(part.isfinite().all()) for part in (kept.rows(), *states.values())):
            return None
        return cls(*_start(sequence, length), kept, dict(states))

    def serves(self, sequence: TokenSequence, state_layers: tuple[int, ...]) -> bool:
        """Whether `sequence` begins with the same tokens, and these layers are known; waits for the device."""
        length = len(self.embeddings)
        if length != sequence.text_length or set(state_layers) != set(self.states):
            return False
        embeddings, position_ids = _start(sequence, length)
        return torch.equal(embeddings, self.embeddings) and torch.equal(position_ids, self.position_ids)


def _start(sequence: TokenSequence, length: int) -> tuple[Tensor, Tensor]:
    return sequence.embeddings[0, :length].clone(), sequence.position_ids[..., :length].clone()

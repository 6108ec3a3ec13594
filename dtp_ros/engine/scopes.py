"""Which rows a mask holds for: every query (`all`), or those that predict action tokens (`action`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dtp_ros.engine.decoder import Chain, Pass, TokenSequence


class Scope(Protocol):
    """The passes of one step. The next token is predicted by the last row of the sequence."""

    def prefill(self) -> tuple[Pass, Tensor]:
        """The clean prefill, which predicts the first token, and the relevance R [N_v]."""

    def clean(self) -> Pass:
        """The clean pass of the next token, with attention."""

    def refine(self, mask: Tensor) -> Tensor:
        """Logits [vocabulary] of the next token with the image tokens `mask` [N_v] masked; later tokens read it."""

    def checkpoint(self) -> Callable[[], None]:
        """What makes later tokens read the pass that has just run, where others were run for the same token since."""

    def replay(self, count: int) -> Pass:
        """The clean passes of the last `count` tokens of the sequence, where they had none, with attention."""


class AllQueries:
    """Scope `all`: pruned tokens are no keys for any row, the prompt's included.

    Two chains over the same tokens: a wholly clean one for analyses, and one that masks the same D in all of its rows.
    The latter serves again only while D stays the same.
    """

    def __init__(self, sequence: TokenSequence, relevance_layers: tuple[int, ...]) -> None:
        self._sequence = sequence
        self._layers = relevance_layers
        self._clean = Chain(sequence)
        self._masked: tuple[Tensor, Chain] | None = None

    def prefill(self) -> tuple[Pass, Tensor]:
        """See Scope."""
        return self._clean.prefill(self._layers)

    def clean(self) -> Pass:
        """See Scope."""
        return self._clean.extend(capture=True)

    def refine(self, mask: Tensor) -> Tensor:
        """See Scope: a masked prefill, or a step where the last one masked the same tokens."""
        if self._masked is None or not torch.equal(self._masked[0], mask):
            self._masked = mask, Chain(self._sequence)
        return self._masked[1].extend(mask).logits[0]

    def checkpoint(self) -> Callable[[], None]:
        """See Scope."""
        masked = self._masked

        def restore() -> None:
            self._masked = masked

        return restore

    def replay(self, count: int) -> Pass:
        """See Scope: the clean chain, teacher-forced."""
        return self._clean.extend(capture=True, count=count)


class ActionQueries:
    """Scope `action`: only the rows that predict action tokens are masked.

    One chain: the clean prefill serves all tokens. Its last row (the last prompt row at first) runs again under D, and
    the keys and values of the pass whose token was kept stay in the cache.

    In other words: one forward pass over the final sequence in which row i masks D_i. In a prefix LM the other prompt
    rows have read the last prompt token's clean keys, so there the definition is a sequence that holds this token
    twice, at one position: clean, for the prompt's rows, and as an action row, which the later rows see instead. In a
    causal model, where no prompt row reads the last one, both are the same.
    """

    def __init__(self, sequence: TokenSequence, relevance_layers: tuple[int, ...]) -> None:
        self._layers = relevance_layers
        self._chain = Chain(sequence)

    def prefill(self) -> tuple[Pass, Tensor]:
        """See Scope."""
        return self._chain.prefill(self._layers)

    def clean(self) -> Pass:
        """See Scope: reads the cache that was kept."""
        return self._chain.extend(capture=True)

    def refine(self, mask: Tensor) -> Tensor:
        """See Scope: the last row, again where it has run clean."""
        if self._chain.complete:
            self._chain.rewind()
        return self._chain.extend(mask).logits[0]

    def checkpoint(self) -> Callable[[], None]:
        """See Scope."""
        tail = self._chain.tail()
        return lambda: self._chain.replace_tail(tail)

    def replay(self, count: int) -> Pass:
        """See Scope: each row reads the cache that was kept before it."""
        return self._chain.replay(count)

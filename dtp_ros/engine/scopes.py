"""Which rows a mask holds for: every query (`all`), or those that predict action tokens (`action`)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dtp_ros.engine.decoder import Chain, Pass
from dtp_ros.engine.passes import SPARE
from dtp_ros.engine.sequence import TokenSequence


class Scope(Protocol):
    """The passes of one step. The next token is predicted by the last row of the sequence.

    looks_ahead: whether the row after a masked one can run with it (`look_ahead`).
    """

    looks_ahead: bool

    def prefill(self) -> tuple[Pass, Tensor]:
        """The clean prefill, which predicts the first token, and the relevance R [N_v]."""

    def clean(self) -> Pass:
        """The clean pass of the next token, with attention."""

    def refine(self, mask: Tensor) -> Tensor:
        """Logits [vocabulary] of the next token with the image tokens `mask` [N_v] masked; later tokens read it."""

    def attempt(self, masks: Tensor) -> Tensor:
        """Logits [k, vocabulary] of the next token under each of `masks` [k, N_v], in one pass."""

    def keep(self, index: int) -> None:
        """Let later tokens read the pass under mask `index` of the last `attempt`; else they read the clean one."""

    def look_ahead(self, mask: Tensor, *, held: bool) -> tuple[Tensor, Pass]:
        """The last token but one under `mask`, and the last one in the same pass, as if it were certain.

        Returns logits [n, vocabulary]: of the masked row, and, if the mask is `held`, of the last row under it too;
        and the last row's clean pass, which stays in the cache unless the mask is held.
        """

    def forget(self) -> None:
        """Take the last token of `look_ahead` back; to be called before it leaves the sequence."""

    def follow(self, mask: Tensor) -> tuple[Tensor, Pass | None]:
        """Logits [vocabulary] of the next token under a mask that holds for the whole step.

        And its clean pass, or None where `replay` gives those of all such tokens later.
        """

    def replay(self, count: int) -> Pass:
        """The clean passes of the last `count` tokens of the sequence, with attention, where `follow` gave none."""


class AllQueries:
    """Scope `all`: pruned tokens are no keys for any row, the prompt's included.

    Two chains over the same tokens: a wholly clean one for analyses, and one without D. The latter serves again only
    while D stays the same, and begins with the rows of the clean one that no token of D precedes.
    """

    looks_ahead = False

    def __init__(self, sequence: TokenSequence, relevance_layers: tuple[int, ...]) -> None:
        self._layers = relevance_layers
        self._clean = Chain(sequence)
        self._masked: tuple[Tensor, Chain] | None = None
        self._tried: tuple[Tensor, Chain] | None = None

    def prefill(self) -> tuple[Pass, Tensor]:
        """See Scope."""
        return self._clean.prefill(self._layers)

    def clean(self) -> Pass:
        """See Scope."""
        return self._clean.extend(capture=True)

    def refine(self, mask: Tensor) -> Tensor:
        """See Scope: a masked prefill, or a step where the last one masked the same tokens."""
        if self._masked is None or not torch.equal(self._masked[0], mask):
            self._masked = mask, self._clean.without(mask)
        return self._masked[1].extend().logits[0]

    def attempt(self, masks: Tensor) -> Tensor:
        """See Scope: a batch of masked prefills."""
        branches = self._clean.branches(masks)
        self._tried = masks, branches
        return branches.extend().logits

    def keep(self, index: int) -> None:
        """See Scope."""
        if self._tried is not None:
            masks, branches = self._tried
            branches.select(index)
            self._masked, self._tried = (masks[index], branches), None

    def look_ahead(self, mask: Tensor, *, held: bool) -> tuple[Tensor, Pass]:
        """Not here: the clean row of a token does not read the masked one before it."""
        raise NotImplementedError

    def forget(self) -> None:
        """Nothing was looked ahead for."""

    def follow(self, mask: Tensor) -> tuple[Tensor, Pass | None]:
        """See Scope."""
        return self.refine(mask), None

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

    looks_ahead = True

    def __init__(self, sequence: TokenSequence, relevance_layers: tuple[int, ...]) -> None:
        self._sequence = sequence
        self._layers = relevance_layers
        self._chain = Chain(sequence)
        self._tried = torch.zeros(0)

    def prefill(self) -> tuple[Pass, Tensor]:
        """See Scope."""
        return self._chain.prefill(self._layers)

    def clean(self) -> Pass:
        """See Scope: reads the cache that was kept."""
        return self._chain.extend(capture=True)

    def refine(self, mask: Tensor) -> Tensor:
        """See Scope: the last row again, in the place of the clean one."""
        self._chain.rewind()
        return self._chain.attempt([len(self._sequence) - 1], [mask], keep=1).logits[0]

    def attempt(self, masks: Tensor) -> Tensor:
        """See Scope: the last row again, as often as there are masks, beside the clean one."""
        last, self._tried = len(self._sequence) - 1, masks
        parts = [masks[start : start + SPARE] for start in range(0, len(masks), SPARE)]
        return torch.cat([self._chain.attempt([last] * len(part), list(part), keep=0).logits for part in parts])

    def keep(self, index: int) -> None:
        """See Scope."""
        first = (len(self._tried) - 1) // SPARE * SPARE  # of the last pass, whose rows are still there
        if index < first:
            self.refine(self._tried[index])
        else:
            self._chain.adopt(index - first)

    def look_ahead(self, mask: Tensor, *, held: bool) -> tuple[Tensor, Pass]:
        """See Scope: two rows, or three, since a clean one runs beside the row that a held mask is for."""
        last = len(self._sequence) - 1
        self._chain.rewind()
        tokens, masks = ([last - 1, last, last], [mask, mask, None]) if held else ([last - 1, last], [mask, None])
        found = self._chain.attempt(tokens, masks, keep=2, captured=1)
        return found.logits[:-1], Pass(found.logits[-1:], found.rows)

    def forget(self) -> None:
        """See Scope."""
        self._chain.rewind()

    def follow(self, mask: Tensor) -> tuple[Tensor, Pass | None]:
        """See Scope: the clean row runs beside the masked one."""
        last = len(self._sequence) - 1
        found = self._chain.attempt([last, last], [mask, None], keep=1, captured=1)
        return found.logits[0], Pass(found.logits[1:], found.rows)

    def replay(self, count: int) -> Pass:
        """Not needed: `follow` gives them."""
        raise NotImplementedError

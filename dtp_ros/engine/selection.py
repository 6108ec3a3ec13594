"""Which token is emitted next: greedy over action and end tokens, within the bounds and the grammar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dtp_ros.models.base import ActionVocabulary, Grammar


class TokenSelector:
    """Greedy choice among the ids that a model may emit; ties go to the lower id."""

    def __init__(self, vocabulary: ActionVocabulary, grammar: Grammar | None, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._grammar = grammar
        self._actions = vocabulary.action_ids.to(device)
        self.support = vocabulary.support.to(device)
        """Action and end ids, int64 [K], ascending."""

    def greedy(self, logits: Tensor, count: int) -> Tensor:
        """The most likely id after `count` action tokens whatever the grammar says, int64 [...]; does not wait.

        logits: [..., vocabulary]. An end token may be chosen from `min_tokens` on.
        """
        return self._greedy(logits, self.support if count >= self._vocabulary.min_tokens else self._actions)

    def choose(self, logits: Tensor, ids: Sequence[int], greedy: int | None = None) -> tuple[int, bool]:
        """The next token after the action tokens `ids`, and whether the grammar changed it.

        logits: [vocabulary]. greedy: what `greedy` gave for them, where it has been read already. A grammar says itself
        when the end may come.
        """
        free = int(self.greedy(logits, len(ids))) if greedy is None else greedy
        if self._grammar is None:
            return free, False
        allowed = int(self._greedy(logits, self._grammar.allowed(ids).to(logits.device).sort().values))
        return allowed, allowed != free

    def is_end(self, token_id: int) -> bool:
        """Whether this token ends the sequence."""
        return token_id in self._vocabulary.end_ids

    def goes_on(self, token_id: int, ids: Sequence[int]) -> bool:
        """Whether another token may follow `token_id`, which comes after the action tokens `ids`."""
        return not self.is_end(token_id) and len(ids) + 1 < self._vocabulary.max_tokens

    @staticmethod
    def _greedy(logits: Tensor, ids: Tensor) -> Tensor:
        return ids[logits[..., ids].argmax(dim=-1)]

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
        ends = torch.tensor(vocabulary.end_ids, dtype=torch.int64, device=device)
        self.support = torch.unique(torch.cat([self._actions, ends]))
        """Action and end ids, int64 [K], ascending: what entropies are taken over."""

    def choose(self, logits: Tensor, ids: Sequence[int]) -> tuple[int, bool]:
        """The next token after the action tokens `ids`, and whether the grammar changed it.

        logits: [vocabulary]. An end token may be chosen from `min_tokens` on; a grammar says itself when it may.
        """
        free = self._greedy(logits, self.support if len(ids) >= self._vocabulary.min_tokens else self._actions)
        if self._grammar is None:
            return free, False
        allowed = self._greedy(logits, self._grammar.allowed(ids).to(logits.device).sort().values)
        return allowed, allowed != free

    def is_end(self, token_id: int) -> bool:
        """Whether this token ends the sequence."""
        return token_id in self._vocabulary.end_ids

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether no token may follow the action tokens `ids`, whatever the model says."""
        return len(ids) >= self._vocabulary.max_tokens

    @staticmethod
    def _greedy(logits: Tensor, ids: Tensor) -> int:
        return int(ids[logits[ids].argmax()])

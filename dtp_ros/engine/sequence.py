"""The tokens of one step, and which of them see which."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dtp_ros.engine.passes import Passes
from dtp_ros.errors import ObservationError
from dtp_ros.models.base import Prompt, VlaAdapter


class TokenSequence:
    """The prompt, the forced prefix and the tokens kept so far, embedded once.

    The vision tower is not run again: image features are part of the prompt's embeddings. Positions are those of the
    sequence and never depend on what is masked.
    """

    def __init__(self, adapter: VlaAdapter, prompt: Prompt, passes: Passes | None = None) -> None:
        """passes: what runs its rows. Raises ObservationError where it may exceed the model's sliding window."""
        self.adapter = adapter
        self.passes = passes or Passes(adapter)
        self.device = prompt.embeddings.device
        self._support: Tensor | None = None
        image, instruction = prompt.layout.image.to(self.device), prompt.layout.prompt.to(self.device)
        self.layout = replace(prompt.layout, image=image, prompt=instruction)
        self.prefix_length = prompt.embeddings.shape[1] if prompt.bidirectional else 0
        """Rows that see each other in both directions, from the first on."""
        self.text_length = _text_length(prompt)
        """Tokens from the first on whose rows depend on no image."""
        vocabulary = adapter.vocabulary
        self.capacity = prompt.embeddings.shape[1] + len(vocabulary.forced_prefix_ids) + vocabulary.max_tokens
        """Tokens there may be in all."""
        _require_window(adapter.text_model, self.capacity)
        self._length = prompt.embeddings.shape[1]
        more = self.capacity - self._length
        room = prompt.embeddings.new_empty((1, more, prompt.embeddings.shape[2]))
        self._embeddings = torch.cat([prompt.embeddings, room], dim=1)
        positions = torch.arange(prompt.next_position, prompt.next_position + more, device=self.device)
        given = prompt.position_ids.to(self.device)
        self._position_ids = torch.cat([given, positions.expand(*given.shape[:-1], -1)], dim=-1)
        for token_id in vocabulary.forced_prefix_ids:
            self.append(token_id)

    def restrict(self, support: Tensor) -> None:
        """From here on, compute the logits of `support` [K], the vocabulary's, alone; those of other ids are -inf."""
        self._support = support

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [..., vocabulary] of last hidden states (up to the last id of a restriction)."""
        if self._support is None:
            return self.adapter.logits(hidden)
        few = self.adapter.action_logits(hidden)
        size = int(self.adapter.vocabulary.support[-1]) + 1
        return few.new_full((*few.shape[:-1], size), -torch.inf).index_copy(-1, self._support, few)

    def __len__(self) -> int:
        """Number of tokens, N."""
        return self._length

    @property
    def embeddings(self) -> Tensor:
        """[1, N, hidden]."""
        return self._embeddings[:, : self._length]

    @property
    def position_ids(self) -> Tensor:
        """int64 [..., N]."""
        return self._position_ids[..., : self._length]

    def append(self, token_id: int) -> None:
        """Add a token at the next position."""
        ids = torch.full((1, 1), token_id, dtype=torch.int64, device=self.device)
        self._embeddings[:, self._length : self._length + 1] = self.adapter.embed(ids)
        self._length += 1

    def drop_last(self) -> None:
        """Take the last token back."""
        self._length -= 1

    def mask(self, rows: Tensor, keys: Tensor, own: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Which keys the rows of a pass see, bool [B, 1, n, S]: earlier tokens and themselves.

        In a prefix LM the prompt's rows see each other in both directions.

        rows: tokens that the rows are, int64 [n]. keys: tokens that the keys are, int64 [S]; a negative one is seen by
            nobody. Another row of the same token is not seen either.
        own: which key a row itself is, bool [n, S].
        hidden: image tokens masked as keys, bool [B, n or 1, N_v]; their columns are those of `layout.image`. A row
            that is itself such a token keeps itself, so that no row is wholly masked (nobody reads it: the result is
            that of removing the token).
        """
        row = rows[:, None]
        visible = (keys < row) | ((row < self.prefix_length) & (keys < self.prefix_length) & (keys != row))
        visible = (visible & (keys >= 0))[None]
        if hidden is not None:
            masked = torch.zeros((*hidden.shape[:2], len(keys)), dtype=torch.bool, device=self.device)
            masked[..., self.layout.image] = hidden
            visible = visible & ~masked
        return (visible | own)[:, None]


def _text_length(prompt: Prompt) -> int:
    """Up to the image, or to the end of an instruction that comes before it; none where rows see what follows them."""
    layout = prompt.layout
    if prompt.bidirectional:
        return 0
    first = int(layout.image.min())
    return first if layout.relevance == "attention" else min(first, int(layout.prompt.max()) + 1)


def _require_window(model: nn.Module, length: int) -> None:
    """Raise ObservationError where some layer of `model` would not see all of `length` tokens."""
    config = getattr(model, "config", None)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or any(kind == "sliding_attention" for kind in kinds)
    if window is not None and slides and length > window:
        raise ObservationError(
            f"prompt and action tokens take {length} positions, more than the model's sliding window "
            f"(valid: up to {window}); shorten the instruction"
        )

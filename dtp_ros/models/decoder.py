"""What the adapters share, since every model here ends in a decoder of `transformers` with a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dtp_ros.models.base import ActionVocabulary, Grammar


class DecoderAdapter:
    """One camera, no state, one action a step, no history: an adapter says where its model is otherwise.

    text_model: the decoder without its head, with `layers`, and with `embed_tokens` that scales as the model does.
    """

    horizon = 1
    num_cameras = 1
    needs_state = False
    needs_intrinsics = False
    vocabulary: ActionVocabulary

    def __init__(self, text_model: nn.Module, head: nn.Module, softcap: float | None = None) -> None:
        """softcap: c, where logits are c tanh(logits / c), or None."""
        self.text_model = text_model
        self._head = head
        self._softcap = softcap
        self._action_head: tuple[Tensor, Tensor | None] | None = None

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers())

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.text_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the decoder's weights."""
        return next(self.text_model.parameters()).dtype

    def layers(self) -> Sequence[nn.Module]:
        """Decoder layers, in order."""
        layers: Any = self.text_model.layers
        return list(layers)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [1, L, hidden] of int64 [1, L]."""
        decoder: Any = self.text_model
        with torch.no_grad():
            embeddings: Tensor = decoder.embed_tokens(ids.to(self.device))
        return embeddings

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [..., vocabulary] of last hidden states."""
        return self._capped(self._head(hidden))

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [..., K] of `vocabulary.support`; its rows of the head are copied at the first call."""
        if self._action_head is None:
            head: Any = self._head
            rows = self.vocabulary.support.to(head.weight.device)
            bias = getattr(head, "bias", None)
            self._action_head = head.weight[rows], None if bias is None else bias[rows]
        return self._capped(nn.functional.linear(hidden, *self._action_head))

    def _capped(self, logits: Tensor) -> Tensor:
        if self._softcap is not None:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits.float()

    def grammar(self) -> Grammar | None:
        """Every sequence of action tokens is an action: there is nothing to restrict."""
        return None

    def reset(self) -> None:
        """No history: nothing to forget."""

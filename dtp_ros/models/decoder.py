"""What the adapters share, since every model here ends in a decoder of `transformers` with a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dtp_ros.models.base import Grammar


class DecoderAdapter:
    """One camera, no state, one action a step, no history: an adapter says where its model is otherwise.

    text_model: the decoder without its head, with `layers`, and with `embed_tokens` that scales as the model does.
    """

    horizon = 1
    num_cameras = 1
    needs_state = False
    needs_intrinsics = False

    def __init__(self, text_model: nn.Module, head: nn.Module) -> None:
        self.text_model = text_model
        self._head = head

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
        """Type that the decoder computes in, also where its matrices are whole numbers."""
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
        logits: Tensor = self._head(hidden)
        return logits.float()

    def grammar(self) -> Grammar | None:
        """Every sequence of action tokens is an action: there is nothing to restrict."""
        return None

    def reset(self) -> None:
        """No history: nothing to forget."""

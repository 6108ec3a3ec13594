"""What every model offers to the engine: an adapter, and the plain data that passes through it.

An adapter knows one model: how to build its inputs, where the image and instruction tokens lie, which token
ids are actions, and how ids become metres and radians. It knows neither pruning nor ROS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Observation:
    """What the robot saw at one moment.

    images: RGB uint8 [H, W, 3], the main camera first.
    instruction: the task in words.
    state: end-effector state float64 [7] (x y z in m, roll pitch yaw in rad, gripper 0 ... 1), or None.
    intrinsics: camera matrix float64 [3, 3] in pixels of the main camera, or None.
    stamp: time of the main image, s.
    """

    images: tuple[NDArray[np.uint8], ...]
    instruction: str
    state: NDArray[np.float64] | None = None
    intrinsics: NDArray[np.float64] | None = None
    stamp: float = 0.0


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens lie in the sequence of the language model.

    image: positions V of the newest main camera's image tokens, row-major on the grid, int64 [rows * cols].
    prompt: positions P of the instruction's tokens, int64 [N_p], N_p >= 1.
    relevance: `attention` (Eq. 1) where the image comes before the prompt, else `embedding` (Eq. 2).
    """

    image: Tensor
    prompt: Tensor
    rows: int
    cols: int
    relevance: Literal["attention", "embedding"]


@dataclass(frozen=True)
class Prompt:
    """A prefill, ready for the language model: image features are already in place.

    embeddings: [1, N, hidden], in the model's dtype.
    position_ids: int64, last axis N: [1, N], or [3, 1, N] for M-RoPE.
    next_position: position of the first generated token (the same on all M-RoPE axes).
    bidirectional: whether the prompt's rows attend to each other in both directions (prefix LM).
    """

    embeddings: Tensor
    position_ids: Tensor
    next_position: int
    layout: TokenLayout
    bidirectional: bool = False


@dataclass(frozen=True)
class ActionVocabulary:
    """Which tokens the decode loop may emit.

    forced_prefix_ids: ids emitted first without asking the model (e.g. "Action: ").
    action_ids: int64 [K], ids that carry an action, ascending.
    end_ids: ids that end the sequence; empty where the length is fixed.
    min_tokens, max_tokens: bounds on the number of action tokens (end token and forced prefix not counted).
    """

    action_ids: Tensor
    end_ids: tuple[int, ...] = ()
    forced_prefix_ids: tuple[int, ...] = ()
    min_tokens: int = 1
    max_tokens: int = 7

    @cached_property
    def support(self) -> Tensor:
        """Action and end ids, int64 [K], ascending: what may be emitted, and what entropies are taken over."""
        ends = torch.tensor(self.end_ids, dtype=torch.int64)
        support: Tensor = torch.unique(torch.cat([self.action_ids, ends]))
        return support


class Grammar(Protocol):
    """Restricts generation to sequences that decode (FAST models)."""

    def allowed(self, ids: Sequence[int]) -> Tensor:
        """Ids that may follow the action tokens `ids`: int64 [M], end ids among them when complete; M >= 1."""


class VlaAdapter(Protocol):
    """One vision-language-action model, loaded.

    The engine touches a model only through this. `text_model(inputs_embeds=..., position_ids=...,
    attention_mask=<bool [1, 1, Lq, Lk]>, past_key_values=..., use_cache=True, **extra)` must return an object with
    `last_hidden_state` [1, Lq, hidden]; `extra` must reach the attention function.
    """

    name: str
    text_model: nn.Module
    vocabulary: ActionVocabulary
    grid: tuple[int, int]
    horizon: int
    num_cameras: int
    needs_state: bool
    needs_intrinsics: bool

    @property
    def num_layers(self) -> int:
        """Number of decoder layers of the language model."""

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the weights."""

    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers, in order; each outputs the residual stream [1, L, hidden] (first, if a tuple)."""

    def prepare(self, observation: Observation) -> Prompt:
        """Build the prefill (runs the vision tower once). Raises ObservationError."""

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [1, L, hidden] of generated ids, int64 [1, L], as the language model takes them."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary], float32, of last hidden states [..., hidden] (final softcap included)."""

    def action_logits(self, hidden: Tensor) -> Tensor:
        """The logits [..., K] of `vocabulary.support` alone, for which no other row of the head is read."""

    def grammar(self) -> Grammar | None:
        """The grammar of the action tokens, or None where every sequence decodes."""

    def decode(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Actions [horizon, 7] of generated action ids (no prefix, no end): see `ActionChunk` for the units.

        Raises ActionDecodeError where the ids do not decode, or decode outside the model's range.
        """

    def reset(self) -> None:
        """Forget history (frames, previous actions): a new episode begins."""

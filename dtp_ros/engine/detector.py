"""The method's decisions during one step: the region once, then a pattern and candidate masks for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_ros.models.base import TokenLayout
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.pruning.detect import distracting_tokens, variant_mask
from dtp_ros.pruning.pattern import layer_weights, visual_attention_pattern
from dtp_ros.pruning.region import important_region


@dataclass(frozen=True)
class Candidate:
    """A mask D [N_v] to refine a token with, the (largest) tolerance that gives it, and whether it is empty."""

    tolerance: float
    mask: Tensor
    empty: bool


class Detector:
    """Region, pattern and masks of one step, under one configuration.

    relevance: R, float32 [N_v]; smoothed: the map that the region I, bool [N_v], was read from.
    tolerances: those that are tried, falling: one under a fixed tolerance, the grid under `min_entropy`.
    """

    def __init__(self, config: PruningConfig, layout: TokenLayout, relevance: Tensor, step: int) -> None:
        self._config = config
        self._step = step
        self._weights: Tensor | None = None
        fixed = config.tolerance_mode == "fixed" or config.variant == "off"
        self.tolerances = (config.tolerance,) if fixed else tuple(sorted(set(config.tolerance_grid), reverse=True))
        self.relevance = relevance
        self.region, self.smoothed = important_region(
            relevance,
            layout.rows,
            layout.cols,
            config.top_k,
            config.sigma,
            spatial_bias=config.variant != "no_gaussian",
        )

    def pattern(self, rows: Tensor) -> Tensor:
        """Visual attention pattern A [N_v] of a clean row, [num_layers, H, N_v]; of the first token first."""
        if self._config.weights == "query":
            return visual_attention_pattern(rows)
        if self._weights is None:
            self._weights = layer_weights(rows)
        return visual_attention_pattern(rows, self._weights)

    def masks(self, pattern: Tensor, token: int) -> Tensor:
        """The mask of each of `tolerances` for a token, bool [T, N_v]: each contains the one before."""
        return torch.stack([self._mask(pattern, tolerance, token) for tolerance in self.tolerances])

    def candidates(self, masks: Tensor, counts: Sequence[int]) -> list[Candidate]:
        """The distinct ones among `masks` [T, N_v], the largest tolerance first; `counts` says how many each prunes.

        Each mask contains the one before it, so those of equal count are equal.
        """
        firsts = [i for i, count in enumerate(counts) if count not in counts[:i]]
        return [Candidate(self.tolerances[i], masks[i], empty=counts[i] == 0) for i in firsts]

    def nothing(self) -> Tensor:
        """The empty mask, bool [1, N_v]."""
        return torch.zeros_like(self.region)[None]

    def _mask(self, pattern: Tensor, tolerance: float, token: int) -> Tensor:
        config = self._config
        detected = distracting_tokens(pattern, self.region, tolerance, config.max_pruned)
        return variant_mask(config.variant, detected, self.region, config.seed, self._step, token)

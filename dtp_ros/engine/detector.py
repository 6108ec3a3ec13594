"""The method's decisions during one step: the region once, then a pattern and candidate masks for each token."""

from __future__ import annotations

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
    """

    def __init__(self, config: PruningConfig, layout: TokenLayout, relevance: Tensor, step: int) -> None:
        self._config = config
        self._step = step
        self._weights: Tensor | None = None
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

    def candidates(self, pattern: Tensor, token: int) -> list[Candidate]:
        """The distinct masks for a token, the largest tolerance (and so the smallest mask) first.

        One under a fixed tolerance; under `min_entropy` those of the grid, equal ones merged.
        """
        config = self._config
        fixed = config.tolerance_mode == "fixed" or config.variant == "off"
        tolerances = (config.tolerance,) if fixed else sorted(set(config.tolerance_grid), reverse=True)
        found: list[Candidate] = []
        for tolerance in tolerances:
            mask = self._mask(pattern, tolerance, token)
            if not any(torch.equal(mask, other.mask) for other in found):
                found.append(Candidate(tolerance, mask, empty=not bool(mask.any())))
        return found

    def nothing(self) -> Candidate:
        """The empty mask."""
        return Candidate(self._config.tolerance, torch.zeros_like(self.region), empty=True)

    def _mask(self, pattern: Tensor, tolerance: float, token: int) -> Tensor:
        config = self._config
        detected = distracting_tokens(pattern, self.region, tolerance, config.max_pruned)
        return variant_mask(config.variant, detected, self.region, config.seed, self._step, token)

"""The constants of Distracting Token Pruning, as one frozen object that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

from dtp_ros.errors import ConfigError, require_choice, require_integer, require_range

VARIANTS = ("off", "dtp", "no_gaussian", "random_all", "random_unimportant")
MASK_SCOPES = ("all", "action")
MASK_SCHEDULES = ("per_step", "per_token")
WEIGHTS = ("query", "first_token")
TOLERANCE_MODES = ("fixed", "min_entropy")

MAX_TOLERANCE = 2.0
MAX_SIGMA = 8.0
MAX_SEED = 2**31 - 1
MAX_COUNT = 65536


@dataclass(frozen=True)
class PruningConfig:
    """Every constant of the method; raises ConfigError where one is out of range.

    tolerance: factor on the most attended important token (Eq. 5), 0.0 ... 2.0.
    tolerance_mode, tolerance_grid: a fixed tolerance, or the one of the grid with the least entropy.
    variant: `dtp`, one of the paper's ablations, or `off`.
    top_k: number of image tokens in the important region.
    sigma: standard deviation of the smoothing of the relevance map, in image tokens (patches).
    max_pruned: cap on the number of pruned tokens; 0 means no cap.
    mask_scope: `all` masks for every query, `action` for the rows that predict action tokens only.
    mask_schedule: one mask a step, or one a token.
    weights: layer weights (Eq. 4) of each query, or those of the first action token.
    relevance_layers: layers of the relevance map, counted from 0.
    seed: of the random variants.
    """

    tolerance: float = 0.5
    tolerance_mode: str = "fixed"
    tolerance_grid: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    variant: str = "dtp"
    top_k: int = 27
    sigma: float = 0.65
    max_pruned: int = 0
    mask_scope: str = "all"
    mask_schedule: str = "per_token"
    weights: str = "query"
    relevance_layers: tuple[int, ...] = (12, 13, 21)
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("tolerance", self.tolerance, 0.0, MAX_TOLERANCE)
        require_choice("tolerance_mode", self.tolerance_mode, TOLERANCE_MODES)
        if not self.tolerance_grid:
            raise ConfigError(f"tolerance_grid is empty (valid: numbers in 0.0 ... {MAX_TOLERANCE})")
        for value in self.tolerance_grid:
            require_range("tolerance_grid", value, 0.0, MAX_TOLERANCE)
        require_choice("variant", self.variant, VARIANTS)
        require_integer("top_k", self.top_k, 1, MAX_COUNT)
        require_range("sigma", self.sigma, 0.0, MAX_SIGMA)
        require_integer("max_pruned", self.max_pruned, 0, MAX_COUNT)
        require_choice("mask_scope", self.mask_scope, MASK_SCOPES)
        require_choice("mask_schedule", self.mask_schedule, MASK_SCHEDULES)
        require_choice("weights", self.weights, WEIGHTS)
        if not self.relevance_layers:
            raise ConfigError("relevance_layers is empty (valid: at least one layer, counted from 0)")
        for layer in self.relevance_layers:
            require_integer("relevance_layers", layer, 0, MAX_COUNT)
        if len(set(self.relevance_layers)) != len(self.relevance_layers):
            raise ConfigError(f"relevance_layers = {list(self.relevance_layers)} names a layer twice")
        require_integer("seed", self.seed, 0, MAX_SEED)

    def require_fits(self, num_layers: int, num_image_tokens: int) -> None:
        """Raise ConfigError where a model of these sizes has no such layer or not enough tokens."""
        for layer in self.relevance_layers:
            require_integer("relevance_layers", layer, 0, num_layers - 1)
        require_integer("top_k", self.top_k, 1, num_image_tokens)
        require_integer("max_pruned", self.max_pruned, 0, num_image_tokens)

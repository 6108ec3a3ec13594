"""The important region I: spatial bias (corner suppression, Gaussian smoothing) and the k most relevant tokens.

Image tokens lie row-major on a grid of rows x cols patches. Where a grid has one row or column, its two ends are
its corners.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from dtp_ros.errors import require_integer, require_range
from dtp_ros.pruning.config import MAX_COUNT, MAX_SIGMA
from dtp_ros.pruning.shapes import require_shape

TRUNCATE = 4.0  # reach of the Gaussian, in standard deviations
CPU = torch.device("cpu")


def smoothing_matrices(rows: int, cols: int, sigma: float, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """G_rows, float32 [rows, rows], and G_cols, float32 [cols, cols]: G_rows R G_cols^T smooths a map R [rows, cols].

    A Gaussian cut off at 4 sigma, with half-sample reflection at the border (c b a | a b c | c b a). sigma: standard
    deviation in patches; 0 gives identities. The matrices are cached and shared: not to be written to.
    Raises ConfigError where a size or sigma is out of range.
    """
    require_integer("rows", rows, 1, MAX_COUNT)
    require_integer("cols", cols, 1, MAX_COUNT)
    require_range("sigma", sigma, 0.0, MAX_SIGMA)
    return _smoothing_matrix(rows, sigma, device), _smoothing_matrix(cols, sigma, device)


def smooth_relevance(relevance: Tensor, rows: int, cols: int, sigma: float, *, suppress_corners: bool) -> Tensor:
    """The relevance map as it is displayed, float32 [N_v], >= 0: R - min R, smoothed.

    The minimum (over all tokens) goes first, since cosines may be negative and a suppressed corner must be the least.

    relevance: R (Eq. 3), [N_v], N_v = rows * cols, any float type, finite. sigma: in patches; 0 does not smooth.
    suppress_corners: set corners to 0 before smoothing, and again after it.
    Raises ConfigError where sizes do not fit or sigma is out of range.
    """
    smooth_rows, smooth_cols = smoothing_matrices(rows, cols, sigma, relevance.device)
    require_shape("relevance", relevance, N_v=rows * cols)
    values = relevance.float()
    grid = (values - values.min()).view(rows, cols)
    if suppress_corners:
        grid = _with_corners(grid, 0.0)
    grid = _product(_product(smooth_rows, grid), smooth_cols.T)
    if suppress_corners:
        grid = _with_corners(grid, 0.0)
    return grid.flatten()


def important_region(
    relevance: Tensor, rows: int, cols: int, top_k: int, sigma: float, *, spatial_bias: bool
) -> tuple[Tensor, Tensor]:
    """The important region I, bool [N_v], and the map that it was read from, float32 [N_v].

    I = the k tokens with the highest smoothed relevance, ties to the lower index; U is the rest. Corners rank below
    all others, so that none is in I unless k forces it (the lower index first).

    relevance, rows, cols, sigma: as in `smooth_relevance`. top_k: the size of I, 1 ... N_v.
    spatial_bias: False is the paper's `no_gaussian`, neither corner suppression nor smoothing: the map is R itself.
    Raises ConfigError where sizes do not fit, or top_k or sigma is out of range.
    """
    require_shape("relevance", relevance, N_v=rows * cols)
    require_integer("top_k", top_k, 1, rows * cols)
    if not spatial_bias:
        values = relevance.float()
        return highest(values, top_k), values
    smoothed = smooth_relevance(relevance, rows, cols, sigma, suppress_corners=True)
    # Suppression before smoothing is not enough: a corner's neighbours lift it again.
    ranking = _with_corners(smoothed.view(rows, cols), -math.inf).flatten()
    return highest(ranking, top_k), smoothed


def highest(values: Tensor, count: int) -> Tensor:
    """Mark the `count` highest of `values` [N] (all, where there are fewer), ties to the lower index: bool [N]."""
    # Not topk: which of several equals it returns differs between devices.
    order = torch.sort(values, descending=True, stable=True).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(0, order[:count], True)


def _with_corners(grid: Tensor, value: float) -> Tensor:
    """A copy of `grid` [rows, cols] with `value` in its corners."""
    rows, cols = grid.shape
    grid = grid.clone()
    grid[:: max(rows - 1, 1), :: max(cols - 1, 1)].fill_(value)
    return grid


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in full float32, which `@` is not where TF32 is allowed."""
    return (left[:, :, None] * right).sum(dim=1)


@lru_cache(maxsize=64)
def _smoothing_matrix(length: int, sigma: float, device: torch.device) -> Tensor:
    matrix = np.eye(length)
    if sigma * TRUNCATE >= 0.5:  # below, the kernel is one sample wide (and scipy divides by zero at sigma 0)
        matrix = gaussian_filter1d(matrix, sigma, axis=0, mode="reflect", truncate=TRUNCATE)
    with torch.inference_mode(False):  # the cache outlives the mode of whoever fills it
        return torch.from_numpy(matrix).to(device, torch.float32)

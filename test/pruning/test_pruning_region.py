"""The important region: worked cases, scipy's 2-D filter as oracle, half precision, refused input."""

import math

import numpy as np
import pruning_oracle as oracle
import pytest
import torch

from dtp_ros.errors import ConfigError
from dtp_ros.pruning.region import highest, important_region, smooth_relevance, smoothing_matrices

GRIDS = [(1, 1), (1, 2), (1, 9), (9, 1), (2, 2), (2, 7), (3, 3), (4, 9), (8, 8), (12, 5), (16, 16)]
SIGMAS = [0.0, 0.05, 0.65, 1.0, 3.7, 8.0]


def indices(mask):
    return mask.nonzero().squeeze(1).tolist()


def test_smoothing_matrix_worked_by_hand():
    # sigma 0.25 reaches int(4 * 0.25 + 0.5) = 1 sample: weights e, 1, e over their sum, with e = exp(-1 / (2 sigma^2)).
    e = math.exp(-8.0)
    side, middle = e / (1 + 2 * e), 1 / (1 + 2 * e)
    # Three samples; the border sample reflects onto itself (a | a b c | c): its middle gains the side.
    expected = [[middle + side, side, 0], [side, middle, side], [0, side, middle + side]]
    rows, cols = smoothing_matrices(3, 1, 0.25)
    torch.testing.assert_close(rows, torch.tensor(expected))
    # A single sample is reflected onto itself on both sides: nothing changes.
    torch.testing.assert_close(cols, torch.ones(1, 1))


def test_region_worked_by_hand_without_smoothing():
    # 3 x 4, sigma 0. The corners hold the four highest values, as attention sinks do.
    relevance = torch.tensor([[9.0, 1.0, 2.0, 8.0], [3.0, 6.0, 5.0, 5.0], [7.0, 4.0, 5.0, 9.0]]).flatten()
    # Min 1 goes: 0 at index 1, the corners (0, 3, 8, 11) are 0 in the displayed map.
    region, smoothed = important_region(relevance, 3, 4, 3, 0.0, spatial_bias=True)
    assert smoothed.tolist() == [0, 0, 1, 0, 2, 5, 4, 4, 0, 3, 4, 0]
    # The highest is 5 (value 6); of the three tokens at value 5 (6, 7, 10) the lower two.
    assert indices(region) == [5, 6, 7]
    # no_gaussian: the raw map, corners included: 0 and 11 (value 9), then 3 (value 8).
    region, raw = important_region(relevance, 3, 4, 3, 0.65, spatial_bias=False)
    assert indices(region) == [0, 3, 11]
    assert torch.equal(raw, relevance)


def test_region_worked_by_hand_with_smoothing():
    # One row of six: a spike of 1 at index 2; the end at index 0 holds 100 and is suppressed.
    relevance = torch.tensor([100.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    # sigma 0.65 reaches int(2.6 + 0.5) = 3 samples: k0, k1, k2, k3 of the normalised Gaussian.
    weights = [math.exp(-(d**2) / (2 * 0.65**2)) for d in range(4)]
    k0, k1, k2, k3 = (w / (weights[0] + 2 * sum(weights[1:])) for w in weights)
    # The spike alone spreads. Left of the border it is reflected at -3 (index -1 - 2), which is 4 from index 1.
    region, smoothed = important_region(relevance, 1, 6, 2, 0.65, spatial_bias=True)
    torch.testing.assert_close(smoothed, torch.tensor([0.0, k1, k0, k1, k2, 0.0]))
    # Of the equals 1 and 3 the lower one.
    assert indices(region) == [1, 2]
    # The end at index 5 had k3 before it was set to 0 again.
    relevance[0] = 0.0
    assert smooth_relevance(relevance, 1, 6, 0.65, suppress_corners=False)[5].item() == pytest.approx(k3)


def test_negative_cosines():
    # All cosines are negative; the least, -0.9, is the zero of the map. Centre -0.1 is the highest.
    relevance = torch.full((9,), -0.9)
    relevance[4], relevance[0] = -0.1, -0.05
    region, smoothed = important_region(relevance, 3, 3, 1, 0.65, spatial_bias=True)
    assert indices(region) == [4]
    assert smoothed.min() >= 0


def test_a_suppressed_corner_does_not_return():
    # Hot edges around a corner lift it well above the cold interior when it is smoothed.
    grid = torch.zeros(6, 6)
    grid[0, 1] = grid[1, 0] = grid[1, 1] = 1.0
    lifted = oracle.smooth(grid.flatten().numpy(), 6, 6, 0.65, suppress_corners=False)
    assert lifted[0] > 0.3  # the corner would be among the five highest
    region, _ = important_region(grid.flatten(), 6, 6, 5, 0.65, spatial_bias=True)
    assert 0 not in indices(region)


def test_equal_relevance_goes_by_index():
    # 300 equals: beyond the sizes at which an unstable sort still happens to keep the order.
    region, _ = important_region(torch.full((300,), 0.25), 15, 20, 100, 0.65, spatial_bias=True)
    free = [v for v in range(300) if v not in oracle.corners(15, 20)]
    assert indices(region) == free[:100]
    assert indices(highest(torch.zeros(300), 100)) == list(range(100))


def test_k_forces_corners():
    # 2 x 3 has two tokens that are no corners (1 and 4): the rest of k falls to the corners by index.
    relevance = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    chosen = [indices(important_region(relevance, 2, 3, k, 0.65, spatial_bias=True)[0]) for k in range(1, 7)]
    assert chosen == [[4], [1, 4], [0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    # One token is its own corner.
    assert indices(important_region(torch.tensor([3.0]), 1, 1, 1, 0.65, spatial_bias=True)[0]) == [0]


@pytest.mark.parametrize("suppress_corners", [True, False])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("rows", "cols"), GRIDS)
def test_smoothing_equals_scipy_in_two_dimensions(rows, cols, sigma, suppress_corners):
    relevance = torch.randn(rows * cols, generator=torch.Generator().manual_seed(rows * 100 + cols))
    smoothed = smooth_relevance(relevance, rows, cols, sigma, suppress_corners=suppress_corners)
    expected = oracle.smooth(relevance.numpy(), rows, cols, sigma, suppress_corners)
    assert smoothed.dtype is torch.float32
    np.testing.assert_allclose(smoothed.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spatial_bias", [True, False])
@pytest.mark.parametrize(("rows", "cols", "top_k"), [(8, 8, 27), (16, 16, 109), (12, 5, 20), (1, 9, 4), (32, 32, 436)])
def test_region_equals_oracle(rows, cols, top_k, spatial_bias, dtype):
    values = torch.randn(rows * cols, generator=torch.Generator().manual_seed(rows * cols))
    relevance = (values.exp() * 1e-3).to(dtype)
    region, _ = important_region(relevance, rows, cols, top_k, 0.65, spatial_bias=spatial_bias)
    order, ranked_by = oracle.region_order(relevance.double().numpy(), rows, cols, 0.65, spatial_bias)
    # Rounding could only swap neighbours at the border of I: there the oracle's gap is wide, or an exact tie.
    gap = ranked_by[order[top_k - 1]] - ranked_by[order[top_k]]
    assert gap > 1e-8 or (gap == 0 and not spatial_bias)
    assert indices(region) == sorted(order[:top_k])


def test_cache_serves_every_mode():
    with torch.inference_mode():
        smoothing_matrices(5, 6, 0.77)
    relevance = torch.rand(30, requires_grad=True)
    smooth_relevance(relevance, 5, 6, 0.77, suppress_corners=False).sum().backward()
    assert relevance.grad is not None
    assert smoothing_matrices(5, 6, 0.77)[0] is smoothing_matrices(5, 6, 0.77)[0]


def test_input_is_left_alone():
    relevance = torch.rand(12)
    before = relevance.clone()
    important_region(relevance, 3, 4, 5, 0.65, spatial_bias=True)
    smooth_relevance(relevance, 3, 4, 0.0, suppress_corners=True)
    assert torch.equal(relevance, before)


@pytest.mark.parametrize(
    ("size", "rows", "cols", "top_k", "sigma", "says"),
    [
        (12, 3, 4, 13, 0.65, r"top_k = 13 .*1 \.\.\. 12"),
        (12, 3, 4, 0, 0.65, r"top_k = 0 .*1 \.\.\. 12"),
        (12, 3, 5, 2, 0.65, r"relevance has the shape \[12\] .*N_v = 15"),
        (12, 3, 4, 2, -1.0, "sigma = -1.0"),
        (12, 3, 4, 2, math.nan, "sigma = nan"),
        (0, 0, 4, 1, 0.65, r"top_k = 1 |relevance has the shape \[0\]|rows = 0"),
    ],
)
def test_refuses(size, rows, cols, top_k, sigma, says):
    with pytest.raises(ConfigError, match=says):
        important_region(torch.zeros(size), rows, cols, top_k, sigma, spatial_bias=True)


def test_smoothing_refuses_a_map_that_is_not_flat():
    with pytest.raises(ConfigError, match=r"\[3, 4\] .*N_v = 12"):
        smooth_relevance(torch.zeros(3, 4), 3, 4, 0.65, suppress_corners=True)

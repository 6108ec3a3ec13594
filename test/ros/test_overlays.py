"""dtp_ros/ros/overlays.py: what the pictures claim is where it should be, pixel by pixel."""

import cv2
import numpy as np
import pytest

from dtp_ros.engine.types import StepTrace, TokenTrace
from dtp_ros.errors import ConfigError
from dtp_ros.ros.overlays import OVERLAYS, cells_to_pixels, draw_heatmap, draw_mask, draw_overlay, draw_region

GREY = np.full((120, 160, 3), 100, np.uint8)


def one_cell(row, col, rows=6, cols=8):
    grid = np.zeros((rows, cols), bool)
    grid[row, col] = True
    return grid


def centre(row, col, cell=20):
    return row * cell + cell // 2, col * cell + cell // 2


def test_cells_cover_the_image_edge_to_edge():
    pixels = cells_to_pixels(one_cell(1, 7), 120, 160)
    expected = np.zeros((120, 160), bool)
    expected[20:40, 140:160] = True
    np.testing.assert_array_equal(pixels, expected)
    uneven = cells_to_pixels(np.ones((7, 9), bool), 100, 101)
    assert uneven.shape == (100, 101)
    assert uneven.all()


def test_mask_blackens_and_crosses_the_pruned_cells_only():
    drawn = draw_mask(GREY, one_cell(2, 3))
    inside = cells_to_pixels(one_cell(2, 3), 120, 160)
    np.testing.assert_array_equal(drawn[~inside], GREY[~inside])
    cell = drawn[40:60, 60:80].astype(int)
    black = (cell.sum(axis=2) == 0).mean()
    red = ((cell[:, :, 0] > 150) & (cell[:, :, 1] < 100)).mean()
    assert black > 0.5
    assert red > 0.05
    assert draw_mask(GREY, np.zeros((6, 8), bool)).tolist() == GREY.tolist()


def test_region_darkens_the_outside_and_outlines_the_border():
    drawn = draw_region(GREY, one_cell(2, 3), alpha=1.0)
    np.testing.assert_array_equal(drawn[centre(2, 3)], GREY[centre(2, 3)])
    for outside in ((1, 3), (3, 3), (2, 2), (2, 4), (0, 0)):
        assert (drawn[centre(*outside)] < 50).all(), outside
    for edge in ((40, 70), (60, 70), (50, 60), (50, 80)):  # above, below, left, right
        assert tuple(drawn[edge]) == (255, 214, 0), edge


def test_region_at_the_edge_of_the_grid_is_closed():
    drawn = draw_region(GREY, one_cell(5, 7), alpha=0.5)
    assert tuple(drawn[100, 150]) == (255, 214, 0)
    assert tuple(drawn[110, 140]) == (255, 214, 0)


def test_heatmap_peaks_where_the_value_does():
    values = one_cell(4, 1).astype(np.float32) * 3.0 - 1.0
    drawn = draw_heatmap(GREY, values, 1.0, cv2.COLORMAP_INFERNO).astype(int).sum(axis=2)
    peak = np.unravel_index(drawn.argmax(), drawn.shape)
    assert 80 <= peak[0] < 100
    assert 20 <= peak[1] < 40
    assert drawn[centre(0, 6)] < 10


@pytest.mark.parametrize("values", [np.zeros((6, 8)), np.full((6, 8), np.nan), np.full((6, 8), -np.inf)])
def test_heatmap_of_nothing_is_the_least_colour(values):
    drawn = draw_heatmap(GREY, values, 1.0)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1


def test_heatmap_alpha_blends():
    values = np.random.default_rng(0).random((6, 8))
    np.testing.assert_array_equal(draw_heatmap(GREY, values, 0.0), GREY)
    opaque, half = draw_heatmap(GREY, values, 1.0), draw_heatmap(GREY, values, 0.5)
    np.testing.assert_allclose(half, (opaque.astype(float) + GREY) / 2, atol=1.0)
    with pytest.raises(ConfigError, match=r"overlay_alpha = 1\.5"):
        draw_heatmap(GREY, values, 1.5)


@pytest.mark.parametrize("size", [(480, 640), (37, 53), (8, 8), (1, 1)])
def test_every_overlay_keeps_the_camera_size(size):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    before = image.copy()
    token = TokenTrace(1, 2, rng.random((6, 8), np.float32), rng.random((6, 8)) < 0.3, 0.1, 1.0, 1.0, 0.5, 0.5)
    relevance = rng.random((6, 8), np.float32)
    trace = StepTrace(relevance, relevance, rng.random((6, 8)) < 0.4, (token,), 0.5, {"total": 1.0})
    for name in OVERLAYS:
        drawn = draw_overlay(name, image, trace, 0.5)
        assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8), name
    np.testing.assert_array_equal(image, before)

"""Pictures of what the model looked at and what was cut, drawn over the camera image. Pure numpy and OpenCV.

The camera image is stretched over the whole token grid, so a grid [rows, cols] covers the image [H, W] edge to edge.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from dtp_ros.engine.types import StepTrace
from dtp_ros.errors import require_range

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_REGION_LINE = (255, 214, 0)
_CROSS = (255, 60, 48)
_OUTSIDE = 0.35  # brightness left to what lies outside the important region, at alpha 1


def draw_heatmap(image: Rgb, values: NDArray[np.floating], alpha: float, colormap: int = cv2.COLORMAP_TURBO) -> Rgb:
    """Blend values [rows, cols], scaled from their least to their largest, over an image [H, W, 3].

    alpha: 0.0 shows the image alone, 1.0 the colours alone. Values that are not finite count as the least.
    """
    require_range("overlay_alpha", alpha, 0.0, 1.0)
    height, width = image.shape[:2]
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    span = high - low if high > low else 1.0
    scaled = np.where(finite, (np.where(finite, values, low) - low) / span, 0.0).astype(np.float32)
    smooth = np.clip(cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR), 0.0, 1.0)
    bgr = cv2.applyColorMap((255.0 * smooth).round().astype(np.uint8), colormap)
    colours = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(colours, alpha, image, 1.0 - alpha, 0.0), dtype=np.uint8)


def draw_region(image: Rgb, region: Mask, alpha: float) -> Rgb:
    """Darken what lies outside the region [rows, cols] (the more, the larger alpha) and outline it in yellow."""
    require_range("overlay_alpha", alpha, 0.0, 1.0)
    inside = cells_to_pixels(region, image.shape[0], image.shape[1])
    brightness = np.where(inside, 1.0, 1.0 - (1.0 - _OUTSIDE) * alpha).astype(np.float32)
    canvas = (image * brightness[:, :, None]).round().astype(np.uint8)
    ys, xs = _edges(region.shape[0], image.shape[0]), _edges(region.shape[1], image.shape[1])
    padded = np.pad(region, 1)
    thickness = _thickness(image)
    for row, col in zip(*np.nonzero(padded[1:, 1:] != padded[:-1, 1:]), strict=True):  # borders above a cell
        if col < region.shape[1]:
            cv2.line(canvas, (xs[col], ys[row]), (xs[col + 1], ys[row]), _REGION_LINE, thickness)
    for row, col in zip(*np.nonzero(padded[1:, 1:] != padded[1:, :-1]), strict=True):  # borders left of a cell
        if row < region.shape[0]:
            cv2.line(canvas, (xs[col], ys[row]), (xs[col], ys[row + 1]), _REGION_LINE, thickness)
    return canvas


def draw_mask(image: Rgb, mask: Mask) -> Rgb:
    """Black out the pruned tokens of mask [rows, cols] and cross them, so that one token is seen at a glance."""
    crossed = np.zeros_like(image)
    ys, xs = _edges(mask.shape[0], image.shape[0]), _edges(mask.shape[1], image.shape[1])
    thickness = _thickness(image)
    for row, col in zip(*np.nonzero(mask), strict=True):
        left, right, top, bottom = xs[col], xs[col + 1] - 1, ys[row], ys[row + 1] - 1
        cv2.line(crossed, (left, top), (right, bottom), _CROSS, thickness, cv2.LINE_AA)
        cv2.line(crossed, (left, bottom), (right, top), _CROSS, thickness, cv2.LINE_AA)
    return np.where(cells_to_pixels(mask, image.shape[0], image.shape[1])[:, :, None], crossed, image)


OVERLAYS: dict[str, Callable[[Rgb, StepTrace, float], Rgb]] = {
    "relevance": lambda image, trace, alpha: draw_heatmap(image, trace.relevance, alpha),
    "region": lambda image, trace, alpha: draw_region(image, trace.region, alpha),
    "attention": lambda image, trace, alpha: draw_heatmap(image, trace.attention, alpha, cv2.COLORMAP_INFERNO),
    "mask": lambda image, trace, alpha: draw_mask(image, trace.mask),
}


def draw_overlay(name: str, image: Rgb, trace: StepTrace, alpha: float) -> Rgb:
    """The overlay `name` (a key of OVERLAYS) of a step over its camera image: RGB uint8 [H, W, 3] of the same size."""
    return OVERLAYS[name](image, trace, alpha)


def cells_to_pixels(cells: Mask, height: int, width: int) -> Mask:
    """A grid of cells [rows, cols] as pixels [height, width]."""
    rows = np.repeat(cells, np.diff(_edges(cells.shape[0], height)), axis=0)
    pixels: Mask = np.repeat(rows, np.diff(_edges(cells.shape[1], width)), axis=1)
    return pixels


def _edges(count: int, size: int) -> list[int]:
    """Pixel borders of `count` cells over `size` pixels, from 0 to size."""
    return [round(i * size / count) for i in range(count + 1)]


def _thickness(image: Rgb) -> int:
    return max(1, int(min(image.shape[:2])) // 160)

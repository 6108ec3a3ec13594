"""Pictures for surfaces, computed: wood, fabric, floor. RGB uint8 [size, size, 3], seamless where they repeat."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from dtp_ros.errors import require_choice

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

# Dark and light tone of each wood, and how wavy its grain is.
_WOODS = {
    "cherry": ((0.36, 0.13, 0.07), (0.62, 0.29, 0.16), 1.0),
    "birch": ((0.68, 0.49, 0.29), (0.86, 0.70, 0.48), 0.7),
    "oak": ((0.52, 0.38, 0.22), (0.74, 0.57, 0.36), 0.5),
    "walnut": ((0.20, 0.12, 0.08), (0.41, 0.27, 0.18), 1.3),
    "bamboo": ((0.66, 0.58, 0.30), (0.83, 0.77, 0.50), 0.3),
    "grain": ((0.80, 0.80, 0.80), (1.0, 1.0, 1.0), 0.8),
}
_PLAIN = {
    "slate": ((0.27, 0.30, 0.33), 0.05, 3.0),
    "linen": ((0.74, 0.70, 0.63), 0.04, 1.0),
    "floor": ((0.30, 0.29, 0.28), 0.04, 6.0),
}
TABLES = ("cherry", "birch", "oak", "walnut", "bamboo", "slate", "linen")
SURFACES = (*_WOODS, *_PLAIN, "cloth", "weave", "carrot")


@lru_cache(maxsize=32)
def texture(name: str, size: int) -> Picture:
    """The picture called `name` (one of SURFACES); raises ConfigError. The result is shared: do not write to it."""
    require_choice("surface", name, SURFACES)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name in _WOODS:
        dark, light, wave = _WOODS[name]
        return _shade(_grain(rng, size, wave), dark, light)
    if name in _PLAIN:
        colour, contrast, scale = _PLAIN[name]
        mottle = 1 + contrast * (_noise(rng, size, scale) + 0.6 * _noise(rng, size, 0.7))
        return _picture(mottle[..., None] * np.array(colour))
    return {"cloth": _cloth, "weave": _weave, "carrot": _rings}[name](rng, size)


def _noise(rng: np.random.Generator, size: int, scale: float | Sequence[float]) -> Array:
    """Smooth periodic noise of unit deviation; scale: sigma in pixels of a 512 picture, per axis (row, column)."""
    sigma = np.asarray(scale) * size / 512
    field = gaussian_filter(rng.standard_normal((size, size)), sigma, mode="wrap")
    normed: Array = field / field.std()
    return normed


def _grain(rng: np.random.Generator, size: int, wave: float) -> Array:
    """Brightness 0 ... 1 of planed wood, fibres along the columns' direction (x)."""
    row = np.arange(size)[:, None] / size * np.ones((1, size))
    bend = wave * (0.020 * _noise(rng, size, (30, 110)) + 0.008 * _noise(rng, size, (12, 60)))
    rings = gaussian_filter(rng.standard_normal(size), 5 * size / 512, mode="wrap")
    years = map_coordinates(rings / rings.std(), [(row + bend) * size], order=1, mode="grid-wrap")
    fibres = _noise(rng, size, (0.8, 24))
    pores = np.clip(_noise(rng, size, (0.6, 7)) - 1.7, 0, None)
    patches = _noise(rng, size, (45, 90))
    level: Array = np.clip(0.55 + 0.17 * years + 0.09 * fibres + 0.07 * patches - 0.18 * pores, 0, 1)
    return level


def _cloth(rng: np.random.Generator, size: int) -> Picture:
    """A light tint of woven threads, to be multiplied with a colour."""
    threads = np.sin(np.arange(size) * 2 * np.pi * 64 / size)
    level = 0.90 + 0.05 * threads[:, None] * threads[None, :] + 0.035 * _noise(rng, size, 1.2)
    return _picture(np.repeat(level[..., None], 3, axis=2))


def _weave(rng: np.random.Generator, size: int) -> Picture:
    """Wickerwork: strands pass over and under each other."""
    u = np.arange(size) * 16 / size
    over = ((np.floor(u)[:, None] + np.floor(u)[None, :]) % 2).astype(bool)
    across, along = np.sin(np.pi * (u % 1)), np.sin(np.pi * (u % 1))
    level = np.where(over, 0.55 + 0.45 * across[:, None] ** 0.6, 0.50 + 0.40 * along[None, :] ** 0.6)
    level = level + 0.03 * _noise(rng, size, (1, 6))
    return _picture(np.repeat(level[..., None], 3, axis=2))


def _rings(rng: np.random.Generator, size: int) -> Picture:
    """Fine dark rings across the x axis, as on a carrot's skin."""
    line = gaussian_filter(rng.standard_normal(size), size / 180, mode="wrap")
    level = 0.97 - 0.16 * np.clip(line / line.std() - 0.9, 0, None)
    return _picture(np.repeat(np.repeat(level[None, :, None], size, axis=0), 3, axis=2))


def _shade(level: Array, dark: Sequence[float], light: Sequence[float]) -> Picture:
    return _picture(np.array(dark) + level[..., None] * (np.array(light) - np.array(dark)))


def _picture(colours: Array) -> Picture:
    return np.round(255 * np.clip(colours, 0, 1)).astype(np.uint8)

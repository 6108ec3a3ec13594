"""Footprints of items on the table, and how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dtp_ros.sim.catalog import Item

Array = NDArray[np.float64]

ROUNDING = 1e-9  # m, by which a quick test with circles may be wrong


@dataclass(frozen=True)
class Placement:
    """An item on the table: x, y in m and yaw in rad, base frame."""

    item: Item
    x: float
    y: float
    yaw: float


def clearance(a: Placement, b: Placement) -> float:
    """Distance between two footprints, m; 0 or less where they overlap."""
    corners_a, radius_a = _outline(a)
    corners_b, radius_b = _outline(b)
    return _polygon_distance(corners_a, corners_b) - radius_a - radius_b


def distance_to_point(placement: Placement, point: tuple[float, float]) -> float:
    """Distance of a footprint to `point` in the base frame, m; 0 or less inside."""
    corners, radius = _outline(placement)
    return _polygon_distance(corners, np.array([point])) - radius


@cache
def circles(item: Item) -> tuple[float, float]:
    """Radii of the circles in and about a footprint, m."""
    model = item.model()
    half = model.footprint
    return min(half), half[0] if model.round else math.hypot(*half)


def _outline(placement: Placement) -> tuple[Array, float]:
    """Corners [4, 2] and radius 0 of a rectangular footprint, centre [1, 2] and radius of a round one, m."""
    model, centre = placement.item.model(), np.array([placement.x, placement.y])
    if model.round:
        return centre[None], model.footprint[0]
    c, s = math.cos(placement.yaw), math.sin(placement.yaw)
    signs = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    return centre + signs * model.footprint @ np.array([[c, s], [-s, c]]), 0.0


def _polygon_distance(a: Array, b: Array) -> float:
    """Distance of two convex polygons [K, 2] (a point is one); 0 where they overlap."""
    if max(len(a), len(b)) > 1 and not (_separated(a, b) or _separated(b, a)):
        return 0.0
    return min(_corner_distance(a, b), _corner_distance(b, a))


def _separated(a: Array, b: Array) -> bool:
    """Whether a line along one of the edges of `a` has `b` on its other side (or `a` is a point)."""
    edge = np.roll(a, -1, axis=0) - a
    normal = np.stack([edge[:, 1], -edge[:, 0]], axis=1)
    apart = (b @ normal.T).min(axis=0) > (a @ normal.T).max(axis=0)
    return bool(apart.any())


def _corner_distance(corners: Array, polygon: Array) -> float:
    """Least distance of `corners` [K, 2] to the edges of `polygon`."""
    edge = np.roll(polygon, -1, axis=0) - polygon
    to = corners[:, None] - polygon
    share = (to * edge).sum(axis=2) / np.maximum((edge * edge).sum(axis=1), 1e-12)
    return float(np.linalg.norm(to - share.clip(0, 1)[..., None] * edge, axis=2).min())

"""Closed triangle meshes made of a few numbers: everything on the table is drawn with these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mesh:
    """vertices float64 [N, 3] in m, faces int64 [M, 3], outward normals by the right-hand rule.

    pieces: where each of the merged meshes begins in `vertices`.
    """

    vertices: Array
    faces: NDArray[np.int64]
    pieces: tuple[int, ...] = (0,)


def loft(centres: Sequence[Sequence[float]], radii: Sequence[Sequence[float]], segments: int = 16) -> Mesh:
    """A tube along x: elliptical rings with centre (x, y, z) and radii (r_y, r_z), capped at both ends."""
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    centre, radius = np.asarray(centres, dtype=float), np.asarray(radii, dtype=float)
    circle = np.stack([np.zeros(segments), np.cos(angle), np.sin(angle)], axis=1)
    scale = np.concatenate([np.ones((len(radius), 1)), radius], axis=1)
    rings = centre[:, None] + circle[None] * scale[:, None]
    return _skin(rings)


def lathe(profile: Sequence[Sequence[float]], segments: int = 24) -> Mesh:
    """The profile (r, z), from the bottom of the axis round the outside to its top, turned about z."""
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    line = np.asarray(profile, dtype=float)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rings = np.concatenate(
        [line[:, None, :1] * circle[None], np.broadcast_to(line[:, None, 1:], (len(line), segments, 1))], axis=2
    )
    return _skin(rings)


def sheet(
    half: tuple[float, float], height: Callable[[Array, Array], Array], thickness: float, cells: int = 16
) -> Mesh:
    """A cloth of half extents `half`, its upper side at z = height(u, v), u and v in -1 ... 1, its lower side below."""
    u, v = np.meshgrid(np.linspace(-1, 1, cells + 1), np.linspace(-1, 1, cells + 1), indexing="ij")
    bulge = 1 - np.maximum(np.abs(u), np.abs(v)) ** 12
    top = height(u, v)
    upper = np.stack([u * half[0], v * half[1], top - thickness * (1 - bulge) * 0.4], axis=-1)
    lower = np.stack([u * half[0], v * half[1], top - thickness], axis=-1)
    vertices = np.concatenate([upper.reshape(-1, 3), lower.reshape(-1, 3)])
    index = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    a, b, c, d = (x.ravel() for x in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    up = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    edge = np.concatenate([index[:-1, 0], index[-1, :-1], index[:0:-1, -1], index[0, :0:-1]])
    after = np.roll(edge, -1)
    down = up[:, ::-1] + index.size
    side = np.concatenate(
        [np.stack([edge, edge + index.size, after], 1), np.stack([after, edge + index.size, after + index.size], 1)]
    )
    return Mesh(vertices, np.concatenate([up, down, side]))


def rounded_box(half: Sequence[float], bevel: float) -> Mesh:
    """A box whose edges are cut by `bevel`, so that light runs along them."""
    hx, hy, hz = half
    rings = [
        _rectangle(hx - bevel, hy - bevel, bevel * 0.3, -hz),
        _rectangle(hx, hy, bevel, -hz + bevel),
        _rectangle(hx, hy, bevel, hz - bevel),
        _rectangle(hx - bevel, hy - bevel, bevel * 0.3, hz),
    ]
    return _skin(np.stack(rings))


def shifted(mesh: Mesh, offset: Sequence[float]) -> Mesh:
    """The mesh moved by `offset`, m."""
    return Mesh(mesh.vertices + np.asarray(offset, dtype=float), mesh.faces, mesh.pieces)


def merged(*meshes: Mesh) -> Mesh:
    """One mesh of several."""
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes[:-1])])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=True)]),
        tuple(int(start) + piece for m, start in zip(meshes, starts, strict=True) for piece in m.pieces),
    )


@lru_cache(maxsize=512)
def hulls(mesh: Mesh) -> tuple[Array, ...]:
    """Corners [K, 3] of the convex hull of each piece."""
    parts = np.split(mesh.vertices, mesh.pieces[1:])
    return tuple(part[ConvexHull(part).vertices] for part in parts)


def box_mapping(mesh: Mesh, tile: float) -> Array:
    """Texture coordinates [M, 3, 2] of each face's corners, projected along the axis that the face looks at most.

    One picture covers `tile` m; its columns run along x where the face shows x.
    """
    corners = mesh.vertices[mesh.faces]
    normal = np.abs(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    axes = np.array([[1, 2], [0, 2], [0, 1]])[normal.argmax(axis=1)]
    uv: Array = np.take_along_axis(corners, axes[:, None, :].repeat(3, axis=1), axis=2) / tile
    return uv


def volume(mesh: Mesh) -> float:
    """Signed volume in m^3 by the divergence theorem; positive where the normals point outwards."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def blade(stations: Sequence[tuple[float, tuple[float, float], tuple[float, float]]], bevel: float = 0.0015) -> Mesh:
    """A beam along x with rectangular sections: stations (x, (y low, y high), (z low, z high))."""
    rings = []
    for x, (y0, y1), (z0, z1) in stations:
        ring = _rectangle((y1 - y0) / 2, (z1 - z0) / 2, bevel, 0.0)
        rings.append(np.stack([np.full(8, x), ring[:, 0] + (y0 + y1) / 2, ring[:, 1] + (z0 + z1) / 2], axis=1))
    return _skin(np.stack(rings))


def _rectangle(hx: float, hy: float, cut: float, z: float) -> Array:
    """Eight corners of a rectangle with cut corners, anticlockwise seen from above."""
    corners = [
        (hx, -hy + cut), (hx, hy - cut), (hx - cut, hy), (-hx + cut, hy),
        (-hx, hy - cut), (-hx, -hy + cut), (-hx + cut, -hy), (hx - cut, -hy),
    ]  # fmt: skip
    return np.array([(x, y, z) for x, y in corners])


def _skin(rings: Array) -> Mesh:
    """Triangles between consecutive rings [K, S, 3] and a fan over the first and the last."""
    count, segments = rings.shape[:2]
    index = np.arange(count * segments).reshape(count, segments)
    ahead = np.roll(index, -1, axis=1)
    a, b, c, d = (x.ravel() for x in (index[:-1], ahead[:-1], ahead[1:], index[1:]))
    first, last = count * segments, count * segments + 1
    faces = np.concatenate(
        [
            np.stack([a, b, c], 1),
            np.stack([a, c, d], 1),
            np.stack([np.full(segments, first), ahead[0], index[0]], 1),
            np.stack([np.full(segments, last), index[-1], ahead[-1]], 1),
        ]
    )
    ends = np.stack([rings[0].mean(axis=0), rings[-1].mean(axis=0)])
    mesh = Mesh(np.concatenate([rings.reshape(-1, 3), ends]), faces)
    return mesh if volume(mesh) > 0 else Mesh(mesh.vertices, mesh.faces[:, ::-1])

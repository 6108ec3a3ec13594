"""Soft shadows on the table: outlines projected along the light into the alpha of one transparent sheet.

MuJoCo's own shadow maps cost three times a picture without them on a CPU; this costs a tenth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from dtp_ros.sim.meshes import Array, Mesh, hulls
from dtp_ros.sim.room import TABLE_X, TABLE_Y

SHEET = "shadow"
_Y_LOW = -0.36  # the camera sees no farther to the right
_COLUMNS, _ROWS = 128, 256  # along x, along y
_TILES = 8  # along each side; blending is dear, so that only tiles with a shadow are drawn
_HEIGHT = 0.0004  # m above the table
DRAWN_GROUP, HIDDEN_GROUP = 1, 4
_HIGH = 0.06  # m above the table: shadows of what is higher are softer and fainter
_SOFT = ((1.1, 0.42), (3.2, 0.34))  # sigma in pixels and darkness, below and above _HIGH
_SUBPIXEL_BITS = 4


def add_shadow_sheet(mujoco: Any, spec: Any) -> None:
    """Black tiles just above the table, whose common texture's alpha the shadows fill."""
    # An empty picture as a file: an MjSpec takes pixels one by one, and builtin textures have no alpha.
    empty = cv2.imencode(".png", np.zeros((_ROWS, _COLUMNS, 4), np.uint8))[1]
    spec.assets = {f"{SHEET}.png": empty.tobytes()}
    spec.add_texture(name=SHEET, type=mujoco.mjtTexture.mjTEXTURE_2D, nchannel=4, file=f"{SHEET}.png")
    material = spec.add_material(name=SHEET, rgba=(0.0, 0.0, 0.0, 0.99), specular=0.0, shininess=0.0)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = SHEET
    half, centre = _extent()
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    for index in range(_TILES**2):
        share = (corners + divmod(index, _TILES)[::-1]) / _TILES  # 0 ... 1 over the sheet
        mesh = spec.add_mesh(name=f"{SHEET}{index}")
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        mesh.uservert = np.column_stack([(2 * share - 1) * half + centre, np.full(4, _HEIGHT)]).ravel()
        mesh.userface, mesh.usertexcoord = [0, 1, 2, 0, 2, 3], share.ravel()
        spec.worldbody.add_geom(
            name=f"{SHEET}{index}", type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh.name, material=SHEET,
            contype=0, conaffinity=0, group=HIDDEN_GROUP,
        )  # fmt: skip


class TableShadow:
    """Draws the shadow of bodies made of `drawn` meshes (by body id) under light that travels along `direction`."""

    def __init__(self, model: Any, drawn: Mapping[int, Sequence[Mesh]], direction: tuple[float, float, float]) -> None:
        self.texture = model.texture(SHEET).id
        first = model.geom(f"{SHEET}0").id
        self._groups = model.geom_group[first : first + _TILES**2]
        start = model.tex_adr[self.texture]
        self._pixels = model.tex_data[start : start + 4 * _ROWS * _COLUMNS].reshape(_ROWS, _COLUMNS, 4)
        self._pixels[:] = 0
        self._pieces = [(body, hull) for body, meshes in drawn.items() for mesh in meshes for hull in hulls(mesh)]
        self._slope = np.array(direction[:2]) / -direction[2]

    def update(self, positions: Array, rotations: Array) -> None:
        """Fill the sheet's alpha; positions [B, 3] and rotations [B, 3, 3] of every body in the base frame."""
        layers = [np.zeros((_ROWS, _COLUMNS), np.uint8) for _ in _SOFT]
        half, centre = _extent()
        scale = np.array([_COLUMNS, _ROWS]) / (2 * np.array(half))
        for body, hull in self._pieces:
            points = hull @ rotations[body].T + positions[body]
            ground = points[:, :2] + points[:, 2:].clip(0) * self._slope
            pixels = (ground - centre + half) * scale * (1 << _SUBPIXEL_BITS)
            outline = cv2.convexHull(np.round(pixels).astype(np.int32))
            layer = layers[int(points[:, 2].mean() > _HIGH)]
            cv2.fillConvexPoly(layer, outline, 255, cv2.LINE_8, _SUBPIXEL_BITS)
        light = np.ones((_ROWS, _COLUMNS), np.float32)
        for layer, (sigma, darkness) in zip(layers, _SOFT, strict=True):
            light *= 1 - darkness / 255 * cv2.GaussianBlur(layer, (0, 0), sigma).astype(np.float32)
        alpha = np.round(255 * (1 - light)).astype(np.uint8)
        self._pixels[..., 3] = alpha
        darkest = alpha.reshape(_TILES, _ROWS // _TILES, _TILES, _COLUMNS // _TILES).max(axis=(1, 3))
        self._groups[:] = np.where(darkest.ravel() > 1, DRAWN_GROUP, HIDDEN_GROUP)


def _extent() -> tuple[tuple[float, float], tuple[float, float]]:
    """Half extents and centre (x, y) of the sheet, m."""
    (x0, x1), (y0, y1) = TABLE_X, (_Y_LOW, TABLE_Y[1])
    return ((x1 - x0) / 2, (y1 - y0) / 2), ((x0 + x1) / 2, (y0 + y1) / 2)

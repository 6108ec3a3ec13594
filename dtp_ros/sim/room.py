"""The room round the arm: table, partitions, floor and lights. Nothing of it moves; only the table top is touched."""

from __future__ import annotations

import math
from typing import Any

from dtp_ros.sim.arm import ARM_COLLISION, OBJECT_COLLISION
from dtp_ros.sim.layout import Appearance
from dtp_ros.sim.meshes import Mesh, box_mapping, rounded_box, shifted
from dtp_ros.sim.objects import RGB
from dtp_ros.sim.textures import SURFACES, texture

TABLE_X, TABLE_Y, TABLE_THICKNESS = (0.150, 0.565), (-0.60, 0.375), 0.028
PLINTH_X, PLINTH_Y = (-0.15, 0.115), (-0.11, 0.11)
FLOOR = -0.72
FRICTION = (0.9, 0.005, 0.0001)
_TEXTURE_SIZE = 512


class Decorator:
    """Adds drawn meshes with materials to an MjSpec; a texture is stored once a scene."""

    def __init__(self, mujoco: Any, spec: Any) -> None:
        self._mujoco, self._spec = mujoco, spec
        self._count = 0

    def add(
        self, body: Any, mesh: Mesh, colour: RGB, *, surface: str = "", tile: float = 0.1, gloss: float = 0.2
    ) -> None:
        """Draw `mesh` on `body` in `colour`, times the texture `surface` of which one picture covers `tile` m."""
        self._count += 1
        name = f"drawn{self._count}"
        added = self._spec.add_mesh(name=name)
        added.uservert, added.userface = mesh.vertices.ravel(), mesh.faces.ravel()
        added.inertia = self._mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        material = self._spec.add_material(
            name=name, rgba=(*colour, 1.0), specular=0.7 * gloss, shininess=0.2 + 0.6 * gloss
        )
        if surface:
            added.usertexcoord = box_mapping(mesh, tile).ravel()
            added.userfacetexcoord = list(range(3 * len(mesh.faces)))
            material.textures[self._mujoco.mjtTextureRole.mjTEXROLE_RGB] = self._texture(surface)
        body.add_geom(
            type=self._mujoco.mjtGeom.mjGEOM_MESH, meshname=name, material=name, contype=0, conaffinity=0, mass=0,
            group=1,
        )  # fmt: skip

    def _texture(self, surface: str) -> str:
        if self._spec.texture(surface) is None:
            self._spec.add_texture(
                name=surface, type=self._mujoco.mjtTexture.mjTEXTURE_2D, nchannel=3, width=_TEXTURE_SIZE,
                height=_TEXTURE_SIZE, builtin=self._mujoco.mjtBuiltin.mjBUILTIN_FLAT,
            )  # fmt: skip
        return surface

    @staticmethod
    def paint(model: Any) -> None:
        """Fill in the textures of the compiled model (an MjSpec takes pixels one by one, which is slow)."""
        for index in range(model.ntex):
            start, surface = model.tex_adr[index], model.texture(index).name
            if surface not in SURFACES:
                continue
            picture = texture(surface, _TEXTURE_SIZE)
            model.tex_data[start : start + picture.size] = picture.ravel()


def add_room(mujoco: Any, spec: Any, decorator: Decorator, look: Appearance) -> None:
    """Table (top at z = 0), two partitions behind it, floor and lights."""
    world = spec.worldbody
    white, grey = (1.0, 1.0, 1.0), (0.25, 0.25, 0.26)
    top = _slab(mujoco, world, "table", TABLE_X, TABLE_Y, TABLE_THICKNESS)
    decorator.add(world, top, white, surface=look.table, tile=0.5, gloss=0.35)
    decorator.add(world, _slab(mujoco, world, "plinth", PLINTH_X, PLINTH_Y, -FLOOR), grey, gloss=0.2)
    (x0, x1), (y0, y1) = TABLE_X, TABLE_Y
    for x in (x0 + 0.05, x1 - 0.05):
        for y in (y0 + 0.05, y1 - 0.05):
            leg = rounded_box((0.022, 0.022, (-FLOOR - TABLE_THICKNESS) / 2), 0.003)
            decorator.add(world, shifted(leg, (x, y, (FLOOR - TABLE_THICKNESS) / 2)), grey, gloss=0.3)
    _add_partitions(decorator, world, look)
    _add_lights(mujoco, spec, look)


def _slab(mujoco: Any, world: Any, name: str, x: tuple[float, float], y: tuple[float, float], thickness: float) -> Mesh:
    """A box below z = 0: adds its contact geom and returns its drawn shape."""
    half = ((x[1] - x[0]) / 2, (y[1] - y[0]) / 2, thickness / 2)
    centre = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, -half[2])
    world.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=half, pos=centre, friction=FRICTION, group=3,
        contype=OBJECT_COLLISION, conaffinity=OBJECT_COLLISION | ARM_COLLISION,
    )  # fmt: skip
    return shifted(rounded_box(half, 0.005), centre)


def _add_partitions(decorator: Decorator, world: Any, look: Appearance) -> None:
    x, y = TABLE_X[1], TABLE_Y[1]
    back = shifted(rounded_box((0.02, 1.6, 0.9), 0.004), (x + 0.06, 0.0, 0.2))
    side = shifted(rounded_box((1.2, 0.02, 0.9), 0.004), (0.0, y + 0.32, 0.2))
    for wall in (back, side):
        decorator.add(world, wall, look.wall, surface="cloth", tile=0.22, gloss=0.0)
    floor = shifted(rounded_box((2.0, 2.0, 0.01), 0.001), (0, 0, FLOOR - 0.01))
    decorator.add(world, floor, (1.0, 1.0, 1.0), surface="floor", tile=0.8, gloss=0.05)


def light_direction(azimuth: float, height: float = 1.7) -> tuple[float, float, float]:
    """Where light that comes from `azimuth` (rad, base frame) travels to."""
    return -math.cos(azimuth), -math.sin(azimuth), -height


def _add_lights(mujoco: Any, spec: Any, look: Appearance) -> None:
    """A key light from one side, a weak fill from the other, and ambient light; shadows.py draws the key's shadows."""
    warm = (1.0 + look.warmth, 1.0, 1.0 - look.warmth)
    for share, direction in (
        (0.62, light_direction(look.light_azimuth)),
        (0.18, light_direction(look.light_azimuth + 2.5, 0.8)),
    ):
        strength = share * look.light_strength
        spec.worldbody.add_light(
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, pos=(0.3, 0.0, 1.2), castshadow=False,
            dir=direction, diffuse=[strength * c for c in warm],
            specular=[0.35 * strength / 0.62] * 3, ambient=(0, 0, 0),
        )  # fmt: skip
    headlight = spec.visual.headlight
    headlight.ambient = [0.42 * math.sqrt(look.light_strength) * c for c in warm]
    headlight.diffuse, headlight.specular = [0.14] * 3, [0.0] * 3

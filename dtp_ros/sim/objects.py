"""What an object on the table is: contact solids, drawn parts, mass and grasp.

An object's frame has its origin where it is grasped, x along its length, z up. The drawn meshes are round; contacts use
boxes inside them, so that a carrot does not roll off and the finger pads meet flat faces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dtp_ros.sim.meshes import Mesh, loft

RGB = tuple[float, float, float]

COLOURS: dict[str, RGB] = {
    "orange": (0.93, 0.42, 0.07),
    "green": (0.13, 0.42, 0.20),
    "lime": (0.55, 0.75, 0.13),
    "yellow": (0.93, 0.74, 0.13),
    "purple": (0.27, 0.07, 0.33),
    "red": (0.76, 0.10, 0.09),
    "blue": (0.13, 0.27, 0.68),
    "sky": (0.50, 0.74, 0.88),
    "pink": (0.90, 0.50, 0.62),
    "teal": (0.05, 0.48, 0.50),
    "white": (0.80, 0.79, 0.75),
    "brown": (0.43, 0.26, 0.13),
    "straw": (0.83, 0.65, 0.36),
    "steel": (0.66, 0.68, 0.70),
}
LEAF: RGB = (0.22, 0.46, 0.12)


@dataclass(frozen=True)
class Solid:
    """A box (half extents) or disc (radius, radius, half height) for contacts; turned about z, then tilted about y."""

    size: tuple[float, float, float]
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw: float = 0.0
    tilt: float = 0.0
    disc: bool = False


@dataclass(frozen=True)
class Part:
    """A drawn mesh; `surface` names a texture of textures.py, or is empty; `gloss` is 0 ... 1."""

    mesh: Mesh
    colour: RGB
    gloss: float = 0.2
    surface: str = ""


@dataclass(frozen=True)
class Grasp:
    """How to take an object from above at its origin.

    width: between the pads when held, m. period: the grasp repeats after this yaw, rad (pi/2 block, pi long things).
    """

    width: float
    period: float


@dataclass(frozen=True)
class ObjectModel:
    """An object at rest: its origin is `rest_height` above what it stands on, `height` is its total height, m.

    footprint: half extents (x, y) of the rectangle around it, m; mass in kg, 0 where it is fixed to the table.
    grasp: None where the gripper cannot take it. round: the footprint is a disc, not a rectangle.
    """

    mass: float
    rest_height: float
    height: float
    footprint: tuple[float, float]
    solids: tuple[Solid, ...]
    parts: tuple[Part, ...]
    grasp: Grasp | None = None
    round: bool = False

    @property
    def radius(self) -> float:
        """Radius of the circle round the footprint, m."""
        return math.hypot(*self.footprint)


def lying(stations: list[tuple[float, float]], rest: float, segments: int = 16, flat: float = 1.0) -> Mesh:
    """A round body along x that rests on its whole lower side; stations are (x, radius)."""
    return loft([(x, 0.0, flat * r - rest) for x, r in stations], [(r, flat * r) for _, r in stations], segments)


def core(x0: float, x1: float, half: float, rest: float, half_height: float | None = None) -> Solid:
    """The contact box of a lying body between x0 and x1."""
    h = half if half_height is None else half_height
    return Solid(((x1 - x0) / 2, half, h), ((x0 + x1) / 2, 0.0, h - rest))

"""The objects of the four tasks, each in a colour."""

from __future__ import annotations

import math

import numpy as np

from dtp_ros.sim.meshes import Array, Mesh, lathe, loft, merged, rounded_box, sheet, shifted
from dtp_ros.sim.objects import COLOURS, LEAF, RGB, Grasp, ObjectModel, Part, Solid, core, lying


def spoon(colour: RGB) -> ObjectModel:
    """A spoon of 16 cm: coloured handle, steel bowl."""
    rest = 0.006
    handle = loft(
        [(-0.078, 0, 0), (-0.076, 0, 0), (-0.05, 0, 0), (0.0, 0, 0), (0.03, 0, 0.001), (0.046, 0, 0.002)],
        [(0.004, 0.003), (0.0075, 0.0055), (0.0085, 0.006), (0.0075, 0.006), (0.006, 0.005), (0.004, 0.003)],
        14,
    )
    dish = lathe(
        [(0.004, -0.006), (0.012, -0.0045), (0.0175, 0.001), (0.0185, 0.004), (0.0165, 0.004), (0.011, 0.0005),
         (0.003, -0.002)], 20
    )  # fmt: skip
    bowl = Mesh(dish.vertices * (1.4, 1.0, 1.0), dish.faces)
    return ObjectModel(
        mass=0.03,
        rest_height=rest,
        height=0.012,
        footprint=(0.090, 0.0185),
        solids=(core(-0.076, 0.042, 0.007, rest, 0.006), core(0.042, 0.088, 0.015, rest, 0.004)),
        parts=(Part(handle, colour, 0.3), Part(shifted(bowl, (0.064, 0, 0)), COLOURS["steel"], 0.9)),
        grasp=Grasp(0.014, math.pi),
    )


def carrot(colour: RGB) -> ObjectModel:
    """A carrot of 11 cm with leaves."""
    rest = 0.0115
    body = [(-0.068, 0.0012), (-0.065, 0.003), (-0.05, 0.006), (-0.028, 0.0088), (0.0, 0.0115), (0.025, 0.0135)]
    body += [(0.038, 0.0132), (0.043, 0.011), (0.0455, 0.006)]
    leaves = [
        loft(
            [(0.044, 0, 0.001), (0.056, 0.35 * y, 0.003 + 0.3 * z), (0.068, 0.8 * y, 0.002 + z), (0.076, y, z)],
            [(0.002, 0.002), (0.0035, 0.003), (0.0045, 0.0035), (0.0008, 0.0008)],
            8,
        )
        for y, z in ((-0.011, -0.004), (0.0, 0.006), (0.011, -0.003))
    ]
    return ObjectModel(
        mass=0.03,
        rest_height=rest,
        height=0.026,
        footprint=(0.076, 0.0135),
        solids=(
            core(-0.064, -0.026, 0.0065, rest),
            core(-0.026, 0.022, 0.0108, rest),
            core(0.022, 0.044, 0.0125, rest),
        ),
        parts=(Part(lying(body, rest), colour, 0.25, "carrot"), Part(merged(*leaves), LEAF, 0.05)),
        grasp=Grasp(0.0216, math.pi),
    )


def block(colour: RGB) -> ObjectModel:
    """A wooden cube of 3 cm."""
    half = (0.015, 0.015, 0.015)
    return ObjectModel(
        0.03, 0.015, 0.03, (0.015, 0.015), (Solid(half),),
        (Part(rounded_box(half, 0.0013), colour, 0.15, "grain"),), Grasp(0.03, math.pi / 2),
    )  # fmt: skip


def eggplant(colour: RGB) -> ObjectModel:
    """An eggplant of 11 cm with calyx and stem."""
    rest = 0.015
    body = [(-0.046, 0.006), (-0.042, 0.0095), (-0.025, 0.0118), (0.0, 0.015), (0.02, 0.0178), (0.034, 0.0178)]
    body += [(0.046, 0.0145), (0.053, 0.008), (0.055, 0.003)]
    calyx = [(-0.052, 0.003), (-0.049, 0.0075), (-0.043, 0.0108), (-0.036, 0.0114), (-0.0355, 0.009)]
    stem = loft(
        [(-0.05, 0, -0.006), (-0.06, 0, -0.003), (-0.067, 0.002, 0.001)],
        [(0.0042, 0.0042), (0.0032, 0.0032), (0.0038, 0.0038)],
        8,
    )
    return ObjectModel(
        mass=0.04,
        rest_height=rest,
        height=0.036,
        footprint=(0.067, 0.018),
        solids=(
            core(-0.05, -0.024, 0.0095, rest),
            core(-0.024, 0.016, 0.0145, rest),
            core(0.016, 0.05, 0.016, rest),
            Solid((0.009, 0.004, 0.004), (-0.058, 0.0, -0.003)),
        ),
        parts=(Part(lying(body, rest, 20), colour, 0.9), Part(merged(lying(calyx, rest), stem), LEAF, 0.05)),
        grasp=Grasp(0.029, math.pi),
    )


def towel(colour: RGB) -> ObjectModel:
    """A towel folded to 14 x 11 cm; fixed to the table."""
    rest, half = 0.004, (0.070, 0.055)

    def hems(u: Array, v: Array) -> Array:
        waves: Array = 0.0035 + 0.0006 * np.sin(5.0 * u + 2.0 * v) * np.cos(4.0 * v - 1.0)
        return waves

    return ObjectModel(
        0.0, rest, 0.008, half, (Solid((half[0], half[1], rest)),),
        (Part(sheet(half, hems, 0.0075), colour, 0.0, "cloth"),),
    )  # fmt: skip


def plate(colour: RGB) -> ObjectModel:
    """A plate of 14 cm with a raised rim; it can be pushed."""
    rest = 0.004
    body = lathe(
        [(0.030, -0.004), (0.046, -0.004), (0.052, -0.001), (0.069, 0.0065), (0.072, 0.0085), (0.0715, 0.0098),
         (0.068, 0.0095), (0.050, 0.003), (0.047, 0.0012), (0.044, 0.0006), (0.015, 0.0006)], 40
    )  # fmt: skip
    count = 10
    rim = tuple(
        Solid((0.0115, 0.021, 0.0016), (0.061 * math.cos(a), 0.061 * math.sin(a), 0.0038), a, -math.radians(22))
        for a in (2 * math.pi * i / count for i in range(count))
    )
    return ObjectModel(
        0.2, rest, 0.014, (0.072, 0.072), (Solid((0.05, 0.05, 0.0022), (0, 0, -0.0018), disc=True), *rim),
        (Part(body, colour, 0.7),), round=True,
    )  # fmt: skip


def basket(colour: RGB) -> ObjectModel:
    """A basket of 18 x 14 cm, 5 cm high; fixed to the table."""
    hx, hy, height, wall = 0.088, 0.068, 0.05, 0.004
    walls = [Solid((hx, wall, height / 2), (0, s * (hy - wall), height / 2)) for s in (-1, 1)] + [
        Solid((wall, hy - 2 * wall, height / 2), (s * (hx - wall), 0, height / 2)) for s in (-1, 1)
    ]
    floor = Solid((hx - wall, hy - wall, 0.002), (0, 0, 0.002))
    panels = merged(*(shifted(rounded_box(s.size, 0.001), s.position) for s in (floor, *walls)))
    return ObjectModel(
        0.0, 0.0, height, (hx, hy), (floor, *walls),
        (Part(panels, colour, 0.05, "weave"),),
    )  # fmt: skip

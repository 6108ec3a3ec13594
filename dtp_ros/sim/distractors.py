"""Objects that only stand by, each in a colour."""

from __future__ import annotations

import math

from dtp_ros.sim.meshes import lathe, loft, merged, rounded_box, shifted
from dtp_ros.sim.objects import COLOURS, LEAF, RGB, Grasp, ObjectModel, Part, Solid, core, lying
from dtp_ros.sim.task_objects import spoon


def fork(colour: RGB) -> ObjectModel:
    """A fork of 16 cm, the spoon's look-alike."""
    base = spoon(colour)
    tines = [
        loft([(0.06, y, 0.001), (0.088, y, 0)], [(0.0016, 0.0016), (0.001, 0.001)], 6)
        for y in (-0.0085, -0.0028, 0.0028, 0.0085)
    ]
    neck = loft(
        [(0.04, 0, 0), (0.052, 0, 0), (0.06, 0, 0.001), (0.066, 0, 0.001)],
        [(0.004, 0.002), (0.008, 0.002), (0.0105, 0.002), (0.0105, 0.0015)],
        10,
    )
    return ObjectModel(
        base.mass, base.rest_height, base.height, (0.090, 0.011), base.solids[:1],
        (base.parts[0], Part(merged(neck, *tines), COLOURS["steel"], 0.9)), base.grasp,
    )  # fmt: skip


def lemon(colour: RGB) -> ObjectModel:
    """A lemon of 6 cm."""
    rest = 0.018
    body = [(-0.031, 0.002), (-0.028, 0.005), (-0.022, 0.0115), (-0.01, 0.0175), (0.004, 0.0185), (0.018, 0.0145)]
    body += [(0.026, 0.007), (0.031, 0.004), (0.033, 0.002)]
    return ObjectModel(
        0.05, rest, 0.037, (0.032, 0.0185), (core(-0.02, 0.016, 0.0145, rest),),
        (Part(lying(body, rest, 18), colour, 0.4),), Grasp(0.029, math.pi),
    )  # fmt: skip


def banana(colour: RGB) -> ObjectModel:
    """A banana of 13 cm."""
    stations = [(-0.066, 0.003), (-0.06, 0.0045), (-0.05, 0.009), (-0.025, 0.0135), (0.0, 0.0145), (0.025, 0.0135)]
    stations += [(0.048, 0.009), (0.056, 0.0045), (0.066, 0.0035)]
    rest = 0.0145
    curve = loft([(x, -0.012 + 9 * x * x, r - rest) for x, r in stations], [(r, r) for _, r in stations], 12)
    return ObjectModel(
        0.06, rest, 0.029, (0.068, 0.028),
        (Solid((0.03, 0.0115, 0.0135), (0, -0.01, -0.001)), Solid((0.012, 0.008, 0.008), (0.044, 0.005, -0.0065)),
         Solid((0.012, 0.008, 0.008), (-0.044, 0.005, -0.0065))),
        (Part(curve, colour, 0.3),),
    )  # fmt: skip


def tomato(colour: RGB) -> ObjectModel:
    """A tomato of 5 cm."""
    skin = lathe(
        [(0.009, -0.021), (0.018, -0.0175), (0.024, -0.008), (0.0245, 0.002), (0.021, 0.013), (0.0125, 0.0195),
         (0.005, 0.018)], 24
    )  # fmt: skip
    star = [
        loft([(0, 0, 0.0185), (0.007 * c, 0.007 * s, 0.021), (0.0135 * c, 0.0135 * s, 0.0205)],
             [(0.002, 0.001), (0.003, 0.001), (0.0006, 0.0006)], 6)
        for c, s in ((math.cos(a), math.sin(a)) for a in (0.35, 1.6, 2.9, 4.1, 5.3))
    ]  # fmt: skip
    return ObjectModel(
        0.06, 0.021, 0.041, (0.0245, 0.0245), (Solid((0.0175, 0.0175, 0.0195), (0, 0, -0.0015)),),
        (Part(skin, colour, 0.8), Part(merged(*star), LEAF, 0.05)), round=True,
    )  # fmt: skip


def can(colour: RGB) -> ObjectModel:
    """A tin of 5 cm with a coloured label."""
    label = lathe([(0.0205, -0.021), (0.021, -0.0205), (0.021, 0.0205), (0.0205, 0.021)], 28)
    metal = lathe([(0.0195, -0.025), (0.0205, -0.024), (0.0203, 0.0245), (0.0192, 0.025), (0.0185, 0.023)], 28)
    return ObjectModel(
        0.09, 0.025, 0.05, (0.021, 0.021), (Solid((0.0195, 0.0195, 0.025), disc=True),),
        (Part(metal, COLOURS["steel"], 0.9), Part(label, colour, 0.4)), round=True,
    )  # fmt: skip


def cup(colour: RGB) -> ObjectModel:
    """An espresso cup of 4.5 cm."""
    wall = lathe(
        [(0.015, -0.022), (0.0175, -0.02), (0.022, 0.0), (0.0245, 0.0225), (0.0235, 0.023), (0.021, 0.003),
         (0.015, -0.017), (0.004, -0.018)], 28
    )  # fmt: skip
    return ObjectModel(
        0.08, 0.022, 0.045, (0.0245, 0.0245), (Solid((0.0185, 0.0185, 0.022), disc=True),),
        (Part(wall, colour, 0.9),), round=True,
    )  # fmt: skip


def sponge(colour: RGB) -> ObjectModel:
    """A kitchen sponge with a scouring side."""
    foam, pad = (0.036, 0.024, 0.009), (0.036, 0.024, 0.003)
    return ObjectModel(
        0.02, 0.012, 0.024, (0.036, 0.024), (Solid((0.036, 0.024, 0.012)),),
        (Part(shifted(rounded_box(foam, 0.003), (0, 0, -0.003)), colour, 0.0, "cloth"),
         Part(shifted(rounded_box(pad, 0.001), (0, 0, 0.009)), (0.12, 0.30, 0.16), 0.0, "cloth")),
    )  # fmt: skip

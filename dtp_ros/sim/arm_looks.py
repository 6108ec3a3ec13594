"""What the WidowX 250S looks like: dark servos, brackets and beams on each link, drawn only.

Positions are in each link's frame (x forward, z up at zero joints), m; sizes are half extents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dtp_ros.sim.arm import PAD_INSET, TIP
from dtp_ros.sim.meshes import Mesh, blade, lathe, merged, rounded_box, shifted
from dtp_ros.sim.objects import RGB, Part

BLACK: RGB = (0.13, 0.13, 0.135)
SERVO: RGB = (0.20, 0.20, 0.205)
METAL: RGB = (0.42, 0.43, 0.45)


@dataclass(frozen=True)
class _Axis:
    """Turns a mesh from along z to along x or y."""

    order: tuple[int, int, int]


_ALONG_X, _ALONG_Y = _Axis((2, 0, 1)), _Axis((1, 2, 0))


def _box(half: tuple[float, float, float], at: tuple[float, float, float], bevel: float = 0.002) -> Mesh:
    return shifted(rounded_box(half, bevel), at)


def _drum(radius: float, half: float, at: tuple[float, float, float], axis: _Axis | None = None) -> Mesh:
    edge = min(0.0015, half / 2)
    mesh = lathe([(radius - edge, -half), (radius, edge - half), (radius, half - edge), (radius - edge, half)], 20)
    if axis is not None:
        mesh = Mesh(mesh.vertices[:, axis.order], mesh.faces)
    return shifted(mesh, at)


@lru_cache(maxsize=1)
def arm_parts() -> dict[str, tuple[Part, ...]]:
    """Drawn parts of every body of arm.py."""
    return {
        "base_link": _base(),
        "shoulder_link": _shoulder(),
        "upper_arm_link": _upper_arm(),
        "upper_forearm_link": _forearm(),
        "lower_forearm_link": _lower_forearm(),
        "wrist_link": _wrist(),
        "gripper_link": _gripper(),
        "left_finger_link": _finger(1),
        "right_finger_link": _finger(-1),
    }


def _base() -> tuple[Part, ...]:
    plate = _box((0.085, 0.06, 0.004), (-0.03, 0, 0.004))
    housing = _box((0.042, 0.034, 0.026), (-0.012, 0, 0.034), 0.006)
    return (
        Part(merged(plate, housing), BLACK, 0.3),
        Part(_drum(0.044, 0.006, (0, 0, 0.064)), SERVO, 0.4),
        Part(_box((0.03, 0.03, 0.018), (-0.075, 0, 0.026)), SERVO, 0.3),
    )


def _shoulder() -> tuple[Part, ...]:
    table = _drum(0.043, 0.005, (0, 0, 0.003))
    cheeks = [_box((0.020, 0.005, 0.032), (0, s * 0.045, 0.036), 0.003) for s in (-1, 1)]
    servos = [_box((0.018, 0.018, 0.024), (0, s * 0.020, 0.036), 0.003) for s in (-1, 1)]
    hub = _drum(0.012, 0.053, (0, 0, 0.03865), _ALONG_Y)
    return Part(merged(table, *cheeks), BLACK, 0.3), Part(merged(*servos), SERVO, 0.4), Part(hub, METAL, 0.7)


def _upper_arm() -> tuple[Part, ...]:
    brackets = [_box((0.016, 0.003, 0.034), (0, s * 0.040, 0.016)) for s in (-1, 1)]
    beam = _box((0.013, 0.027, 0.100), (0, 0, 0.145), 0.003)
    foot = _box((0.016, 0.043, 0.006), (0, 0, 0.050))
    crank = _box((0.040, 0.025, 0.016), (0.024, 0, 0.248), 0.004)
    plates = [_box((0.020, 0.003, 0.022), (0.04975, s * 0.034, 0.25)) for s in (-1, 1)]
    hub = _drum(0.011, 0.041, (0.04975, 0, 0.25), _ALONG_Y)
    return (
        Part(merged(*brackets, foot, crank, *plates), BLACK, 0.3),
        Part(beam, SERVO, 0.35),
        Part(hub, METAL, 0.7),
    )


def _forearm() -> tuple[Part, ...]:
    servo = _box((0.024, 0.024, 0.018), (0, 0, 0), 0.003)
    beam = _box((0.060, 0.020, 0.015), (0.080, 0, 0), 0.003)
    collar = _drum(0.025, 0.014, (0.150, 0, 0), _ALONG_X)
    return Part(beam, BLACK, 0.3), Part(merged(servo, collar), SERVO, 0.4)


def _lower_forearm() -> tuple[Part, ...]:
    drum = _drum(0.0235, 0.012, (0.002, 0, 0), _ALONG_X)
    servo = _box((0.022, 0.018, 0.018), (0.030, 0, 0), 0.003)
    fork = [_box((0.022, 0.0025, 0.015), (0.062, s * 0.026, 0)) for s in (-1, 1)]
    yoke = _box((0.004, 0.028, 0.015), (0.044, 0, 0))
    return Part(merged(drum, servo), SERVO, 0.4), Part(merged(*fork, yoke), BLACK, 0.3)


def _wrist() -> tuple[Part, ...]:
    servo = _box((0.024, 0.020, 0.0175), (0.008, 0, 0), 0.003)
    hub = _drum(0.009, 0.031, (0, 0, 0), _ALONG_Y)
    collar = _drum(0.0205, 0.009, (0.040, 0, 0), _ALONG_X)
    return Part(merged(servo, collar), SERVO, 0.4), Part(hub, METAL, 0.7)


def _gripper() -> tuple[Part, ...]:
    servo = _box((0.026, 0.022, 0.019), (0.004, 0, 0), 0.003)
    plate = blade([(0.030, (-0.034, 0.034), (-0.021, 0.021)), (0.036, (-0.034, 0.034), (-0.021, 0.021))], 0.012)
    wings = blade([(0.031, (-0.068, 0.068), (-0.008, 0.008)), (0.036, (-0.068, 0.068), (-0.008, 0.008))], 0.006)
    rail = _box((0.0045, 0.066, 0.0055), (0.058, 0, 0))
    posts = [_box((0.014, 0.004, 0.006), (0.046, s * 0.062, 0)) for s in (-1, 1)]
    return Part(servo, SERVO, 0.4), Part(merged(plate, wings, rail, *posts), BLACK, 0.35)


def _finger(side: int) -> tuple[Part, ...]:
    """The carriage on the rail and a tapering finger whose inner face is the pad's."""

    def span(inner: float, outer: float) -> tuple[float, float]:
        low, high = sorted((-side * inner, -side * outer))
        return low, high

    inner = PAD_INSET
    carriage = _box((0.010, 0.011, 0.011), (-0.008, 0, 0))
    stations = [
        (-0.004, span(0.010, -0.009), (-0.013, 0.013)),
        (0.006, span(inner, -0.008), (-0.013, 0.013)),
        (0.030, span(inner, -0.001), (-0.0105, 0.0105)),
        (TIP - 0.004, span(inner, 0.003), (-0.0088, 0.0088)),
        (TIP, span(inner, 0.006), (-0.0078, 0.0078)),
    ]
    return Part(carriage, SERVO, 0.4), Part(blade(stations), BLACK, 0.35)

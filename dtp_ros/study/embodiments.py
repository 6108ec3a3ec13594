"""What benchmarks of vla-eval show and take, and what our policies read and give: one robot a function pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtp_ros.errors import ObservationError, require_choice
from dtp_ros.models.base import Observation
from dtp_ros.models.lerobot import LIBERO_FINGER, LIBERO_STEP
from dtp_ros.widowx.semantics import bridge_state

Array = NDArray[np.float64]
Seen = Mapping[str, Any]


@dataclass(frozen=True)
class Embodiment:
    """A robot of a benchmark.

    cameras: names in the benchmark's `images`, the main one first; a model takes as many as it has.
    control_frequency: Hz. state: the arm's state as `Observation` has it, or None. act: an action [7] of `ActionChunk`
    as the benchmark takes it, [7]. wants: what the benchmark is asked for unless its file says otherwise, always, where
    the model takes the state, and where it has more than one camera. hand: makes, for an episode, what turns the
    opening that `act` gave into what the benchmark takes, called once a control step.
    """

    cameras: tuple[str, ...]
    control_frequency: float
    state: Callable[[Seen], Array | None]
    act: Callable[[Array], Array]
    wants_state: Mapping[str, Any]
    wants_wrist: Mapping[str, Any]
    wants: Mapping[str, Any] = field(default_factory=dict)
    rotation: str = "axis_angle"
    gripper: str = "continuous_01"
    hand: Callable[[], Callable[[float], float]] = lambda: float

    def observe(self, seen: Seen, num_cameras: int, *, with_state: bool, step: int) -> Observation:
        """An observation of control step `step`. Raises ObservationError where something is missing."""
        images = seen.get("images", {})
        if len(self.cameras) < num_cameras:
            raise ObservationError(f"the model has {num_cameras} cameras, the robot {', '.join(self.cameras)}")
        names = self.cameras[:num_cameras]
        for name in names:
            if name not in images:
                raise ObservationError(f"the benchmark sent no image {name!r} (there are: {', '.join(sorted(images))})")
        state = self.state(seen) if with_state else None
        if with_state and state is None:
            raise ObservationError(f"the benchmark sent no state (there are: {', '.join(sorted(seen))})")
        pictures = tuple(np.ascontiguousarray(images[name], dtype=np.uint8) for name in names)
        return Observation(pictures, str(seen.get("task_description", "")), state, None, step / self.control_frequency)


def _tabletop_state(seen: Seen) -> Array | None:
    state = seen.get("state")
    return None if state is None else np.asarray(state, dtype=np.float64)


def _simpler_state(seen: Seen) -> Array | None:
    """From position, quaternion (w, x, y, z) and opening in the base frame."""
    if "states" not in seen:
        return None
    states = np.asarray(seen["states"], dtype=np.float64)
    transform_ee_to_base = np.eye(4)
    transform_ee_to_base[:3, :3] = Rotation.from_quat(np.roll(states[3:7], -1)).as_matrix()
    transform_ee_to_base[:3, 3] = states[:3]
    return bridge_state(transform_ee_to_base, float(np.clip(states[7], 0.0, 1.0)))


def _libero_state(seen: Seen) -> Array | None:
    """The inverse of `lerobot.state_as_data`: position, rotation vector and two fingers of LIBERO's Panda."""
    for name in ("states", "state"):
        if name in seen:
            states = np.asarray(seen[name], dtype=np.float64)
            turned = Rotation.from_rotvec(states[3:6]) * Rotation.from_rotvec([-np.pi, 0.0, 0.0])
            opening = np.clip((states[6] - states[7]) / (2 * LIBERO_FINGER), 0.0, 1.0)
            return np.concatenate([states[:3], turned.as_euler("xyz"), [opening]])
    return None


def _unchanged(action: Array) -> Array:
    return action


def _axis_angle(action: Array) -> Array:
    """Euler increments as a rotation vector, which SIMPLER's controllers take; opening 0 ... 1."""
    return np.concatenate([action[:3], Rotation.from_euler("xyz", action[3:6]).as_rotvec(), action[6:]])


def _closing(opening: float) -> Array:
    """The gripper of robosuite: 1 closes, -1 opens."""
    return np.array([-1.0 if opening > 0.5 else 1.0])


def _libero_units(action: Array) -> Array:
    """An action that is in units of LIBERO's controller already, as fine-tuned checkpoints' statistics give it."""
    return np.concatenate([action[:6], _closing(action[6])])


def _libero_metres(action: Array) -> Array:
    """An action in m and rad in units of LIBERO's controller, in which 1 is 5 cm and 0.5 rad."""
    moved = np.concatenate([action[:3], Rotation.from_euler("xyz", action[3:6]).as_rotvec()])
    return np.concatenate([np.clip(moved / LIBERO_STEP, -1.0, 1.0), _closing(action[6])])


class RelativeHand:
    """The gripper of SIMPLER's Google Robot, which moves by differences, for vla-eval's `sticky`: 0 closes, 1 opens.

    As SIMPLER's policies of OpenVLA and SpatialVLA: the first opening is the reference r; where a later one g differs
    from it by more than 0.5 while no motion runs, r - g is sent for 15 control steps, and r = g. vla-eval takes v as
    1 - 2 v, repeats that for 15 steps by itself where it is above 0.5, and would do so for every v: a gripper told to
    stay open would close up to 14 steps late. So v is (1 - r + g) / 2 where a motion begins, and else 0.5, none.
    """

    STEPS = 15

    def __init__(self) -> None:
        self._reference: float | None = None
        self._left = 0  # steps of the motion that runs

    def __call__(self, opening: float) -> float:
        """What vla-eval takes at this control step, for an opening 0 ... 1."""
        self._reference = opening if self._reference is None else self._reference
        self._left = max(0, self._left - 1)
        difference = self._reference - opening
        if self._left or abs(difference) <= 0.5:
            return 0.5
        self._reference, self._left = opening, self.STEPS
        return 0.5 * (1.0 - difference)


_LIBERO: Mapping[str, Any] = {
    "cameras": ("agentview", "wrist"),
    "control_frequency": 20.0,
    "state": _libero_state,
    "wants_state": {"send_state": True},
    "wants_wrist": {"send_wrist_image": True},
    "gripper": "binary_close_positive",
}
_SIMPLER: Mapping[str, Any] = {
    "cameras": ("primary",), "state": _simpler_state, "act": _axis_angle,
    "wants_state": {"send_state": True}, "wants_wrist": {},
}  # fmt: skip
EMBODIMENTS: Mapping[str, Embodiment] = {
    "tabletop": Embodiment(("camera",), 5.0, _tabletop_state, _unchanged, {}, {}, rotation="euler_xyz"),
    "simpler_widowx": Embodiment(control_frequency=5.0, **_SIMPLER),
    # vla-eval sends its `binary` gripper to both robots, and 1, which opens the WidowX, closes this one.
    "simpler_google": Embodiment(
        control_frequency=3.0, wants={"gripper_mode": "sticky"}, hand=RelativeHand, **_SIMPLER
    ),
    "libero": Embodiment(act=_libero_units, **_LIBERO),
    "libero_metres": Embodiment(act=_libero_metres, **_LIBERO),
}


def embodiment(name: str) -> Embodiment:
    """The robot of a name. Raises ConfigError."""
    require_choice("embodiment", name, tuple(EMBODIMENTS))
    return EMBODIMENTS[name]

"""Where the arm is, from its joint states, and whether that is still known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dtp_ros.widowx.gate import RefusedError
from dtp_ros.widowx.kinematics import Array, Robot
from dtp_ros.widowx.schedule import SAME_TIME

STRAY = 0.03  # rad between two joint states, away from the last command
GRIPPER = "gripper"  # the simulator's: metres. Interbotix drivers report a motor angle by this name, beside the fingers


@dataclass(frozen=True)
class Measurement:
    """Joints [n] in rad at `stamp` (s); gripper: metres between the fingers, or None where it is not reported."""

    joints: Array
    stamp: float
    gripper: float | None


def measure(robot: Robot, names: Sequence[str], positions: Sequence[float], stamp: float) -> Measurement:
    """The arm's joints among `names` in any order, others ignored.

    Raises RefusedError: `joint_names` where one is missing or the lengths differ, `joint_finite`.
    """
    if len(names) != len(positions):
        raise RefusedError("joint_names", f"{len(names)} names and {len(positions)} positions (valid: as many)")
    table = dict(zip(names, positions, strict=True))
    if missing := [name for name in robot.joint_names if name not in table]:
        raise RefusedError("joint_names", f"{', '.join(missing)} missing (valid: {', '.join(robot.joint_names)})")
    joints = np.array([table[name] for name in robot.joint_names], dtype=np.float64)
    if not np.isfinite(joints).all() or not np.isfinite(stamp):
        raise RefusedError("joint_finite", f"joints {joints.tolist()} (valid: finite, rad)")
    return Measurement(joints, stamp, _opening(robot, table))


def staleness(newest: Measurement | None, now: float, limit: float) -> str:
    """Why nobody knows where the arm is at `now` (s): nothing was measured, or more than `limit` s ago; else ""."""
    if newest is None:
        return "no joint states yet"
    age = now - newest.stamp
    if age <= limit + SAME_TIME:
        return ""
    return f"the joint states are {age:.2f} s old (valid: at most joint_state_timeout, {limit} s)"


def strayed(measured: Measurement, before: Measurement, command: Array) -> bool:
    """Whether the arm left the command [n] rad, of before both measurements, at once."""
    return bool(np.abs(measured.joints - command).max() - np.abs(before.joints - command).max() > STRAY)


def _opening(robot: Robot, table: Mapping[str, float]) -> float | None:
    """Metres between the fingers, from the finger joints, or from GRIPPER where none of them is reported."""
    fingers = [table[name] for name in robot.finger_joints if name in table]
    opening = 2.0 * float(np.mean(np.abs(fingers))) if fingers else table.get(GRIPPER, np.nan)
    return float(np.clip(opening, robot.gripper_closed, robot.gripper_open)) if np.isfinite(opening) else None

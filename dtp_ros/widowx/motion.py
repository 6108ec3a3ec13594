"""One step of the arm: semantics, gate, kinematics, gate. Pure functions of where the arm is and what was sent last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtp_ros.widowx.gate import Gate, RefusedError
from dtp_ros.widowx.kinematics import ROTATION_TOLERANCE, Array, forward, inverse
from dtp_ros.widowx.semantics import clip_workspace, distance, interpolate, target_pose

HOME_TOLERANCE = 1e-3  # m and rad: nearer than this the arm is home
_SHORTENINGS = 6


@dataclass(frozen=True)
class Motion:
    """joints: targets [n] in rad that passed the gate, or None: hold. target: the pose [4, 4] asked for, before the
    gate, or None. causes: the checks that clipped or refused. orientation_error: rad that `joints` are short of the
    orientation asked for, where the arm cannot turn so (five joints); else 0.
    """

    joints: Array | None
    target: Array | None
    causes: tuple[str, ...]
    orientation_error: float = 0.0


def plan_action(gate: Gate, reference: str, action: Array, measured: Array, last: Array, seconds: float) -> Motion:
    """The motion that an action [7] asks for, `seconds` after the joints `last` [n] were sent, from `measured` [n]."""
    causes: list[str] = []
    asked = None
    try:
        clipped = gate.action(action, causes)
        transform_measured, transform_last = forward(gate.robot, measured), forward(gate.robot, last)
        asked = target_pose(action, transform_measured, transform_last, reference)
        target = target_pose(clipped, transform_measured, transform_last, reference)
        goal = gate.pose(target, transform_last if reference == "commanded" else transform_measured, causes)
        reached, error = _reach(gate, goal, last, seconds, causes)
        joints = gate.joints(reached, last, measured, seconds, causes)
    except RefusedError as refusal:
        return Motion(None, asked, _unique([*causes, refusal.cause]))
    return Motion(joints, asked, _unique(causes), error)


def plan_home(gate: Gate, neutral: Array, measured: Array, last: Array, seconds: float) -> Motion | None:
    """One step towards the posture `neutral` [n] rad, or None: there.

    First along the straight line to its pose, which stays inside the box; then, or where that line leads no further,
    joint by joint. An arm that reached the pose in another posture, and cannot change it inside the box, is there.
    """
    here, home = forward(gate.robot, last), clip_workspace(forward(gate.robot, neutral), gate.low, gate.high)
    arrived = max(distance(here, home)) <= HOME_TOLERANCE
    if not arrived:
        causes: list[str] = []
        try:
            joints, _ = _reach(gate, gate.pose(home, here, causes), last, seconds, causes)
            joints = gate.joints(joints, last, measured, seconds, causes)
            if np.abs(joints - last).max() > HOME_TOLERANCE:
                return Motion(joints, home, ())
        except RefusedError:
            pass
    if np.abs(neutral - last).max() < HOME_TOLERANCE:
        return None
    try:
        return Motion(gate.joints(neutral, last, measured, seconds, []), home, ())
    except RefusedError as refusal:
        return None if arrived and refusal.cause == "workspace_path" else Motion(None, home, (refusal.cause,))


def _reach(gate: Gate, goal: Array, last: Array, seconds: float, causes: list[str]) -> tuple[Array, float]:
    """Joints [n] on the straight line from `last` to `goal`: its end, or as far as the joints' speed allows.

    And the orientation error there, rad, which only an arm of five joints has (`orientation`). Shortening the line,
    rather than the joints' path, keeps the end effector on it and inside the box.
    """
    start, fraction, joints, error = forward(gate.robot, last), 1.0, last, 0.0
    for _ in range(_SHORTENINGS):
        pose = goal if fraction == 1.0 else interpolate(start, goal, fraction)
        solution = inverse(gate.robot, pose, last, restarts=0)
        if not solution.converged:
            raise RefusedError(
                "kinematics",
                f"{1e3 * solution.position_error:.1f} mm and {solution.rotation_error:.3f} rad short of the target",
            )
        joints = solution.joints
        ratio = gate.velocity_ratio(joints, last, seconds)
        error = solution.rotation_error if solution.rotation_error > ROTATION_TOLERANCE else 0.0
        if ratio <= 1.0:
            break
        causes.append("joint_velocity")
        if not np.isfinite(ratio):
            return last, 0.0
        fraction *= 0.98 / ratio
    if error:
        causes.append("orientation")
    return joints, error


def _unique(causes: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(causes))

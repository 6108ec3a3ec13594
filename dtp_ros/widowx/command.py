"""What the controller tells the arm, and drivers send."""

from __future__ import annotations

from dataclasses import dataclass

from dtp_ros.widowx.kinematics import Array


@dataclass(frozen=True)
class Command:
    """What the arm is told at `time` (s).

    joints: targets [n], rad. gripper: metres between the fingers. transform_commanded: pose [4, 4] of `joints`.
    transform_target: the pose that was asked for, after semantics and before the gate; None where nothing was.
    twist: mean velocity from the command before (linear m/s, angular rad/s) [6], base axes, zero while holding.
    period: s until the next command is due. holding: `joints` are where the arm was measured when the hold began, or,
    where joint states are missing, those sent last.
    causes: checks that clipped or refused (keys of gate.CHECKS).
    armed: False: motors must not be driven; only a simulator in lock-step, which needs commands to go on, takes it.
    last: the hold with which the arm is disarmed; no command to its motors follows.
    orientation_error: rad between the orientation asked for and that of `joints`, where the arm cannot turn so.
    image_stamp: s, of the image behind the first action of a chunk; None for every other command.
    """

    time: float
    joints: Array
    gripper: float
    transform_commanded: Array
    transform_target: Array | None
    twist: Array
    period: float
    holding: bool
    armed: bool
    last: bool = False
    orientation_error: float = 0.0
    causes: tuple[str, ...] = ()
    image_stamp: float | None = None

"""The safety gate: everything that moves the arm passes it, once. What it does not let through, it names and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from dtp_ros.errors import ActionError, ConfigError, require_range
from dtp_ros.widowx.kinematics import Array, Robot, forward
from dtp_ros.widowx.semantics import clip_action, clip_workspace, distance, interpolate

# Three axes at their limits, and a turn about a point that is not the commanded one, make a longer step than one axis:
# the pose as a whole may go this many times the limit.
DIAGONAL = 2.0
WORKSPACE_TOLERANCE = 1e-3  # m: the residual of the kinematics at the wall of the box
LIMIT_TOLERANCE = 0.05  # rad: overshoot of the measured arm beyond its limits that is not yet a violation


@dataclass(frozen=True)
class Check:
    """effect: `clips` (the motion is made smaller), `holds` (it is refused; the next may pass), `stops` (disarms until
    one call of `arm`), or `drops` (the message is ignored). parameter: what sets its limit, "" where nothing does.
    """

    effect: str
    parameter: str
    meaning: str


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "chunk_names": Check("holds", "", "the chunk's joint names are not those of an action, in order"),
        "chunk_frame": Check("holds", "base_frame", "the chunk is not in the base frame"),
        "chunk_horizon": Check("holds", "", "no actions, too many, or not seven numbers each"),
        "chunk_timing": Check("holds", "", "time_from_start is not (i + 1) equal periods"),
        "finite": Check("holds", "", "an action, or what became of it, is not finite"),
        "future_stamp": Check("holds", "", "the chunk's image lies in the future"),
        "image": Check("holds", "command_timeout", "the chunk's image is too old"),
        "joint_states": Check("holds", "joint_state_timeout", "no joint states, or too old ones"),
        "command_timeout": Check(
            "holds", "command_timeout", "no further chunk came in time: the rest of the last is dropped"
        ),
        "not_armed": Check("holds", "", "the arm is not armed"),
        "driver": Check("stops", "driver", "the arm's own driver went away, or is not set up any more"),
        "going_home": Check("drops", "", "a chunk came while the arm was going home"),
        "late": Check("drops", "late_actions", "the action's time was over"),
        "time_backwards": Check("drops", "", "a stamp before the last one: state forgotten, the next is taken"),
        "joint_names": Check("drops", "robot", "joint states that lack a joint of the arm"),
        "joint_finite": Check("drops", "", "joint states that are not finite"),
        "strayed": Check("drops", "", "the arm was moved by something else: the last command is forgotten"),
        "step": Check("clips", "max_step_translation, max_step_rotation", "an increment above the limit of a step"),
        "workspace": Check("clips", "workspace_low, workspace_high", "the target is outside the box"),
        "workspace_path": Check("holds", "workspace_low, workspace_high", "the joints would leave the box"),
        "kinematics": Check("holds", "", "the pose cannot be reached from here; the target does not advance"),
        "orientation": Check("clips", "", "five joints cannot turn so: the nearest orientation is taken"),
        "joint_limits": Check("clips", "joint_limit_margin", "a joint target beyond its limit less the margin"),
        "joint_velocity": Check("clips", "max_joint_velocity", "a joint would turn too fast"),
        "jump": Check("holds", "max_joint_jump", "the command is too far from the measured joints"),
        "limit_violation": Check("stops", "", "the measured arm is outside its joint limits"),
        "publisher": Check("stops", "", "another publisher is behind action_chunk"),
        "stop": Check("stops", "", "the stop service was called"),
        "shutdown": Check("stops", "", "the node ends"),
    }
)


class RefusedError(ActionError):
    """An input that must not move the arm; `cause` is the name of the check (a key of CHECKS)."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(f"{cause}: {message}")
        self.cause = cause


@dataclass(frozen=True)
class GateConfig:
    """Limits of the gate; raises ConfigError where one is out of range.

    workspace_low, workspace_high: corners of the box for the end effector, base frame, m.
    max_step_translation (m), max_step_rotation (rad): the largest increment along each axis in one action.
    max_joint_velocity: rad/s, each joint (the motors' own limit holds as well).
    joint_limit_margin: rad kept from the arm's joint limits. max_joint_jump: rad between command and measurement.
    command_timeout: s without a new action, and largest age of an action's image, until the arm holds.
    joint_state_timeout: largest age of the joint states, s.
    """

    workspace_low: tuple[float, float, float] = (0.10, -0.15, -0.01)
    workspace_high: tuple[float, float, float] = (0.45, 0.25, 0.25)
    max_step_translation: float = 0.05
    max_step_rotation: float = 0.25
    max_joint_velocity: float = 1.0
    joint_limit_margin: float = 0.02
    max_joint_jump: float = 0.5
    command_timeout: float = 1.5
    joint_state_timeout: float = 0.2

    def __post_init__(self) -> None:
        for name, (low, high) in GATE_RANGES.items():
            require_range(name, getattr(self, name), low, high)
        for name in ("workspace_low", "workspace_high"):
            corner = getattr(self, name)
            if len(corner) != 3:
                raise ConfigError(f"{name} = {list(corner)} has {len(corner)} numbers (valid: three, x y z in m)")
            for axis, value in zip("xyz", corner, strict=True):
                require_range(f"{name}.{axis}", value, -2.0, 2.0)
        if not all(low < high for low, high in zip(self.workspace_low, self.workspace_high, strict=True)):
            raise ConfigError(
                f"workspace_low = {list(self.workspace_low)} is not below workspace_high = {list(self.workspace_high)}"
                " (valid: a box with low < high on every axis)"
            )


GATE_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "max_step_translation": (0.001, 0.2),
        "max_step_rotation": (0.001, 1.0),
        "max_joint_velocity": (0.01, 10.0),
        "joint_limit_margin": (0.0, 0.5),
        "max_joint_jump": (0.01, 3.2),
        "command_timeout": (0.05, 60.0),
        "joint_state_timeout": (0.02, 10.0),
    }
)


class Gate:
    """The limits of one arm, and how often each check spoke (`counts`, keys of CHECKS).

    Every method that limits returns what may pass; it raises RefusedError where nothing may.
    """

    def __init__(self, robot: Robot, config: GateConfig, counts: Counter[str] | None = None) -> None:
        self.config = config
        self.counts: Counter[str] = Counter() if counts is None else counts
        margin = np.minimum(config.joint_limit_margin, 0.49 * (robot.upper - robot.lower))
        self.robot = replace(robot, lower=robot.lower + margin, upper=robot.upper - margin)
        self.max_velocity = np.minimum(robot.max_velocity, config.max_joint_velocity)
        self.low, self.high = np.array(config.workspace_low), np.array(config.workspace_high)
        self._outer = (robot.lower, robot.upper)

    def count(self, *causes: str) -> None:
        """Add one to the counter of each named check."""
        self.counts.update(causes)

    def action(self, action: Array, causes: list[str]) -> Array:
        """The action [7] with its increments clipped (`step`); RefusedError(`finite`) unless all are finite."""
        if action.shape != (7,) or not np.isfinite(action).all():
            raise RefusedError("finite", f"action {action.tolist()} (valid: seven finite numbers)")
        config = self.config
        clipped = clip_action(action, config.max_step_translation, config.max_step_rotation)
        if not np.array_equal(clipped, action):
            causes.append("step")
        return clipped

    def pose(self, target: Array, reference: Array, causes: list[str]) -> Array:
        """The target [4, 4] moved into the box (`workspace`), and no further than a step from `reference` (`step`).

        An arm that starts outside the box is led towards it step by step.
        """
        if not np.isfinite(target).all():
            raise RefusedError("finite", "the target pose is not finite")
        inside = clip_workspace(target, self.low, self.high)
        if not np.array_equal(inside, target):
            causes.append("workspace")
        length, angle = distance(reference, inside)
        limits = self.config.max_step_translation, self.config.max_step_rotation
        excess = max(length / (DIAGONAL * limits[0]), angle / (DIAGONAL * limits[1]))
        if excess > 1.0 + 1e-9:
            causes.append("step")
            inside = interpolate(reference, inside, 1.0 / excess)
        return inside

    def joints(self, target: Array, last: Array, measured: Array, seconds: float, causes: list[str]) -> Array:
        """Joint targets [n] in rad that may be sent `seconds` after `last` [n], the arm being at `measured` [n].

        Clipped to the limits less the margin (`joint_limits`) and to the velocity limit, all joints by the same
        factor (`joint_velocity`). RefusedError: `finite`, `jump`, or `workspace_path` where the end effector would
        leave the box, or go further outside.
        """
        if not np.isfinite(target).all():
            raise RefusedError("finite", "the joint targets are not finite")
        inside = np.clip(target, self.robot.lower, self.robot.upper)
        if np.abs(inside - target).max() > 1e-9:
            causes.append("joint_limits")
        excess = self.velocity_ratio(inside, last, seconds)
        if excess > 1.0:
            causes.append("joint_velocity")
            inside = last + (inside - last) / excess if np.isfinite(excess) else last.copy()
        if (error := np.abs(inside - measured).max()) > self.config.max_joint_jump:
            raise RefusedError("jump", f"{error:.3f} rad from the measured joints (limit {self.config.max_joint_jump})")
        if self.outside(inside) > max(WORKSPACE_TOLERANCE, self.outside(last)):
            raise RefusedError("workspace_path", "the joints would take the end effector out of the workspace")
        return inside

    def velocity_ratio(self, target: Array, last: Array, seconds: float) -> float:
        """How many times the velocity limit a move from `last` to `target` [n] within `seconds` would take."""
        move = np.abs(target - last)
        if move.max() < 1e-12:
            return 0.0
        return float((move / (self.max_velocity * seconds)).max()) if seconds > 1e-6 else float("inf")

    def outside(self, joints: Array) -> float:
        """How far the end effector at `joints` [n] is outside the box, m (0 inside)."""
        position = forward(self.robot, joints)[:3, 3]
        return float(np.linalg.norm(position - np.clip(position, self.low, self.high)))

    def hold(self, measured: Array) -> Array:
        """Joint targets [n] that hold the arm where it is measured, inside the arm's own limits."""
        return np.clip(measured, *self._outer)

    def violation(self, measured: Array) -> str:
        """The joint that is measured outside the arm's limits, its value and the limit; "" where none is."""
        low, high = self._outer
        beyond = np.maximum(low - measured, measured - high)
        worst = int(np.argmax(beyond))
        if beyond[worst] <= LIMIT_TOLERANCE:
            return ""
        name = self.robot.joint_names[worst]
        return f"{name} is at {measured[worst]:.3f} rad (limits {low[worst]:.3f} ... {high[worst]:.3f})"

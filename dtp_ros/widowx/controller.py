"""From chunks and joint states to safe commands: holding, arming, going home.

The controller has no clock: every call says what time it is (s). Each action that is due makes one command, a motion
or a hold, and so does a refused chunk: a simulator in lock-step, whose time moves only with commands, never waits in
vain. The one exception needs joint states that are old, which in lock-step they never are: a hold that nobody knows a
place for waits for fresh ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dtp_ros.widowx.command import Command
from dtp_ros.widowx.controller_config import ControllerConfig
from dtp_ros.widowx.gate import Gate, RefusedError
from dtp_ros.widowx.kinematics import Array, Robot, forward, rotation_vector
from dtp_ros.widowx.measurement import Measurement, measure, staleness, strayed
from dtp_ros.widowx.motion import Motion, plan_action, plan_home
from dtp_ros.widowx.schedule import SAME_TIME, Chunk, DueAction, Schedule
from dtp_ros.widowx.semantics import gripper_distance

FUTURE = 0.5  # s: a stamp this far ahead is not the jitter of two topics
HOME_PERIOD = 0.2  # s between the commands of going home
HOME_TIMEOUT = 60.0  # s


class ArmController:
    """The state between a policy and an arm: what was measured, what was sent, what is due."""

    def __init__(self, robot: Robot, config: ControllerConfig | None = None, *, armed: bool = False) -> None:
        self.robot = robot
        self.counts: Counter[str] = Counter()
        self.armed = armed
        self.disarmed_by = ""  # the check that disarmed, until armed again
        self.homing = False
        self.holding = True
        self.paced = True  # chunks wait for their predecessor; not in lock-step, where time waits for them
        self.causes: tuple[str, ...] = ()  # of the last command or refusal
        self.orientation_error = 0.0  # of the last command, rad
        self._hold_causes: tuple[str, ...] = ()  # of a hold that is due
        self._disarming = False  # the hold that is due must still reach the motors
        self._gripper: float | None = None  # commanded, m; never forgotten: what is grasped must not fall
        self.configure(config or ControllerConfig())
        self._forget()

    def configure(self, config: ControllerConfig) -> None:
        """Take other limits from the next call on."""
        self.config = config
        self.gate = Gate(self.robot, config.gate, self.counts)

    def _forget(self) -> None:
        """Poses and times of before count no more; the gripper's target does, and a disarming hold stays due."""
        self._measured: Measurement | None = None
        self._schedule = Schedule()
        self._due = self._home_by = 0.0
        self._last: Array | None = None  # joints sent last, while they are where motion continues from
        self._sent_at: float | None = None
        self._moving = False  # a command was sent since the last joint states
        self._fed_at = 0.0  # when the last chunk came, or the last step home
        self._chunk_stamp: float | None = None  # newest seen
        self._now: float | None = None
        self.homing, self.holding = False, True

    @property
    def is_hold_due(self) -> bool:
        """Whether a hold was asked for and not sent: it waits for a tick, or for joint states."""
        return bool(self._hold_causes)

    @property
    def measured_at(self) -> float | None:
        """Stamp of the newest joint states, s, or None before the first."""
        return None if self._measured is None else self._measured.stamp

    # -- what comes in ------------------------------------------------------------------------------------------

    def joint_states(self, names: Sequence[str], positions: Sequence[float], stamp: float) -> None:
        """Take joint states (rad; finger joints in m), in any order, others ignored; refused ones are counted."""
        try:
            measured = measure(self.robot, names, positions, stamp)
        except RefusedError as refusal:
            return self.gate.count(refusal.cause)
        before = self._measured
        if before is not None and stamp < before.stamp - SAME_TIME:
            return self._backwards()
        if before is not None and self._last is not None and not self._moving and strayed(measured, before, self._last):
            self.gate.count("strayed")  # by a hand, or in a new episode
            self._last = None
        self._measured, self._moving = measured, False
        if self.armed and self.gate.violation(measured.joints):
            self.disarm("limit_violation")
        return None

    def chunk(self, chunk: Chunk, now: float) -> bool:
        """Take a chunk that arrived at `now`; it replaces what is left of the one before. False: refused, counted."""
        if self._is_backwards(now):
            return False
        if self._chunk_stamp is not None and chunk.stamp < self._chunk_stamp - SAME_TIME:
            self._backwards()
            return False
        if self.homing:
            self.gate.count("going_home")
            return False
        if not np.isfinite(chunk.actions).all():
            return self.refuse("finite")
        if chunk.stamp > now + FUTURE:
            return self.refuse("future_stamp")
        self._chunk_stamp = chunk.stamp
        if now - chunk.stamp > self.config.gate.command_timeout:
            return self.refuse("image")
        self._schedule.put(chunk, now)
        self._fed_at = now
        return True

    def refuse(self, cause: str) -> bool:
        """Count a chunk that must not move the arm and hold: the next tick says so. Returns False."""
        self.gate.count(cause)
        self._schedule.clear()
        self._hold_causes = (cause,)
        return False

    def driver_lost(self, *, disarms: bool) -> None:
        """The arm's own driver went away: hold, once it is back, where the arm then is; a way home has ended.

        disarms: also wait for `arm` then. A person may have switched the arm off, and have a hand on it: no command
        reaches its motors before.
        """
        self.homing = False
        self._last = None  # nobody holds the arm there any more
        if disarms and self.armed:
            self.disarm("driver")
        else:
            self.refuse("driver")
        self._disarming = self._disarming and not disarms

    # -- what a person asks -------------------------------------------------------------------------------------

    def arm(self, now: float) -> str:
        """Enable motion from where the arm is; returns why not, or ""."""
        refusal = staleness(self._measured, now, self.config.gate.joint_state_timeout)
        if refusal or self._measured is None:
            return refusal
        if violation := self.gate.violation(self._measured.joints):
            return violation
        self.armed, self.homing, self.disarmed_by = True, False, ""
        self._disarming = False  # a hold that is still due is no longer the last
        self._schedule.clear()
        self._last = None
        return ""

    def disarm(self, cause: str) -> None:
        """Hold at once (the next tick) and stay so until `arm`; `cause` is counted."""
        self._disarming = self.armed or self._disarming
        self.armed = self.homing = False
        self.disarmed_by = cause
        self.refuse(cause)

    def go_home(self, now: float) -> str:
        """Move to the neutral posture in gated steps; returns why not, or ""."""
        if not self.armed:
            return "the arm is not armed (call arm first)"
        if refusal := staleness(self._measured, now, self.config.gate.joint_state_timeout):
            return refusal
        self._schedule.clear()
        self.homing, self._due, self._home_by = True, now, now + HOME_TIMEOUT
        return ""

    # -- time passes --------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Command | None:
        """The command due at `now`, or None. Call again until None."""
        if self._measured is None or self._is_backwards(now):
            return None
        self._now = now
        if self._hold_causes:
            causes, self._hold_causes = self._hold_causes, ()
            return self._send(now, Motion(None, None, causes))
        if self.homing:
            return self._home(now) if now >= self._due - SAME_TIME else None
        self._schedule.begin(now, self._measured.stamp, self.config.gate.joint_state_timeout, paced=self.paced)
        due, late = self._schedule.take(now, drop_late=self.config.late_actions == "drop")
        self.gate.count(*["late"] * late)
        return self.watch(now) if due is None else self._execute(due, now)

    def watch(self, now: float) -> Command | None:
        """A hold, once, where the next action or the joint states are missing; else None. Part of `tick`."""
        if self.holding or self._measured is None:
            return None
        if self._is_stale(now):
            cause = "joint_states"
        elif self._is_late(now):
            self._schedule.clear()
            cause = "command_timeout"
        else:
            return None
        return self._refused(now, cause)

    # -- what goes out ------------------------------------------------------------------------------------------

    def _execute(self, due: DueAction, now: float) -> Command | None:
        measured, last = self._anchor()
        if not self.armed:
            motion = Motion(None, None, ("not_armed",))
        elif self._is_stale(now):
            motion = Motion(None, None, ("joint_states",))
        elif due.image_stamp is not None and now - due.image_stamp > self.config.gate.command_timeout:
            motion = Motion(None, None, ("image",))  # it waited for joint states, or for a driver, too long
        elif self._is_late(now):
            self._schedule.clear()
            motion = Motion(None, None, ("command_timeout",))
        else:
            seconds = self._elapsed(now, due.seconds)
            motion = plan_action(self.gate, self.config.reference, due.action, measured, last, seconds)
        self.gate.count(*motion.causes)
        if motion.joints is not None:
            self._gripper = gripper_distance(self.robot, float(due.action[6]), self.config.gripper_threshold)
        return self._send(now, motion, HOME_PERIOD if motion.joints is None else due.seconds, due.image_stamp)

    def _home(self, now: float) -> Command | None:
        if self._is_stale(now) or now > self._home_by:
            self.homing = False
            return self._refused(now, "joint_states" if self._is_stale(now) else "kinematics")
        measured, last = self._anchor()
        motion = plan_home(self.gate, self.robot.neutral, measured, last, self._elapsed(now, HOME_PERIOD))
        self.homing = motion is not None and motion.joints is not None
        if motion is None:
            return None
        self._due, self._fed_at = now + HOME_PERIOD, now
        self.gate.count(*motion.causes)
        return self._send(now, motion)

    def _refused(self, now: float, cause: str) -> Command | None:
        self.gate.count(cause)
        return self._send(now, Motion(None, None, (cause,)))

    def _anchor(self) -> tuple[Array, Array]:
        """Joints measured, and joints that the next motion continues from, each [n]."""
        assert self._measured is not None  # tick checks it
        measured = self._measured.joints
        return measured, self.gate.hold(measured) if self._last is None else self._last

    def _elapsed(self, now: float, period: float) -> float:
        """Time that a motion may take the credit for: since the last command, a move or a period at most (s)."""
        period = min(period, self.config.move_time)
        if self._sent_at is None or now - self._sent_at >= period - SAME_TIME:
            return period  # not the difference of two stamps, whose rounding depends on when the episode began
        return max(0.0, now - self._sent_at)

    def _send(
        self, now: float, motion: Motion, seconds: float = HOME_PERIOD, image_stamp: float | None = None
    ) -> Command | None:
        joints = self._hold_joints(now) if motion.joints is None else motion.joints
        self.holding, self.causes = motion.joints is None, motion.causes
        if joints is None:
            self._hold_causes = motion.causes
            self._schedule.clear()  # what is left was planned for another place
            return None
        _, before = self._anchor()
        pose, twist = forward(self.robot, joints), np.zeros(6)
        if not self.holding:
            start = forward(self.robot, before)
            turn = rotation_vector(pose[:3, :3] @ start[:3, :3].T)
            twist = np.concatenate([pose[:3, 3] - start[:3, 3], turn]) / seconds
        armed, last, self._disarming = self.armed or self._disarming, self._disarming, False
        self._last, self._sent_at, self._moving = joints, now, True
        self.orientation_error = motion.orientation_error
        return Command(
            time=now,
            joints=joints,
            gripper=self._finger_target(),
            transform_commanded=pose,
            transform_target=motion.target,
            twist=twist,
            period=seconds,
            holding=self.holding,
            armed=armed,
            last=last,
            orientation_error=motion.orientation_error,
            causes=motion.causes,
            image_stamp=image_stamp,
        )

    def _hold_joints(self, now: float) -> Array | None:
        """Where the arm was when the hold began; where it was moved since, as by hand, where it is now. [n] rad.

        Without fresh joint states it is what was sent last, where the arm is on its way to or held already: the place
        where it was measured once may be far from it. None where nothing was sent either.
        """
        if self._is_stale(now):
            return self._last
        measured, last = self._anchor()
        moved = np.abs(measured - last).max() > self.config.gate.max_joint_jump
        return last if self.holding and self.armed and not moved else self.gate.hold(measured)

    def _finger_target(self) -> float:
        if self._gripper is None:
            assert self._measured is not None
            measured = self._measured.gripper
            self._gripper = self.robot.gripper_open if measured is None else measured
        return self._gripper

    def _is_late(self, now: float) -> bool:
        """Whether nothing came for too long; what is left of the last chunk is of a world nobody looks at any more."""
        return now - self._fed_at > self.config.gate.command_timeout + SAME_TIME

    def _is_stale(self, now: float) -> bool:
        return bool(staleness(self._measured, now, self.config.gate.joint_state_timeout))

    def _is_backwards(self, now: float) -> bool:
        if self._now is None or now >= self._now - SAME_TIME:
            return False
        self._backwards()
        return True

    def _backwards(self) -> None:
        self.gate.count("time_backwards")
        self._forget()
        self._hold_causes = self._hold_causes or ("time_backwards",)

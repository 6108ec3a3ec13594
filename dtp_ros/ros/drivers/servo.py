"""MoveIt Servo: the twist of each action, freshly stamped until the action has ended, then zero while armed."""

from __future__ import annotations

import math
import time

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node

from dtp_ros.ros.conversions import twist_stamped_to_ros
from dtp_ros.ros.drivers.base import DELIVERY, Audience, DriverSettings
from dtp_ros.ros.drivers.grippers import create_gripper
from dtp_ros.widowx.command import Command
from dtp_ros.widowx.kinematics import Array, Robot

REPEAT_PERIOD = 0.02  # s; Servo halts on a stamp older than 0.1 s
SILENT_AFTER = 3.0  # s of zeros after the arm was disarmed; then a joystick may have the topic


class ServoDriver:
    """TwistStamped (m/s, rad/s: Servo's `command_in_type: speed_units`) along the axes of `base_frame`.

    The gripper goes by its own controller. Twists add up without looking back: what the arm drifts from the commanded
    pose stays until the next hold, which begins where the arm is measured (or refuses, `jump`, if it is too much).
    """

    arms_at_start = False

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings) -> None:
        self._node, self._frame = node, settings.base_frame
        self._publisher = node.create_publisher(TwistStamped, settings.under(settings.servo_topic), 10)
        self._audience = Audience(node, self._publisher)
        self._gripper = create_gripper(node, robot, settings)
        self._twist = np.zeros(6)
        self._moves_until = self._speaks_until = 0.0  # steady clock, s
        node.create_timer(REPEAT_PERIOD, self._repeat, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def status(self) -> str:
        """Whether Servo is missing; one that comes is told nothing before the next command."""
        text = self._audience.missing()
        if text:
            self._moves_until = self._speaks_until = 0.0
        return text

    def warning(self) -> str:
        """Whether the gripper's controller is missing: the arm moves and holds without."""
        return self._gripper.status()

    def send(self, command: Command) -> None:
        """Begin the command's twist; it lasts for the command's period."""
        if not command.armed:  # the zeros end by themselves
            return
        self._gripper.send(command.gripper)
        self._twist = command.twist
        self._moves_until = time.monotonic() + command.period
        self._speaks_until = self._moves_until + SILENT_AFTER if command.last else math.inf
        self._repeat()

    def _repeat(self) -> None:
        now = time.monotonic()
        if now < self._speaks_until:
            self._publish(self._twist if now < self._moves_until else np.zeros(6))

    def _publish(self, twist: Array) -> None:
        self._publisher.publish(twist_stamped_to_ros(twist, self._node.get_clock().now().to_msg(), self._frame))

    def close(self) -> None:
        """End on a zero, where the arm may move, and see it delivered."""
        if time.monotonic() < self._speaks_until:
            self._publish(np.zeros(6))
        self._speaks_until = 0.0
        self._publisher.wait_for_all_acked(Duration(seconds=DELIVERY))
        self._gripper.close()

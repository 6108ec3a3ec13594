"""An Interbotix arm through its xs_sdk, which moves the motors as it is told: no limits, no test for NaN."""

from __future__ import annotations

import time

from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import JointState

from dtp_ros.errors import ConfigError, DtpError, require_choice
from dtp_ros.ros.drivers.base import DELIVERY, Audience, DriverSettings, require_module
from dtp_ros.ros.drivers.interbotix_motors import GRIPPER, GROUP, Motors
from dtp_ros.ros.drivers.set_up import Conversation, SetUp
from dtp_ros.widowx.command import Command
from dtp_ros.widowx.kinematics import Robot

ROBOTS = ("wx250s", "wx250")
INSTALL = "build interbotix_xs_msgs of github.com/Interbotix/interbotix_ros_core, or run Interbotix's installer"
RESTORE_TIMEOUT = 3.0  # s
SILENCE = 3.0  # s without joint states after which xs_sdk may be another, or the arm was switched off and on
AT_END = 1e-3  # m between the fingers: as near as this to closed or open is there


class InterbotixDriver:
    """JointGroupCommand (rad) on `commands/joint_group`, JointSingleCommand of the gripper on `commands/joint_single`.

    With the profiles that Interbotix ships a stream of commands hardly moves the arm: quicker ones are set before the
    first command, and put back at the end. A gripper in PWM mode is driven until its fingers are at their end, or
    hold something; in linear_position it takes metres between the fingers.
    """

    arms_at_start = False

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings) -> None:
        """Raises ConfigError: another maker's arm, Interbotix's messages missing, profile times that do not fit."""
        require_choice("robot of the driver interbotix", robot.name, ROBOTS)
        limit = 0.5 * settings.profile_move_time
        if settings.profile_acceleration_time > limit:
            raise ConfigError(
                f"profile_acceleration_time = {settings.profile_acceleration_time} s is too long for a move of"
                f" {settings.profile_move_time} s (valid: at most half of it, {limit} s)"
            )
        messages = require_module("interbotix_xs_msgs.msg", "driver interbotix", INSTALL)
        services = require_module("interbotix_xs_msgs.srv", "driver interbotix", INSTALL)
        self._node, self._robot, self._pwm = node, robot, settings.gripper_pwm
        self._group_command, self._single_command = messages.JointGroupCommand, messages.JointSingleCommand
        self._group = node.create_publisher(self._group_command, settings.under("commands/joint_group"), 10)
        self._single = node.create_publisher(self._single_command, settings.under("commands/joint_single"), 10)
        self._audience = Audience(node, self._group)
        try:
            self._motors = Motors(node, robot, settings, services)
        except AttributeError as error:
            raise ConfigError(f"interbotix_xs_msgs lacks what is needed: {error} ({INSTALL})") from error
        self._set_up = SetUp(node, self._motors.set_up)
        self._heard_at = time.monotonic()
        self._forget()
        node.create_subscription(JointState, settings.under("joint_states"), self._on_joint_states, 10)

    def _forget(self) -> None:
        self._torque_known = False  # since the arm was armed: before that a person may have switched it off
        self._gripper_sent: float | None = None
        self._driven = 0.0  # PWM of the gripper, until its fingers are at their end

    def status(self) -> str:
        """What the set-up waits for, or why it failed."""
        text = self._audience.missing() or self._motors.missing()
        if text:
            self._begin_anew(text)
        return self._set_up.status

    def _begin_anew(self, why: str) -> None:
        """An xs_sdk that comes back has its own profiles."""
        if not self._set_up.status:
            self._set_up.again(why)
            self._forget()

    def warning(self) -> str:
        """Nothing."""
        return ""

    def send(self, command: Command) -> None:
        """Send the gripper's target where it is new, and the joints'; the first of a run has the torque put on."""
        if not command.armed:
            self._torque_known = False
            return
        if not self._torque_known:
            self._motors.torque_on()
        self._torque_known = not command.last
        self._send_gripper(command.gripper)
        self._group.publish(self._group_command(name=GROUP, cmd=command.joints.tolist()))

    def _send_gripper(self, opening: float) -> None:
        value = self._gripper_value(opening)
        if value is not None and value != self._gripper_sent:
            self._gripper_sent = value
            self._driven = value if self._motors.gripper_mode == "pwm" else 0.0
            self._single.publish(self._single_command(name=GRIPPER, cmd=value))

    def _gripper_value(self, opening: float) -> float | None:
        """What the gripper's mode takes for metres between the fingers; None: leave it as it is."""
        if self._motors.gripper_mode != "pwm":
            return opening
        if opening >= self._robot.gripper_open - AT_END:
            return self._pwm
        return -self._pwm if opening <= self._robot.gripper_closed + AT_END else None

    def _on_joint_states(self, message: JointState) -> None:
        now = time.monotonic()
        if now - self._heard_at > SILENCE:
            self._begin_anew(f"the arm was silent for {now - self._heard_at:.1f} s")
        self._heard_at = now
        self._watch_gripper(message)

    def _watch_gripper(self, message: JointState) -> None:
        """A motor that pushes against its stop gets hot."""
        if self._driven == 0.0 or self._robot.finger_joints[0] not in message.name:
            return
        index = message.name.index(self._robot.finger_joints[0])
        opening = 2.0 * message.position[index] if index < len(message.position) else float("nan")
        low, high = self._robot.gripper_closed + AT_END, self._robot.gripper_open - AT_END
        if opening >= high if self._driven > 0 else opening <= low:
            self._rest_gripper()

    def _rest_gripper(self) -> None:
        self._driven = 0.0
        self._single.publish(self._single_command(name=GRIPPER, cmd=0.0))

    def close(self) -> None:
        """See the last hold delivered, and put the profiles back."""
        self._set_up.stop()
        self._set_up.status = "the driver is closed"
        if self._driven > 0.0:
            self._rest_gripper()  # nobody sees the end of its way; a grasp goes on
        for publisher in (self._group, self._single):
            publisher.wait_for_all_acked(Duration(seconds=DELIVERY))
        try:
            Conversation(self._motors.restore()).finish(self._node, RESTORE_TIMEOUT)
        except DtpError as error:
            self._node.get_logger().error(f"motor profiles are not as they were found, large moves are fast: {error}")

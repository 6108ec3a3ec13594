"""The simulator: joints and gripper on `sim/joint_command`, one message a command, held or not."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import JointState

from dtp_ros.errors import require_choice
from dtp_ros.ros.conversions import joint_state_to_ros
from dtp_ros.ros.drivers.base import DELIVERY, Audience, DriverSettings
from dtp_ros.widowx.command import Command
from dtp_ros.widowx.kinematics import Robot

GRIPPER = "gripper"
ROBOTS = ("wx250s",)  # the arm on the simulated table


class SimDriver:
    """JointState of the arm's joints (rad) and `gripper` (m between the fingers).

    Holds are sent too, armed or not: in lock-step the simulator's time moves only with commands.
    """

    arms_at_start = True

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings) -> None:
        """Raises ConfigError for another arm than the simulated one."""
        require_choice("robot of the driver sim", robot.name, ROBOTS)
        self._robot = robot
        self._publisher = node.create_publisher(JointState, "sim/joint_command", 10)
        self._audience = Audience(node, self._publisher)

    def status(self) -> str:
        """Whether a simulator is missing: in lock-step a command that nobody hears would stop time for ever."""
        return self._audience.missing()

    def warning(self) -> str:
        """Nothing."""
        return ""

    def send(self, command: Command) -> None:
        """Send the joint targets and the gripper."""
        positions = dict(zip(self._robot.joint_names, command.joints.tolist(), strict=True))
        self._publisher.publish(joint_state_to_ros({**positions, GRIPPER: command.gripper}, command.time))

    def close(self) -> None:
        """Wait until the simulator has the last hold."""
        self._publisher.wait_for_all_acked(Duration(seconds=DELIVERY))

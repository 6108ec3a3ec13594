"""The gripper of an arm under ros2_control, for every driver that leaves it to the arm's own controller."""

from __future__ import annotations

from typing import Any, Protocol

from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from dtp_ros.errors import ConfigError
from dtp_ros.ros.conversions import joint_state_to_ros, joint_target_to_ros
from dtp_ros.ros.drivers.base import DELIVERY, Audience, DriverSettings, require_module
from dtp_ros.widowx.kinematics import Robot

# Trossen's gripper_controller is a ParallelGripperActionController, Interbotix's a joint_trajectory_controller.
PARALLEL_GRIPPERS = ("wxai",)
MOVE_TIME = 0.5  # s of the fingers' way
SAME = 1e-4  # m: an opening this near is the one that was sent


class Gripper(Protocol):
    """Takes openings in metres between the fingers; the joint of one finger goes half of it."""

    def status(self) -> str:
        """Why it cannot take one, or ""."""

    def send(self, opening: float) -> None:
        """Send an opening, m, where it is another than the last, and the controller is there."""

    def close(self) -> None:
        """See the last message delivered."""


def create_gripper(node: Node, robot: Robot, settings: DriverSettings) -> Gripper:
    """The gripper of `robot`; raises ConfigError where the package of its messages is missing."""
    kind = ParallelGripper if robot.name in PARALLEL_GRIPPERS else TrajectoryGripper
    return kind(node, robot, settings)


class TrajectoryGripper:
    """JointTrajectory of the first finger on `<gripper_controller>/joint_trajectory`."""

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings) -> None:
        self._finger = robot.finger_joints[0]
        topic = settings.under(f"{settings.gripper_controller}/joint_trajectory")
        self._publisher = node.create_publisher(JointTrajectory, topic, 10)
        self._audience = Audience(node, self._publisher)
        self._sent: float | None = None

    def status(self) -> str:
        """Whether the controller is missing."""
        text = self._audience.missing()
        if text:
            self._sent = None  # the one that comes has not heard it
        return text

    def send(self, opening: float) -> None:
        """Send an opening, m, where it is another than the last, and the controller is there."""
        if not self.status() and (self._sent is None or abs(opening - self._sent) > SAME):
            self._sent = opening
            self._publisher.publish(joint_target_to_ros({self._finger: 0.5 * opening}, MOVE_TIME))

    def close(self) -> None:
        """See the last message delivered."""
        self._publisher.wait_for_all_acked(Duration(seconds=DELIVERY))


class ParallelGripper:
    """Goals of the action `<gripper_controller>/gripper_cmd` (control_msgs/ParallelGripperCommand)."""

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings) -> None:
        """Raises ConfigError where control_msgs is missing or older than the action."""
        install = "apt-get install ros-$ROS_DISTRO-control-msgs, Jazzy or later"
        actions = require_module("control_msgs.action", f"the gripper of {robot.name}", install)
        try:
            self._kind: Any = actions.ParallelGripperCommand
        except AttributeError as error:  # as Humble's
            lacks = f"the gripper of {robot.name} needs ParallelGripperCommand, which this control_msgs lacks"
            raise ConfigError(f"{lacks} ({install})") from error
        self._finger, self._logger = robot.finger_joints[0], node.get_logger()
        self._name = settings.under(f"{settings.gripper_controller}/gripper_cmd")
        self._client = ActionClient(node, self._kind, self._name)
        self._sent: float | None = None

    def status(self) -> str:
        """Whether the controller is missing."""
        if self._client.server_is_ready():
            return ""
        self._sent = None
        return f"no action {self._name}"

    def send(self, opening: float) -> None:
        """Send an opening, m, where it is another than the last; a goal under way is replaced."""
        if not self.status() and (self._sent is None or abs(opening - self._sent) > SAME):
            self._sent = opening
            goal = self._kind.Goal(command=joint_state_to_ros({self._finger: 0.5 * opening}, 0.0))
            self._client.send_goal_async(goal).add_done_callback(self._on_answer)

    def _on_answer(self, future: Any) -> None:
        if not future.result().accepted:
            self._sent = None  # the next command tries again
            self._logger.warning(f"{self._name} refused a goal", throttle_duration_sec=1.0)

    def close(self) -> None:
        """Nothing: a goal is delivered or not, and the fingers stay where they are."""

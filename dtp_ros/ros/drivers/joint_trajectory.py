"""ros2_control's joint_trajectory_controller: every command is a short trajectory that replaces the one before."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from dtp_ros.ros.conversions import joint_target_to_ros
from dtp_ros.ros.drivers.base import DELIVERY, Audience, DriverSettings
from dtp_ros.ros.drivers.grippers import create_gripper
from dtp_ros.widowx.command import Command
from dtp_ros.widowx.kinematics import Robot

# The way to a target, in periods of the command. The controller goes it by a cubic that ends at rest, and so stops at
# the last target if none follows. Over 1.5 periods a cubic from rest is nowhere faster than the mean speed that the
# gate allowed, and a steady stream, each replaced after one period, keeps between 0.8 and 1.13 times that speed.
STRETCH = 1.5


class JointTrajectoryDriver:
    """JointTrajectory on `<arm_controller>/joint_trajectory`; the gripper by its own controller.

    The stamp is zero, which is "now": the controller starts from where the arm is, at its present speed.
    """

    arms_at_start = False

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings) -> None:
        self._joint_names = robot.joint_names
        topic = settings.under(f"{settings.arm_controller}/joint_trajectory")
        self._publisher = node.create_publisher(JointTrajectory, topic, 10)
        self._audience = Audience(node, self._publisher)
        self._gripper = create_gripper(node, robot, settings)

    def status(self) -> str:
        """Whether the arm's controller is missing."""
        return self._audience.missing()

    def warning(self) -> str:
        """Whether the gripper's controller is missing: the arm moves and holds without."""
        return self._gripper.status()

    def send(self, command: Command) -> None:
        """Send the gripper's target where it is new, and the joints'."""
        if not command.armed:
            return
        self._gripper.send(command.gripper)
        targets = dict(zip(self._joint_names, command.joints.tolist(), strict=True))
        self._publisher.publish(joint_target_to_ros(targets, STRETCH * command.period))

    def close(self) -> None:
        """See the last hold delivered."""
        self._publisher.wait_for_all_acked(Duration(seconds=DELIVERY))
        self._gripper.close()

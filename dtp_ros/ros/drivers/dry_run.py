"""All of it but the sending: targets and commands are published for the eye, no arm hears them."""

from __future__ import annotations

from rclpy.node import Node

from dtp_ros.ros.drivers.base import DriverSettings
from dtp_ros.widowx.command import Command
from dtp_ros.widowx.kinematics import Robot


class DryRunDriver:
    """Sends nothing."""

    arms_at_start = True

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings) -> None:
        node.get_logger().info(f"dry run: commands for {robot.name} are computed and shown, not sent")

    def status(self) -> str:
        """Always ready."""
        return ""

    def warning(self) -> str:
        """Nothing."""
        return ""

    def send(self, command: Command) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

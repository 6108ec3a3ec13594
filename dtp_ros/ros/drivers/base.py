"""What a driver is: the last yard, from a safe command to the messages of one kind of arm."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from rclpy.node import Node
from rclpy.publisher import Publisher

from dtp_ros.errors import ConfigError
from dtp_ros.ros.names import under
from dtp_ros.widowx.command import Command

DELIVERY = 0.5  # s that the last message has to be delivered
LOOK_AGAIN = 1.0  # s after which the listeners of a topic are looked at again, were they as many as before
LOOK_SOON = 0.1  # s: likewise, where none drives
MOST_LOOKS = 10  # that a reader may go without a name
# How the names of nodes begin that hear a topic and drive nothing: recorders, `ros2 topic echo`, what draws.
ONLOOKERS = ("rosbag2_", "_ros2cli", "rqt_", "rviz", "plotjuggler", "foxglove_bridge")
NOT_YET_KNOWN = "_NODE_NAME_UNKNOWN_"  # of a reader that was discovered before its node


class Driver(Protocol):
    """Sends what the gate let through, and decides nothing.

    A driver is made by `drivers.create_driver`, as `Driver(node, robot, settings)`, and lives in a file of its own;
    what it imports beyond rclpy and the common messages, it imports when it is made. Nothing in it waits, since the
    node has one thread; only `close` does, for a bounded time.

    arms_at_start: whether motion may begin without a call of `~/arm` (nothing that can hurt is moved).
    """

    arms_at_start: bool

    def status(self) -> str:
        """Why it cannot send, in words, or "" where it can: nothing is decided, and so nothing lost, before."""

    def warning(self) -> str:
        """What is missing that the arm itself can do without, as its gripper's controller; "" where nothing is."""

    def send(self, command: Command) -> None:
        """Send a command; where it is not `armed`, nothing that drives a motor."""

    def close(self) -> None:
        """Leave the arm as it was found (its last command was a hold) and see the last message delivered.

        Called from the thread that spins the node, between two of its callbacks.
        """


@dataclass(frozen=True)
class DriverSettings:
    """Where the arm's controllers are, and how they are set; each is the parameter of the same name.

    arm_namespace: prefix of the arm's topics and services, as "/wx250s", "/": none; "": the node's own.
    base_frame, end_effector_frame: frames of the poses and twists that are sent.
    arm_controller, gripper_controller: ros2_control's controllers (drivers joint_trajectory, servo, cartesian).
    servo_topic: where MoveIt Servo takes twists. cartesian_controller: key of `cartesian.CONTROLLERS`.
    cartesian_topic: "": that controller's own. cartesian_frame: frame it expects; "": it is asked.
    profile_move_time, profile_acceleration_time: time of a move and of its acceleration, s (driver interbotix).
    gripper_pwm: drive of a gripper in PWM mode, 150 ... 350 (driver interbotix).
    """

    arm_namespace: str = ""
    base_frame: str = "base_link"
    end_effector_frame: str = "ee_gripper_link"
    arm_controller: str = "arm_controller"
    gripper_controller: str = "gripper_controller"
    servo_topic: str = "servo_node/delta_twist_cmds"
    cartesian_controller: str = "fzi"
    cartesian_topic: str = ""
    cartesian_frame: str = ""
    profile_move_time: float = 0.25
    profile_acceleration_time: float = 0.1
    gripper_pwm: float = 250.0

    def under(self, name: str) -> str:
        """The topic, service or action `name` of the arm, in its namespace."""
        return under(self.arm_namespace, name)


class Audience:
    """Who listens to a publisher: whether a controller may, not only somebody who looks on."""

    def __init__(self, node: Node, publisher: Publisher) -> None:
        self._node, self._publisher = node, publisher
        self._count = 0  # of the listeners that were looked at last
        self._unknown = 0  # looks in a row that showed a reader without a name
        self._look_at = 0.0  # when to look again, steady clock, s
        self._controllers = 0

    def missing(self) -> str:
        """That nobody listens who could drive an arm, or ""."""
        count = self._publisher.get_subscription_count()
        if count and (count != self._count or time.monotonic() > self._look_at):
            listeners = self._node.get_subscriptions_info_by_topic(self._publisher.topic_name)
            names = [info.node_name for info in listeners]
            self._unknown = self._unknown + 1 if NOT_YET_KNOWN in names else 0
            # Some readers have no node, and stay unknown.
            passing = ONLOOKERS if self._unknown > MOST_LOOKS else (*ONLOOKERS, NOT_YET_KNOWN)
            self._controllers = sum(not name.startswith(passing) for name in names)
            self._look_at = time.monotonic() + (LOOK_AGAIN if self._controllers else LOOK_SOON)
        self._count = count
        return "" if count and self._controllers else f"nobody listens to {self._publisher.topic_name}"


def require_module(name: str, needed_by: str, install: str) -> Any:
    """Import a module that only some arms need; raises ConfigError that says how to `install` it."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(f"{needed_by} needs the package {package}, which is not here ({install})") from error

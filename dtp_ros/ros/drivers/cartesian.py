"""Cartesian controllers: FZI's cartesian_motion_controller, and CRISP, take the commanded pose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from geometry_msgs.msg import PoseStamped
from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from rclpy.duration import Duration
from rclpy.node import Node

from dtp_ros.errors import ArmError, ConfigError, require_choice
from dtp_ros.ros.conversions import pose_stamped_to_ros
from dtp_ros.ros.drivers.base import DELIVERY, Audience, DriverSettings
from dtp_ros.ros.drivers.grippers import create_gripper
from dtp_ros.ros.drivers.set_up import SetUp, Steps, call
from dtp_ros.widowx.command import Command
from dtp_ros.widowx.kinematics import Robot


@dataclass(frozen=True)
class CartesianController:
    """topic: where it takes poses. base, end_effector: its parameters that name the frames of a pose."""

    topic: str
    base: str
    end_effector: str


CONTROLLERS: Mapping[str, CartesianController] = MappingProxyType(
    {
        "fzi": CartesianController("cartesian_motion_controller/target_frame", "robot_base_link", "end_effector_link"),
        "crisp": CartesianController("target_pose", "base_frame", "end_effector_frame"),
    }
)


class CartesianDriver:
    """PoseStamped of the end effector in `base_frame`; the gripper goes by its own controller.

    CRISP does not look at a pose's frame, so the frames are checked before the first one is sent: the controller is
    asked for its parameters, unless `cartesian_frame` says what it expects.
    """

    arms_at_start = False

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings) -> None:
        """Raises ConfigError where `cartesian_frame` is another than `base_frame`."""
        require_choice("cartesian_controller", settings.cartesian_controller, CONTROLLERS)
        if settings.cartesian_frame not in ("", settings.base_frame):
            raise ConfigError(
                f"cartesian_frame = {settings.cartesian_frame!r} is not the frame of the poses"
                f" (valid: base_frame, {settings.base_frame!r}, or empty: ask the controller)"
            )
        self._node, self._settings = node, settings
        self._controller = CONTROLLERS[settings.cartesian_controller]
        topic = settings.under(settings.cartesian_topic or self._controller.topic)
        self._publisher = node.create_publisher(PoseStamped, topic, 10)
        self._audience = Audience(node, self._publisher)
        self._gripper = create_gripper(node, robot, settings)
        self._clients: dict[str, Client] = {}
        self._set_up = None if settings.cartesian_frame else SetUp(node, self._check_frames)

    def _check_frames(self) -> Steps:
        expected = {
            self._controller.base: self._settings.base_frame,
            self._controller.end_effector: self._settings.end_effector_frame,
        }
        values = yield from self._ask(list(expected))
        for (name, frame), value in zip(expected.items(), values, strict=True):
            if value != frame:
                ours = "base_frame" if name == self._controller.base else "end_effector_frame"
                raise ArmError(f"the controller's {name} is {value!r}, and {ours} {frame!r} (valid: the same frame)")

    def _ask(self, names: list[str]) -> Any:
        """Values of the parameters `names` of the first listener to the poses that has them (rviz, say, has none)."""
        listeners = self._node.get_subscriptions_info_by_topic(self._publisher.topic_name)
        failure = f"nobody listens to {self._publisher.topic_name}"
        for node in sorted({f"{one.node_namespace.rstrip('/')}/{one.node_name}" for one in listeners}):
            try:
                answer = yield from call(self._client(f"{node}/get_parameters"), GetParameters.Request(names=names))
            except ArmError as error:
                failure = str(error)
                continue
            values = [value.string_value for value in answer.values]
            if any(values):  # where one is not declared, rclcpp answers nothing at all
                return values + [""] * (len(names) - len(values))
            failure = f"{node} listens to {self._publisher.topic_name} and has no {' nor '.join(names)}"
        raise ArmError(f"{failure} (say in cartesian_frame what frame the controller expects)")

    def _client(self, name: str) -> Client:
        if name not in self._clients:  # kept: rclpy's executor may trip over one that a callback destroys
            self._clients[name] = self._node.create_client(GetParameters, name)
        return self._clients[name]

    def status(self) -> str:
        """Which controller is missing, or how its frames differ."""
        text = self._audience.missing()
        if self._set_up is None:
            return text
        if text and not self._set_up.status:
            self._set_up.again(text)
        return text or self._set_up.status

    def warning(self) -> str:
        """Whether the gripper's controller is missing: the arm moves and holds without."""
        return self._gripper.status()

    def send(self, command: Command) -> None:
        """Send the gripper's target where it is new, and the pose."""
        if not command.armed:
            return
        self._gripper.send(command.gripper)
        pose = pose_stamped_to_ros(
            command.transform_commanded, self._node.get_clock().now().to_msg(), self._settings.base_frame
        )
        self._publisher.publish(pose)

    def close(self) -> None:
        """See the last hold delivered."""
        self._publisher.wait_for_all_acked(Duration(seconds=DELIVERY))
        self._gripper.close()

"""The motors of an Interbotix arm, through the services of its xs_sdk: what is checked, set and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.client import Client
from rclpy.node import Node

from dtp_ros.errors import ArmError
from dtp_ros.ros.drivers.base import DriverSettings
from dtp_ros.ros.drivers.set_up import Steps, call
from dtp_ros.widowx.kinematics import Robot

GROUP, GRIPPER = "arm", "gripper"  # as Interbotix's motor configurations name them
GRIPPER_MODES = ("pwm", "linear_position")
# ms, as Interbotix ships them; what is put back where a crash left ours behind.
SHIPPED = {"Profile_Velocity": 2000, "Profile_Acceleration": 300}


class Motors:
    """Time profiles of the group `arm`, torque, and the mode of the gripper.

    The arm's operating mode is checked and never changed: xs_sdk takes the torque off to change it, and an arm in the
    air would fall.

    found: the profile registers as they were, by register, ms a joint; empty before they were read.
    gripper_mode: one of GRIPPER_MODES, or "" before it is known.
    """

    def __init__(self, node: Node, robot: Robot, settings: DriverSettings, services: Any) -> None:
        self._services, self._joint_names, self._logger = services, robot.joint_names, node.get_logger()
        self._profile = {
            "Profile_Velocity": round(1000 * settings.profile_move_time),
            "Profile_Acceleration": round(1000 * settings.profile_acceleration_time),
        }

        def client(kind: Any, name: str) -> Client:
            return node.create_client(kind, settings.under(name))

        self._info = client(services.RobotInfo, "get_robot_info")
        self._get = client(services.RegisterValues, "get_motor_registers")
        self._set = client(services.RegisterValues, "set_motor_registers")
        self._torque = client(services.TorqueEnable, "torque_enable")
        self.found: Mapping[str, list[int]] = {}
        self.gripper_mode = ""

    def missing(self) -> str:
        """That xs_sdk is not there, or "" where it is."""
        return "" if self._get.service_is_ready() else f"no service {self._get.srv_name} (is xs_sdk running?)"

    def set_up(self) -> Steps:
        """Check the modes, remember the profiles, set ours and see that they are set; raises ArmError."""
        arm = yield from call(self._info, self._services.RobotInfo.Request(cmd_type="group", name=GROUP))
        self._require_arm(arm.mode, arm.profile_type, tuple(arm.joint_names))
        gripper = yield from call(self._info, self._services.RobotInfo.Request(cmd_type="single", name=GRIPPER))
        if gripper.mode not in GRIPPER_MODES:
            raise ArmError(f"the gripper is in mode {gripper.mode!r} (valid: {', '.join(GRIPPER_MODES)})")
        self.gripper_mode = gripper.mode
        found = {}
        for register, value in self._profile.items():
            values = yield from self._read(register)
            ours = set(values) == {value}  # left behind by a crash, or set before the arm was lost and found
            found[register] = self.found.get(register, [SHIPPED[register]] * len(values)) if ours else values
        self.found = found
        for register, value in self._profile.items():
            yield from call(self._set, self._request(register, value))
            values = yield from self._read(register)
            if set(values) != {value}:
                raise ArmError(f"{register} is {values} after it was set (valid: {value} ms)")
        self._logger.info(f"motor profiles set to {self._profile} ms, found {dict(self.found)}")

    def restore(self) -> Steps:
        """Put the profiles back as they were found."""
        for register, values in self.found.items():
            if len(set(values)) == 1:
                yield from call(self._set, self._request(register, values[0]))
                continue
            for joint, value in zip(self._joint_names, values, strict=True):
                yield from call(self._set, self._request(register, value, joint))

    def torque_on(self) -> None:
        """Have the motors hold; does nothing to those that do. The answer is not waited for."""
        if not self._torque.service_is_ready():
            self._logger.error(f"no service {self._torque.srv_name}: the torque is as it was")
            return
        for cmd_type, name in (("group", GROUP), ("single", GRIPPER)):
            self._torque.call_async(self._services.TorqueEnable.Request(cmd_type=cmd_type, name=name, enable=True))

    def _require_arm(self, mode: str, profile_type: str, joint_names: tuple[str, ...]) -> None:
        if (mode, profile_type) != ("position", "time"):
            raise ArmError(
                f"the group {GROUP!r} is in mode {mode!r} with profile type {profile_type!r} (valid: position, time:"
                " set it in Interbotix's mode configuration, or with the arm at rest by its set_operating_modes)"
            )
        if joint_names != self._joint_names:
            raise ArmError(
                f"the group {GROUP!r} has joints {', '.join(joint_names)} (valid: {', '.join(self._joint_names)})"
            )

    def _read(self, register: str) -> Any:
        answer = yield from call(self._get, self._request(register))
        if len(answer.values) != len(self._joint_names):
            raise ArmError(f"{register} has {len(answer.values)} values (valid: one a joint, {len(self._joint_names)})")
        return [int(value) for value in answer.values]

    def _request(self, register: str, value: int = 0, joint: str = "") -> Any:
        kind, name = ("single", joint) if joint else ("group", GROUP)
        return self._services.RegisterValues.Request(cmd_type=kind, name=name, reg=register, value=value)

"""The arm's state as a model reads it, from joint states."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import JointState

from dtp_ros.ros.conversions import stamp_from_ros
from dtp_ros.widowx.gate import RefusedError
from dtp_ros.widowx.kinematics import forward, robot
from dtp_ros.widowx.measurement import Measurement, measure
from dtp_ros.widowx.semantics import bridge_state


class ArmState:
    """Keeps the newest joint states of an arm (`wx250s`, ...) and answers with Bridge's state."""

    def __init__(self, robot_name: str) -> None:
        self._robot = robot(robot_name)
        self._lock = threading.Lock()
        self._newest: Measurement | None = None

    def update(self, message: JointState, arrival: float) -> str:
        """Take joint states that came at `arrival` (s), which is their time where they are not stamped.

        Returns why they cannot be used, or "".
        """
        stamp = stamp_from_ros(message.header.stamp) or arrival
        try:
            measured = measure(self._robot, message.name, message.position, stamp)
        except RefusedError as error:
            return str(error)
        with self._lock:
            self._newest = measured
        return "" if measured.gripper is not None else f"no gripper (valid: {', '.join(self._robot.finger_joints)})"

    def near(self, stamp: float, slack: float) -> NDArray[np.float64] | None:
        """State [7] (m, rad, gripper 0 ... 1) measured within `slack` s of a stamp (s), or None."""
        with self._lock:
            measured = self._newest
        if measured is None or measured.gripper is None or abs(measured.stamp - stamp) > slack:
            return None
        low, high = self._robot.gripper_closed, self._robot.gripper_open
        return bridge_state(forward(self._robot, measured.joints), (measured.gripper - low) / (high - low))

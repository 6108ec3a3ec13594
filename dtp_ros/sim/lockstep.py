"""Tabletop and arm controller in one process: what `sim_node` and `widowx_node` do in lock-step, without ROS."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtp_ros.sim.arm import GRIPPER, GRIPPER_OPEN, JOINT_NAMES, ROBOT, START_JOINTS
from dtp_ros.sim.layout import Layout
from dtp_ros.sim.tabletop import CONTROL_PERIOD, Tabletop
from dtp_ros.widowx.controller import ArmController
from dtp_ros.widowx.schedule import Chunk


class LockStep:
    """One episode: `act` passes an action through semantics, gate and kinematics, and lets a control period go by."""

    def __init__(self, layout: Layout, joints: ArrayLike = START_JOINTS, gripper: float = GRIPPER_OPEN) -> None:
        """Begin with the arm at `joints` [6] (rad) and `gripper` (m). Raises SimulationError."""
        self.table = Tabletop.from_layout(layout)
        if not np.array_equal(joints, START_JOINTS) or gripper != GRIPPER_OPEN:
            self.table.reset(joints, gripper)
        self._arm = ArmController(ROBOT, armed=True)
        self._measure()

    def act(self, action: NDArray[np.float64]) -> None:
        """Carry out one action [7] (see ActionChunk for the units); one that the gate refuses is a hold."""
        now = self.table.time
        self._arm.chunk(Chunk(action[None], now, CONTROL_PERIOD), now)
        self._step()

    def hold(self) -> None:
        """Let a control period go by without an action, as `widowx_node` does where the policy gives none."""
        self._arm.refuse("command_timeout")
        self._step()

    def close(self) -> None:
        """Free the graphics context."""
        self.table.close()

    def _step(self) -> None:
        command = self._arm.tick(self.table.time)
        assert command is not None  # what is due, and what was refused, always makes a command, if only a hold
        self.table.step(command.joints, command.gripper)
        self._measure()

    def _measure(self) -> None:
        positions = [*self.table.joints, self.table.gripper]
        self._arm.joint_states([*JOINT_NAMES, GRIPPER], positions, self.table.time)

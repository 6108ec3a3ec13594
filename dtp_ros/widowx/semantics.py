"""What an action of BridgeData V2 means: from (dx, dy, dz, droll, dpitch, dyaw, gripper) to a target pose.

Rotations: R = Rz(yaw) Ry(pitch) Rx(roll), that is scipy's extrinsic "xyz". Poses are transform_ee_to_base [4, 4], m.
The formula is that of the robot which recorded the data (`bridge_data_robot`) and of SimplerEnv.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from dtp_ros.widowx.kinematics import Array, Robot, rotation_vector

ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
REFERENCES = ("commanded", "measured")

# Orientation of Bridge's states: with D the gripper points down at roll = pitch = yaw = 0.
BRIDGE_DOWN: Array = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
BRIDGE_DOWN.setflags(write=False)


def clip_action(action: Array, max_translation: float, max_rotation: float) -> Array:
    """The action [7] with every increment within +-max_translation (m) or +-max_rotation (rad)."""
    limit = np.array([max_translation] * 3 + [max_rotation] * 3)
    return np.concatenate([np.clip(action[:6], -limit, limit), action[6:]])


def increment(action: Array, pivot: Array) -> Array:
    """Transform dT = Trans(p) [Rz Ry Rx | d] Trans(-p), float64 [4, 4]: base axes, pivot p [3] in the base frame, m."""
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("xyz", action[3:6]).as_matrix()
    transform[:3, 3] = pivot + action[:3] - transform[:3, :3] @ pivot
    return transform


def target_pose(action: Array, transform_measured: Array, transform_commanded: Array, reference: str) -> Array:
    """The pose [4, 4] that an action [7] asks for: T = dT T_reference, the pivot always the measured position.

    reference: `commanded` composes on the last pose sent (as the data was recorded), `measured` on the arm's own.
    """
    base = transform_commanded if reference == "commanded" else transform_measured
    return increment(action, transform_measured[:3, 3]) @ base


def clip_workspace(transform: Array, low: Array, high: Array) -> Array:
    """The pose [4, 4] with its position inside the box low ... high ([3] each, m), orientation kept."""
    clipped = transform.copy()
    clipped[:3, 3] = np.clip(transform[:3, 3], low, high)
    return clipped


def distance(transform_a: Array, transform_b: Array) -> tuple[float, float]:
    """Translation (m) and angle (rad) between two poses [4, 4]."""
    turn = rotation_vector(transform_b[:3, :3] @ transform_a[:3, :3].T)
    return float(np.linalg.norm(transform_b[:3, 3] - transform_a[:3, 3])), float(np.linalg.norm(turn))


def interpolate(transform_a: Array, transform_b: Array, fraction: float) -> Array:
    """Pose [4, 4] at `fraction` (0 ... 1) of the straight line and the shortest rotation from a to b."""
    turn = rotation_vector(transform_b[:3, :3] @ transform_a[:3, :3].T)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(fraction * turn).as_matrix() @ transform_a[:3, :3]
    pose[:3, 3] = (1.0 - fraction) * transform_a[:3, 3] + fraction * transform_b[:3, 3]
    return pose


def gripper_distance(robot: Robot, opening: float, threshold: float) -> float:
    """Metres between the fingers for an opening 0 ... 1, binarised: open above `threshold`, else closed."""
    return robot.gripper_open if opening > threshold else robot.gripper_closed


def bridge_state(transform_ee_to_base: Array, opening: float) -> Array:
    """State [7] as Bridge writes it: x y z (m), roll pitch yaw (rad) of R D^T, gripper opening 0 ... 1."""
    relative = Rotation.from_matrix(transform_ee_to_base[:3, :3] @ BRIDGE_DOWN.T)
    return np.concatenate([transform_ee_to_base[:3, 3], relative.as_euler("xyz"), [opening]])

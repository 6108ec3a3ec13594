"""A hand for the simulator's tests: moves the gripper to poses, with no knowledge of the scene."""

import math

import numpy as np
from scipy.spatial.transform import Rotation

from dtp_ros.widowx.kinematics import inverse, robot

ARM = robot("wx250s")
DOWN = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
OPEN, CLOSED = 0.074, 0.030


def pose(x, y, z, yaw=0.0):
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("z", yaw).as_matrix() @ DOWN
    transform[:3, 3] = x, y, z
    return transform


def joints_at(x, y, z, yaw=0.0, start=None):
    """Joints of a pose with the gripper down; None where it is out of reach."""
    start = np.array([0, 0.022, 0.183, 0, 1.366, 0]) if start is None else start
    solution = inverse(ARM, pose(x, y, z, yaw), start)
    return solution.joints if solution.converged else None


def move(table, x, y, z, yaw, gripper, step=0.045):
    """Straight to a pose in Bridge-size steps."""
    now = table.transform_ee_to_base
    turn = now[:3, :3] @ DOWN.T
    yaw0 = math.atan2(turn[1, 0], turn[0, 0])
    turn = (yaw - yaw0 + math.pi) % (2 * math.pi) - math.pi
    start = np.append(now[:3, 3], yaw0)
    way = np.array([x, y, z, yaw0 + turn]) - start
    count = max(1, math.ceil(np.linalg.norm(way[:3]) / step), math.ceil(abs(turn) / 0.25))
    for i in range(1, count + 1):
        joints = joints_at(*(start + way * i / count), start=table.joints)
        assert joints is not None
        table.step(joints, gripper)


def yaw_of(quaternion):
    w, x, y, z = quaternion
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def grasp(table, name):
    """Take an object from above across its width; returns the yaw."""
    position, quaternion = table.object_poses()[name]
    yaw = (yaw_of(quaternion) + math.pi / 2) % math.pi - math.pi / 2
    height = max(0.026, position[2] + 0.008)
    move(table, *position[:2], position[2] + 0.10, yaw, OPEN)
    move(table, *position[:2], height, yaw, OPEN)
    for _ in range(2):
        table.step(table.joints, CLOSED)
    return yaw

"""Scenes made by hand for the expert's tests."""

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dtp_ros.sim.expert import Scene
from dtp_ros.sim.tasks import TASKS
from dtp_ros.widowx.kinematics import robot

ARM = robot("wx250s")
DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
OPEN, CLOSED = 0.074, 0.030
FLIP = np.diag([1.0, -1.0, 1.0])


def end_effector(x, y, z, yaw=0.0, roll=0.0, pitch=0.0):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", [roll, pitch, yaw]).as_matrix() @ DOWN
    pose[:3, 3] = x, y, z
    return pose


def lying(x, y, z, yaw=0.0):
    return np.array([x, y, z]), np.array([math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])


def scene(task, source, target, pose, gripper=OPEN):
    return Scene({task.source.name: source, task.target.name: target}, pose, gripper)


tasks = st.sampled_from(list(TASKS.values()))
examples = settings(deadline=None, max_examples=80)

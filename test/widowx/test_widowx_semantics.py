"""Bridge semantics against a rewrite with plain 4x4 matrices and hand-made rotation matrices, float64."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dtp_ros.widowx import semantics
from dtp_ros.widowx.kinematics import robot


def rotation(axis, angle):
    c, s = np.cos(angle), np.sin(angle)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def translation(vector):
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix


def oracle(action, measured, commanded, reference, low, high):
    """Limits, turns about fixed axes through the pivot, and the pose that they start from, by matrices alone."""
    step = np.clip(action[:6], [-0.05] * 3 + [-0.25] * 3, [0.05] * 3 + [0.25] * 3)
    move = translation(step[:3])
    move[:3, :3] = rotation("z", step[5]) @ rotation("y", step[4]) @ rotation("x", step[3])
    pivot = measured[:3, 3]
    new = translation(pivot) @ move @ translation(-pivot) @ (commanded if reference == "commanded" else measured)
    new[:3, 3] = np.minimum(np.maximum(new[:3, 3], low), high)
    return new


def random_pose(rng, pitch=None):
    pose = np.eye(4)
    roll, yaw = rng.uniform(-np.pi, np.pi, 2)
    pitch = rng.uniform(-np.pi / 2, np.pi / 2) if pitch is None else pitch
    pose[:3, :3] = rotation("z", yaw) @ rotation("y", pitch) @ rotation("x", roll)
    pose[:3, 3] = rng.uniform([0.1, -0.15, 0.0], [0.45, 0.25, 0.25])
    return pose


@pytest.mark.parametrize("reference", ["commanded", "measured"])
@pytest.mark.parametrize("near_vertical", [False, True])
def test_targets_equal_the_matrix_computation(reference, near_vertical):
    rng = np.random.default_rng(7)
    low, high = np.array([0.10, -0.15, -0.01]), np.array([0.45, 0.25, 0.25])
    clipped = 0
    for _ in range(500):
        pitch = np.pi / 2 + rng.normal(0, 1e-3) if near_vertical else None
        commanded = random_pose(rng, pitch)
        measured = commanded.copy()
        measured[:3, 3] += rng.normal(0, 0.01, 3)
        measured[:3, :3] = measured[:3, :3] @ rotation("x", rng.normal(0, 0.05))
        action = np.append(rng.normal(0, [0.03] * 3 + [0.2] * 3), 1.0)
        step = semantics.clip_action(action, 0.05, 0.25)
        clipped += not np.array_equal(step, action)
        found = semantics.clip_workspace(semantics.target_pose(step, measured, commanded, reference), low, high)
        np.testing.assert_allclose(found, oracle(action, measured, commanded, reference, low, high), atol=1e-13)
    assert 0 < clipped < 500


def test_a_yaw_near_vertical_is_a_yaw():
    """Adding to roll-pitch-yaw would turn roll into yaw here; the matrix turns about the base frame's own axis."""
    down = np.eye(4)
    down[:3, :3] = rotation("y", np.pi / 2)
    turned = semantics.target_pose(np.array([0, 0, 0, 0, 0, 0.2, 1.0]), down, down, "commanded")
    np.testing.assert_allclose(turned[:3, :3], rotation("z", 0.2) @ down[:3, :3], atol=1e-15)


def test_rotation_pivots_at_the_measured_position():
    commanded, measured = translation([0.3, 0.0, 0.1]), translation([0.3, -0.1, 0.1])
    found = semantics.target_pose(np.array([0, 0, 0, 0, 0, np.pi / 2, 1.0]), measured, commanded, "commanded")
    np.testing.assert_allclose(found[:3, 3], [0.2, -0.1, 0.1], atol=1e-15)  # 0.1 m ahead of the pivot in y, now in -x


def test_interpolation_ends_and_middle():
    a, b = translation([0.1, 0, 0]), translation([0.3, 0, 0])
    b[:3, :3] = rotation("y", 1.0)
    np.testing.assert_allclose(semantics.interpolate(a, b, 0.0), a, atol=1e-15)
    np.testing.assert_allclose(semantics.interpolate(a, b, 1.0), b, atol=1e-15)
    middle = semantics.interpolate(a, b, 0.5)
    np.testing.assert_allclose(middle[:3, :3], rotation("y", 0.5), atol=1e-15)
    assert middle[0, 3] == pytest.approx(0.2)
    assert semantics.distance(a, b) == (pytest.approx(0.2), pytest.approx(1.0))


@pytest.mark.parametrize(("opening", "metres"), [(0.0, 0.030), (0.5, 0.030), (0.51, 0.074), (1.0, 0.074), (7.0, 0.074)])
def test_the_gripper_is_binarised(opening, metres):
    assert semantics.gripper_distance(robot("wx250s"), opening, 0.5) == metres


def test_the_state_of_a_gripper_that_points_down_is_zero():
    pose = translation([0.3, 0, 0.15])
    pose[:3, :3] = rotation("y", np.pi / 2)
    np.testing.assert_allclose(semantics.bridge_state(pose, 1.0), [0.3, 0, 0.15, 0, 0, 0, 1], atol=1e-15)
    pose[:3, :3] = rotation("z", 0.3) @ rotation("y", -0.2) @ rotation("x", 0.1) @ rotation("y", np.pi / 2)
    np.testing.assert_allclose(semantics.bridge_state(pose, 0.0)[3:6], [0.1, -0.2, 0.3], atol=1e-12)
    assert Rotation.from_matrix(semantics.BRIDGE_DOWN).magnitude() == pytest.approx(np.pi / 2)

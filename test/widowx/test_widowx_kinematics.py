"""Kinematics against published check vectors, scipy's matrix exponential and finite differences."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from dtp_ros.errors import ConfigError, KinematicsError
from dtp_ros.widowx.kinematics import ROBOTS, forward, inverse, jacobian, robot, rotation_vector

NAMES = sorted(ROBOTS)
NEUTRAL = [-0.13192235, -0.76238847, 0.44485444, -0.01994175, 1.7564081, -0.15953401]


def poses(name, count, seed=0):
    rng = np.random.default_rng(seed)
    arm = robot(name)
    return arm, rng, rng.uniform(arm.lower, arm.upper, (count, arm.num_joints))


def slow_forward(arm, joints):
    """Product of matrix exponentials, each by scipy's general routine."""
    transform = np.eye(4)
    for (wx, wy, wz, *v), angle in zip(arm.screws, joints, strict=True):
        generator = np.zeros((4, 4))
        generator[:3, :3] = [[0, -wz, wy], [wz, 0, -wx], [-wy, wx, 0]]
        generator[:3, 3] = v
        transform = transform @ expm(generator * angle)
    return transform @ arm.home


@pytest.mark.parametrize(
    ("name", "joints", "position"),
    [
        ("wx250s", NEUTRAL, (0.1202, -0.0191, 0.2467)),
        ("wx250s", [-0.0184, 0.0399, 0.2224, -0.0046, 1.3652, 0.0015], (0.2921, -0.0061, 0.1353)),
        ("wx250s", [0, -1.80, 1.55, 0, 0.8, 0], (0.1227, 0, 0.0813)),
        ("wx250", [0, -1.80, 1.55, 0.8, 0], (0.1227, 0, 0.0813)),
        ("wxai", [0, 1.2, 1.0, -0.3, 0.2, 0.5], (0.3950, -0.0368, 0.2403)),
        ("wxai", [0.4, 1.05, 0.5, -0.9, -0.3, 0.7], (0.1245, 0.1120, 0.0129)),
    ],
)
def test_forward_gives_the_published_positions(name, joints, position):
    np.testing.assert_allclose(forward(robot(name), joints)[:3, 3], position, atol=6e-5)


@pytest.mark.parametrize("name", NAMES)
def test_forward_equals_the_product_of_matrix_exponentials(name):
    arm, _, joints = poses(name, 50)
    for q in joints:
        np.testing.assert_allclose(forward(arm, q), slow_forward(arm, q), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_jacobian_equals_finite_differences(name):
    arm, _, joints = poses(name, 30)
    h = 1e-6
    for q in joints:
        base, columns = slow_forward(arm, q), []
        for unit in np.eye(arm.num_joints):
            rate = (slow_forward(arm, q + h * unit) - slow_forward(arm, q - h * unit)) / (2 * h)
            twist = rate @ np.linalg.inv(base)
            columns.append([twist[2, 1], twist[0, 2], twist[1, 0], *twist[:3, 3]])
        np.testing.assert_allclose(jacobian(arm, q), np.array(columns).T, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_inverse_reaches_step_sized_moves_from_the_last_joints(name):
    arm, rng, joints = poses(name, 400, seed=1)
    reached = 0
    for q in joints:
        seed = np.clip(q + rng.normal(0, 0.1, arm.num_joints), arm.lower, arm.upper)
        target = forward(arm, q)
        solution = inverse(arm, target, seed, restarts=0)
        assert (arm.lower <= solution.joints).all()
        assert (solution.joints <= arm.upper).all()
        found = slow_forward(arm, solution.joints)
        position = np.linalg.norm(found[:3, 3] - target[:3, 3])
        angle = (Rotation.from_matrix(found[:3, :3]).inv() * Rotation.from_matrix(target[:3, :3])).magnitude()
        assert solution.position_error == pytest.approx(position, abs=1e-9)
        assert solution.rotation_error == pytest.approx(angle, abs=1e-7)
        reached += position < 5e-4 and angle < np.deg2rad(0.5)
    assert reached >= 0.995 * len(joints)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_inverse_follows_10000_reachable_poses_from_the_last_joints(name):
    """Random walks: each pose is that of joints at most 0.2 rad (1 rad/s for a period) from those found last."""
    arm, rng, starts = poses(name, 100, seed=5)
    reached = 0
    for joints in starts:
        for _ in range(100):
            target = slow_forward(arm, np.clip(joints + rng.uniform(-0.2, 0.2, len(joints)), arm.lower, arm.upper))
            joints = inverse(arm, target, joints, restarts=0).joints
            assert (arm.lower <= joints).all()
            assert (joints <= arm.upper).all()
            found = slow_forward(arm, joints)
            angle = (Rotation.from_matrix(found[:3, :3]).inv() * Rotation.from_matrix(target[:3, :3])).magnitude()
            reached += np.linalg.norm(found[:3, 3] - target[:3, 3]) < 5e-4 and angle < np.deg2rad(0.5)
    assert reached >= 0.995 * 10_000


@pytest.mark.parametrize("name", NAMES)
def test_inverse_reaches_far_poses(name):
    arm, _, joints = poses(name, 61, seed=2)
    reached = 0
    for last, q in pairwise(joints):
        solution = inverse(arm, forward(arm, q), last)
        assert (arm.lower <= solution.joints).all()
        assert (solution.joints <= arm.upper).all()
        reached += solution.converged and solution.rotation_error < np.deg2rad(0.5)
    assert reached >= 0.98 * (len(joints) - 1)


def test_what_is_out_of_reach_is_reported_and_inside_the_limits():
    arm = robot("wx250s")
    target = forward(arm, arm.neutral)
    target[:3, 3] = 2.0, 0.0, 0.3
    solution = inverse(arm, target, arm.neutral)
    assert not solution.converged
    assert solution.position_error > 1.0
    assert (arm.lower <= solution.joints).all()
    assert (solution.joints <= arm.upper).all()


def test_five_joints_reach_the_position_and_report_the_orientation():
    arm = robot("wx250")
    target = forward(arm, [0.0, 0.0, 0.2, 1.3, 0.0])
    # The waist alone turns the plane of the arm: a gripper that points out of that plane is what a sixth joint is for.
    target[:3, :3] = Rotation.from_euler("xyz", [0.2, -0.5, 0.3]).as_matrix() @ target[:3, :3]
    solution = inverse(arm, target, [0.0, 0.0, 0.2, 1.3, 0.0])
    found = slow_forward(arm, solution.joints)
    assert solution.converged
    assert np.linalg.norm(found[:3, 3] - target[:3, 3]) < 5e-4
    angle = (Rotation.from_matrix(found[:3, :3]).inv() * Rotation.from_matrix(target[:3, :3])).magnitude()
    assert solution.rotation_error == pytest.approx(angle, abs=1e-6)
    assert angle > np.deg2rad(1)
    # No nearby joints that keep the position are nearer to the orientation.
    rng = np.random.default_rng(0)
    for q in solution.joints + rng.normal(0, 0.02, (2000, 5)):
        near = slow_forward_position_and_angle(arm, q, target)
        assert near[0] > 3e-4 or near[1] > angle - 1e-3


def slow_forward_position_and_angle(arm, joints, target):
    found = forward(arm, joints)
    turn = Rotation.from_matrix(target[:3, :3] @ found[:3, :3].T)
    return np.linalg.norm(found[:3, 3] - target[:3, 3]), turn.magnitude()


def test_rotation_vector_equals_scipy_up_to_half_a_turn():
    rng = np.random.default_rng(4)
    for angle in (0.0, 1e-12, 1e-6, 0.1, 1.5, 2.9, 3.1, np.pi - 1e-5):
        axis = rng.normal(size=3)
        expected = axis / np.linalg.norm(axis) * angle
        found = rotation_vector(Rotation.from_rotvec(expected).as_matrix())
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_unknown_robots_and_bad_joints_are_named():
    with pytest.raises(ConfigError, match=r"'wx200'.*wx250s.*wxai"):
        robot("wx200")
    with pytest.raises(KinematicsError, match="6 finite joint angles"):
        forward(robot("wx250s"), [0.0] * 5)
    with pytest.raises(KinematicsError, match="finite"):
        inverse(robot("wx250s"), np.full((4, 4), np.nan), robot("wx250s").neutral)
    with pytest.raises(KinematicsError):
        inverse(robot("wx250s"), np.eye(4), [np.inf] * 6)


def test_robots_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        robot("wx250s").lower[0] = 0.0

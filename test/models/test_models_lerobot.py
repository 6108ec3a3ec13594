"""States and actions as LeRobot's data sets write them, and their normalisation, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pi0_fast_harness import STATE
from scipy.spatial.transform import Rotation

from dtp_ros.models import lerobot

NUMBERS = {"mean": 1.0, "std": 2.0, "min": -3.0, "max": 7.0, "q01": -1.0, "q99": 3.0, "q10": 0.0, "q90": 2.0}


def test_bridges_state_is_the_observations():
    assert lerobot.state_as_data(STATE, "bridge", 7).tolist() == STATE.tolist()
    assert lerobot.state_as_data(STATE, "bridge", 8).tolist() == [*STATE[:6], 0.0, 0.5]


def test_liberos_state_has_a_rotation_vector_and_two_fingers():
    """Gripper down is half a turn about x; turned by 90 degrees about z as well, it is (pi, pi, 0) / sqrt(2)."""
    state = lerobot.state_as_data(np.array([0.1, 0.2, 0.3, 0, 0, 0, 1.0]), "libero", 8)
    np.testing.assert_allclose(state, [0.1, 0.2, 0.3, np.pi, 0, 0, 0.04, -0.04], atol=1e-9)
    turned = lerobot.state_as_data(np.array([0, 0, 0, 0, 0, np.pi / 2, 0.0]), "libero", 8)
    np.testing.assert_allclose(np.abs(turned[3:6]), [np.pi / np.sqrt(2)] * 2 + [0], atol=1e-6)


def test_liberos_actions_become_metres_radians_and_an_opening():
    """1 is 5 cm and half a radian; beyond 1 the controller clips; -1 is open."""
    actions = np.array([[1.0, -0.5, 3.0, 0.4, 0, 0, -1.0], [0, 0, 0, 0, 0, -9.0, 1.0], [0, 0, 0, 0.6, 0.8, 0, 0.0]])
    result = lerobot.actions_from_data(actions, "libero")
    np.testing.assert_allclose(result[0], [0.05, -0.025, 0.05, 0.2, 0, 0, 1.0], atol=1e-9)
    np.testing.assert_allclose(result[1], [0, 0, 0, 0, 0, -0.5, 0.0], atol=1e-9)
    roll, pitch, yaw = result[2, 3:6]
    matrix = Rotation.from_rotvec([0.3, 0.4, 0.0]).as_matrix()
    x, y, z = (Rotation.from_rotvec(v) for v in ([roll, 0, 0], [0, pitch, 0], [0, 0, yaw]))
    np.testing.assert_allclose(z.as_matrix() @ y.as_matrix() @ x.as_matrix(), matrix, atol=1e-9)
    assert result[2, 6] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("mode", "zero", "one"),
    [
        ("IDENTITY", 0.0, 1.0),
        ("MEAN_STD", 1.0, 3.0),
        ("MIN_MAX", 2.0, 7.0),
        ("QUANTILES", 1.0, 3.0),
        ("QUANTILE10", 1.0, 2.0),
    ],
)
def test_what_each_mode_calls_zero_and_one(mode, zero, one):
    normaliser = lerobot.Normaliser(mode, {name: np.array([value]) for name, value in NUMBERS.items()}, 1)
    np.testing.assert_allclose(normaliser.unnormalise(np.array([[0.0], [1.0]])), [[zero], [one]])
    np.testing.assert_allclose(normaliser.normalise(np.array([[zero], [one]])), [[0.0], [1.0]], atol=1e-6)
    assert normaliser.bound() == pytest.approx(max(abs(end - zero) / (one - zero) for end in (-3.0, 7.0)))

"""dtp_ros/study/embodiments.py against the formulas that the benchmarks' own evaluations use."""

import math
from unittest.mock import Mock

import numpy as np
import pytest
from vla_eval.benchmarks.simpler.benchmark import SimplerEnvBenchmark

from dtp_ros.errors import ConfigError, ObservationError
from dtp_ros.models import lerobot
from dtp_ros.study.embodiments import EMBODIMENTS, embodiment

IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)
ACTION = np.array([0.01, -0.02, 0.03, 0.1, -0.2, 0.3, 0.9])


def quaternion_of_euler(roll, pitch, yaw):
    """q = q_z(yaw) q_y(pitch) q_x(roll), multiplied out by hand: (w, x, y, z)."""
    (cr, sr), (cp, sp), (cy, sy) = ((math.cos(a / 2), math.sin(a / 2)) for a in (roll, pitch, yaw))
    return np.array(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ]
    )


def rotation_vector(quaternion):
    w, *axis = quaternion
    norm = np.linalg.norm(axis)
    return 2 * math.atan2(norm, w) * np.array(axis) / norm


@pytest.mark.parametrize("name", ["simpler_widowx", "simpler_google"])
def test_simpler_takes_axis_times_angle_and_the_opening(name):
    given = embodiment(name).act(ACTION)
    np.testing.assert_allclose(given[:3], ACTION[:3])
    np.testing.assert_allclose(given[3:6], rotation_vector(quaternion_of_euler(*ACTION[3:6])), atol=1e-12)
    assert given[6] == 0.9


class GripperRecorder:
    """In SIMPLER's place: keeps what vla-eval sends to the gripper."""

    def __init__(self):
        self.sent = []

    def step(self, action):
        self.sent.append(float(action[6]))
        return {}, 0.0, False, False, {}


def published_gripper(openings, length=15):
    """What SIMPLER's policy of OpenVLA sends this robot: differences of the opening, each held for `length` steps."""
    sent, reference, held, left = [], openings[0], 0.0, 0
    for opening in openings:
        if left == 0 and abs(reference - opening) > 0.5:
            held, left, reference = reference - opening, length, opening
        sent.append(held if left else None)
        left = max(0, left - 1)
    return sent


def test_the_google_robots_gripper_moves_when_its_policy_says_so():
    """Through vla-eval's own step: open, closed at step 8, open again at 40, a hesitation, a late close."""
    openings = [1.0] * 8 + [0.1] * 32 + [0.9] * 4 + [0.2] * 2 + [0.9] * 30 + [0.0] * 20
    benchmark = SimplerEnvBenchmark(task_name="google_robot_pick_coke_can", gripper_mode="sticky")
    benchmark._env = recorder = GripperRecorder()
    benchmark._recorder = Mock()  # of videos
    hand = embodiment("simpler_google").hand()
    for opening in openings:
        benchmark.step({"actions": np.array([*ACTION[:6], hand(opening)])})
    expected = published_gripper(openings)
    assert [i for i, value in enumerate(expected) if value is not None][:1] == [8]
    for sent, wanted in zip(recorder.sent, expected, strict=True):
        assert sent == pytest.approx(0.0 if wanted is None else wanted)
    assert max(recorder.sent) > 0.5 > -0.5 > min(recorder.sent)  # it closed, and opened


@pytest.mark.parametrize(("opening", "expected"), [(1.0, -1.0), (0.6, -1.0), (0.4, 1.0), (0.0, 1.0)])
def test_libero_closes_with_one(opening, expected):
    for name in ("libero", "libero_metres"):
        assert embodiment(name).act(np.array([*ACTION[:6], opening]))[6] == expected


def test_libero_units_pass_and_metres_are_scaled():
    np.testing.assert_array_equal(embodiment("libero").act(ACTION)[:6], ACTION[:6])
    given = embodiment("libero_metres").act(ACTION)
    np.testing.assert_allclose(given[:3], [0.2, -0.4, 0.6])
    np.testing.assert_allclose(given[3:6], rotation_vector(quaternion_of_euler(*ACTION[3:6])) / 0.5, atol=1e-12)


def test_libero_metres_undo_what_the_adapter_did():
    data = np.array([[0.3, -0.9, 0.1, 0.4, 0.2, -0.6, -1.0], [0.0, 0.1, 0.2, -0.3, 0.1, 0.5, 1.0]])
    for row, action in zip(data, lerobot.actions_from_data(data, "libero"), strict=True):
        np.testing.assert_allclose(embodiment("libero_metres").act(action), row, atol=1e-9)


@pytest.mark.parametrize("vector", [(3.0, 0.1, -0.2), (3.2, 0.1, -0.2), (3.6, -0.3, 0.6), (2.5, 1.0, 0.3)])
def test_the_libero_state_is_that_which_the_adapter_turns_back(vector):
    data = np.array([0.1, -0.2, 0.9, *vector, 0.03, -0.03])  # LIBERO writes turns of more than half a one as such
    state = (
        embodiment("libero").observe({"images": {"agentview": IMAGE}, "states": data}, 1, with_state=True, step=0).state
    )
    np.testing.assert_allclose(lerobot.state_as_data(state, "libero", 8), data, atol=1e-9)


def test_the_simpler_state_is_bridges():
    # With the gripper pointing straight down (a quarter turn about y) Bridge's angles are zero.
    down = quaternion_of_euler(0.0, math.pi / 2, 0.0)
    seen = {"images": {"primary": IMAGE}, "states": np.array([0.3, 0.1, 0.2, *down, 0.25])}
    state = embodiment("simpler_widowx").observe(seen, 1, with_state=True, step=0).state
    np.testing.assert_allclose(state, [0.3, 0.1, 0.2, 0, 0, 0, 0.25], atol=1e-9)


def test_an_observation_has_its_time_and_words():
    seen = {"images": {"primary": IMAGE}, "task_description": "put the spoon on the towel"}
    observation = embodiment("simpler_widowx").observe(seen, 1, with_state=False, step=10)
    assert observation.stamp == pytest.approx(2.0)
    assert observation.instruction == "put the spoon on the towel"
    assert observation.state is None


@pytest.mark.parametrize(
    ("seen", "cameras", "state", "message"),
    [
        ({"images": {"front": IMAGE}}, 1, False, r"no image 'agentview' \(there are: front\)"),
        ({"images": {"agentview": IMAGE}}, 2, False, r"no image 'wrist'"),
        ({"images": {"agentview": IMAGE, "wrist": IMAGE}}, 3, False, "the model has 3 cameras"),
        ({"images": {"agentview": IMAGE}}, 1, True, r"no state \(there are: images\)"),
    ],
)
def test_what_is_missing_is_said(seen, cameras, state, message):
    with pytest.raises(ObservationError, match=message):
        embodiment("libero").observe(seen, cameras, with_state=state, step=0)


def test_an_unknown_robot_is_refused():
    with pytest.raises(ConfigError, match="libero_metres"):
        embodiment("franka")
    assert "tabletop" in EMBODIMENTS

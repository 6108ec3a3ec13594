"""Messages and plain data, there and back; quaternions and chunks worked out by hand."""

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, Quaternion
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import JointState

from dtp_ros.ros import conversions as c
from dtp_ros.widowx.gate import CHECKS, RefusedError

FINITE = st.floats(-1e3, 1e3, allow_nan=False)


@given(st.integers(0, 2**31 - 1), st.integers(0, 999_999_999))
def test_stamps_survive_to_the_resolution_of_float64(sec, nanosec):
    back = c.stamp_to_ros(c.stamp_from_ros(Time(sec=sec, nanosec=nanosec)))
    exact, found = sec * 10**9 + nanosec, back.sec * 10**9 + back.nanosec
    assert abs(exact - found) <= max(1, np.spacing(float(sec + 1)) * 1e9)


def test_a_stamp_that_rounds_up_to_a_second_carries():
    assert c.stamp_to_ros(1.9999999999) == Time(sec=2, nanosec=0)


@given(st.lists(st.lists(FINITE, min_size=7, max_size=7), min_size=1, max_size=8), st.sampled_from([3.0, 5.0, 15.0]))
def test_chunks_come_back_bit_for_bit(actions, frequency):
    stamp = Time(sec=1_700_000_000, nanosec=123_456_789)
    message = c.action_chunk_to_ros(np.array(actions), stamp, "base_link", frequency)
    assert message.header.stamp == stamp
    chunk = c.action_chunk_from_ros(message, "base_link")
    np.testing.assert_array_equal(chunk.actions, np.array(actions))
    assert chunk.period == pytest.approx(1 / frequency, abs=1e-9)
    assert chunk.stamp == pytest.approx(1_700_000_000.123456789, abs=1e-6)


def test_a_chunk_by_hand():
    actions = np.array([[0.01, 0, 0, 0, 0, 0.1, 1.0], [0, 0, -0.02, 0, 0, 0, 0.0]])
    message = c.action_chunk_to_ros(actions, 2.5, "base_link", 5.0)
    assert message.joint_names == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    assert [(p.time_from_start.sec, p.time_from_start.nanosec) for p in message.points] == [
        (0, 200_000_000),
        (0, 400_000_000),
    ]
    assert list(message.points[0].positions) == [0.01, 0, 0, 0, 0, 0.1, 1.0]
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (2, 500_000_000)


def _chunk(rows=2):
    return c.action_chunk_to_ros(np.zeros((rows, 7)), 1.0, "base_link", 5.0)


def _renamed():
    message = _chunk()
    message.joint_names = [*message.joint_names[1:], "dx"]
    return message


def _elsewhere():
    message = _chunk()
    message.header.frame_id = "camera"
    return message


def _narrow():
    message = _chunk()
    message.points[1].positions = [0.0] * 6
    return message


def _uneven():
    message = _chunk(3)
    message.points[1].time_from_start.nanosec = 350_000_000
    return message


def _timeless():
    message = _chunk(1)
    message.points[0].time_from_start.nanosec = 0
    return message


def _past():
    message = _chunk(1)
    message.points[0].time_from_start.sec = -1
    return message


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (_renamed(), "chunk_names"),
        (_elsewhere(), "chunk_frame"),
        (_chunk(0), "chunk_horizon"),
        (_chunk(65), "chunk_horizon"),
        (_narrow(), "chunk_horizon"),
        (_uneven(), "chunk_timing"),
        (_timeless(), "chunk_timing"),
        (_past(), "chunk_timing"),
    ],
)
def test_malformed_chunks_are_named(message, cause):
    with pytest.raises(RefusedError) as refusal:
        c.action_chunk_from_ros(message, "base_link")
    assert refusal.value.cause == cause
    assert cause in CHECKS
    assert "valid" in str(refusal.value)


def test_quaternion_of_a_quarter_turn_about_y():
    transform = np.array([[0.0, 0, 1, 0.3], [0, 1, 0, -0.1], [-1, 0, 0, 0.2], [0, 0, 0, 1]])
    pose = c.pose_to_ros(transform)
    half = np.sqrt(0.5)
    found = np.array([pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w])
    np.testing.assert_allclose(found * np.sign(found[3]), [0, half, 0, half], atol=1e-12)
    assert (pose.position.x, pose.position.y, pose.position.z) == (0.3, -0.1, 0.2)


@given(st.tuples(FINITE, FINITE, FINITE), st.tuples(*[st.floats(-1, 1)] * 4))
def test_poses_come_back(position, quaternion):
    length = np.linalg.norm(quaternion)
    if length < 1e-3:
        return
    x, y, z, w = np.array(quaternion) / length
    pose = Pose(orientation=Quaternion(x=x, y=y, z=z, w=w))
    pose.position.x, pose.position.y, pose.position.z = position
    back = c.pose_to_ros(c.pose_from_ros(pose))
    assert (back.position.x, back.position.y, back.position.z) == position
    found = [back.orientation.x, back.orientation.y, back.orientation.z, back.orientation.w]
    assert abs(np.dot(found, [x, y, z, w])) == pytest.approx(1.0, abs=1e-9)


def test_a_pose_without_direction_is_refused():
    with pytest.raises(RefusedError, match="quaternion"):
        c.pose_from_ros(Pose(orientation=Quaternion(x=0.0, y=0.0, z=0.0, w=0.0)))


def test_twists_come_back():
    twist = np.array([1.0, 2, 3, 4, 5, 6])
    message = c.twist_stamped_to_ros(twist, 1.0, "base_link")
    assert (message.twist.linear.y, message.twist.angular.z) == (2.0, 6.0)
    np.testing.assert_array_equal(c.twist_from_ros(message), twist)


def test_joint_states_come_back_and_lengths_are_checked():
    positions = {"waist": 0.1, "gripper": 0.07}
    message = c.joint_state_to_ros(positions, 3.25)
    assert c.joint_state_from_ros(message) == positions
    assert message.header.stamp == Time(sec=3, nanosec=250_000_000)
    with pytest.raises(RefusedError, match="joint_names"):
        c.joint_state_from_ros(JointState(name=["waist"], position=[0.0, 1.0]))

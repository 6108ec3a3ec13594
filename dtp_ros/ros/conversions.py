"""Messages <-> plain data, in `x_from_ros` / `x_to_ros` pairs (images have a file of their own).

Times are float64 seconds, or a Time message where one is only passed on (seconds since 1970 resolve 0.24 us).
Quaternions are x, y, z, w as in ROS. Twists are (linear; angular) [6], as in geometry_msgs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, TwistStamped, Vector3
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtp_ros.widowx.gate import RefusedError
from dtp_ros.widowx.schedule import Chunk
from dtp_ros.widowx.semantics import ACTION_NAMES

Array = NDArray[np.float64]

MAX_HORIZON = 64
MIN_PERIOD, MAX_PERIOD = 0.01, 10.0  # s
_PERIOD_TOLERANCE = 1e-6  # s: rounding to nanoseconds, and to float32 elsewhere


def stamp_from_ros(message: Time | Duration) -> float:
    """Seconds of a Time or a Duration."""
    return int(message.sec) + int(message.nanosec) * 1e-9


def stamp_to_ros(seconds: float) -> Time:
    """Time of seconds, rounded to the nanosecond."""
    sec, nanosec = _split(seconds)
    return Time(sec=sec, nanosec=nanosec)


def duration_to_ros(seconds: float) -> Duration:
    """Duration of seconds, rounded to the nanosecond."""
    sec, nanosec = _split(seconds)
    return Duration(sec=sec, nanosec=nanosec)


def _split(seconds: float) -> tuple[int, int]:
    whole = int(np.floor(seconds))
    nanoseconds = round((seconds - whole) * 1e9)
    return whole + nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000


def header_to_ros(stamp: Time | float, frame_id: str = "") -> Header:
    """Header of a stamp (Time, or seconds) and a frame."""
    return Header(stamp=stamp if isinstance(stamp, Time) else stamp_to_ros(stamp), frame_id=frame_id)


def action_chunk_to_ros(
    actions: Array, stamp: Time | float, base_frame: str, control_frequency: float
) -> JointTrajectory:
    """The topic `action_chunk`: actions [H, 7] as ActionChunk has them, the image's stamp, Hz."""
    points = [
        JointTrajectoryPoint(
            positions=[float(value) for value in action], time_from_start=duration_to_ros((i + 1) / control_frequency)
        )
        for i, action in enumerate(actions)
    ]
    return JointTrajectory(header=header_to_ros(stamp, base_frame), joint_names=list(ACTION_NAMES), points=points)


def action_chunk_from_ros(message: JointTrajectory, base_frame: str) -> Chunk:
    """The chunk of a message; finite or not is the gate's to judge.

    Raises RefusedError: `chunk_names` (other joint names or another order), `chunk_frame` (not `base_frame`),
    `chunk_horizon` (not 1 ... 64 points of seven positions), `chunk_timing` (not (i + 1) times one period of
    0.01 ... 10 s).
    """
    if tuple(message.joint_names) != ACTION_NAMES:
        raise RefusedError("chunk_names", f"{_short(message.joint_names)} (valid: {' '.join(ACTION_NAMES)})")
    if message.header.frame_id != base_frame:
        raise RefusedError("chunk_frame", f"frame {message.header.frame_id[:80]!r} (valid: {base_frame!r})")
    if not 1 <= len(message.points) <= MAX_HORIZON:
        raise RefusedError("chunk_horizon", f"{len(message.points)} actions (valid: 1 ... {MAX_HORIZON})")
    widths = {len(point.positions) for point in message.points}
    if widths != {len(ACTION_NAMES)}:
        raise RefusedError("chunk_horizon", f"{sorted(widths)} numbers an action (valid: {len(ACTION_NAMES)})")
    times = np.array([stamp_from_ros(point.time_from_start) for point in message.points])
    period = float(times[-1]) / len(times)
    expected = period * np.arange(1, len(times) + 1)
    if not MIN_PERIOD <= period <= MAX_PERIOD or np.abs(times - expected).max() > _PERIOD_TOLERANCE:
        raise RefusedError(
            "chunk_timing",
            f"time_from_start {times[:8].tolist()} (valid: (i + 1) periods of {MIN_PERIOD} ... {MAX_PERIOD} s)",
        )
    actions = np.array([point.positions for point in message.points], dtype=np.float64)
    return Chunk(actions, stamp_from_ros(message.header.stamp), period)


def _short(names: Sequence[str]) -> str:
    text = " ".join(names)
    return repr(text if len(text) <= 80 else text[:80] + "...")


def pose_to_ros(transform: Array) -> Pose:
    """Pose of a homogeneous transform [4, 4], m."""
    x, y, z = (float(value) for value in transform[:3, 3])
    qx, qy, qz, qw = (float(value) for value in Rotation.from_matrix(transform[:3, :3]).as_quat())
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def pose_from_ros(message: Pose) -> Array:
    """Homogeneous transform, float64 [4, 4], of a pose; raises RefusedError (`finite`) on a quaternion of length 0."""
    p, q = message.position, message.orientation
    quaternion = np.array([q.x, q.y, q.z, q.w])
    if not np.linalg.norm(quaternion) > 0:
        raise RefusedError("finite", f"quaternion {quaternion.tolist()} has no direction")
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    transform[:3, 3] = p.x, p.y, p.z
    return transform


def pose_stamped_to_ros(transform: Array, stamp: Time | float, frame_id: str) -> PoseStamped:
    """PoseStamped of a transform [4, 4] in `frame_id`."""
    return PoseStamped(header=header_to_ros(stamp, frame_id), pose=pose_to_ros(transform))


def twist_stamped_to_ros(twist: Array, stamp: Time | float, frame_id: str) -> TwistStamped:
    """TwistStamped of (linear m/s; angular rad/s) [6] along the axes of `frame_id`."""
    message = TwistStamped(header=header_to_ros(stamp, frame_id))
    vx, vy, vz, wx, wy, wz = (float(value) for value in twist)
    message.twist.linear, message.twist.angular = Vector3(x=vx, y=vy, z=vz), Vector3(x=wx, y=wy, z=wz)
    return message


def twist_from_ros(message: TwistStamped) -> Array:
    """(linear m/s; angular rad/s), float64 [6]."""
    linear, angular = message.twist.linear, message.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


def joint_state_to_ros(positions: Mapping[str, float], stamp: Time | float, frame_id: str = "") -> JointState:
    """JointState of positions by joint name (rad; m where prismatic)."""
    return JointState(
        header=header_to_ros(stamp, frame_id),
        name=list(positions),
        position=[float(value) for value in positions.values()],
    )


def joint_target_to_ros(positions: Mapping[str, float], seconds: float) -> JointTrajectory:
    """JointTrajectory to rest at positions by joint name (rad; m where prismatic), `seconds` after its arrival."""
    point = JointTrajectoryPoint(
        positions=[float(value) for value in positions.values()],
        velocities=[0.0] * len(positions),
        time_from_start=duration_to_ros(seconds),
    )
    return JointTrajectory(joint_names=list(positions), points=[point])


def joint_state_from_ros(message: JointState) -> dict[str, float]:
    """Positions by joint name; raises RefusedError (`joint_names`) where names and positions differ in number."""
    if len(message.name) != len(message.position):
        raise RefusedError("joint_names", f"{len(message.name)} names and {len(message.position)} positions")
    return dict(zip(message.name, message.position, strict=True))

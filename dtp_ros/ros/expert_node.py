"""The node `expert`: knows the simulated scene, and publishes `action_chunk` as a policy does.

One action for each new moment, at most `control_frequency` of them in a simulated second. A moment that is heard again
means that time stands still (lock-step): an action is then due at once, and a chunk whose moment comes again and again
was lost, as when the arm's node started late, and is sent once more.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import rclpy
from geometry_msgs.msg import Pose, PoseArray
from numpy.typing import NDArray
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from dtp_ros.errors import ConfigError, DtpError
from dtp_ros.ros.conversions import action_chunk_to_ros, stamp_from_ros
from dtp_ros.sim.arm import ROBOT
from dtp_ros.sim.expert import Scene, expert_action
from dtp_ros.sim.tasks import Task, task_named
from dtp_ros.widowx.kinematics import forward
from dtp_ros.widowx.measurement import Measurement, measure

NODE_NAME = "expert"
LOST_AFTER = 3  # repetitions of a moment after which its chunk counts as lost
JITTER = 11  # ms by which an action may come early: half of the simulator's tick
NEVER = -1
KEPT_MOMENTS = 20
POLL_PERIOD = 0.05  # s of wall time until `acting` is noticed


class Info(NamedTuple):
    """What `sim/info` says of a moment: its time (s), the task, and the names of the poses in `sim/objects`."""

    stamp: float
    task: Task
    names: tuple[str, ...]


@dataclass
class Moment:
    """What has been heard of one moment, complete or not."""

    objects: PoseArray | None = None
    measured: Measurement | None = None
    info: Info | None = None

    def is_complete(self) -> bool:
        """Whether it can be acted on."""
        return not (self.objects is None or self.measured is None or self.info is None)


class ExpertNode(Node):
    """See interfaces.md, node `expert`. Raises rclpy's ParameterException where an override cannot stand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        _declare(self)
        self._base_frame = str(self.get_parameter("base_frame").value)
        self._frequency = float(self.get_parameter("control_frequency").value)
        self._moments: dict[int, Moment] = {}  # by time in ms
        self._newest = self._acted = NEVER  # moments whose objects were heard last, and that was acted on last, ms
        self._repeats = 0  # of the newest moment
        self._chunks = self.create_publisher(JointTrajectory, "action_chunk", 10)
        self._last_chunk: JointTrajectory | None = None
        self.create_subscription(JointState, "joint_states", self._on_joint_states, 20)
        self.create_subscription(String, "sim/info", self._on_info, 10)
        self.create_subscription(PoseArray, "sim/objects", self._on_objects, 10)
        self.create_timer(POLL_PERIOD, self._act, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _on_joint_states(self, message: JointState) -> None:
        try:
            measured = measure(ROBOT, message.name, message.position, stamp_from_ros(message.header.stamp))
        except DtpError as error:
            self._warn(f"joint states dropped: {error}")
            return
        self._moment(measured.stamp).measured = measured
        self._act()

    def _on_info(self, message: String) -> None:
        try:
            info = info_from_ros(message)
        except DtpError as error:
            self._warn(f"info dropped: {error}")
            return
        self._moment(info.stamp).info = info
        self._act()

    def _on_objects(self, message: PoseArray) -> None:
        stamp = stamp_from_ros(message.header.stamp)
        key = _key(stamp)
        if key < self._newest:  # the simulator was started anew
            self._acted = NEVER
            self._moments = {old: moment for old, moment in self._moments.items() if old <= key}
        self._repeats = self._repeats + 1 if key == self._newest else 0
        self._newest = key
        self._moment(stamp).objects = message
        self._act()
        if self._acted == key and self._repeats >= LOST_AFTER and self.get_parameter("acting").value:
            self._repeats = 0
            self.get_logger().info("time stands still: the chunk is sent once more", throttle_duration_sec=10.0)
            self._chunks.publish(self._last_chunk)

    def _moment(self, stamp: float) -> Moment:
        moment = self._moments.setdefault(_key(stamp), Moment())
        for old in list(self._moments)[:-KEPT_MOMENTS]:
            del self._moments[old]
        return moment

    def _act(self) -> None:
        """Publish the action of the newest complete moment, where its turn has come."""
        key = max((key for key, moment in self._moments.items() if moment.is_complete()), default=NEVER)
        if key <= self._acted or not self._is_due(key) or not self.get_parameter("acting").value:
            return
        moment = self._moments[key]
        try:
            chunk = self._chunk(moment)
        except DtpError as error:
            self._warn(f"no action: {error}")
            return
        self._last_chunk, self._acted, self._repeats = chunk, key, 0
        self._chunks.publish(chunk)

    def _is_due(self, key: int) -> bool:
        stands_still = key == self._newest and self._repeats > 0
        return self._acted == NEVER or stands_still or key - self._acted >= 1e3 / self._frequency - JITTER

    def _chunk(self, moment: Moment) -> JointTrajectory:
        """The chunk of a complete moment; raises ConfigError."""
        objects, measured, info = moment.objects, moment.measured, moment.info
        assert objects is not None  # the caller has checked all three
        assert measured is not None
        assert info is not None
        action = expert_action(info.task, scene_from_ros(objects, info.names, measured))
        return action_chunk_to_ros(action[None], objects.header.stamp, self._base_frame, self._frequency)

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=5.0)


def _key(stamp: float) -> int:
    return round(stamp * 1e3)


def info_from_ros(message: String) -> Info:
    """The moment that `sim/info` describes; raises ConfigError naming what is missing or unknown."""
    try:
        values = json.loads(message.data)
        stamp, task, names = float(values["time"]), values["task"], tuple(values["objects"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{message.data[:80]!r} ({error!r}; valid: JSON with time, task and objects)") from error
    return Info(stamp, task_named(task), names)


def scene_from_ros(objects: PoseArray, names: tuple[str, ...], measured: Measurement) -> Scene:
    """The scene of objects called `names` and an arm measured at the same moment; raises ConfigError."""
    if len(names) != len(objects.poses):
        raise ConfigError(f"{len(objects.poses)} poses for {len(names)} objects (valid: one each)")
    if measured.gripper is None:
        raise ConfigError("the joint states say nothing of the gripper (valid: `gripper` in m)")
    poses = {name: _pose(pose) for name, pose in zip(names, objects.poses, strict=True)}
    return Scene(poses, forward(ROBOT, measured.joints), measured.gripper)


def _pose(pose: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position [3] and quaternion [4] (w, x, y, z)."""
    p, q = pose.position, pose.orientation
    return np.array([p.x, p.y, p.z]), np.array([q.w, q.x, q.y, q.z])


def _declare(node: Node) -> None:
    frequency = ParameterDescriptor(description="actions a simulated second, Hz; fixed at start", read_only=True)
    frequency.floating_point_range = [FloatingPointRange(from_value=0.1, to_value=100.0, step=0.0)]
    node.declare_parameter("control_frequency", 5.0, frequency)
    frame = ParameterDescriptor(description="frame of the action chunk; fixed at start", read_only=True)
    node.declare_parameter("base_frame", "base_link", frame)
    node.declare_parameter("acting", True, ParameterDescriptor(description="false: publish nothing"))


def main(args: list[str] | None = None) -> int:
    """Run the node until Ctrl-C or SIGTERM; exit code 0, or 1 with one line where a parameter cannot stand."""
    rclpy.init(args=args)
    node = None
    try:
        node = ExpertNode()
        if rclpy.ok():
            rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except ParameterException as error:
        print(f"expert_node: {error}", file=sys.stderr)
        return 1
    except Exception:  # whatever rclpy raises where a signal takes its context away, also while the node is made
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

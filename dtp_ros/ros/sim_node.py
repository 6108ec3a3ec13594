"""The node `sim`: the MuJoCo tabletop's camera, clock, joint states and arm.

In lock-step (`real_time_factor` 0) a command advances one control period and the new moment is published; until the
next command that moment is repeated, with the same stamp, for whoever joins late.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Pose, PoseArray, Quaternion
from numpy.typing import NDArray
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from dtp_ros.errors import ActionError, DtpError, require_choice, require_range
from dtp_ros.resources import share_file
from dtp_ros.ros.conversions import joint_state_from_ros, joint_state_to_ros, stamp_from_ros, stamp_to_ros
from dtp_ros.ros.images import image_to_ros
from dtp_ros.sim.arm import GRIPPER, JOINT_NAMES
from dtp_ros.sim.camera import CENTRE, FOCAL, HEIGHT, WIDTH
from dtp_ros.sim.tabletop import CONTROL_PERIOD, Tabletop
from dtp_ros.sim.tasks import EPISODES, MAX_DISTRACTORS, SETTINGS, TASKS
from dtp_ros.widowx.gate import RefusedError

NODE_NAME = "sim"
BASE_FRAME = "base_link"
CAMERA_FRAME = "camera_optical_frame"
JOINT_STATE_RATE = 50.0
IMAGE_RATE = 15.0
REPEAT_PERIOD = 0.5  # s of wall time between repetitions of a moment in lock-step
MAX_FACTOR = 20.0
MAX_LAG = 0.1  # s of wall time that real time catches up; what is more is lost
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CHOICES = {"task": tuple(TASKS), "setting": SETTINGS}
EPISODE_PARAMETERS = ("task", "episode", "distractors", "setting", "seed")
REFUSALS = ("joint_names", "finite", "limits", "late")


class SimNode(Node):
    """See interfaces.md, node `sim`. Raises DtpError where the simulator cannot start or draw."""

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        _declare(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self._add_publishers()
        self._counts: Counter[str] = Counter()
        self._error = ""
        self._start(self._episode(), CONTROL_PERIOD)
        self.table.close()  # the executor's thread draws from here on
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_subscription(JointState, "sim/joint_command", self._on_command, 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_timer(0.5 / JOINT_STATE_RATE, self._on_tick, clock=steady)
        self.create_timer(REPEAT_PERIOD, self._on_repeat, clock=steady)
        self.create_timer(1.0, self._publish_diagnostics, clock=steady)

    @property
    def sim_time(self) -> float:
        """Simulated seconds; they go on over a reset."""
        return self._offset + self.table.time

    def reset(self) -> None:
        """Begin the episode that the parameters name, one control period later; raises DtpError, changing nothing."""
        table = self._episode()
        self.table.close()
        self._start(table, self.sim_time + CONTROL_PERIOD)

    def _episode(self) -> Tabletop:
        values = {name: self.get_parameter(name).value for name in EPISODE_PARAMETERS}
        table = Tabletop(**values)
        table.render()
        self._about = values | {"instruction": table.task.instruction}
        return table

    def _start(self, table: Tabletop, sim_time: float) -> None:
        self.table, self._offset = table, sim_time
        self._factor = float(self.get_parameter("real_time_factor").value)
        self._image_due = 1.0 / IMAGE_RATE
        self._wall, self._debt = time.monotonic(), 0.0
        self._draw()
        self._publish_moment()

    def _add_publishers(self) -> None:
        self._to = SimpleNamespace(
            clock=self.create_publisher(ClockMessage, "/clock", 1),
            image=self.create_publisher(Image, "image", 1),
            camera_info=self.create_publisher(CameraInfo, "camera_info", 1),
            joint_states=self.create_publisher(JointState, "joint_states", 10),
            objects=self.create_publisher(PoseArray, "~/objects", 1),
            success=self.create_publisher(Bool, "~/success", LATCHED),
            info=self.create_publisher(String, "~/info", LATCHED),
            diagnostics=self.create_publisher(DiagnosticArray, "/diagnostics", 10),
        )

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            for parameter in parameters:
                if parameter.name in CHOICES:
                    require_choice(parameter.name, str(parameter.value), CHOICES[parameter.name])
                elif parameter.name == "real_time_factor":
                    require_range(parameter.name, parameter.value, 0.0, MAX_FACTOR)
        except DtpError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self.reset()
        except DtpError as error:
            self._error = str(error)
            response.success, response.message = False, self._error
        else:
            response.success, response.message = True, json.dumps(self._about)
        return response

    def _on_command(self, message: JointState) -> None:
        try:
            self._require_current(message)
            self.table.command(*_command_from_ros(message))
        except ActionError as error:
            cause = error.cause if isinstance(error, RefusedError) else "limits"
            self._counts[cause] += 1
            self._error = str(error)
            self.get_logger().warning(f"command refused: {error}", throttle_duration_sec=5.0)
            return
        self._counts["accepted"] += 1
        if self._factor == 0.0:
            self.table.advance(CONTROL_PERIOD)
            self._draw()
            self._publish_moment()

    def _require_current(self, message: JointState) -> None:
        """In lock-step a command answers one moment: sent twice, or on its way during a reset, it moves no time."""
        stamp = stamp_from_ros(message.header.stamp)
        if self._factor == 0.0 and 0.0 < stamp < self.sim_time - 1e-6:
            raise RefusedError("late", f"stamp {stamp:.3f} s (valid: {self.sim_time:.3f} s, the present moment, or 0)")

    def _on_tick(self) -> None:
        """In real time: catch up with the wall clock, joint states at 50 Hz and pictures at 15 Hz of simulated time."""
        now = time.monotonic()
        self._debt = min(self._debt + (now - self._wall) * self._factor, MAX_LAG * max(self._factor, 1.0))
        self._wall = now
        period = 1.0 / JOINT_STATE_RATE
        while self._debt >= period:
            self._debt -= period
            self.table.advance(period)
            if self.table.time >= self._image_due:
                self._image_due += 1.0 / IMAGE_RATE
                self._draw()
                self._publish_moment()
            else:
                self._to.clock.publish(ClockMessage(clock=self._stamp()))
                self._publish_joint_states()

    def _on_repeat(self) -> None:
        if self._factor == 0.0:
            self._publish_moment()

    def _draw(self) -> None:
        """Render now, so that repetitions cost nothing."""
        stamp = self._stamp()
        self._picture = image_to_ros(self.table.render(), stamp, CAMERA_FRAME)
        self._intrinsics = _camera_info(stamp)

    def _publish_moment(self) -> None:
        """Everything of this moment, the clock first and the image last: it is what a policy waits for."""
        stamp = self._stamp()
        self._to.clock.publish(ClockMessage(clock=stamp))
        self._publish_joint_states()
        objects = PoseArray()
        objects.header.stamp, objects.header.frame_id = stamp, BASE_FRAME
        poses = self.table.object_poses()
        objects.poses = [_pose_to_ros(*pose) for pose in poses.values()]
        self._to.objects.publish(objects)
        success = self.table.success()
        self._to.success.publish(Bool(data=success))
        state = {
            "step": int((self.table.time + 1e-9) / CONTROL_PERIOD),
            "steps": self.table.task.steps,
            "objects": list(poses),
            "source": self.table.source,
            "target": self.table.target,
            "grasped": self.table.grasped(),
            "on_target": self.table.on_target(),
            "success": success,
            "grasp": "friction",
            "time": round(self.sim_time, 3),
        }
        self._to.info.publish(String(data=json.dumps(self._about | state)))
        self._to.camera_info.publish(self._intrinsics)
        self._to.image.publish(self._picture)

    def _publish_joint_states(self) -> None:
        positions = {name: float(q) for name, q in zip(JOINT_NAMES, self.table.joints, strict=True)}
        positions[GRIPPER] = self.table.gripper
        self._to.joint_states.publish(joint_state_to_ros(positions, self._stamp()))

    def _publish_diagnostics(self) -> None:
        refused = sum(self._counts[cause] for cause in REFUSALS)
        status = DiagnosticStatus(name=f"{NODE_NAME}: tabletop", hardware_id="MuJoCo")
        status.level = DiagnosticStatus.WARN if refused else DiagnosticStatus.OK
        status.message = f"{refused} commands refused" if refused else "lock-step" if not self._factor else "real time"
        values = {
            **self._about,
            "real_time_factor": self._factor,
            "sim_time": f"{self.sim_time:.3f}",
            "accepted": self._counts["accepted"],
            **{f"refused_{cause}": self._counts[cause] for cause in REFUSALS},
            "last_error": self._error,
        }
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._stamp()
        self._to.diagnostics.publish(message)

    def _stamp(self) -> Time:
        return stamp_to_ros(self.sim_time)


def _declare(node: Node) -> None:
    """Task and setting are names, the others have ranges; a start value that does not fit raises DtpError."""
    texts = {"task": "which task", "setting": "what makes it hard"}
    for name, default in (("task", "carrot_on_plate"), ("setting", "plain")):
        about = f"{texts[name]} ({' | '.join(CHOICES[name])}); from the next ~/reset on"
        node.declare_parameter(name, default, ParameterDescriptor(name=name, description=about))
        require_choice(name, str(node.get_parameter(name).value), CHOICES[name])
    for name, high, text in (
        ("episode", EPISODES - 1, "which of the task's fixed configurations"),
        ("distractors", MAX_DISTRACTORS, "number of other objects"),
        ("seed", 2**31 - 1, "chooses the distractors and the look of `unseen`"),
    ):
        descriptor = ParameterDescriptor(name=name, description=f"{text}; from the next ~/reset on")
        descriptor.integer_range = [IntegerRange(from_value=0, to_value=high, step=1)]
        node.declare_parameter(name, 0, descriptor)
    descriptor = ParameterDescriptor(name="real_time_factor", description="0 = lock-step; from the next ~/reset on")
    descriptor.floating_point_range = [FloatingPointRange(from_value=0.0, to_value=MAX_FACTOR, step=0.0)]
    node.declare_parameter("real_time_factor", 1.0, descriptor)


def _command_from_ros(message: JointState) -> tuple[list[float], float]:
    """Six joints in rad and the gripper in m; raises RefusedError (`joint_names`, `finite`)."""
    positions = joint_state_from_ros(message)
    names = (*JOINT_NAMES, GRIPPER)
    if len(message.name) != len(names) or set(positions) != set(names):
        raise RefusedError("joint_names", f"{list(message.name)[:10]} (valid: {', '.join(names)})")
    if not all(math.isfinite(value) for value in positions.values()):
        raise RefusedError("finite", f"{positions}")
    return [positions[name] for name in JOINT_NAMES], positions[GRIPPER]


def _camera_info(stamp: Time) -> CameraInfo:
    fx, (cx, cy) = FOCAL, CENTRE
    info = CameraInfo(width=WIDTH, height=HEIGHT, distortion_model="plumb_bob")
    info.header.stamp, info.header.frame_id = stamp, CAMERA_FRAME
    info.d = [0.0] * 5
    info.k = [fx, 0.0, cx, 0.0, fx, cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [fx, 0.0, cx, 0.0, 0.0, fx, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def _pose_to_ros(position: NDArray[np.float64], quaternion: NDArray[np.float64]) -> Pose:
    """Pose of a position in m and a quaternion (w, x, y, z)."""
    (px, py, pz), (w, x, y, z) = (float(v) for v in position), (float(v) for v in quaternion)
    return Pose(position=Point(x=px, y=py, z=pz), orientation=Quaternion(x=x, y=y, z=z, w=w))


def main(args: list[str] | None = None) -> int:
    """Run the node until Ctrl-C or SIGTERM; exit code 0, or 1 with one line where it cannot start."""
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(share_file("config/fastdds.xml")))
    rclpy.init(args=args)
    node = None
    try:
        node = SimNode()
        if rclpy.ok():
            rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (DtpError, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"sim_node: {error}", file=sys.stderr)
        return 1
    except Exception:  # whatever rclpy raises where a signal has taken its context away
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            node.table.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

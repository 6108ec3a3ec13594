"""The node of the arm: action chunks and joint states in, what the gate lets through out.

Runs in one thread: every callback is short. Commands are decided when joint states or a chunk arrive, and by a timer
on the steady clock, which watches for what does not arrive. With `use_sim_time` the time is that of the newest joint
states, since /clock may overtake them: a simulator in lock-step then gives the same episode every time.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections import deque
from types import FrameType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidTopicNameException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Float32
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from dtp_ros.errors import ConfigError, DtpError
from dtp_ros.ros import conversions, widowx_parameters
from dtp_ros.ros.chunk_source import ChunkSource
from dtp_ros.ros.compat import unknown_parameters
from dtp_ros.ros.drivers import create_driver
from dtp_ros.ros.drivers.base import DriverSettings
from dtp_ros.ros.lock_step import LockStepWatch
from dtp_ros.ros.parameters import SPEC_BY_NAME
from dtp_ros.ros.widowx_views import markers_to_ros, status_to_ros
from dtp_ros.widowx.command import Command
from dtp_ros.widowx.controller import ArmController
from dtp_ros.widowx.gate import RefusedError
from dtp_ros.widowx.kinematics import Array, robot

WATCH_PERIOD = 0.02  # s
SILENCE = 1.0  # s of wall time without joint states before they are missed, and /clock is believed instead of them
PATH_LENGTH = 500  # commanded positions shown


class WidowxNode(Node):
    """Node `widowx`; raises ConfigError or rclpy's ParameterException where a parameter cannot stand."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("widowx", **kwargs)
        self._values = widowx_parameters.declare(self)
        for line in unknown_parameters(self, SPEC_BY_NAME):
            self.get_logger().warning(line)
        config = widowx_parameters.controller_config(self._values)
        arm, settings = robot(str(self._values["robot"])), widowx_parameters.driver_settings(self._values)
        self._base_frame = str(self._values["base_frame"])
        self._sim_time = bool(self.get_parameter("use_sim_time").value)
        self._driver = create_driver(str(self._values["driver"]), self, arm, settings)
        self._controller = ArmController(arm, config, armed=self._driver.arms_at_start)
        self._ready = False  # the driver was, when last asked
        self._heard = time.monotonic()  # when joint states came last, sound or not, steady clock, s
        self._behind_since: float | None = None  # joint states are behind /clock, steady clock, s
        self._lock_step = LockStepWatch()
        self._target: Array | None = None
        self._path: deque[Array] = deque(maxlen=PATH_LENGTH)
        self._chunks = self._commands = 0
        self._latency = float("nan")
        self._create_outputs()
        self._create_inputs(settings)
        self.add_on_set_parameters_callback(self._on_parameters)

    def _create_outputs(self) -> None:
        self._target_pose = self.create_publisher(PoseStamped, "~/target_pose", 10)
        self._commanded_pose = self.create_publisher(PoseStamped, "~/commanded_pose", 10)
        self._commanded_twist = self.create_publisher(TwistStamped, "~/commanded_twist", 10)
        self._commanded_gripper = self.create_publisher(JointState, "~/commanded_gripper", 10)
        self._markers = self.create_publisher(MarkerArray, "~/markers", 1)
        self._latencies = self.create_publisher(Float32, "~/latency", 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def _create_inputs(self, settings: DriverSettings) -> None:
        try:
            self.create_subscription(JointState, settings.under("joint_states"), self._on_joints, 20)
        except InvalidTopicNameException as error:
            prefix = settings.arm_namespace
            raise ConfigError(f"arm_namespace = {prefix!r} is not a ROS name (valid: as /wx250s, or empty)") from error
        self._source = ChunkSource(self, "action_chunk", self._on_chunk, self._on_other_publisher)
        self.create_service(SetBool, "~/arm", self._on_arm)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self.create_service(Trigger, "~/go_home", self._on_go_home)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self.create_timer(WATCH_PERIOD, self._on_watch, clock=steady)
        self.create_timer(1.0, self._on_report, clock=steady)

    # -- time ---------------------------------------------------------------------------------------------------

    def _clock_time(self) -> float:
        return float(self.get_clock().now().nanoseconds) * 1e-9

    def _now(self) -> float:
        measured = self._controller.measured_at
        return measured if self._sim_time and measured is not None else self._clock_time()

    def _run(self) -> None:
        """Send what is due; an arm that went away holds when it is back, and a real one waits to be armed."""
        if status := self._driver.status():
            if self._ready:
                self._ready = False
                self._controller.driver_lost(disarms=not self._driver.arms_at_start)
                self.get_logger().error(f"the arm went away: {status}")
            return
        self._ready = True
        self._controller.paced = not (self._sim_time and self._lock_step.in_lock_step)
        while (command := self._controller.tick(self._now())) is not None:
            self._send(command)

    def _on_watch(self) -> None:
        if self._sim_time and self._source.count() > 0:
            self._lock_step.policy_seen()
        timeout = self._values["lock_step_timeout"]
        assert isinstance(timeout, float)  # declared as a double
        if self._lock_step.stands_still(timeout, self._controller.config.gate.command_timeout):
            # A policy that holds waits for the next image, which waits for a command.
            self._controller.refuse("command_timeout")
        self._run()
        measured = self._controller.measured_at
        if not self._sim_time or measured is None or self._clock_time() <= measured:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        elif time.monotonic() - self._behind_since > SILENCE and not self._driver.status():
            command = self._controller.watch(self._clock_time())
            if command is not None:
                self._send(command)

    # -- inputs -------------------------------------------------------------------------------------------------

    def _on_joints(self, message: JointState) -> None:
        stamp = conversions.stamp_from_ros(message.header.stamp)
        if not self._sim_time:
            # A driver that does not stamp, or whose clock is ahead, lest silence go unnoticed: the time of arrival.
            arrival = self._clock_time()
            stamp = min(stamp, arrival) if stamp != 0.0 else arrival
        self._heard, self._behind_since = time.monotonic(), None
        before = self._controller.measured_at
        self._controller.joint_states(message.name, message.position, stamp)
        self._lock_step.joint_states(before, self._controller.measured_at)
        self._run()

    def _on_chunk(self, message: JointTrajectory) -> None:
        self._chunks += 1
        if self._sim_time:
            self._lock_step.chunk(conversions.stamp_from_ros(message.header.stamp))
        try:
            chunk = conversions.action_chunk_from_ros(message, self._base_frame)
        except RefusedError as refusal:
            self._controller.refuse(refusal.cause)
            self.get_logger().warning(f"chunk refused: {refusal}", throttle_duration_sec=1.0)
        else:
            now = self._now()
            if self._sim_time and self._controller.measured_at is None:
                now = max(now, chunk.stamp)  # /clock may not have been heard either
            if not self._controller.chunk(chunk, now):
                self.get_logger().warning("chunk refused: see /diagnostics", throttle_duration_sec=1.0)
        self._run()

    def _on_other_publisher(self) -> None:
        if self._controller.armed:
            self._controller.disarm("publisher")
            self.get_logger().error("another publisher is behind action_chunk: disarmed (call ~/arm to go on)")

    def _on_arm(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data:
            refusal = self._driver.status() or self._controller.arm(self._now())
            self._source.trust()
        else:
            refusal = ""
            self._controller.disarm("stop")
        response.success, response.message = not refusal, refusal or ("armed" if request.data else "disarmed, holding")
        self._run()
        return response

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._controller.disarm("stop")
        self._run()
        waits = self._controller.is_hold_due
        done = "disarmed; no hold could be sent yet: see /diagnostics" if waits else "holding, disarmed"
        response.success, response.message = True, f"{done} (call ~/arm to go on)"
        return response

    def _on_go_home(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        refusal, before = self._driver.status() or self._controller.go_home(self._now()), self._commands
        self._run()
        if not refusal and self._commands > before and self._controller.holding:  # the first step was refused
            refusal = f"holding: {', '.join(self._controller.causes)}"
        response.success, response.message = not refusal, refusal or "going home in gated steps"
        return response

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            values = widowx_parameters.changed(self._values, parameters)
            self._controller.configure(widowx_parameters.controller_config(values))
        except DtpError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._values = values
        return SetParametersResult(successful=True)

    # -- outputs ------------------------------------------------------------------------------------------------

    def _send(self, command: Command) -> None:
        self._driver.send(command)
        sent_at = self._now()  # what follows is for the eye
        self._commands += 1
        self._lock_step.command(command.time)
        stamp, frame = conversions.stamp_to_ros(command.time), self._base_frame
        if command.transform_target is not None:
            self._target_pose.publish(conversions.pose_stamped_to_ros(command.transform_target, stamp, frame))
        self._commanded_pose.publish(conversions.pose_stamped_to_ros(command.transform_commanded, stamp, frame))
        self._commanded_twist.publish(conversions.twist_stamped_to_ros(command.twist, stamp, frame))
        gripper = {"gripper": command.gripper}
        self._commanded_gripper.publish(
            conversions.joint_state_to_ros(gripper, stamp, str(self._values["end_effector_frame"]))
        )
        if command.image_stamp is not None and not command.holding:
            self._latency = sent_at - command.image_stamp
            self._latencies.publish(Float32(data=self._latency))
        self._target = command.transform_target
        self._path.append(command.transform_commanded[:3, 3])
        if self._markers.get_subscription_count() > 0:
            self._show()

    def _show(self) -> None:
        gate, stamp = self._controller.gate, self.get_clock().now().to_msg()
        self._markers.publish(
            markers_to_ros(gate.low, gate.high, self._target, tuple(self._path), stamp, self._base_frame)
        )

    def _on_report(self) -> None:
        measured = self._controller.measured_at
        # By the wall clock: simulated time ends with the simulator. In lock-step a moment is repeated every 0.5 s.
        silence = time.monotonic() - self._heard
        missing = "no joint states" if measured is None else f"no joint states for {silence:.0f} s"
        waiting = self._driver.status() or (missing if measured is None or silence > SILENCE else "")
        waiting = waiting or self._driver.warning()
        about = {
            "driver": str(self._values["driver"]),
            "chunks": str(self._chunks),
            "commands": str(self._commands),
            "latency": f"{self._latency:.3f} s",
            "joint_states_age": "none" if measured is None else f"{self._clock_time() - measured:.3f} s",
            "publishers": str(self._source.count()),
        }
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [status_to_ros("widowx: arm", self._controller, about, waiting)]
        self._diagnostics.publish(message)
        self._show()

    def close(self) -> None:
        """Hold the arm where it is and see that delivered."""
        self._controller.disarm("shutdown")
        self._run()
        self._ready = False
        self._driver.close()


def main(args: list[str] | None = None) -> int:
    """Run until Ctrl-C or SIGTERM, then hold; exit code 0, or 1 with one line where a parameter cannot stand."""
    # rclpy's own handlers would close the context before the last hold is sent.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    ended = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        node = WidowxNode()
    except (DtpError, ParameterException) as error:
        print(f"widowx_node: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    gc.freeze()  # a full collection that looks at the libraries too stops the arm's only thread for 50 ms and more
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not ended and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

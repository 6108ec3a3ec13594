"""Lifecycle node `dtp_policy`: camera images and an instruction in, final action chunks out.

Threads: callbacks never wait for the model. A worker owns it and takes the newest frame from a slot of size one;
parameters cross as one frozen object, read once at the start of a step. Callback groups: parameter services and
instructions share the node's default group, images, transitions and diagnostics have their own, so that each answers
while the others are busy.

A refused `configure` (no such checkpoint, no such device, parameters that do not fit) leaves the node alive and
unconfigured, with the cause in the log and in /diagnostics, also when `autostart` asked for it.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections import deque
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from dtp_ros.engine.types import StepResult
from dtp_ros.errors import DtpError, ObservationError
from dtp_ros.ros import widowx_parameters
from dtp_ros.ros.compat import HAS_MESSAGE_INFO, LastingExecutor, no_events, unknown_parameters
from dtp_ros.ros.conversions import action_chunk_to_ros
from dtp_ros.ros.debug_images import DebugImages
from dtp_ros.ros.pace import PaceWatch
from dtp_ros.ros.parameters import PolicyParameters, Settings
from dtp_ros.ros.policy_inputs import Frame, PolicyInputs
from dtp_ros.ros.policy_metrics import Figures, MetricPublishers, status_to_ros
from dtp_ros.ros.trace import trace_to_ros
from dtp_ros.ros.transitions import one_line, refuse_impossible_transitions, try_transition
from dtp_ros.ros.worker import Worker, paused_collector

if TYPE_CHECKING:
    from dtp_ros.ros.inference import Inference

NODE_NAME = "dtp_policy"
NUM_THREADS = 6  # more than there are callback groups: no group waits for a thread
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class PolicyNode(LifecycleNodeMixin, Node):
    """See the module's docstring; topics, services and parameters are those of docs/interfaces.md.

    Composed from the mixin and Node, because LifecycleNode gives its services no callback group of their own.
    Raises ConfigError where a parameter override cannot stand. `close` ends the worker.
    """

    def __init__(self, **options: Any) -> None:
        Node.__init__(self, NODE_NAME, **options)
        # Reentrant: `get_state` answers while `configure` loads; the state machine refuses what must not overlap.
        self._transitions = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(self, callback_group=self._transitions)
        refuse_impossible_transitions(self)
        self._figures = Figures()
        self._store = PolicyParameters(self, self._on_parameters)
        for line in unknown_parameters(self, widowx_parameters.SPECS):
            self.get_logger().warning(line)
        self._state = "unconfigured"
        self._model: Inference | None = None
        self._seen_instructions: deque[tuple[int, str]] = deque(maxlen=16)
        self._worker: Worker[Frame] = Worker(self._step, self._on_crash)
        self._create_interfaces()
        if self.settings.autostart:
            self.create_guard_condition(self._autostart, self._transitions).trigger()  # once there is an executor

    @property
    def settings(self) -> Settings:
        """The parameters in force, frozen."""
        return self._store.settings

    def close(self) -> None:
        """Stop acting, give up loading, and wait for the worker to end."""
        self._inputs.close()
        self._worker.stop()

    def _create_interfaces(self) -> None:
        # Simulated time may stand still; a node that is stuck must still say so.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        images, reports = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        self._chunks = self.create_publisher(JointTrajectory, "action_chunk", 10, callback_group=reports)
        self._traces = self.create_publisher(DiagnosticArray, "~/trace", 10, callback_group=reports)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10, callback_group=reports)
        self._metrics = MetricPublishers(self, reports)
        self._debug_images = DebugImages(self, reports)
        self._inputs = PolicyInputs(
            self, images, self._figures, lambda: self.settings, self._worker.offer, self._reset_policy
        )
        for durability in (DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL):
            qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=durability)
            heard = self._on_instruction_once if HAS_MESSAGE_INFO else self._on_instruction
            # A volatile publisher, as `ros2 topic pub`, does not fit the second, and need not.
            events = no_events() if durability == DurabilityPolicy.TRANSIENT_LOCAL else None
            self.create_subscription(String, "instruction", heard, qos, event_callbacks=events)
        self.create_service(Trigger, "~/reset", self._on_reset, callback_group=reports)
        self._crash_guard = self.create_guard_condition(self._deactivate_after_crash, self._transitions)
        self.create_timer(1.0, self._publish_diagnostics, reports, clock=self._steady)

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model; refuse with the cause in log and diagnostics."""
        self._state = "configuring"
        settings = self._store.freeze()
        try:
            self._worker.call(lambda: self._load(settings)).result()
        except CancelledError:
            pass
        except Exception as error:
            reason = str(error) if isinstance(error, DtpError) else one_line(error)
            self.get_logger().error(f"configure refused: {reason}")
            self._figures.fail(f"configure refused: {reason}", failed=True)
        else:
            self._figures.fail("", failed=False)
            self._state = "inactive"
            return SUCCESS
        return self._unconfigured(FAILURE)  # out of `except`, whose error holds what was loaded

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to act, with a new episode."""
        self._figures.fail("", failed=False)
        self._inputs.open()
        self._state = "active"
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop acting: nothing more is published, also of a step under way."""
        self._inputs.close()
        self._worker.clear()
        self._state = "inactive"
        return SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        return self._unconfigured(SUCCESS)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop acting and free the model."""
        self._unconfigured(SUCCESS)
        self._state = "finalized"
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model after a transition that failed."""
        return self._unconfigured(SUCCESS)

    def _unconfigured(self, outcome: TransitionCallbackReturn) -> TransitionCallbackReturn:
        self._inputs.disconnect()
        self._worker.clear()
        self._worker.call(self._unload)
        self._store.thaw()
        self._state = "unconfigured"
        return outcome

    def _autostart(self) -> None:
        if try_transition(self, self.trigger_configure):
            try_transition(self, self.trigger_activate)

    def _deactivate_after_crash(self) -> None:
        try_transition(self, self.trigger_deactivate)

    # In the worker

    def _load(self, settings: Settings) -> None:
        for library in ("torchao", "torch.utils._pytree"):  # at their import they say at length what they do without
            logging.getLogger(library).setLevel(logging.ERROR)
        with paused_collector():
            from dtp_ros.ros.inference import Inference

            gc.freeze()  # the libraries stay: no later collection has to look at them
            model = Inference(settings, self._report_progress)
        self._store.fit(model.limits)
        self._inputs.connect(model.adapter, settings)
        self._model = model
        self.get_logger().info(f"{settings.model} is loaded: {', '.join(model.about().values())}")

    def _unload(self) -> None:
        self._model = None
        if "dtp_ros.ros.inference" in sys.modules:  # also where a model was refused after it was loaded
            from dtp_ros.ros.inference import free_memory

            free_memory()

    def _report_progress(self, message: str, fraction: float) -> None:
        if self._worker.stopping:
            raise CancelledError
        self.get_logger().info(f"{message} ({100 * fraction:.0f} %)", throttle_duration_sec=1.0)

    def _step(self, frame: Frame) -> None:
        settings, model = self.settings, self._model
        if model is None or not self._inputs.require_current(frame, settings):
            return
        watch = PaceWatch(self.get_clock(), frame.stamp_ns)
        try:
            result = model.step(frame, settings)
        except ObservationError as error:
            self._figures.drop("observation", str(error))
            return
        latency = self._publish_chunk(frame, result, settings)
        pace = watch.stop(settings.period)
        if not self._inputs.is_current(frame):
            return
        # What follows is for the eye: the command is on its way already.
        self._figures.step(result.trace, latency, result.hold_reason, pace)
        self._metrics.publish(result.trace, latency)
        self._traces.publish(trace_to_ros(result, settings, frame.stamp, frame.frame_id, latency, pace))
        self._debug_images.publish(frame.images[0], result.trace, settings.overlay_alpha, frame.stamp, frame.frame_id)

    def _publish_chunk(self, frame: Frame, result: StepResult, settings: Settings) -> float | None:
        """Publish the chunk where there is one; returns the latency, s."""
        if result.chunk is None:
            self.get_logger().warning(f"hold: {result.hold_reason}", throttle_duration_sec=5.0)
            return None
        count = None if settings.publish_whole_chunk else settings.execute_horizon
        actions = result.chunk.actions[:count]
        message = action_chunk_to_ros(actions, frame.stamp, settings.base_frame, settings.control_frequency)
        return self._inputs.publish(frame, lambda: self._chunks.publish(message), settings)

    def _on_crash(self, error: BaseException) -> None:
        if not self.context.ok():
            return  # the graph went away under a step: that is the end, not a crash
        self._inputs.close()
        self._figures.fail(f"the worker crashed: {one_line(error)}", failed=True)
        self.get_logger().error("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        self._crash_guard.trigger()

    # Callbacks

    def _on_parameters(self, old: Settings, new: Settings) -> None:
        if new.instruction != old.instruction:
            # What was learned for one task must not be averaged into another.
            self._inputs.begin_episode()
            self.get_logger().info(f"instruction: {new.instruction!r}")

    def _on_instruction_once(self, message: String, info: dict[str, int]) -> None:
        # A transient-local publisher is heard twice, by both subscriptions. (Without info, as in Humble, the second
        # time says what is in force already; only instructions that follow at once may be taken up in turn.)
        seen = (info["source_timestamp"], message.data)
        if seen not in self._seen_instructions:
            self._seen_instructions.append(seen)
            self._on_instruction(message)

    def _on_instruction(self, message: String) -> None:
        if message.data == self.settings.instruction:
            return
        result = self.set_parameters([Parameter("instruction", value=message.data)])[0]
        if not result.successful:
            self._figures.refuse_instruction(result.reason)
            self.get_logger().warning(f"instruction refused: {result.reason}")

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._inputs.begin_episode()
        response.success, response.message = True, "new episode"
        return response

    def _reset_policy(self) -> None:
        """Reset policy and rolling figures before the next step; what is being computed is not published."""
        self._worker.clear()
        self._figures.restart()
        self._worker.call(lambda: self._model.reset() if self._model is not None else None)

    def _publish_diagnostics(self) -> None:
        if self._figures.failed and self._state == "active":
            self._crash_guard.trigger()  # it came during a transition
        settings = self.settings
        model = self._model
        about = {"state": self._state, "model": settings.model, "checkpoint": settings.checkpoint}
        about |= {"device": "", "dtype": ""} if model is None else model.about()
        about["period"] = f"{settings.period:.3f}"
        waiting = self._state
        if waiting == "active":
            waiting = self._figures.waiting() if settings.acting else "waits for an instruction"
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        name = f"{NODE_NAME}: policy"
        message.status = [status_to_ros(name, settings.model, self._figures, about, waiting)]
        self._diagnostics.publish(message)


def main(args: list[str] | None = None) -> int:
    """Run the node until Ctrl-C or SIGTERM; exit code 0, or 1 with one line where a parameter cannot stand."""
    # Before torch is opened: threads that spin while they wait for each other take the cores that carry images and
    # commands; with other work on two cores they made steps five to nine times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    rclpy.init(args=args)
    try:
        # Opening its library stops every thread for 0.3 s or more: better before there are services to answer.
        with suppress(ImportError):  # configure says what is missing
            import torch  # noqa: F401
        if not rclpy.ok():
            return 0
        node = PolicyNode()
    except DtpError as error:
        print(f"policy_node: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    except KeyboardInterrupt:
        rclpy.try_shutdown()
        return 0
    except RuntimeError:
        if rclpy.ok():  # else SIGTERM ended the graph while the node was being made
            raise
        return 0
    executor = LastingExecutor(num_threads=NUM_THREADS)
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:  # whatever rclpy raises where a signal takes its context away under a wait
        if rclpy.ok():
            raise
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A user of the policy node for its tests: publishes and hears over real DDS, from an executor of its own."""

import math
import os
import time
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from graph import spinning
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.clock import ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float32, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from dtp_ros.ros.compat import ASK_AGAIN, LastingExecutor, Question
from dtp_ros.ros.images import image_to_ros
from dtp_ros.ros.policy_metrics import METRICS
from dtp_ros.ros.policy_node import NUM_THREADS, PolicyNode

DEADLINE = 150.0  # s: no more than a guard against what never comes
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE, ACTIVE_SHUTDOWN = 1, 2, 3, 4, 7


def wait_until(condition, what, deadline=DEADLINE):
    """Return the condition's first true value; fail after the deadline."""
    end = time.monotonic() + deadline
    while not (got := condition()):
        assert time.monotonic() < end, f"not within {deadline} s: {what() if callable(what) else what}"
        time.sleep(0.01)
    return got


def picture(seed, height=480, width=640):
    """A different scene for each seed: smooth colours with some blocks on them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phases = rng.uniform(0, 6.3, 3)
    image = np.stack([127 + 100 * np.sin(6 * x * (i + 1) + 5 * y + p) for i, p in enumerate(phases)], axis=2)
    for _ in range(8):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        image[top : top + height // 6, left : left + width // 6] = rng.integers(0, 256, 3)
    return image.clip(0, 255).astype(np.uint8)


@contextmanager
def running_policy(domain, **overrides):
    """A policy node and a user of it, each with its executor."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=domain)
    try:
        policy = PolicyNode(parameter_overrides=[Parameter(n, value=v) for n, v in overrides.items()])
        with (
            spinning(User(), SingleThreadedExecutor()) as user,
            spinning(policy, LastingExecutor(NUM_THREADS)),
        ):
            try:
                yield policy, user
            finally:
                policy.close()
    finally:
        rclpy.try_shutdown()


class User(Node):
    """Hears everything the policy says; every call waits for its answer with a deadline."""

    def __init__(self):
        super().__init__("user")
        self.chunks, self.traces, self.metrics = [], [], defaultdict(list)
        self.diagnostics = []
        self.image = self.create_publisher(Image, "image", BEST_EFFORT)
        self.compressed = self.create_publisher(CompressedImage, "image/compressed", BEST_EFFORT)
        self.instruction = self.create_publisher(String, "instruction", 1)
        self.latched_instruction = self.create_publisher(String, "instruction", LATCHED)
        self.create_subscription(JointTrajectory, "action_chunk", self.chunks.append, 10)
        self.create_subscription(DiagnosticArray, "dtp_policy/trace", self.traces.append, 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        for name in METRICS:
            self.create_subscription(Float32, f"dtp_policy/metrics/{name}", self.metrics[name].append, 10)

    def call(self, kind, name, request, deadline=DEADLINE, again=ASK_AGAIN):
        client = self.create_client(kind, name)
        try:
            wait_until(client.service_is_ready, f"service {name}")
            question = Question(client, request, again)
            wait_until(question.answered, f"answer of {name}", deadline)
            return question.answer()
        finally:
            self.destroy_client(client)

    def put(self, **values):
        """Set parameters, all or none; returns the result."""
        parameters = [Parameter(n, value=v).to_parameter_msg() for n, v in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        return self.call(SetParametersAtomically, "dtp_policy/set_parameters_atomically", request).result

    def put_one(self, client, name, value):
        """Set one parameter through a client that exists; returns the result and the seconds it took."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        began = time.monotonic()
        future = client.call_async(SetParameters.Request(parameters=[parameter]))
        wait_until(future.done, "set_parameters")
        return future.result().results[0], time.monotonic() - began

    def get(self, name):
        answer = self.call(GetParameters, "dtp_policy/get_parameters", GetParameters.Request(names=[name]))
        return parameter_value_to_python(answer.values[0])

    def change_state(self, transition):
        request = ChangeState.Request()
        request.transition.id = transition
        once = math.inf  # a second request would be refused
        return self.call(ChangeState, "dtp_policy/change_state", request, again=once).success

    def state(self):
        return self.call(GetState, "dtp_policy/get_state", GetState.Request()).current_state.label

    def reset(self):
        return self.call(Trigger, "dtp_policy/reset", Trigger.Request())

    def now(self):
        return self.get_clock().now().to_msg()

    def show(self, pixels, stamp=None):
        """Publish an image, now; returns its stamp."""
        stamp = stamp or self.now()
        self.image.publish(image_to_ros(pixels, stamp, "camera"))
        return stamp

    def show_until(self, condition, pixels, what):
        """Show an image, again every 5 s, until there is what it is shown for: best effort, one may be lost."""
        shown = [-math.inf]

        def there():
            if time.monotonic() - shown[0] > 5.0:
                shown[0] = time.monotonic()
                self.show(pixels)
            return condition()

        return wait_until(there, what)

    def step(self, pixels):
        """Show an image until it is acted on; returns chunk (None if it held) and trace values."""
        stamps = [self.show(pixels)]

        def answered():
            sent = {(s.sec, s.nanosec) for s in stamps}
            for message in self.traces:
                if (message.header.stamp.sec, message.header.stamp.nanosec) in sent:
                    return message
            if time.monotonic() - shown[0] > 5.0:  # best effort: an image may be lost
                shown[0] = time.monotonic()
                stamps.append(self.show(pixels))
            return None

        shown = [time.monotonic()]
        trace = wait_until(answered, "a trace")
        values = {pair.key: pair.value for pair in trace.status[0].values}
        if values["hold_reason"]:
            return None, values
        return wait_until(lambda: self.chunk_of(trace.header.stamp), "the chunk"), values

    def chunk_of(self, stamp):
        return next((chunk for chunk in self.chunks if chunk.header.stamp == stamp), None)

    def status(self):
        """The next status on /diagnostics that begins after this call."""
        count = len(self.diagnostics)
        message = wait_until(lambda: self.diagnostics[count:], "/diagnostics")[0]
        return message.status[0]

    def figures(self):
        """Key/value of the next /diagnostics."""
        return {pair.key: pair.value for pair in self.status().values}

    def wait_for_figure(self, key, value):
        """The first status on /diagnostics in which a figure has this value."""

        def seen():
            status = self.status()
            return status if {pair.key: pair.value for pair in status.values}[key] == value else None

        return wait_until(seen, lambda: f"{key} = {value}, last {self.figures()}")


def time_at(seconds):
    """A stamp."""
    return Time(nanoseconds=round(seconds * 1e9), clock_type=ClockType.ROS_TIME).to_msg()

"""A policy, an arm and a person for the tests of the arm's node: real nodes over DDS, from an executor of their own."""

import os
import time
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from graph import spinning
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float32
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from dtp_ros.ros.compat import Question
from dtp_ros.ros.conversions import action_chunk_to_ros, joint_state_to_ros, stamp_to_ros
from dtp_ros.ros.widowx_node import WidowxNode
from dtp_ros.widowx.kinematics import robot

DEADLINE = 150.0  # s: a process may take a third of it to start, where others are busy
PATIENT = 4.0  # s: joint states and actions that a busy machine sends late are none too old, but where a test says so
PERIOD = 0.2
ARM = robot("wx250s")
START = np.array([0.0, 0.02201199, 0.18310092, 0.0, 1.36568341, 0.0])  # (.3, 0, .15), gripper down
TOPICS = {
    "target_pose": PoseStamped, "commanded_pose": PoseStamped, "commanded_twist": TwistStamped,
    "commanded_gripper": JointState, "latency": Float32, "markers": MarkerArray,
}  # fmt: skip


def wait_until(condition, what="the condition", deadline=DEADLINE, every=0.005):
    """Return the condition's first true value; fail after the deadline."""
    end = time.monotonic() + deadline
    while not (got := condition()):
        assert time.monotonic() < end, f"not within {deadline} s: {what() if callable(what) else what}"
        time.sleep(every)
    return got


class Bench(Node):
    """Publishes chunks and joint states keeps what is sent: a simulator in lock-step, or an arm at 100 Hz."""

    def __init__(self, *, lock_step, joint_states="joint_states"):
        super().__init__("bench")
        self.lock_step, self.sim_time, self.joints, self.gripper = lock_step, 1.0, START.copy(), 0.074
        self.heard, self.commands, self.follows, self.measures = defaultdict(list), [], True, True
        self.chunks = self.create_publisher(JointTrajectory, "action_chunk", 10)
        self.joint_states = self.create_publisher(JointState, joint_states, 10)
        self.clock_publisher = self.create_publisher(Clock, "/clock", 1)
        self.create_subscription(JointState, "sim/joint_command", self.on_command, 50)
        for topic, kind in TOPICS.items():
            self.create_subscription(kind, f"/widowx/{topic}", self.heard[topic].append, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, 10)
        self.buttons = {
            "arm": self.create_client(SetBool, "/widowx/arm"),
            "stop": self.create_client(Trigger, "/widowx/stop"),
            "go_home": self.create_client(Trigger, "/widowx/go_home"),
        }
        self.parameters = self.create_client(SetParameters, "/widowx/set_parameters")
        self.create_timer(0.1 if lock_step else 0.01, self.measure)

    def on_command(self, message):
        self.commands.append(message)
        if self.follows:
            self.joints, self.gripper = np.array(message.position[:6]), message.position[6]
        if self.lock_step:
            self.sim_time += PERIOD
            self.measure()

    def on_diagnostics(self, message):
        self.heard["status"] += [status for status in message.status if status.name == "widowx: arm"]

    def now(self):
        return self.sim_time if self.lock_step else self.get_clock().now().nanoseconds * 1e-9

    def measure(self, joints=None):
        """The clock and the joint states of this moment."""
        if not self.measures:
            return
        if self.lock_step:
            self.clock_publisher.publish(Clock(clock=stamp_to_ros(self.sim_time)))
        positions = dict(zip(ARM.joint_names, self.joints if joints is None else joints, strict=True))
        self.joint_states.publish(joint_state_to_ros({**positions, "gripper": self.gripper}, self.now()))

    def message(self, *actions, stamp=None):
        return action_chunk_to_ros(np.array(actions, float), self.now() if stamp is None else stamp, "base_link", 5.0)

    def send(self, *actions, stamp=None):
        self.chunks.publish(self.message(*actions, stamp=stamp))

    def call(self, client, request):
        assert client.wait_for_service(DEADLINE)
        question = Question(client, request)
        wait_until(question.answered, "a service's answer")
        return question.answer()

    def trigger(self, name):
        return self.call(self.buttons[name], Trigger.Request())

    def arm(self, enable=True):
        return self.call(self.buttons["arm"], SetBool.Request(data=enable))

    def armed(self):
        """Arm; again where a busy machine's joint states came late."""
        wait_until(lambda: self.arm().success, "an armed arm")

    def set(self, **values):
        request = SetParameters.Request()
        request.parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self.call(self.parameters, request).results

    def status(self):
        """The next diagnostic status of the arm: (message, values)."""
        self.heard["status"].clear()
        status = wait_until(lambda: self.heard["status"], "diagnostics")[-1]
        return status.message, {pair.key: pair.value for pair in status.values}

    def ready(self, expect_sim):
        """Wait for every match, so that no message is lost."""
        wait_until(lambda: self.chunks.get_subscription_count() > 0, "chunk subscription")
        wait_until(lambda: self.joint_states.get_subscription_count() > 0, "joint state subscription")
        wait_until(lambda: self.count_publishers("/widowx/commanded_pose") > 0, "outputs")
        if expect_sim:
            wait_until(lambda: self.count_publishers("/sim/joint_command") > 0, "driver")


@contextmanager
def running(domain, *, lock_step=False, joint_states="joint_states", node=True, **overrides):
    """An arm node (unless node is False: the test starts its own) and a bench, each with its executor."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=domain)
    try:
        with spinning(Bench(lock_step=lock_step, joint_states=joint_states)) as bench:
            if not node:
                yield bench
                return
            patient = {"joint_state_timeout": PATIENT, **({} if lock_step else {"command_timeout": PATIENT})}
            overrides = {"driver": "sim", "use_sim_time": lock_step, **patient, **overrides}
            arm = WidowxNode(parameter_overrides=[Parameter(n, value=v) for n, v in overrides.items()])
            with spinning(arm):
                bench.ready(overrides["driver"] == "sim")
                yield bench
    finally:
        rclpy.shutdown()

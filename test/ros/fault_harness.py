"""What the fault tests share: nodes as processes that can be killed, and an arm, a camera, a policy that can fail."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from fault_recorder import NAMES, Recorder
from graph import spinning
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory
from widowx_harness import wait_until

from dtp_ros.ros.compat import Question
from dtp_ros.ros.conversions import action_chunk_to_ros, joint_state_to_ros, stamp_to_ros
from dtp_ros.ros.images import image_to_ros

START_UP = 150.0  # s that processes have to come up, on a machine with other things to do
SLACK = 5.0  # s that a busy machine may add to a timeout before its hold is heard; stamps say when motions ended
OFTEN = 0.05  # s: what looks through all commands starves the arm of this process if it does so without a pause
START = np.array([0.0, 0.02201199, 0.18310092, 0.0, 1.36568341, 0.0])  # (.3, 0, .15), gripper down
ARM, POLICY = "widowx: arm", "dtp_policy: policy"
TINY_POLICY = {"model": "tabletop", "checkpoint": "tiny", "device": "cpu", "instruction": "'put the carrot on it'"}
ARM_LIMITS = (  # the defaults, the widest that the recorder lets pass, and narrower ones
    {
        "max_joint_velocity": 1.0, "max_step_translation": 0.05, "joint_limit_margin": 0.02, "reference": "commanded",
        "workspace_high": [0.45, 0.25, 0.25],
    },
    {
        "max_joint_velocity": 0.3, "max_step_translation": 0.01, "joint_limit_margin": 0.1, "reference": "measured",
        "workspace_high": [0.45, 0.25, 0.17],
    },
)  # fmt: skip
COMMAND_TIMEOUT, JOINT_STATE_TIMEOUT = 1.5, 0.2  # s, the defaults


class Processes:
    """Nodes as processes on one domain, by name; killed at the end."""

    def __init__(self, domain, folder):
        self._folder, self._running = folder, {}
        self._environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}

    def __contains__(self, name):
        return name in self._running

    def start(self, executable, name=None, **parameters):
        """`python -m dtp_ros.ros.<executable>`, its node renamed to `name` where one is given."""
        arguments = [part for key, value in parameters.items() for part in ("-p", f"{key}:={value}")]
        arguments += ["-r", f"__node:={name}"] if name else []
        with (self._folder / f"{name or executable}.log").open("ab") as log:
            self._running[name or executable] = subprocess.Popen(
                [sys.executable, "-m", f"dtp_ros.ros.{executable}", "--ros-args", *arguments],
                env=self._environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill(self, name):
        """kill -9; returns when, monotonic s."""
        process = self._running.pop(name)
        assert process.poll() is None, f"{name} ended by itself: {self.log(name)}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        return time.monotonic()

    def log(self, name):
        return (self._folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def require_alive(self):
        for name, process in self._running.items():
            assert process.poll() is None, f"{name} ended: {self.log(name)}"

    def close(self):
        for name in list(self._running):
            if self._running[name].poll() is None:
                self.kill(name)


class Person(Node):
    """Who stands beside the arm: the recorder, /diagnostics, the services."""

    def __init__(self, processes):
        super().__init__("person")
        self.processes, self.statuses = processes, []
        self.recorder = Recorder(self)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 20)
        self._arm = self.create_client(SetBool, "/widowx/arm")
        self._stop = self.create_client(Trigger, "/widowx/stop")
        self._go_home = self.create_client(Trigger, "/widowx/go_home")

    def _on_diagnostics(self, message):
        self.statuses += [(time.monotonic(), status) for status in message.status]

    def begin(self):
        """Forget what was heard: another test."""
        self.statuses.clear()
        self.recorder.clear()

    def now(self):
        return self.get_clock().now().nanoseconds * 1e-9

    def call(self, client, request):
        assert client.wait_for_service(START_UP), client.srv_name
        question = Question(client, request)
        wait_until(question.answered, f"an answer of {client.srv_name}")
        return question.answer()

    def arm(self):
        """Arm; again where joint states are missing or old, as after a step back of time, or nobody listens yet."""
        answers = []

        def is_armed():
            answers.append(self.call(self._arm, SetBool.Request(data=True)))
            return answers[-1].success

        wait_until(is_armed, lambda: answers[-1].message, every=OFTEN)

    def stop(self):
        """Call ~/stop; returns when it was called."""
        called = time.monotonic()
        assert self.call(self._stop, Trigger.Request()).success
        return called

    def setter(self, node):
        """A function that sets parameters of `node`, all at once, and returns the future."""
        client = self.create_client(SetParameters, f"/{node}/set_parameters")
        assert client.wait_for_service(START_UP)

        def put(**values):
            parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
            return client.call_async(SetParameters.Request(parameters=parameters))

        return put

    def status(self, name, condition=lambda message, values: True, deadline=20.0):
        """The first status called `name` from now on that fulfils the condition: (message, values)."""
        began = time.monotonic()

        def found():
            self.processes.require_alive()
            for at, status in self.statuses[::-1]:
                if at < began:
                    return None
                values = {pair.key: pair.value for pair in status.values}
                if status.name == name and condition(status.message, values):
                    return status.message, values
            return None

        last = [s.message for _, s in self.statuses if s.name == name][-1:]
        return wait_until(found, f"a status of {name}, before: {last}", deadline)

    def says(self, name, text, deadline=20.0):
        """Wait until the status called `name` says `text` in its message; its values."""
        return self.status(name, lambda message, _: text in message, deadline)[1]

    def wait_for_motion(self, count=3):
        """Wait for new motions; returns when there are.

        Random weights can lead the arm to a pose that they cannot lead it out of: then it is sent home, and what is
        waited for are motions after that, which are the policy's own.
        """
        began = time.monotonic()

        def moving():
            nonlocal began
            self.processes.require_alive()
            said = [s.message for at, s in list(self.statuses) if at > began and s.name == ARM]
            if any(message.startswith("holding") and "kinematics" in message for message in said):
                assert self.call(self._go_home, Trigger.Request()).success
                self.status(ARM)  # the next may have been on its way before the call
                self.status(ARM, lambda message, _: message != "going home", deadline=60.0)
                began = time.monotonic()
            return self.recorder.motions(began) >= count

        wait_until(moving, lambda: f"{count} motions, {[s.message for _, s in self.statuses][-3:]}", START_UP, OFTEN)
        return time.monotonic()

    def require_hold(self, since, timeout):
        """Wait for the hold that ends all motion; it must have come within `timeout` s; returns the time it took."""
        held = wait_until(lambda: self.recorder.held(since), "a hold", timeout + 60.0, OFTEN) - since
        print(f"held after {held:.3f} s, allowed {timeout:.3f} s")
        assert held <= timeout + SLACK, f"held after {held:.2f} s, allowed {timeout:.2f} s"
        return held


class Arm:
    """An arm at 100 Hz that follows its commands with a lag and measures with noise.

    fault: None, `silent`, `frozen` (one stamp), `nan` or `names`.
    """

    def __init__(self, node):
        self._node, self._target, self._joints, self.fault = node, START.copy(), START.copy(), None
        self._gripper, self._rng = 0.074, np.random.default_rng(0)
        self.heard_last, self._stamp = time.monotonic(), node.now()  # when sound joint states were sent last
        self.sound = self._stamp  # their stamp, s
        self._publisher = node.create_publisher(JointState, "joint_states", 10)
        node.create_subscription(JointState, "sim/joint_command", self._on_command, 50)
        node.create_timer(0.01, self._measure)

    def _on_command(self, message):
        self._target, self._gripper = np.array(message.position[:6]), message.position[6]

    def _measure(self):
        self._joints += 0.15 * (self._target - self._joints)
        measured = self._joints + self._rng.normal(0, 1e-4, 6)
        names = [f"other_{name}" for name in NAMES] if self.fault == "names" else NAMES
        if self.fault == "silent":
            return
        if self.fault == "nan":
            measured[2] = np.nan
        if self.fault is None:
            self.heard_last = time.monotonic()
        if self.fault != "frozen":
            self._stamp = self._node.now()
        if self.fault is None:
            self.sound = self._stamp
        positions = {**dict(zip(names, measured, strict=True)), "gripper": self._gripper}
        self._publisher.publish(joint_state_to_ros(positions, self._stamp))


class Camera:
    """15 pictures a second, never the same.

    fault: None, `silent`, `frozen` (one stamp) or `back` (stamps 0.3 s ago).
    """

    def __init__(self, node):
        self._node, self._rng, self.fault = node, np.random.default_rng(1), None
        self._stamp, self.sent_last = None, time.monotonic()
        self.sound = 0.0  # the stamp of its last picture without a fault, s
        best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._publisher = node.create_publisher(Image, "image", best_effort)
        node.create_timer(1 / 15, self._shoot)

    def _shoot(self):
        if self.fault == "silent":
            return
        if self.fault != "frozen":
            self.sound = self._node.now() - (0.3 if self.fault == "back" else 0.0)
            self._stamp, self.sent_last = stamp_to_ros(self.sound), time.monotonic()
        pixels = self._rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        self._publisher.publish(image_to_ros(pixels, self._stamp, "camera"))


class Mover:
    """A policy at 5 Hz that swings the gripper to and fro; `acting`: whether it does."""

    def __init__(self, node):
        self._node, self._count, self.acting, self.sent_last = node, 0, True, time.monotonic()
        self._publisher = node.create_publisher(JointTrajectory, "action_chunk", 10)
        node.create_timer(0.2, self._act)

    def send(self, *actions, stamp=None):
        self.publish(self.message(*actions, stamp=stamp))

    def message(self, *actions, stamp=None):
        return action_chunk_to_ros(np.array(actions, float), stamp or self._node.now(), "base_link", 5.0)

    def publish(self, message):
        self._publisher.publish(message)

    def _act(self):
        if self.acting:
            self._count += 1
            way = 1 if self._count // 6 % 2 else -1
            self.sent_last = time.monotonic()
            self.send([0.012 * way, 0.015 * way, 0.01 * way, 0, 0, 0.05 * way, 1.0])


def storm(person, seconds, *changes):
    """Set parameters 50 times a second, alternating; changes: (setter, values, other values). All must succeed.

    Where a busy machine answers late the next wait (ROS drops all but ten), and the storm lasts longer. Returns how
    many motions were sent meanwhile.
    """
    began, futures, rate = time.monotonic(), [], person.create_rate(50.0)
    while time.monotonic() - began < seconds or len(futures) < 40 * seconds * len(changes):
        assert time.monotonic() - began < seconds + START_UP, f"{len(futures)} answers"
        if sum(not future.done() for future in futures[-10:]) < 8:
            for put, *values in changes:
                futures.append(put(**values[len(futures) // len(changes) % 2]))
        rate.sleep()
    motions = person.recorder.motions(began)
    wait_until(lambda: all(future.done() for future in futures), "every answer")
    assert all(result.successful for future in futures for result in future.result().results)
    person.processes.require_alive()
    return motions


@contextmanager
def graph(domain, folder):
    """A person on a domain of their own, and the processes that they start."""
    rclpy.init(domain_id=domain)
    processes = Processes(domain, folder)
    try:
        with spinning(Person(processes)) as person:
            yield person
    finally:
        processes.close()
        rclpy.shutdown()

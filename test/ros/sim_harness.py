"""A user of the node `sim`, which runs as its own process: hears it and commands it over real DDS."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from dtp_ros.ros.compat import Question
from dtp_ros.ros.conversions import stamp_to_ros

DOMAIN, OTHER_DOMAIN = 87, 88
DEADLINE = 150.0
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
NAMES = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
START = [0.0, 0.02201199, 0.18310092, 0.0, 1.36568341, 0.0, 0.074]
TOPICS = {
    "clock": (Clock, "/clock"),
    "image": (Image, "image"),
    "camera_info": (CameraInfo, "camera_info"),
    "joint_states": (JointState, "joint_states"),
    "objects": (PoseArray, "/sim/objects"),
    "success": (Bool, "/sim/success"),
    "info": (String, "/sim/info"),
    "diagnostics": (DiagnosticArray, "/diagnostics"),
}


def seconds(message):
    stamp = message.clock if isinstance(message, Clock) else message.header.stamp
    return stamp.sec + stamp.nanosec * 1e-9


class User:
    """Hears everything that the node says, and commands it."""

    def __init__(self, domain=DOMAIN):
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = Node("user", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.heard = defaultdict(list)
        for key, (kind, topic) in TOPICS.items():
            qos = SENSOR if key in ("image", "camera_info") else 100
            self.node.create_subscription(kind, topic, self.heard[key].append, qos)
        self.commands = self.node.create_publisher(JointState, "sim/joint_command", 10)

    def wait(self, condition, what, deadline=DEADLINE):
        end = time.monotonic() + deadline
        while not condition():
            assert time.monotonic() < end, f"not within {deadline} s: {what() if callable(what) else what}"
            self.executor.spin_once(timeout_sec=0.05)

    def listen(self, duration):
        end = time.monotonic() + duration
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind, service, request):
        client = self.node.create_client(kind, service)
        self.wait(client.service_is_ready, service)
        question = Question(client, request)
        self.wait(question.answered, f"answer of {service}")
        self.node.destroy_client(client)
        return question.answer()

    def set(self, **values):
        request = SetParameters.Request()
        for name, value in values.items():
            kinds = {
                str: (ParameterType.PARAMETER_STRING, "string_value"),
                int: (ParameterType.PARAMETER_INTEGER, "integer_value"),
                float: (ParameterType.PARAMETER_DOUBLE, "double_value"),
            }
            kind, field = kinds[type(value)]
            request.parameters.append(Parameter(name=name, value=ParameterValue(type=kind, **{field: value})))
        return self.call(SetParameters, "/sim/set_parameters", request).results

    def reset(self, **values):
        assert all(result.successful for result in self.set(**values))
        answer = self.call(Trigger, "/sim/reset", Trigger.Request())
        assert answer.success, answer.message
        return json.loads(answer.message)

    def begin(self, **values):
        """Reset, and wait for the first moment of the episode; its time, s."""
        self.heard["info"].clear()
        self.reset(**values)
        self.wait(lambda: self.heard["info"] and self.info()["step"] == 0, "the new episode")
        first = self.info()["time"]
        self.wait(lambda: seconds(self.newest("image")) == pytest.approx(first, abs=1e-6), "its first image")
        return first

    def send(self, positions=START, names=NAMES, stamp=0.0):
        message = JointState(name=list(names), position=[float(value) for value in positions])
        message.header.stamp = stamp_to_ros(stamp)
        self.commands.publish(message)

    def newest(self, key):
        self.wait(lambda: self.heard[key], key)
        return self.heard[key][-1]

    def step(self, positions=START):
        """One command in lock-step; returns the image of the new moment."""
        before = seconds(self.newest("image"))
        self.send(positions)
        self.wait(lambda: seconds(self.heard["image"][-1]) > before, "the image of the new moment")
        now = seconds(self.heard["image"][-1])
        for key in ("joint_states", "objects", "camera_info", "clock"):
            self.wait(lambda key=key: seconds(self.newest(key)) >= now, f"{key} of the new moment")
        self.wait(lambda: self.info()["time"] >= now - 1e-6, "info of the new moment")
        return self.heard["image"][-1]

    def info(self):
        return json.loads(self.newest("info").data)

    def refusals(self):
        values = {pair.key: pair.value for pair in self.newest("diagnostics").status[0].values}
        return {key: int(value) for key, value in values.items() if key.startswith("refused_")}

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def start(*arguments, domain=DOMAIN):
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    command = [sys.executable, "-m", "dtp_ros.ros.sim_node", "--ros-args"]
    for argument in arguments:
        command += ["-p", argument]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

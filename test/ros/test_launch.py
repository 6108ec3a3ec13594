"""launch/widowx.launch.py, config/widowx.yaml and config/dtp.rviz: what they name is there."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.node import Node
from rclpy.parameter import Parameter

from dtp_ros.ros.overlays import OVERLAYS
from dtp_ros.ros.parameters import SPECS, PolicyParameters

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch/widowx.launch.py"
CONFIG = ROOT / "config/widowx.yaml"
DOMAIN = 74
ARGUMENTS = {"sim", "model", "checkpoint", "driver", "robot", "params_file", "namespace", "rviz", "image_topic"}


def parameters_in_file(node):
    return yaml.safe_load(CONFIG.read_text())[f"/**/{node}"]["ros__parameters"]


def test_the_launch_file_declares_the_arguments_of_the_contract():
    calls = [n for n in ast.walk(ast.parse(LAUNCH.read_text())) if isinstance(n, ast.Call)]
    declared = [n.args[0].value for n in calls if getattr(n.func, "id", "") == "DeclareLaunchArgument"]
    assert len(declared) == len(set(declared))
    assert set(declared) == ARGUMENTS


def test_the_launch_file_starts_what_its_arguments_say():
    pytest.importorskip("launch_ros", reason="launch_ros comes with a sourced ROS 2 only")
    from launch import LaunchContext
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(LAUNCH))

    def executables(**arguments):
        context = LaunchContext()
        for entity in description.entities[:-1]:
            entity.visit(context)
        context.launch_configurations.update(arguments)
        return [node.node_executable for node in description.entities[-1].visit(context)]

    assert executables() == ["policy_node", "widowx_node"]
    assert executables(sim="true", rviz="true") == ["policy_node", "widowx_node", "sim_node", "rviz2"]


def test_policy_parameters_in_the_file_are_all_and_the_defaults():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=DOMAIN)
    node = Node("plain")
    try:
        PolicyParameters(node, lambda old, new: None)
        defaults = {s.name: node.get_parameter(s.name).value for s in SPECS}
    finally:
        node.destroy_node()
        rclpy.shutdown()
    plain = {k: v if isinstance(v, (bool, int, float, str)) else list(v) for k, v in defaults.items()}
    written = parameters_in_file("dtp_policy")
    assert written == plain
    # ROS refuses an integer for a double.
    assert {k: type(v) for k, v in written.items()} == {k: type(v) for k, v in plain.items()}


LISTED = """
import sys, yaml, importlib, rclpy
from rclpy.parameter import Parameter
rclpy.init()
module, name = sys.argv[1:]
node = getattr(importlib.import_module(f"dtp_ros.ros.{module}"), name)()
values = {p: node.get_parameter(p).value for p in node._parameters}
print(yaml.safe_dump({k: v if isinstance(v, (bool, int, float, str)) else list(v) for k, v in values.items()}))
"""


@pytest.mark.parametrize("node", ["widowx", "sim", "expert"])
def test_parameters_of_the_other_nodes_in_the_file_are_all_and_the_defaults(node):
    module = f"{node}_node"
    path = ROOT / f"dtp_ros/ros/{module}.py"
    classes = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
    (name,) = [c for c in classes if c.endswith("Node")]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(DOMAIN), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    done = subprocess.run(
        [sys.executable, "-c", LISTED, module, name], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    declared = yaml.safe_load(done.stdout)
    for own in ("use_sim_time", "start_type_description_service"):
        declared.pop(own, None)
    assert parameters_in_file(node) == declared


def test_the_file_serves_nodes_in_a_namespace():
    arguments = ["--ros-args", "--params-file", str(CONFIG), "-r", "__ns:=/left/arm", "-r", "__node:=dtp_policy"]
    rclpy.init(args=[*arguments, "-p", "tolerance:=1.25"], domain_id=DOMAIN)
    node = Node("plain")
    try:
        assert node.get_fully_qualified_name() == "/left/arm/dtp_policy"
        node.declare_parameter("max_pruned", Parameter.Type.INTEGER)
        node.declare_parameter("tolerance", Parameter.Type.DOUBLE)
        assert node.get_parameter("max_pruned").value == 2
        assert node.get_parameter("tolerance").value == 1.25
    finally:
        node.destroy_node()
        rclpy.shutdown()


def test_rviz_looks_at_topics_that_there_are():
    displays = yaml.safe_load((ROOT / "config/dtp.rviz").read_text())["Visualization Manager"]["Displays"]
    topics = {d["Topic"]["Value"] for d in displays if "Topic" in d}
    overlays = {t for t in topics if t.startswith("dtp_policy/debug/")}
    assert overlays
    assert overlays <= {f"dtp_policy/debug/{name}" for name in OVERLAYS}
    assert topics - overlays == {"widowx/markers", "widowx/target_pose", "widowx/commanded_pose"}

"""config/widowx.yaml, config/dtp.rviz and config/dtp.perspective: what they name is there, and only that."""

import ast
import json
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
from dtp_ros.ros.policy_metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config/widowx.yaml"
DOMAIN = 74


def parameters_in_file(node):
    return yaml.safe_load(CONFIG.read_text())[f"/**/{node}"]["ros__parameters"]


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
        [sys.executable, "-c", LISTED, module, name], capture_output=True, text=True, timeout=150, env=environment
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


def test_rviz_shows_the_camera_the_four_overlays_the_markers_and_the_robot():
    settings = yaml.safe_load((ROOT / "config/dtp.rviz").read_text())["Visualization Manager"]
    topics = {
        (display["Class"].split("/")[1], value["Value"])
        for display in settings["Displays"]
        for value in display.values()
        if isinstance(value, dict)
    }
    assert topics == {
        *(("Image", f"dtp_policy/debug/{name}") for name in OVERLAYS),
        ("Image", "image"),
        ("MarkerArray", "widowx/markers"),
        ("Pose", "widowx/target_pose"),
        ("Pose", "widowx/commanded_pose"),
        ("RobotModel", "robot_description"),
    }
    assert settings["Global Options"]["Fixed Frame"] == parameters_in_file("widowx")["base_frame"]


def test_the_perspective_names_plugins_and_topics_that_there_are():
    root = json.loads((ROOT / "config/dtp.perspective").read_text())["groups"]["pluginmanager"]

    def values(group):
        return {name: ast.literal_eval(value[value["type"]]) for name, value in group["keys"].items()}

    plugins = values(root)["running-plugins"]
    assert plugins == {"rqt_reconfigure/Param": [1], "rqt_plot/Plot": [1], "rqt_image_view/ImageView": [1]}
    # Where rqt looks for what an instance had shown.
    assert set(root["groups"]) == {f"plugin__{name.replace('/', '__')}__1" for name in plugins}
    shown = {name.split("__")[1]: values(group["groups"]["plugin"]) for name, group in root["groups"].items()}
    assert shown["rqt_reconfigure"]["selected_nodes"] == ["/dtp_policy"]
    assert shown["rqt_plot"]["topics"] == [f"/dtp_policy/metrics/{name}/data" for name in METRICS]
    assert shown["rqt_image_view"]["topic"] == "/dtp_policy/debug/mask"
    assert "mask" in OVERLAYS

"""launch/widowx.launch.py: its arguments, and real nodes started by it where launch_ros is there."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import rclpy
import yaml
from graph import spinning
from lifecycle_msgs.srv import GetState
from policy_harness import wait_until
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python

from dtp_ros.ros.names import arm_namespace, under
from dtp_ros.widowx.kinematics import ROBOTS

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch/widowx.launch.py"
DOMAIN = 73
ACTIVE, UNCONFIGURED = "active", "unconfigured"
ARGUMENTS = {"sim", "model", "checkpoint", "driver", "robot", "params_file", "namespace", "rviz", "image_topic"}

# What `ros2 launch` does: it has no more options that matter here.
SERVICE = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
path, *given = sys.argv[1:]
arguments = [tuple(argument.split(":=")) for argument in given]
included = IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=arguments)
service = LaunchService()
service.include_launch_description(LaunchDescription([included]))
sys.exit(service.run())
"""


def test_the_launch_file_declares_the_arguments_of_the_contract():
    calls = [n for n in ast.walk(ast.parse(LAUNCH.read_text())) if isinstance(n, ast.Call)]
    declared = [n.args[0].value for n in calls if getattr(n.func, "id", "") == "DeclareLaunchArgument"]
    assert len(declared) == len(set(declared))
    assert set(declared) == ARGUMENTS


def test_the_robots_that_it_names_are_those_that_there_are():
    assigned = [n for n in ast.parse(LAUNCH.read_text()).body if isinstance(n, ast.Assign)]
    (robots,) = [ast.literal_eval(n.value) for n in assigned if n.targets[0].id == "ROBOTS"]
    assert sorted(robots) == sorted(["", *ROBOTS])


@pytest.fixture
def entities():
    """The launch file's declared arguments, and the function that makes nodes of them."""
    pytest.importorskip("launch_ros", reason="launch_ros comes with a sourced ROS 2 only")
    from launch import LaunchContext
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(LAUNCH))

    def started(**arguments):
        context = LaunchContext()
        context.launch_configurations.update(arguments)
        for entity in description.entities[:-1]:
            entity.visit(context)
        return [node.node_executable for node in description.entities[-1].visit(context)]

    return started


def test_the_launch_file_starts_what_its_arguments_say(entities):
    assert entities() == ["policy_node", "widowx_node"]
    assert entities(sim="true", rviz="true") == ["policy_node", "widowx_node", "sim_node", "rviz2"]
    assert entities(robot="wx250s", rviz="true") == ["policy_node", "widowx_node", "rviz2"]


def test_an_argument_that_cannot_stand_is_named(entities):
    with pytest.raises(Exception, match="wx250s"):
        entities(robot="ur5")
    with pytest.raises(Exception, match=r"params_file = '/nowhere\.yaml'"):
        entities(params_file="/nowhere.yaml")


def test_what_it_imports_of_the_package_needs_no_library():
    """`ros2 launch` runs it under the system's Python, and the nodes under the environment's."""
    tree = ast.parse(LAUNCH.read_text())
    own = [n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module.startswith("dtp_ros")]
    assert own
    heavy = "{'numpy', 'torch', 'scipy', 'cv2', 'transformers', 'rclpy'}"
    code = f"import sys, {', '.join(own)}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("robot", "namespace", "written", "topic"),
    [
        ("", "", None, "joint_states"),
        ("wx250s", "", None, "/wx250s/joint_states"),
        ("wxai", "cell", None, "/joint_states"),
        ("wx250s", "", {"/**/widowx": {"max_joint_velocity": 0.3}}, "/wx250s/joint_states"),
        ("wx250s", "", {"/**/widowx": {"arm_namespace": "/left"}}, "/left/joint_states"),
        ("wx250s", "cell", {"/**": {"arm_namespace": "/"}}, "/joint_states"),
        ("wx250s", "/cell", {"/cell/widowx": {"arm_namespace": "left"}}, "left/joint_states"),
        ("", "", {"/**/dtp_policy": {"arm_namespace": "/left"}, "/**/widowx": None}, "joint_states"),
    ],
)
def test_the_policy_hears_the_joint_states_that_the_arms_node_hears(tmp_path, robot, namespace, written, topic):
    """What the launch file remaps to; the node `widowx` reads the same files."""
    files = [str(ROOT / "config" / "robots" / f"{robot}.yaml")] if robot else []
    if written is not None:
        files.append(str(tmp_path / "mine.yaml"))
        nodes = {name: values and {"ros__parameters": values} for name, values in written.items()}
        Path(files[-1]).write_text(yaml.safe_dump(nodes))
    assert under(arm_namespace(files, namespace), "joint_states") == topic


@pytest.fixture
def launched(tmp_path):
    """Start the launch file as `ros2 launch` does; a function that returns the console once it has ended on Ctrl-C."""
    pytest.importorskip("launch_ros", reason="launch_ros comes with a sourced ROS 2 only")
    index, programs = tmp_path / "share/ament_index/resource_index/packages", tmp_path / "lib/dtp_ros"
    for folder in (index, programs):
        folder.mkdir(parents=True)
    (index / "dtp_ros").touch()
    for name in ("policy_node", "widowx_node", "sim_node"):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m dtp_ros.ros.{name} "$@"\n')
        (programs / name).chmod(0o755)
    prefixes = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("AMENT_PREFIX_PATH"))))
    own = {"AMENT_PREFIX_PATH": prefixes, "ROS_DOMAIN_ID": str(DOMAIN), "ROS_LOG_DIR": str(tmp_path / "log")}
    running = []

    def launch(*arguments):
        console = tmp_path / "console.txt"
        with console.open("wb") as file:
            command = [sys.executable, "-c", SERVICE, str(LAUNCH), *arguments]
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **own})
        running.append(process)

        def end():
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
            return console.read_text()

        return end

    yield launch
    for process in running:
        if process.poll() is None:  # SIGTERM: a killed launch would leave its nodes alive
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture
def user():
    rclpy.init(domain_id=DOMAIN)
    with spinning(Node("user")) as node:
        yield node
    rclpy.try_shutdown()


def call(user, kind, name, request):
    client = user.create_client(kind, name)
    wait_until(client.service_is_ready, name)
    future = client.call_async(request)
    wait_until(future.done, f"the answer of {name}")
    user.destroy_client(client)
    return future.result()


def parameters(user, node, *names):
    answer = call(user, GetParameters, f"{node}/get_parameters", GetParameters.Request(names=list(names)))
    return [parameter_value_to_python(value) for value in answer.values]


def state(user, node):
    return call(user, GetState, f"{node}/get_state", GetState.Request()).current_state.label


def test_a_real_arm_in_dry_run_who_overrides_whom_and_a_failure_named_on_the_console(launched, user, tmp_path):
    file = tmp_path / "mine.yaml"
    nodes = {
        # What all nodes share comes first, as people write it: rcl then puts other /** here, too.
        "/**": {"use_sim_time": False},
        "/**/widowx": {"driver": "servo", "max_joint_velocity": 0.25, "profile_move_time": 0.5},
        "/**/dtp_policy": {"model": "nora", "checkpoint": "/in/the/file", "tolerance": 1.25},
    }
    file.write_text(yaml.safe_dump({name: {"ros__parameters": values} for name, values in nodes.items()}))
    end = launched(
        "namespace:=left", "robot:=wx250s", f"params_file:={file}", "driver:=dry_run", "checkpoint:=/nowhere/at/all"
    )
    shipped = yaml.safe_load((ROOT / "config/robots/wx250s.yaml").read_text())["/**/widowx"]["ros__parameters"]
    names = ("driver", "robot", "base_frame", "max_joint_velocity", "profile_move_time", "max_step_rotation")
    assert parameters(user, "/left/widowx", *names) == [
        "dry_run",  # the argument, not the file
        "wx250s",
        shipped["base_frame"],  # config/robots
        0.25,  # the file
        0.5,  # the file, not config/robots
        0.25,  # the node's own
    ]
    names = ("checkpoint", "base_frame", "tolerance")
    assert parameters(user, "/left/dtp_policy", *names) == ["/nowhere/at/all", shipped["base_frame"], 1.25]
    wait_until(lambda: "configure refused" in (tmp_path / "console.txt").read_text(), "the cause")
    assert state(user, "/left/dtp_policy") == UNCONFIGURED
    console = end()
    (line,) = [line for line in console.splitlines() if "configure refused" in line]
    assert line.startswith("[policy_node-1] [ERROR]")
    assert "/nowhere/at/all" in line
    assert console.count("process has finished cleanly") == 2, console


def test_the_simulator_comes_up_with_its_policy_and_all_end_on_ctrl_c(launched, user):
    end = launched("sim:=true", "robot:=wx250s", "checkpoint:=tiny")
    wait_until(lambda: state(user, "/dtp_policy") == ACTIVE, "the policy")
    names = ("model", "checkpoint", "base_frame", "use_sim_time")
    assert parameters(user, "/dtp_policy", *names) == ["tabletop", "tiny", "base_link", True]
    assert parameters(user, "/widowx", "driver", "base_frame", "use_sim_time") == ["sim", "base_link", True]
    assert parameters(user, "/sim", "use_sim_time") == [False]
    console = end()
    assert console.count("process has finished cleanly") == 3, console
    assert "Traceback" not in console

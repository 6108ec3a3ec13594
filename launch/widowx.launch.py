"""Camera to command: the policy and the arm, with the simulator where asked. Maps arguments to nodes, nothing else.

An argument left empty says nothing. A parameter is what the last of these says: the node's own default,
config/robots/<robot>.yaml (a real arm's frames, topics and workspace), `params_file`, the other arguments.
"""

from pathlib import Path
from typing import Any

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import Parameter, ParameterValue

from dtp_ros.errors import ConfigError
from dtp_ros.models.registry import model_names
from dtp_ros.resources import share_file
from dtp_ros.ros.names import arm_namespace, under

MODELS = ", ".join(model_names())
BOOLEAN = ["true", "false"]
ROBOTS = ["", "wx250s", "wx250", "wxai"]
ARGUMENTS = [
    DeclareLaunchArgument("sim", default_value="false", choices=BOOLEAN, description="start the tabletop simulator"),
    DeclareLaunchArgument("model", default_value="", description=f"{MODELS} (nora; tabletop if sim:=true)"),
    DeclareLaunchArgument("checkpoint", default_value="", description="folder, hub id, or tiny (the model's own)"),
    DeclareLaunchArgument("driver", default_value="", description="how the arm is driven (dry_run; sim if sim:=true)"),
    DeclareLaunchArgument("robot", default_value="", choices=ROBOTS, description="the arm, its config/robots (none)"),
    DeclareLaunchArgument("params_file", default_value="", description="the nodes' parameters, as config/widowx.yaml"),
    DeclareLaunchArgument("namespace", default_value="", description="namespace of every node"),
    DeclareLaunchArgument("rviz", default_value="false", choices=BOOLEAN, description="open RViz"),
    DeclareLaunchArgument("image_topic", default_value="image", description="topic of the main camera"),
]


def nodes(context: LaunchContext) -> list[Node]:
    """The nodes of the arguments' values; raises ConfigError where a file is not there."""
    given = {name: LaunchConfiguration(name).perform(context) for name in (a.name for a in ARGUMENTS)}
    sim = given["sim"] == "true"
    if sim:
        given["driver"] = given["driver"] or "sim"
    robot_file = str(share_file(f"config/robots/{given['robot']}.yaml")) if given["robot"] and not sim else ""
    files = [file for file in (robot_file, given["params_file"]) if file]
    if not all(Path(file).is_file() for file in files):  # launch_ros would go on without it
        raise ConfigError(f"params_file = {given['params_file']!r} is not there (valid: a file as config/widowx.yaml)")

    def node(kind: str, name: str, *arguments: str, base: tuple[Parameter, ...] = (), **options: Any) -> Node:
        # As strings: a checkpoint called 7 is no number.
        said = {argument: ParameterValue(given[argument], value_type=str) for argument in arguments if given[argument]}
        # The simulator makes the time that the others use.
        clock = {"use_sim_time": True} if sim and kind != "sim_node" else {}
        # A dictionary is written under the node's full name, which no wildcard of the files can take back: that needs
        # both the name and the namespace here. `base` is written under /**, which every file overrides.
        parameters = [*base, *files, *([{**said, **clock}] if said or clock else [])]
        options |= {"executable": kind, "name": name, "namespace": given["namespace"], "parameters": parameters}
        return Node(package="dtp_ros", output="screen", **options)

    image = given["image_topic"]
    camera = [("image", image), ("image/compressed", f"{image}/compressed")]
    camera.append(("camera_info", f"{image.rpartition('/')[0]}/camera_info" if "/" in image else "camera_info"))
    base = (Parameter("model", "tabletop"),) if sim else ()
    joint_states = under(arm_namespace(files, given["namespace"]), "joint_states")
    heard = [*camera, ("joint_states", joint_states)]
    started = [
        node("policy_node", "dtp_policy", "model", "checkpoint", "robot", base=base, remappings=heard),
        node("widowx_node", "widowx", "driver", "robot"),
    ]
    if sim:
        started.append(node("sim_node", "sim", remappings=camera))
    if given["rviz"] == "true":
        started.append(viewer(robot_file, given["namespace"], camera, sim))
    return started


def viewer(robot_file: str, namespace: str, camera: list[tuple[str, str]], sim: bool) -> Node:
    """RViz on config/dtp.rviz, in the frame and with the description of the arm that the robot's file names."""
    arguments, remappings = ["-d", str(share_file("config/dtp.rviz"))], list(camera)
    if robot_file:
        arm = yaml.safe_load(Path(robot_file).read_text())["/**/widowx"]["ros__parameters"]
        arguments += ["-f", arm["base_frame"]]
        remappings.append(("robot_description", under(arm["arm_namespace"], "robot_description")))
    options = {"arguments": arguments, "remappings": remappings, "parameters": [{"use_sim_time": sim}]}
    return Node(package="rviz2", executable="rviz2", namespace=namespace, **options)


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch dtp_ros widowx.launch.py` starts."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])

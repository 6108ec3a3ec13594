"""Camera to command: the policy and the arm, with the simulator where asked. Maps arguments to nodes, nothing else.

An argument left empty says nothing: then `params_file` decides, and else the node's own default.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from dtp_ros.resources import share_file

BOOLEAN = ["true", "false"]
ARGUMENTS = [
    DeclareLaunchArgument("sim", default_value="false", choices=BOOLEAN, description="start the tabletop simulator"),
    DeclareLaunchArgument("model", default_value="", description="vision-language-action model (nora)"),
    DeclareLaunchArgument("checkpoint", default_value="", description="folder, hub id, or tiny (the model's own)"),
    DeclareLaunchArgument("driver", default_value="", description="how the arm is driven (dry_run; sim if sim:=true)"),
    DeclareLaunchArgument("robot", default_value="", description="wx250s, wx250 or wxai (wx250s)"),
    DeclareLaunchArgument("params_file", default_value="", description="the nodes' parameters, as config/widowx.yaml"),
    DeclareLaunchArgument("namespace", default_value="", description="namespace of every node"),
    DeclareLaunchArgument("rviz", default_value="false", choices=BOOLEAN, description="open RViz"),
    DeclareLaunchArgument("image_topic", default_value="image", description="topic of the main camera"),
]


def nodes(context: LaunchContext) -> list[Node]:
    """The nodes of the arguments' values."""
    given = {name: LaunchConfiguration(name).perform(context) for name in (a.name for a in ARGUMENTS)}
    sim = given["sim"] == "true"
    if sim:
        given["driver"] = "sim"

    def parameters(*names: str) -> list[object]:
        # As strings: a checkpoint called 7 is no number.
        said = {name: ParameterValue(given[name], value_type=str) for name in names if given[name]}
        clock = {"use_sim_time": True} if sim else {}
        return [*([given["params_file"]] if given["params_file"] else []), {**said, **clock}]

    image = given["image_topic"]
    remappings = [("image", image), ("image/compressed", f"{image}/compressed")]
    common = {"package": "dtp_ros", "namespace": given["namespace"], "output": "screen"}
    policy = parameters("model", "checkpoint", "robot")
    started = [
        Node(executable="policy_node", parameters=policy, remappings=remappings, **common),
        Node(executable="widowx_node", parameters=parameters("driver", "robot"), **common),
    ]
    if sim:
        # The simulator makes the time that the others use.
        files = [given["params_file"]] if given["params_file"] else []
        started.append(Node(executable="sim_node", parameters=files, remappings=remappings, **common))
    if given["rviz"] == "true":
        arguments = ["-d", str(share_file("config/dtp.rviz"))]
        viewer = {"package": "rviz2", "executable": "rviz2", "namespace": given["namespace"]}
        started.append(Node(arguments=arguments, parameters=[{"use_sim_time": sim}], **viewer))
    return started


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch dtp_ros widowx.launch.py` starts."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])

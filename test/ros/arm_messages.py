"""Messages of the arms' own packages, which are not on the Python registry: the fields that are published."""

import os
import sys

from message_types import build

JOINTS_REQUEST = "string cmd_type\nstring name\n"
INTERBOTIX = {
    "msg/JointGroupCommand.msg": "string name\nfloat32[] cmd\n",
    "msg/JointSingleCommand.msg": "string name\nfloat32 cmd\n",
    "srv/TorqueEnable.srv": f"{JOINTS_REQUEST}bool enable\n---\n",
    "srv/RegisterValues.srv": f"{JOINTS_REQUEST}string reg\nint32 value\n---\nint32[] values\n",
    "srv/RobotInfo.srv": f"{JOINTS_REQUEST}---\nstring mode\nstring profile_type\nstring[] joint_names\n"
    "int16[] joint_ids\nfloat32[] joint_lower_limits\nfloat32[] joint_upper_limits\n"
    "float32[] joint_velocity_limits\nfloat32[] joint_sleep_positions\nint16[] joint_state_indices\n"
    "int16 num_joints\nstring[] name\n",
}
CONTROL = {
    "action/ParallelGripperCommand.action": "sensor_msgs/JointState command\n---\n"
    "sensor_msgs/JointState state\nbool stalled\nbool reached_goal\n---\nsensor_msgs/JointState state\n",
}
CONTROL_DEPENDS = ("sensor_msgs", "std_msgs", "action_msgs", "unique_identifier_msgs")


def provide(cache):
    """Build both packages and put them on this process's path; returns the environment that gives them to another."""
    folders = [build("interbotix_xs_msgs", INTERBOTIX, cache), build("control_msgs", CONTROL, cache, CONTROL_DEPENDS)]
    paths = [str(folder) for folder in folders]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*paths, *([given] if given else [])])}

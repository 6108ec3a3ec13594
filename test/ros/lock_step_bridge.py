"""An arm of one driver's traffic on the simulator's table, in lock-step: one command in, one `sim/joint_command` out.

`python lock_step_bridge.py joint_trajectory|interbotix --ros-args ...`. Holds are passed on too, since the simulator's
time moves only with commands; a driver sends the gripper's target before the joints', so the newest one belongs.
"""

import contextlib
import sys

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
OPEN, CLOSED = 0.074, 0.030  # m between the fingers


class Table:
    """The simulator's end: joints in rad and the newest opening in m.

    A node of its own, there before the arm's: an arm that already took commands while it waited would lose them.
    """

    def __init__(self):
        self.opening = OPEN
        node = rclpy.create_node("table")
        self.publisher = node.create_publisher(JointState, "sim/joint_command", 10)
        while self.publisher.get_subscription_count() == 0:  # a command that nobody hears stops time for ever
            rclpy.spin_once(node, timeout_sec=0.05)

    def move(self, joints):
        self.publisher.publish(JointState(name=[*JOINTS, "gripper"], position=[*map(float, joints), self.opening]))


class JointTrajectoryArm(Node):
    """What joint_trajectory_controller takes: every point ends up where it says, at rest, at the end of its time."""

    def __init__(self, table):
        super().__init__("controllers")
        self.table = table
        self.create_subscription(JointTrajectory, "gripper_controller/joint_trajectory", self.on_gripper, 10)
        self.create_subscription(JointTrajectory, "arm_controller/joint_trajectory", self.on_arm, 10)

    def on_gripper(self, message):
        if list(message.joint_names) == ["left_finger"]:
            self.table.opening = 2.0 * message.points[-1].positions[0]

    def on_arm(self, message):
        if tuple(message.joint_names) == JOINTS and not any(message.points[-1].velocities):
            self.table.move(message.points[-1].positions)


def interbotix_arm(table):
    """What xs_sdk takes, its services included; PWM opens the gripper or closes it."""
    from xs_sdk import XsSdk

    class InterbotixArm(XsSdk):
        def __init__(self):
            self.table = table
            super().__init__()

        def on_single(self, message):
            super().on_single(message)
            if self.effort:
                self.table.opening = OPEN if self.effort > 0 else CLOSED

        def on_group(self, message):
            if message.name == "arm" and len(message.cmd) == len(JOINTS):
                self.table.move(message.cmd)

    return InterbotixArm()


if __name__ == "__main__":
    make = {"joint_trajectory": JointTrajectoryArm, "interbotix": interbotix_arm}[sys.argv[1]]
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(make(Table()))

"""A stand-in of ros2_control's ParallelGripperActionController, as a process: it says what its goals were."""

import contextlib

import rclpy
from control_msgs.action import ParallelGripperCommand
from rclpy.action import ActionServer
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState


class ParallelGripper(Node):
    def __init__(self):
        super().__init__("parallel_gripper")
        self.goals = self.create_publisher(JointState, "~/goals", 10)
        self.server = ActionServer(self, ParallelGripperCommand, "gripper_controller/gripper_cmd", self.execute)

    def execute(self, handle):
        self.goals.publish(handle.request.command)
        handle.succeed()
        return ParallelGripperCommand.Result(reached_goal=True)


if __name__ == "__main__":
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(ParallelGripper())

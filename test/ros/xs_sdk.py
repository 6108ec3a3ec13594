"""A stand-in of Interbotix's `xs_sdk` for a WidowX 250S, as a process of its own: `python xs_sdk.py --ros-args ...`.

It does as it is told, like the real one: no clamp, no test for NaN, only the length is looked at. A motor with a time
profile takes Profile_Velocity ms from where it is to a new goal, from rest, whatever the distance.
"""

import contextlib
import math

import rclpy
from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
from interbotix_xs_msgs.srv import RegisterValues, RobotInfo, TorqueEnable
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState

JOINTS = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]
START = [0.0, 0.02201199, 0.18310092, 0.0, 1.36568341, 0.0]
FINGER = (0.015, 0.037)  # m
PERIOD = 0.01  # s
FINGER_SPEED = 0.05  # m/s, in PWM mode


class XsSdk(Node):
    def __init__(self):
        super().__init__("xs_sdk")
        self.declare_parameter("arm_mode", "position")
        self.declare_parameter("profile_type", "time")
        self.declare_parameter("gripper_mode", "pwm")
        self.declare_parameter("joint_names", JOINTS)
        profile = self.declare_parameter("profile_velocity", [2000] * 6).value
        torque = int(self.declare_parameter("torque", True).value)
        self.registers = {
            "Profile_Velocity": list(profile),
            "Profile_Acceleration": [300] * 6,
            "Torque_Enable": [torque] * 6,
        }
        self.positions, self.finger, self.effort = list(START), FINGER[1], 0.0
        self.moves = [(q, q, 0.0) for q in START]  # from, to, s since
        self.states = self.create_publisher(JointState, "joint_states", 10)
        self.create_subscription(JointGroupCommand, "commands/joint_group", self.on_group, 10)
        self.create_subscription(JointSingleCommand, "commands/joint_single", self.on_single, 10)
        self.create_service(RobotInfo, "get_robot_info", self.on_info)
        self.create_service(RegisterValues, "get_motor_registers", self.on_get)
        self.create_service(RegisterValues, "set_motor_registers", self.on_set)
        self.create_service(TorqueEnable, "torque_enable", self.on_torque)

    def on_group(self, message):
        if message.name == "arm" and len(message.cmd) == len(JOINTS) and all(self.registers["Torque_Enable"]):
            self.moves = [(q, goal, 0.0) for q, goal in zip(self.positions, message.cmd, strict=True)]

    def on_single(self, message):
        if message.name == "gripper":
            self.effort = message.cmd

    def on_info(self, request, response):
        is_arm = request.cmd_type == "group"
        response.name, response.num_joints = [request.name], len(JOINTS) if is_arm else 1
        response.mode = self.get_parameter("arm_mode" if is_arm else "gripper_mode").value
        response.profile_type = self.get_parameter("profile_type").value
        response.joint_names = self.get_parameter("joint_names").value if is_arm else ["left_finger"]
        return response

    def on_get(self, request, response):
        response.values = [self.registers[request.reg][i] for i in self.chosen(request)]
        return response

    def on_set(self, request, response):
        for i in self.chosen(request):
            self.registers[request.reg][i] = request.value
        return response

    def on_torque(self, request, response):
        if request.name != "gripper":
            for i in self.chosen(request):
                self.registers["Torque_Enable"][i] = int(request.enable)
        return response

    def chosen(self, request):
        return range(len(JOINTS)) if request.cmd_type == "group" else [JOINTS.index(request.name)]

    def step(self):
        for i, (start, goal, since) in enumerate(self.moves):
            share = self.share(since + PERIOD, i)
            self.moves[i] = (start, goal, since + PERIOD)
            self.positions[i] = goal if share >= 1.0 else start + share * (goal - start)
        if self.get_parameter("gripper_mode").value == "pwm":
            self.finger += PERIOD * math.copysign(FINGER_SPEED, self.effort) if self.effort else 0.0
            self.finger = min(max(self.finger, FINGER[0]), FINGER[1])
        elif self.effort:
            self.finger = 0.5 * self.effort

    def share(self, seconds, joint):
        """Of the way, after `seconds` of a trapezoid from rest to rest."""
        total, ramp = (1e-3 * self.registers[r][joint] for r in ("Profile_Velocity", "Profile_Acceleration"))
        ramp = max(min(ramp, total / 2), 1e-6)
        speed = 1.0 / (total - ramp)
        if seconds < ramp:
            return 0.5 * speed * seconds**2 / ramp
        if seconds < total - ramp:
            return speed * (seconds - 0.5 * ramp)
        return 1.0 - 0.5 * speed * max(total - seconds, 0.0) ** 2 / ramp

    def publish(self):
        """As the real one: the gripper's motor angle under its name, the fingers beside it."""
        names = [*JOINTS, "gripper", "left_finger", "right_finger"]
        message = JointState(name=names, position=[*self.positions, 0.5, self.finger, -self.finger])
        message.header.stamp = self.get_clock().now().to_msg()
        self.states.publish(message)


class MovingXsSdk(XsSdk):
    """In real time, 100 Hz."""

    def __init__(self):
        super().__init__()
        self.create_timer(PERIOD, self.tick)

    def tick(self):
        self.step()
        self.publish()


def main(make=MovingXsSdk):
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(make())


if __name__ == "__main__":
    main()

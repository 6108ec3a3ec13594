"""An ideal arm in front of the controller, for tests worked out by hand."""

import numpy as np

from dtp_ros.widowx.controller import ArmController
from dtp_ros.widowx.kinematics import robot
from dtp_ros.widowx.schedule import Chunk

ARM = robot("wx250s")
START = np.array([0.0, 0.02201199, 0.18310092, 0.0, 1.36568341, 0.0])
FORWARD = [0.02, 0, 0, 0, 0, 0, 1.0]
LEFT = [0, 0.02, 0, 0, 0, 0, 0.0]


class Bench:
    """A controller, and an ideal arm: it is measured where it was last told to be, every 20 ms."""

    def __init__(self, *, armed=True, robot=ARM, start=START, config=None, now=100.0):
        self.arm = ArmController(robot, config, armed=armed)
        self.now, self.joints, self.sent = now, np.array(start), []
        self.measure()

    def measure(self, **fingers):
        names = [*self.arm.robot.joint_names, *fingers]
        self.arm.joint_states(names, [*self.joints, *fingers.values()], self.now)

    def chunk(self, *actions, stamp=None, period=0.2):
        return self.arm.chunk(Chunk(np.array(actions, float), self.now if stamp is None else stamp, period), self.now)

    def tick(self):
        sent = []
        while (command := self.arm.tick(self.now)) is not None:
            self.joints = command.joints
            sent.append(command)
        self.sent += [(round(self.now, 3), command) for command in sent]
        return sent

    def run(self, seconds, step=0.02):
        before = len(self.sent)
        for _ in range(round(seconds / step)):
            self.now += step
            self.measure()
            self.tick()
        return self.sent[before:]


def position(command):
    return command.transform_commanded[:3, 3]

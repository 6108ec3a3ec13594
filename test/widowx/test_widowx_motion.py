"""One step of the arm: what the speed of the joints does to a straight line."""

import numpy as np
import pytest

from dtp_ros.widowx.gate import Gate, GateConfig
from dtp_ros.widowx.kinematics import forward, robot
from dtp_ros.widowx.motion import plan_action

ARM = robot("wx250s")
START = np.array([0.0, 0.02201199, 0.18310092, 0.0, 1.36568341, 0.0])


def test_the_target_that_is_shown_is_what_was_asked_for_before_any_clip():
    gate = Gate(ARM, GateConfig())
    action = np.array([0.3, -0.2, 0, 0, 0, 0, 1.0])  # millimetres taken for metres would look alike once clipped
    motion = plan_action(gate, "commanded", action, START, START, 0.2)
    assert "step" in motion.causes
    np.testing.assert_allclose(motion.target[:3, 3] - forward(ARM, START)[:3, 3], action[:3], atol=1e-12)


@pytest.mark.parametrize("velocity", [0.2, 0.5, 1.0])
def test_a_step_that_is_too_fast_is_shortened_along_its_line(velocity):
    gate = Gate(ARM, GateConfig(max_joint_velocity=velocity))
    action = np.array([0.05, -0.05, -0.05, 0.1, 0.1, 0.25, 1.0])
    motion = plan_action(gate, "commanded", action, START, START, 0.2)
    assert motion.causes == ("joint_velocity",)
    assert np.abs(motion.joints - START).max() == pytest.approx(0.2 * velocity, rel=0.1)
    here, there = forward(ARM, START)[:3, 3], motion.target[:3, 3]
    moved = forward(ARM, motion.joints)[:3, 3] - here
    line = (there - here) / np.linalg.norm(there - here)
    assert moved @ line > 0.005
    assert np.linalg.norm(moved - (moved @ line) * line) < 1e-5


def test_a_step_along_the_wall_stays_on_it():
    gate = Gate(ARM, GateConfig(max_joint_velocity=0.5))
    joints = START
    for _ in range(8):  # down to the lowest plane of the box, then along it
        joints = plan_action(gate, "commanded", np.array([0, 0, -0.05, 0, 0, 0, 1.0]), joints, joints, 0.2).joints
    assert forward(ARM, joints)[2, 3] == pytest.approx(-0.01, abs=1e-5)
    for _ in range(4):
        joints = plan_action(gate, "commanded", np.array([0, 0.05, -0.05, 0, 0, 0, 1.0]), joints, joints, 0.2).joints
        assert forward(ARM, joints)[2, 3] == pytest.approx(-0.01, abs=1e-5)

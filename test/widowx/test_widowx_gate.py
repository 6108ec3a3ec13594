"""The gate: each check by hand, and whatever comes in, what leaves is finite and inside every limit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dtp_ros.errors import ConfigError
from dtp_ros.widowx.controller import ArmController
from dtp_ros.widowx.controller_config import ControllerConfig
from dtp_ros.widowx.gate import CHECKS, Gate, GateConfig, RefusedError
from dtp_ros.widowx.kinematics import forward, robot
from dtp_ros.widowx.schedule import Chunk

ARM = robot("wx250s")
START = np.array([0.0, 0.022, 0.183, 0.0, 1.366, 0.0])  # (.3, 0, .15), gripper down
LOW, HIGH = np.array([0.10, -0.15, -0.01]), np.array([0.45, 0.25, 0.25])


@pytest.fixture
def gate():
    return Gate(ARM, GateConfig())


def test_increments_are_clipped_each_to_its_limit(gate):
    causes = []
    found = gate.action(np.array([0.06, -0.06, 0.01, 0.3, -0.3, 0.1, 0.7]), causes)
    np.testing.assert_array_equal(found, [0.05, -0.05, 0.01, 0.25, -0.25, 0.1, 0.7])
    assert causes == ["step"]
    inside = np.array([0.05, -0.05, 0.0, 0.25, -0.25, 0.0, 1.0])
    causes = []
    np.testing.assert_array_equal(gate.action(inside, causes), inside)
    assert causes == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", range(7))
def test_an_action_that_is_not_finite_is_refused(gate, bad, index):
    action = np.zeros(7)
    action[index] = bad
    with pytest.raises(RefusedError) as refusal:
        gate.action(action, [])
    assert refusal.value.cause == "finite"


def test_a_target_outside_the_box_is_moved_to_its_wall(gate):
    here = forward(ARM, START)
    target = here.copy()
    target[2, 3] = 0.22
    outside = target.copy()
    outside[2, 3] = -0.05
    causes = []
    np.testing.assert_array_equal(gate.pose(target, here, causes), target)
    assert causes == []
    here[2, 3] = 0.02
    found = gate.pose(outside, here, causes)
    assert found[2, 3] == -0.01
    assert causes == ["workspace"]


def test_an_arm_outside_the_box_is_led_back_step_by_step(gate):
    here = forward(ARM, START)
    here[0, 3] = 0.80
    causes = []
    found = gate.pose(here, here, causes)
    assert found[0, 3] == pytest.approx(0.80 - 0.10)  # twice the limit along one axis
    assert causes == ["workspace", "step"]


def test_velocity_scales_all_joints_alike(gate):
    target = START + np.array([0.4, 0.1, 0.0, 0.0, 0.0, 0.0])
    causes = []
    found = gate.joints(target, START, START, 0.2, causes)
    np.testing.assert_allclose(found - START, [0.2, 0.05, 0, 0, 0, 0], atol=1e-12)  # 1 rad/s for 0.2 s
    assert causes == ["joint_velocity"]


def test_no_time_no_motion(gate):
    np.testing.assert_array_equal(gate.joints(START + 0.1, START, START, 0.0, []), START)


def test_joint_limits_keep_their_margin():
    gate = Gate(ARM, GateConfig(max_joint_velocity=10.0, workspace_low=(-1, -1, -1), workspace_high=(1, 1, 1)))
    last = np.zeros(6)
    last[4] = np.deg2rad(123) - 0.03
    causes = []
    found = gate.joints(last + np.array([0, 0, 0, 0, 0.1, 0]), last, last, 0.2, causes)
    assert found[4] == pytest.approx(np.deg2rad(123) - 0.02)
    assert causes == ["joint_limits"]


def test_a_command_far_from_the_measured_joints_is_refused(gate):
    measured = START + np.array([0.6, 0, 0, 0, 0, 0])
    with pytest.raises(RefusedError) as refusal:
        gate.joints(START, START, measured, 0.2, [])
    assert refusal.value.cause == "jump"


def test_joints_that_would_leave_the_box_are_refused(gate):
    with pytest.raises(RefusedError) as refusal:
        gate.joints(START - np.array([0, 0.19, 0.19, 0, 0, 0]) * 1.0, START, START, 0.2, [])
    assert refusal.value.cause == "workspace_path"


def test_a_violation_names_the_joint_and_the_limit(gate):
    measured = START.copy()
    measured[1] = np.deg2rad(114) + 0.06
    assert "shoulder" in gate.violation(measured)
    measured[1] = np.deg2rad(114) + 0.04  # an overshoot
    assert gate.violation(measured) == ""


def test_every_check_says_what_it_does():
    assert {check.effect for check in CHECKS.values()} == {"clips", "holds", "stops", "drops"}
    fields = {*GateConfig.__dataclass_fields__, "base_frame", "driver", "robot", "late_actions"}
    for check in CHECKS.values():
        assert check.meaning
        assert {name.strip() for name in check.parameter.split(",") if name} <= fields


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"workspace_low": (0.5, 0, 0)}, r"workspace_low = \[0.5, 0, 0\].*low < high"),
        ({"workspace_low": (0.1, 0.0)}, "three"),
        ({"workspace_high": (0.4, math.nan, 0.2)}, r"workspace_high.y = nan"),
        ({"max_step_translation": 0.0}, r"max_step_translation = 0.0.*0.001"),
        ({"max_joint_velocity": math.inf}, "max_joint_velocity = inf"),
        ({"command_timeout": -1.0}, "command_timeout = -1.0"),
    ],
)
def test_limits_out_of_range_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        GateConfig(**setting)


ANY_NUMBER = st.one_of(
    st.floats(-0.08, 0.08), st.floats(-0.5, 0.5), st.sampled_from([0.0, 1.0, 1e9, -1e9, math.nan, math.inf, 1e-300])
)
SANE = st.tuples(*[st.floats(-0.08, 0.08)] * 3, *[st.floats(-0.4, 0.4)] * 3, st.floats(0, 1)).map(list)
ACTION = st.one_of(SANE, SANE, SANE, st.lists(ANY_NUMBER, min_size=7, max_size=7))
AGE = st.sampled_from([0.0, 0.0, 0.0, -0.1, -2.0, 0.1, 1.0])
EVENT = st.one_of(
    st.tuples(st.just("chunk"), st.lists(ACTION, min_size=1, max_size=3), AGE),
    st.tuples(st.just("joints"), st.lists(st.floats(-0.3, 0.3), min_size=6, max_size=6), st.sampled_from([0, 0, 1])),
    st.tuples(st.sampled_from(["follow", "follow", "follow", "home", "stop", "arm", "back", "nan", "jump"])),
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.14, 0.14, 0.6])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT, max_size=25), st.sampled_from(["commanded", "measured"]), st.sampled_from(["execute", "drop"]))
def test_whatever_comes_in_what_leaves_is_inside_every_limit(events, reference, late):
    limits = GateConfig()
    arm = ArmController(ARM, ControllerConfig(limits, reference=reference, late_actions=late), armed=True)
    state = Recorder(arm)
    for kind, *arguments in [("follow",), *events]:
        state.apply(kind, *arguments)
        for _ in range(3):
            state.now += 0.02
            state.tick()


class Recorder:
    """An arm that follows its commands, or not; checks each command against the one before by its own arithmetic."""

    def __init__(self, controller):
        self.controller = controller
        self.now = 10.0
        self.measured = START.copy()
        self.last, self.last_time = None, None
        self.moved_since_hold = False

    def apply(self, kind, *arguments):
        controller = self.controller
        if kind == "chunk":
            rows, age = arguments
            controller.chunk(Chunk(np.array(rows), self.now + age, 0.2), self.now)
        elif kind == "joints":
            noise, missing = arguments
            names = ARM.joint_names[missing:]
            self.measured = self.measured + np.array(noise)
            controller.joint_states(names, self.measured[missing:], self.now)
        elif kind == "follow":
            self.measured = START.copy() if self.last is None else self.last.copy()
            controller.joint_states(ARM.joint_names, self.measured, self.now)
        elif kind == "home":
            controller.go_home(self.now)
        elif kind == "stop":
            controller.disarm("stop")
        elif kind == "arm":
            controller.arm(self.now)
        elif kind == "back":
            controller.joint_states(ARM.joint_names, self.measured, self.now - 5.0)
        elif kind == "nan":
            controller.joint_states(ARM.joint_names, [math.nan] * 6, self.now)
        elif kind == "jump":
            self.measured = self.measured + np.array([0.9, 0, 0, 0, 0, 0])
            controller.joint_states(ARM.joint_names, self.measured, self.now)
        else:
            self.now += arguments[0]

    def tick(self):
        command = self.controller.tick(self.now)
        if command is None:
            return
        joints = command.joints
        known = np.clip(self.controller._measured.joints, ARM.lower, ARM.upper)
        assert np.isfinite(joints).all()
        assert (ARM.lower <= joints).all()
        assert (joints <= ARM.upper).all()
        assert ARM.gripper_closed <= command.gripper <= ARM.gripper_open
        np.testing.assert_allclose(command.transform_commanded, forward(ARM, joints), atol=1e-12)
        assert set(command.causes) <= set(CHECKS)
        if command.holding:
            stays = self.last is not None and np.array_equal(joints, self.last)
            fresh = self.now - self.controller.measured_at <= 0.2 + 1e-6
            assert stays or (fresh and np.array_equal(joints, known))  # an old measurement is no place to hold at
        else:
            self.check_motion(command, known)
        self.last, self.last_time = joints, self.now

    def check_motion(self, command, known):
        """A motion starts from the last command, or from where the arm is."""
        joints = command.joints
        assert command.armed
        starts = [known] if self.last is None else [self.last, known]
        assert min(np.abs(joints - start).max() for start in starts) <= 1.0 * 0.2 + 1e-9
        assert np.abs(joints - known).max() <= 0.5 + 1e-9 + 0.05  # known is clipped to the limits
        position = forward(ARM, joints)[:3, 3]
        outside = np.linalg.norm(position - np.clip(position, LOW, HIGH))
        before = max(np.linalg.norm(p - np.clip(p, LOW, HIGH)) for p in (forward(ARM, s)[:3, 3] for s in starts))
        assert outside <= max(1e-3, before) + 1e-9


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-2, 2), min_size=6, max_size=6),
    st.lists(st.floats(-4, 4, allow_nan=False), min_size=6, max_size=6),
    st.floats(0, 0.5),
)
def test_joint_targets_never_move_faster_nor_beyond(offsets, target, seconds):
    gate = Gate(ARM, GateConfig())
    last = np.clip(START + 0.2 * np.array(offsets), gate.robot.lower, gate.robot.upper)
    try:
        joints = gate.joints(np.array(target), last, last, seconds, [])
    except RefusedError:
        return
    assert (np.abs(joints - last) <= 1.0 * seconds + 1e-9).all()
    assert (gate.robot.lower - 1e-12 <= joints).all()
    assert (joints <= gate.robot.upper + 1e-12).all()


def test_orientation_steps_are_limited_too(gate):
    here = forward(ARM, START)
    target = here.copy()
    target[:3, :3] = Rotation.from_euler("z", 2.0).as_matrix() @ here[:3, :3]
    found = gate.pose(target, here, [])
    turn = Rotation.from_matrix(found[:3, :3] @ here[:3, :3].T).magnitude()
    assert turn == pytest.approx(0.5)

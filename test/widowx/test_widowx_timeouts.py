"""Lost policies, actions far apart, steps back of time, five joints: by hand, with an arm that does as it is told."""

import numpy as np
import pytest
from controller_bench import ARM, FORWARD, LEFT, START, Bench
from scipy.spatial.transform import Rotation

from dtp_ros.widowx.controller_config import ControllerConfig
from dtp_ros.widowx.gate import GateConfig
from dtp_ros.widowx.kinematics import robot


def test_what_is_left_of_a_chunk_when_the_policy_is_lost_is_not_executed():
    """Actions at 0, 0.2 ... 1.4 s; then nothing came for command_timeout (1.5 s), and the last four are dropped."""
    bench = Bench()
    small = [0.002, 0, 0, 0, 0, 0, 1.0]
    bench.chunk(*[small] * 12)  # 2.4 s
    bench.tick()
    bench.run(4.0)
    assert [t for t, c in bench.sent if not c.holding] == pytest.approx([100.0 + 0.2 * i for i in range(8)])
    assert [(t, c.causes) for t, c in bench.sent if c.holding] == [(101.52, ("command_timeout",))]
    bench.chunk(small)
    assert not bench.tick()[0].holding


def test_a_long_chunk_runs_to_its_end_where_the_timeout_allows():
    bench = Bench(config=ControllerConfig(gate=GateConfig(command_timeout=3.0)))
    bench.chunk(*[[0.002, 0, 0, 0, 0, 0, 1.0]] * 12)
    bench.tick()
    bench.run(2.9)
    assert len(bench.sent) == 12
    assert not any(c.holding for _, c in bench.sent)


@pytest.mark.parametrize("period", [0.2, 1.0, 10.0])
def test_actions_far_apart_take_no_more_credit_than_a_move(period):
    """An arm that takes a position goes there at once: half a radian a second is 0.1 rad a move of 0.2 s."""
    bench = Bench(config=ControllerConfig(gate=GateConfig(max_joint_velocity=0.5, command_timeout=60.0)))
    before = bench.joints
    bench.chunk([0.05, 0.05, 0, 0, 0, 0.25, 1.0], period=period)
    (sent,) = bench.tick()
    assert "joint_velocity" in sent.causes
    assert 0.05 < np.abs(sent.joints - before).max() <= 0.1 + 1e-9
    bench.now += period
    bench.measure()
    bench.chunk([0.05, 0.05, 0, 0, 0, 0.25, 1.0], period=period)
    (again,) = bench.tick()
    assert 0.05 < np.abs(again.joints - sent.joints).max() <= 0.1 + 1e-9


def test_a_hold_is_no_longer_than_a_move_whatever_the_chunk_said():
    bench = Bench(armed=False)
    bench.chunk(FORWARD, period=5.0)
    (held,) = bench.tick()
    assert (held.holding, held.causes, held.period) == (True, ("not_armed",), 0.2)


@pytest.mark.parametrize("source", ["clock", "joint states"])
def test_a_step_back_of_time_loses_no_hold(source):
    """Stopped at 100.3, and time steps back before the hold was sent: it is sent as soon as the arm is measured."""
    bench = Bench()
    bench.chunk(FORWARD)
    bench.tick()
    bench.run(0.3)
    bench.arm.disarm("stop")
    bench.now = 50.0
    if source == "clock":
        assert bench.tick() == []
    else:
        bench.measure()
    bench.measure()
    (held,) = bench.tick()
    assert (held.holding, held.armed, held.last, held.causes) == (True, True, True, ("stop",))
    assert bench.tick() == []


def test_motion_after_a_step_back_of_time_begins_with_a_hold():
    """Joint states step back by 5 ms in motion: without the hold the next action would have a whole period's credit."""
    bench = Bench()
    bench.chunk(FORWARD)
    bench.tick()
    bench.now += 0.005
    bench.arm.joint_states(ARM.joint_names, bench.joints, 99.995)
    bench.arm.joint_states(ARM.joint_names, bench.joints, bench.now)
    bench.chunk(FORWARD)
    held, *_ = bench.tick()
    assert (held.holding, held.causes) == (True, ("time_backwards",))


def test_a_step_back_of_time_drops_nothing_that_is_grasped():
    """Told to close on an object that keeps the fingers 44 mm apart: the hold that follows goes on closing."""
    bench = Bench()
    bench.chunk(LEFT)  # and close
    (closing,) = bench.tick()
    bench.now += 0.2
    bench.measure(left_finger=0.022, right_finger=-0.022)
    bench.now -= 5.0
    for _ in range(2):
        bench.measure(left_finger=0.022, right_finger=-0.022)
    (held,) = bench.tick()
    assert held.causes == ("time_backwards",)
    assert held.gripper == closing.gripper == 0.030


def test_joint_states_that_stop_in_motion_do_not_pull_the_arm_back():
    """The arm goes on to what it was told last; where it was measured last is behind it by then."""
    bench = Bench()
    bench.chunk(*[FORWARD] * 6)
    bench.tick()
    bench.run(0.2)
    told = bench.sent[-1][1].joints
    assert np.abs(told - START).max() > 0.05
    bench.arm.joint_states(ARM.joint_names, 0.5 * (START + told), bench.now)  # on its way, and silent from now on
    held = []
    for _ in range(20):
        bench.now += 0.05
        held += bench.tick()
    moved = [command for command in held if not command.holding]
    assert len(moved) == 1  # at 100.4; 100.6 is too late
    first, *others = [command for command in held if command.holding]
    assert (first.causes, first.armed) == (("joint_states",), True)
    for command in (first, *others):
        np.testing.assert_array_equal(command.joints, moved[0].joints)


@pytest.mark.parametrize("sent", [True, False])
def test_a_stop_without_joint_states_holds_at_the_last_command_or_waits(sent):
    bench = Bench()
    if sent:
        bench.chunk(FORWARD)
        bench.tick()
    told, bench.now = bench.joints, bench.now + 5.0
    bench.arm.disarm("stop")
    commands = bench.tick()
    assert bench.arm.is_hold_due is not sent
    if not sent:
        assert commands == []
        bench.joints = told = START + 0.2
        bench.measure()
        commands = bench.tick()
    (held,) = commands
    assert (held.holding, held.armed, held.last, held.causes) == (True, True, True, ("stop",))
    np.testing.assert_array_equal(held.joints, told)


def test_an_arm_of_five_joints_says_how_far_it_could_not_turn():
    """A roll of the wx250's gripper about the base's x axis: no joint does that; its error is what was asked for."""
    arm = robot("wx250")
    bench = Bench(robot=arm, start=START[[0, 1, 2, 4, 5]])
    bench.chunk([0, 0, 0, 0.2, 0, 0, 1.0])
    (sent,) = bench.tick()
    assert "orientation" in sent.causes
    assert bench.arm.counts["orientation"] == 1
    reached = Rotation.from_matrix(sent.transform_commanded[:3, :3])
    asked = Rotation.from_matrix(sent.transform_target[:3, :3])
    assert sent.orientation_error == pytest.approx((asked * reached.inv()).magnitude(), abs=1e-3)
    assert sent.orientation_error > 0.1
    bench.run(0.2)
    bench.chunk(FORWARD)
    (straight,) = bench.tick()
    assert straight.orientation_error == 0.0

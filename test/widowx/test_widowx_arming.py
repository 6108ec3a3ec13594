"""Arming, stopping and going home, worked out by hand with an arm that does as it is told."""

from itertools import pairwise

import numpy as np
import pytest
from controller_bench import ARM, FORWARD, LEFT, START, Bench

from dtp_ros.widowx.controller import ArmController
from dtp_ros.widowx.kinematics import ROBOTS, robot


def test_stop_holds_at_once_disarms_and_one_arm_re_arms():
    bench = Bench()
    bench.chunk(FORWARD, FORWARD, FORWARD)
    bench.tick()
    bench.now += 0.1
    bench.measure()
    bench.arm.disarm("stop")
    (held,) = bench.tick()
    assert (held.holding, held.causes, held.armed) == (True, ("stop",), True)  # this hold reaches the motors
    assert bench.run(1.0) == []
    bench.chunk(FORWARD)
    (refused,) = bench.tick()
    assert (refused.holding, refused.causes, refused.armed) == (True, ("not_armed",), False)
    assert bench.arm.arm(bench.now) == ""
    bench.now += 0.2
    bench.measure()
    bench.chunk(FORWARD)
    assert [c.holding for c in bench.tick()] == [False]


def test_a_limit_violation_by_the_measured_arm_latches():
    bench = Bench()
    bench.joints[1] = np.deg2rad(114) + 0.06
    bench.now += 2.0
    bench.measure()
    assert not bench.arm.armed
    assert [c.causes for c in bench.tick()] == [("limit_violation",)]
    assert "shoulder" in bench.arm.arm(bench.now)
    bench.joints = START.copy()
    bench.now += 2.0
    bench.measure()
    assert not bench.arm.armed
    assert bench.arm.arm(bench.now) == ""


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_going_home_is_a_walk_of_gated_steps_inside_the_box(name):
    arm = robot(name)
    start = np.clip(arm.neutral + np.resize([0.5, 0.35, -0.2], arm.num_joints), arm.lower + 0.03, arm.upper - 0.03)
    bench = Bench(robot=arm, start=start)
    inside = bench.arm.gate.outside(start)
    assert bench.arm.go_home(bench.now) == ""
    bench.tick()
    bench.run(15.0)
    commands = [c for _, c in bench.sent if not c.holding]
    path = [start, *(c.joints for c in commands)]
    assert len(commands) > 2
    np.testing.assert_allclose(path[-1], arm.neutral, atol=2e-3)
    for before, after in pairwise(path):
        assert np.abs(after - before).max() <= 0.2 + 1e-9
        assert bench.arm.gate.outside(after) <= max(inside, 1e-3)
    assert not bench.arm.homing


def test_chunks_do_not_interrupt_the_way_home_and_stop_does():
    bench = Bench()
    bench.arm.go_home(bench.now)
    bench.tick()
    bench.run(0.2)
    assert not bench.chunk(FORWARD)
    assert bench.arm.counts["going_home"] == 1
    assert bench.arm.homing
    bench.arm.disarm("stop")
    assert [c.causes for c in bench.tick()] == [("stop",)]
    assert not bench.arm.homing
    assert "not armed" in bench.arm.go_home(bench.now)


def test_what_disarmed_is_known_until_armed_again():
    bench = Bench()
    bench.arm.disarm("publisher")
    bench.chunk(FORWARD)
    bench.tick()
    assert bench.arm.causes == ("not_armed",)
    assert bench.arm.disarmed_by == "publisher"
    bench.arm.arm(bench.now)
    assert bench.arm.disarmed_by == ""


def test_an_arm_that_is_not_measured_now_is_not_armed():
    bench = Bench(armed=False)
    bench.now += 300.0
    assert bench.arm.arm(bench.now) == "the joint states are 300.00 s old (valid: at most joint_state_timeout, 0.2 s)"
    assert not bench.arm.armed
    bench.chunk(FORWARD)
    assert not any(command.armed for command in bench.tick())
    bench.measure()
    assert bench.arm.arm(bench.now) == ""
    assert ArmController(ARM).arm(0.0) == "no joint states yet"


def test_a_hold_that_is_still_due_when_armed_again_is_not_the_last():
    """`last` tells drivers that no command to the motors follows."""
    bench = Bench()
    bench.arm.disarm("stop")
    assert bench.arm.arm(bench.now) == ""
    (held,) = bench.tick()
    assert (held.holding, held.armed, held.last) == (True, True, False)


@pytest.mark.parametrize("disarms", [True, False])
def test_a_driver_that_was_lost_holds_the_arm_where_it_is_when_it_is_back(disarms):
    """Away for 30 s, in which the arm fell by 0.4 rad: neither its last command nor its last measurement is sent."""
    bench = Bench()
    bench.chunk(FORWARD, FORWARD)
    bench.tick()
    bench.arm.driver_lost(disarms=disarms)
    bench.now += 30.0
    assert bench.tick() == []
    assert bench.arm.is_hold_due
    bench.joints = fallen = START + np.array([0, 0.4, 0, 0, 0, 0])
    (held,) = [command for _, command in bench.run(2.0)]
    assert (held.holding, held.armed, held.causes) == (True, not disarms, ("driver",))
    np.testing.assert_array_equal(held.joints, fallen)
    bench.chunk(LEFT)
    assert [command.holding for command in bench.tick()] == [disarms]


def test_a_stop_while_the_driver_is_away_drives_no_motor_when_it_is_back():
    bench = Bench()
    bench.chunk(FORWARD, FORWARD)
    bench.tick()
    bench.arm.driver_lost(disarms=True)
    bench.arm.disarm("stop")
    assert [command.armed for _, command in bench.run(2.0)] == [False]
    assert bench.arm.disarmed_by == "stop"
    assert bench.arm.arm(bench.now) == ""


def test_a_stop_that_no_hold_could_follow_before_the_driver_was_lost_drives_no_motor_either():
    bench = Bench()
    bench.now += 10.0  # no joint states, and nothing was sent: the hold of the stop waits
    bench.arm.disarm("stop")
    assert bench.tick() == []
    bench.arm.driver_lost(disarms=True)
    assert [command.armed for _, command in bench.run(2.0)] == [False]


@pytest.mark.parametrize("by", ["the driver lost", "arm"])
def test_going_home_ends_with_the_driver_and_is_not_inherited(by):
    bench = Bench()
    assert bench.arm.go_home(bench.now) == ""
    bench.tick()
    bench.run(0.4)
    assert bench.arm.homing
    if by == "arm":
        assert bench.arm.arm(bench.now) == ""
    else:
        bench.arm.driver_lost(disarms=True)
    assert not bench.arm.homing
    assert all(command.holding for _, command in bench.run(3.0))

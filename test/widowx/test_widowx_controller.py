"""Holding, refusing and going on, worked out by hand with an arm that does as it is told."""

import numpy as np
import pytest
from controller_bench import ARM, FORWARD, LEFT, START, Bench, position

from dtp_ros.errors import ConfigError
from dtp_ros.widowx.controller_config import ControllerConfig
from dtp_ros.widowx.gate import GateConfig
from dtp_ros.widowx.kinematics import forward


def test_a_gap_ends_in_a_hold_of_the_measured_joints_and_recovers():
    bench = Bench()
    bench.chunk(FORWARD)
    bench.tick()
    bench.run(0.1)
    sag = bench.joints + 0.01
    bench.joints = sag
    held = bench.run(2.0)
    assert [(t, c.holding, c.causes) for t, c in held] == [(101.52, True, ("command_timeout",))]
    np.testing.assert_array_equal(held[0][1].joints, sag)
    np.testing.assert_array_equal(held[0][1].twist, np.zeros(6))
    bench.chunk(LEFT)
    (moved,) = bench.tick()
    assert not moved.holding
    np.testing.assert_allclose(position(moved) - forward(ARM, sag)[:3, 3], [0, 0.02, 0], atol=1e-6)


def test_stale_joint_states_hold_and_resume_by_themselves():
    bench = Bench()
    bench.chunk(FORWARD, FORWARD, FORWARD)
    bench.tick()
    bench.now = 100.21
    (held,) = bench.tick()
    assert (held.holding, held.causes) == (True, ("joint_states",))
    bench.now = 100.4
    bench.measure()
    (moved,) = bench.tick()
    assert not moved.holding
    assert bench.arm.armed


def test_an_old_image_and_a_stamp_in_the_future_are_refused():
    bench = Bench()
    assert not bench.chunk(FORWARD, stamp=98.4)
    assert [c.causes for c in bench.tick()] == [("image",)]
    assert not bench.chunk(FORWARD, stamp=101.0)
    assert [c.causes for c in bench.tick()] == [("future_stamp",)]
    assert bench.chunk(FORWARD)
    assert [c.holding for c in bench.tick()] == [False]


def test_an_unreachable_target_does_not_advance():
    wide = GateConfig(workspace_low=(-1, -1, -1), workspace_high=(1, 1, 1), max_joint_velocity=3.0)
    stretched = np.array([0.0, 0.9, -0.5, 0.0, -0.3, 0.0])
    bench = Bench(config=ControllerConfig(wide), start=stretched)
    causes = []
    for _ in range(12):
        bench.chunk([0.05, 0, 0, 0, 0, 0, 1.0])
        (command,) = bench.tick()
        bench.now += 0.2
        bench.measure()
        causes.append(command.causes)
    held = [c for _, c in bench.sent if "kinematics" in c.causes]
    assert len(held) >= 3
    assert all(c.holding for c in held)
    for command in held:
        np.testing.assert_array_equal(command.joints, held[0].joints)
        assert command.transform_target is not None
    bench.chunk([-0.02, 0, 0, 0, 0, 0, 1.0])  # no windup to unwind: the first step back moves at once
    (back,) = bench.tick()
    assert position(back)[0] == pytest.approx(position(held[0])[0] - 0.02, abs=1e-5)


def test_a_backward_jump_of_time_drops_that_message_and_the_next_is_taken():
    bench = Bench()
    bench.chunk(FORWARD, FORWARD)
    bench.tick()
    bench.now = 3.0
    bench.measure()  # dropped
    assert bench.arm.counts["time_backwards"] == 1
    assert bench.tick() == []
    bench.measure()
    # One hold, which begins the new time; the rest of the old chunk is forgotten.
    assert [(c.holding, c.causes) for _, c in bench.run(0.5)] == [(True, ("time_backwards",))]
    bench.chunk(FORWARD)
    assert [c.holding for c in bench.tick()] == [False]
    assert bench.arm.armed


def test_an_image_stamp_that_goes_back_drops_that_chunk():
    bench = Bench()
    bench.chunk(FORWARD)
    bench.tick()
    bench.run(0.2)
    assert not bench.chunk(FORWARD, stamp=99.9)
    assert bench.arm.counts["time_backwards"] == 1
    bench.run(0.02)
    assert bench.sent[-1][1].causes == ("time_backwards",)
    assert bench.chunk(FORWARD, stamp=99.95)


def test_bad_joint_states_are_counted_and_the_old_ones_grow_stale():
    bench = Bench()
    bench.arm.joint_states(["a"], [0.0], 100.1)
    bench.arm.joint_states(ARM.joint_names, [np.nan] * 6, 100.1)
    bench.arm.joint_states(ARM.joint_names, [0.0] * 5, 100.1)
    assert bench.arm.counts == {"joint_names": 2, "joint_finite": 1}
    bench.now = 100.3
    bench.chunk(FORWARD, stamp=100.0)
    assert bench.tick() == []  # nobody knows where to hold: not where the arm was
    assert bench.arm.counts["joint_states"] == 1
    bench.joints = START + 0.1
    bench.measure()
    (held,) = bench.tick()
    assert (held.holding, held.causes) == (True, ("joint_states",))
    np.testing.assert_array_equal(held.joints, START + 0.1)


def test_joint_states_come_in_any_order():
    bench = Bench()
    order = [3, 1, 5, 0, 2, 4]
    bench.now = 100.1
    names = ["left_finger", *(ARM.joint_names[i] for i in order), "extra"]
    bench.arm.joint_states(names, [0.02, *(START[i] for i in order), 9.0], 100.1)
    bench.chunk([0, 0, 0, 0, 0, 0, np.nan])
    (held,) = bench.tick()
    np.testing.assert_array_equal(held.joints, START)
    assert held.gripper == pytest.approx(0.04)  # measured: nothing was commanded yet


def test_an_arm_that_does_not_follow_is_not_left_behind():
    bench = Bench()
    stuck = START.copy()
    causes = set()
    for _ in range(40):
        bench.chunk([0, 0, 0, 0, 0, 0.19, 1.0])
        bench.tick()
        bench.joints = stuck
        bench.now += 0.2
        bench.measure()
        command = bench.sent[-1][1]
        causes |= set(command.causes)
        assert np.abs(command.joints - stuck).max() <= 0.5
    assert "jump" in causes


def test_an_arm_put_elsewhere_moves_on_from_there():
    bench = Bench()
    bench.chunk(FORWARD)
    bench.tick()
    bench.run(0.3)
    assert bench.arm.counts == {}
    there = bench.joints + np.array([0.1, 0, 0, 0, 0, 0])
    bench.joints = there
    bench.run(0.1)
    assert bench.arm.counts == {"strayed": 1}
    bench.chunk(LEFT)
    (command,) = bench.tick()
    np.testing.assert_allclose(position(command) - forward(ARM, there)[:3, 3], [0, 0.02, 0], atol=1e-6)


def test_settings_are_checked():
    for setting in ({"reference": "target"}, {"late_actions": "skip"}, {"gripper_threshold": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            ControllerConfig(**setting)


def test_an_episode_is_the_same_bit_for_bit_whenever_it_begins():
    """A step too large for the joints, so that the time since the last command decides how far it goes."""

    def episode(begin):
        bench = Bench(now=begin)
        for i in range(1, 6):
            bench.chunk([0, 0, -0.05, 0, 0.2, 0, 1.0])
            bench.tick()
            bench.now = begin + i * 0.2
            bench.measure()
        assert any("joint_velocity" in command.causes for _, command in bench.sent[1:])
        return np.array([command.joints for _, command in bench.sent])

    first = episode(0.2)
    for begin in (5.4, 25.6, 1000.2):
        np.testing.assert_array_equal(episode(begin), first)

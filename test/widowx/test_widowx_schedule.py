"""When actions are due: chunks that come late, fast, in lock-step or before their joint states; worked out by hand."""

import numpy as np
import pytest
from controller_bench import ARM, FORWARD, LEFT, START, Bench, position

from dtp_ros.widowx.controller_config import ControllerConfig
from dtp_ros.widowx.kinematics import forward


def test_the_first_action_is_due_on_arrival_the_others_when_their_predecessor_ends():
    bench = Bench()
    assert bench.chunk(FORWARD, FORWARD, LEFT)
    first = bench.tick()
    later = bench.run(1.0)
    assert [t for t, _ in bench.sent] == [100.0, 100.2, 100.4]
    np.testing.assert_allclose(position(first[0]) - forward(ARM, START)[:3, 3], [0.02, 0, 0], atol=1e-6)
    np.testing.assert_allclose(position(later[-1][1]) - forward(ARM, START)[:3, 3], [0.04, 0.02, 0], atol=1e-6)
    assert [c.gripper for _, c in bench.sent] == [0.074, 0.074, 0.030]
    assert [c.image_stamp for _, c in bench.sent] == [100.0, None, None]
    np.testing.assert_allclose(first[0].twist, [0.1, 0, 0, 0, 0, 0], atol=1e-4)  # 2 cm in 0.2 s
    assert not any(c.holding or c.causes for _, c in bench.sent)


def test_a_newer_chunk_replaces_the_rest():
    bench = Bench()
    bench.chunk(FORWARD, FORWARD, FORWARD)
    bench.tick()
    bench.run(0.2)
    bench.chunk(LEFT)
    bench.tick()
    bench.run(0.6)
    moved = bench.sent[-1][1].transform_commanded[:3, 3] - forward(ARM, START)[:3, 3]
    assert len(bench.sent) == 3
    np.testing.assert_allclose(moved[1], 0.0, atol=0.02)
    assert bench.sent[-1][1].gripper == 0.030


def test_chunks_that_come_faster_than_their_actions_last_move_the_arm_no_faster():
    """15 chunks a second of actions of 0.2 s: five actions a second, each of the newest chunk then."""
    bench = Bench()
    for number in range(29):
        bench.chunk([0.0005 * (number + 1), 0, 0, 0, 0, 0, 1.0], FORWARD)
        bench.tick()
        bench.run(1 / 15, step=1 / 75)
    assert [t for t, _ in bench.sent] == pytest.approx([100.0 + 0.2 * i for i in range(10)], abs=0.014)
    x = [position(command)[0] for _, command in bench.sent]
    np.testing.assert_allclose(np.diff(x), [0.0015 * i for i in range(1, 10)], atol=1e-5)


def test_a_chunk_that_is_late_delays_none_that_are_punctual():
    """60 ms late are made up for at once; after 160 ms, more than half a period, time is counted from there."""
    bench, arrivals = Bench(), [100.0, 100.26, 100.4, 100.6, 100.96, 101.16]
    for arrival in arrivals:
        bench.run(arrival - bench.now)
        bench.chunk(FORWARD)
        bench.tick()
    assert [t for t, _ in bench.sent] == pytest.approx(arrivals)


def test_in_lock_step_an_action_is_due_on_arrival_whatever_its_period():
    """Time goes on by 0.2 s a command, and an action of 0.4 s has no end before the next command."""
    bench = Bench()
    bench.arm.paced = False
    for _ in range(3):
        bench.chunk(FORWARD, period=0.4)
        assert len(bench.tick()) == 1
        bench.now += 0.2
        bench.measure()


def test_a_chunk_waits_no_longer_than_its_own_period_for_a_slow_predecessor():
    bench = Bench()
    bench.chunk(FORWARD, period=2.0)
    bench.tick()
    bench.run(0.1)
    bench.chunk(LEFT)
    bench.tick()
    assert [t for t, _ in bench.run(1.0)] == [100.3]


def test_a_chunk_waits_for_joint_states_as_new_as_its_image():
    bench = Bench()
    bench.now = 100.02
    assert bench.chunk(FORWARD, stamp=100.02)
    assert bench.tick() == []  # measured at 100.00
    bench.measure()
    assert len(bench.tick()) == 1


def test_the_wait_for_joint_states_is_not_for_ever():
    bench = Bench()
    bench.chunk(FORWARD, stamp=100.4)
    assert bench.run(0.18) == []
    assert [t for t, _ in bench.run(0.2)][:1] == [100.22]


def test_chunks_that_follow_fast_do_not_wait_for_ever_for_an_arm_whose_clock_is_behind():
    bench = Bench()
    bench.now += 0.1
    sent = []
    for _ in range(30):  # 15 Hz for 2 s, the joint states always 0.1 s older than the image
        bench.now += 1 / 15
        bench.arm.joint_states(ARM.joint_names, bench.joints, bench.now - 0.1)
        bench.chunk([0.001, 0, 0, 0, 0, 0, 1.0])
        sent += bench.tick()
    assert len(sent) >= 6
    assert not any(command.holding for command in sent)


def test_lock_step_sends_one_command_an_action_and_needs_no_other_clock():
    """Time moves by a period with each command, as in a simulator with real_time_factor 0."""
    bench = Bench(now=0.0)
    policy = iter([[FORWARD, LEFT], [FORWARD, [np.nan] * 7], [LEFT], [[0, 0, 0, 0, 0, 0, 1.0]]])
    images, commands = 0, 0
    for chunk in policy:
        bench.chunk(*chunk)
        images += 1
        while sent := bench.tick():
            assert len(sent) == 1
            commands += 1
            bench.now += 0.2
            bench.measure()
    assert images == 4
    assert commands == 2 + 1 + 1 + 1  # a chunk with a NaN is refused as a whole: one hold
    assert bench.now == pytest.approx(1.0)
    assert bench.arm.counts == {"finite": 1}


def test_late_actions_execute_or_drop():
    for late, expected in (("execute", [100.5, 100.7, 100.9, 101.1]), ("drop", [100.5, 100.7])):
        bench = Bench(config=ControllerConfig(late_actions=late))
        bench.now = 100.5
        bench.measure()
        bench.chunk(FORWARD, FORWARD, LEFT, LEFT, stamp=100.0)  # slots end at .2, .4, .6, .8
        bench.tick()
        bench.run(1.0)
        moves = [t for t, c in bench.sent if not c.holding]
        assert moves == expected
        assert bench.arm.counts["late"] == (0 if late == "execute" else 2)
        assert bench.sent[0][1].image_stamp == 100.0


def test_a_flood_of_chunks_moves_no_faster_than_one():
    bench = Bench()
    for _ in range(200):  # 1000 Hz
        bench.now += 0.001
        bench.measure()
        bench.chunk([0, 0, 0, 0, 0, 0.25, 1.0])
        bench.tick()
    assert np.abs(bench.joints - START).max() <= 0.2 * 1.0 + 0.2 + 1e-6  # a period's credit, then 1 rad/s

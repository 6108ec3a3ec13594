"""How long simulated time may stand still, worked out by hand on a clock of the test's own."""

import pytest

from dtp_ros.ros import lock_step
from dtp_ros.ros.lock_step import LockStepWatch

FIRST, COMMAND_TIMEOUT = 30.0, 1.5


class Wall:
    """The wall clock, and a watch on it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(lock_step.time, "monotonic", lambda: self.now)
        self.watch = LockStepWatch()

    def still_until(self):
        """Seconds from now on after which the policy is taken to hold, to a tenth."""
        began = self.now
        while not self.watch.stands_still(FIRST, COMMAND_TIMEOUT):
            self.now += 0.1
            assert self.now < began + 200
        return self.now - began


@pytest.fixture
def wall(monkeypatch):
    return Wall(monkeypatch)


def test_nobody_is_waited_for_before_a_policy_is_seen(wall):
    wall.now += 1000.0
    assert not wall.watch.stands_still(FIRST, COMMAND_TIMEOUT)


def test_a_policy_that_loads_has_the_first_timeout(wall):
    wall.watch.policy_seen()
    assert wall.still_until() == pytest.approx(FIRST, abs=0.15)
    assert wall.still_until() == pytest.approx(FIRST, abs=0.15)  # and again, each time


@pytest.mark.parametrize(("took", "patience"), [(0.2, 5.0), (0.8, 8.0)])
def test_later_it_is_ten_times_the_slowest_answer_and_at_least_five_seconds(wall, took, patience):
    wall.watch.policy_seen()
    wall.watch.chunk(1.0)
    wall.watch.joint_states(1.0, 1.2)
    wall.now += took
    wall.watch.chunk(1.2)
    assert wall.still_until() == pytest.approx(patience, abs=0.15)


def test_a_period_that_was_held_meanwhile_is_no_answer(wall):
    """A policy of 12 s a step: after the two periods that are held in its second step it is waited for."""
    wall.watch.policy_seen()
    wall.watch.chunk(1.0)
    wall.watch.joint_states(1.0, 1.2)
    for moment in (1.2, 1.4):
        assert wall.still_until() == pytest.approx(5.0, abs=0.15)
        wall.watch.joint_states(moment, moment + 0.2)
    wall.now += 2.0
    wall.watch.chunk(1.2)
    assert wall.still_until() == pytest.approx(120.0, abs=4.0)


def test_a_step_that_the_policy_itself_held_is_no_slow_answer(wall):
    """Its next image is of the moment after the period that was held, and is answered as fast as ever."""
    wall.watch.policy_seen()
    wall.watch.chunk(1.0)
    wall.watch.joint_states(1.0, 1.2)
    for moment in (1.2, 1.4, 1.6):
        assert wall.still_until() == pytest.approx(5.0, abs=0.15)
        wall.watch.joint_states(moment, moment + 0.2)
        wall.now += 0.2
        wall.watch.chunk(moment + 0.2)


def test_joint_states_that_move_begin_the_wait_anew_and_repeated_ones_do_not(wall):
    wall.watch.policy_seen()
    wall.watch.chunk(1.0)
    wall.now += 4.0
    wall.watch.joint_states(1.0, 1.2)
    wall.now += 4.0
    assert not wall.watch.stands_still(FIRST, COMMAND_TIMEOUT)
    wall.watch.joint_states(1.2, 1.2)
    wall.now += 1.1
    assert wall.watch.stands_still(FIRST, COMMAND_TIMEOUT)


def test_time_that_goes_on_without_commands_waits_for_nobody(wall):
    """After more than a second of it the command timeout holds, until a moment is repeated."""
    wall.watch.policy_seen()
    wall.watch.chunk(1.0)
    for step in range(8):
        wall.watch.joint_states(step * 0.2, (step + 1) * 0.2)
    assert wall.still_until() == pytest.approx(COMMAND_TIMEOUT, abs=0.15)
    wall.watch.joint_states(1.6, 1.6)
    assert wall.still_until() == pytest.approx(5.0, abs=0.15)


def test_steps_that_follow_commands_are_lock_step(wall):
    wall.watch.policy_seen()
    wall.watch.chunk(1.0)
    for step in range(20):
        wall.watch.command(step * 0.2)
        wall.watch.joint_states(step * 0.2, (step + 1) * 0.2)
    assert wall.still_until() == pytest.approx(5.0, abs=0.15)

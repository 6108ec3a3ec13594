"""A step that is longer than its period is counted, and nothing queues behind it; on a real node over DDS."""

import json
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from policy_harness import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, picture, running_policy, time_at, wait_until
from rclpy.clock import ROSClock
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

from dtp_ros.ros.pace import Pace, PaceWatch
from dtp_ros.ros.parameters import defaults, settings_from_values

DOMAIN = 89
# A real slow step: 25 tolerances, each refined, at every token. And one that is not.
SLOW = {"variant": "dtp", "tolerance_mode": "min_entropy", "tolerance_grid": np.linspace(0.02, 1.0, 25).tolist()}
QUICK = {"variant": "off", "tolerance_mode": "fixed"}
PERIOD = 0.2  # s, of one action at 5 Hz
CAMERA_PERIOD = 1 / 30  # s


@pytest.fixture(scope="module")
def user():
    torch.set_num_threads(1)
    parameters = {"checkpoint": "tiny", "device": "cpu", "image_timeout": 30.0, "max_pruned": 0}
    with running_policy(DOMAIN, **parameters, instruction="put the carrot on the plate") as (_, user):
        wait_until(lambda: user.state() == "active", "autostart")
        yield user


@contextmanager
def camera(user):
    """Images at 30 Hz; yields when each was shown, by its stamp, s."""
    shown, pictures = [], [picture(seed) for seed in range(5)]

    def show():
        shown.append(seconds(user.show(pictures[len(shown) % len(pictures)])))

    timer = user.create_timer(CAMERA_PERIOD, show)
    try:
        yield shown
    finally:
        user.destroy_timer(timer)


def seconds(stamp):
    return stamp.sec + 1e-9 * stamp.nanosec


def overruns(user):
    return int(user.figures()["overruns"])


def steps_since(user, count):
    """Of each trace from number `count` on: the image's stamp, and the values that say when, s."""
    names = ("seconds_waited", "seconds_step", "period", "latency")
    for message in user.traces[count:]:
        values = {pair.key: pair.value for pair in message.status[0].values}
        yield seconds(message.header.stamp), *(json.loads(values[name]) for name in names)


def test_every_step_that_is_too_long_is_counted_and_each_sees_the_newest_image(user):
    assert user.put(**SLOW).successful
    before, traces, chunks = overruns(user), len(user.traces), len(user.chunks)
    with camera(user) as shown:
        wait_until(lambda: len(user.traces) >= traces + 4, "four steps")
    wait_until(lambda: overruns(user) == before + len(user.traces) - traces, "the count of what was published")
    acted = [trace.header.stamp for trace in user.traces[traces:]]
    wait_until(lambda: [c.header.stamp for c in user.chunks[chunks:]][: len(acted)] == acted, "a chunk of each")
    steps = list(steps_since(user, traces))
    free = 0.0
    for stamp, waited, took, period, latency in steps:
        assert period == PERIOD < took, "the step was not slow"
        assert latency == pytest.approx(waited + took, abs=0.2)  # of the node's clock and of the monotonic one
        # Nothing of what was shown while the model computed before: ten images a step and more.
        assert stamp > free
        # And the newest: none came while this one waited, but for the one or two that were still under way.
        assert sum(stamp < s < stamp + waited - 0.25 for s in shown) <= 2
        free = stamp + latency
    assert len(shown) > 5 * len(steps), "images came no faster than steps"


@pytest.fixture
def patient(user):
    """The user of a node whose actions last 10 s."""
    restart(user, control_frequency=0.1)
    yield user
    restart(user, control_frequency=1 / PERIOD)


def restart(user, **fixed):
    """Load the model again with other values of fixed parameters."""
    assert user.change_state(DEACTIVATE)
    assert user.change_state(CLEANUP)
    assert user.put(**fixed).successful
    assert user.change_state(CONFIGURE)
    assert user.change_state(ACTIVATE)


def test_a_step_within_its_period_is_not_counted(patient):
    assert patient.put(**QUICK).successful
    before = overruns(patient)
    for seed in range(3):
        patient.step(picture(seed))
    figures = patient.figures()
    assert (figures["steps"], figures["period"], int(figures["overruns"])) == ("3", "10.000", before)


def test_the_period_is_that_of_all_executed_actions():
    values = {**defaults("openvla", "tiny"), "execute_horizon": 4, "control_frequency": 5.0}
    assert settings_from_values(values).period == pytest.approx(0.8)


def test_in_lock_step_a_slow_step_is_none_too_long_but_one_that_simulated_time_outruns_is(user):
    clock = user.create_publisher(Clock, "/clock", 1)
    assert user.put(use_sim_time=True, **SLOW).successful
    wait_until(lambda: clock.get_subscription_count() == 1, "the node to listen to /clock")
    before, traces = overruns(user), len(user.traces)

    def step(begin, runs):
        """Show an image of simulated time `begin` until it is acted on; `runs`: time goes on meanwhile."""
        count, stamp, shown = len(user.traces), time_at(begin), 0.0
        began = time.monotonic()
        while len(user.traces) == count:
            if time.monotonic() - shown > 3.0:
                user.show(picture(6), stamp)
                shown = time.monotonic()
            passed = time.monotonic() - began if runs else 0.0
            clock.publish(Clock(clock=time_at(begin + passed)))
            time.sleep(0.02)
            assert time.monotonic() - began < 60.0
        return time.monotonic() - began

    try:
        user.reset()
        for i in range(2):
            assert step(100.0 + PERIOD * i, runs=False) > PERIOD, "the step was not slow"
        assert overruns(user) == before
        assert [took for _, _, took, *_ in steps_since(user, traces)] == [0.0, 0.0]
        step(200.0, runs=True)
        wait_until(lambda: overruns(user) == before + 1, "the count")
    finally:
        user.put(use_sim_time=False, **QUICK)
        user.destroy_publisher(clock)


def test_a_watch_on_simulated_time():
    clock = ROSClock()
    clock._set_ros_time_is_active(True)
    clock.set_ros_time_override(Time(seconds=9.8))
    watch = PaceWatch(clock, 10 * 10**9)  # the image has overtaken the /clock message of its moment
    clock.set_ros_time_override(Time(seconds=10.0))
    assert watch.stop(0.2) == Pace(0.0, 0.0, 0.2)
    for now, late in ((10.2, False), (10.21, True)):
        clock.set_ros_time_override(Time(seconds=now))
        assert watch.stop(0.2).overrun is late

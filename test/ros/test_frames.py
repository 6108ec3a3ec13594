"""dtp_ros/ros/frames.py: which image may be acted on, case by case."""

import pytest

from dtp_ros.ros.frames import CameraSync, FrameGate

MS = 10**6
TIMEOUT = 500 * MS


def test_an_older_image_ends_the_episode_and_the_next_is_accepted():
    gate = FrameGate()
    assert gate.refusal(1000 * MS, 1000 * MS, TIMEOUT) == ""
    gate.used = 1000 * MS
    gate.publish(1000 * MS, 1100 * MS, 0)
    assert gate.refusal(200 * MS, 200 * MS, TIMEOUT) == "time_backwards"
    gate.restart(newest=200 * MS)
    assert gate.refusal(233 * MS, 233 * MS, TIMEOUT) == ""
    assert gate.is_due(233 * MS)


def test_backwards_wins_over_stale():
    gate = FrameGate(newest=10_000 * MS)
    # A bag that loops: the image is there before the /clock message of its moment.
    assert gate.refusal(0, 10_000 * MS, TIMEOUT) == "time_backwards"


def test_a_repeated_stamp_is_refused_only_after_it_was_acted_on():
    gate = FrameGate()
    assert gate.refusal(5 * MS, 5 * MS, TIMEOUT) == ""
    assert gate.refusal(5 * MS, 6 * MS, TIMEOUT) == ""  # there was no instruction yet; time stands still
    gate.used = 5 * MS
    assert gate.refusal(5 * MS, 7 * MS, TIMEOUT) == "repeated_stamp"


@pytest.mark.parametrize(("age_ms", "cause"), [(-400, ""), (0, ""), (500, ""), (501, "stale"), (10**6, "stale")])
def test_staleness(age_ms, cause):
    assert FrameGate().refusal(10**10 * MS, 10**10 * MS + age_ms * MS, TIMEOUT) == cause


def test_horizon_one_needs_only_an_image_after_the_publication():
    gate = FrameGate()
    assert gate.is_due(0)
    assert gate.publish(1000 * MS, 1070 * MS, 0) == 70 * MS
    assert not gate.is_due(1070 * MS)
    assert gate.is_due(1071 * MS)


def test_a_longer_horizon_waits_for_all_actions_but_the_last():
    gate = FrameGate()
    gate.publish(900 * MS, 1000 * MS, 3 * 200 * MS)  # execute_horizon 4 at 5 Hz
    assert not gate.is_due(1600 * MS)
    assert gate.is_due(1601 * MS)
    gate.publish(1601 * MS, 1700 * MS, 0)  # what the next asks for
    assert gate.is_due(1701 * MS)


def test_an_image_that_overtakes_the_clock_does_not_stop_lock_step():
    """Time stands still until a command comes; the clock message of the image's moment may come after it."""
    period, clock, gate = 200 * MS, 0, FrameGate()
    for step in range(1, 20):
        stamp = step * period
        if step % 2:
            clock = stamp  # in time
        assert gate.refusal(stamp, clock, TIMEOUT) == ""
        assert gate.is_due(stamp)
        gate.used = stamp
        assert gate.publish(stamp, clock, 0) == 0
        assert gate.published == stamp


def test_cameras_pair_within_the_slop_in_either_order():
    sync = CameraSync(2)
    assert sync.add(0, 1000, "main", 50) is None
    assert sync.is_waiting
    assert sync.add(1, 1050, "wrist", 50) == ["main", "wrist"]
    assert not sync.is_waiting
    assert sync.add(1, 1100, "wrist 2", 50) is None
    assert sync.add(0, 1060, "main 2", 50) == ["main 2", "wrist 2"]


def test_an_image_pairs_with_the_newest_and_only_once():
    sync = CameraSync(3)
    sync.add(1, 0, "old", 50)
    sync.add(2, 990, "gripper", 50)
    assert sync.add(0, 1000, "main", 50) is None
    assert sync.add(1, 1020, "wrist", 50) == ["main", "wrist", "gripper"]
    assert sync.add(1, 1030, "wrist", 50) is None
    assert sync.add(0, 1040, "main", 50) is None
    sync.clear()
    assert not sync.is_waiting


def test_one_camera_needs_no_partner():
    assert CameraSync(1).add(0, 7, "main", 0) == ["main"]

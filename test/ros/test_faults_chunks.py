"""200 random chunks that no policy should send; and that the recorder finds what is unsafe."""

from collections import Counter

import numpy as np
import pytest
from fault_harness import ARM, START, Arm, Mover, graph
from fault_recorder import NAMES, outside
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from widowx_harness import PATIENT, wait_until

from dtp_ros.ros.conversions import joint_state_to_ros

DOMAIN = 31
COUNT = 200


def cut(message, rng):
    message.points[-1].positions = rng.normal(size=rng.choice([0, 1, 6, 8, 50])).tolist()


def rename(message, rng):
    names = np.roll(message.joint_names, rng.integers(1, 7))
    names[0] = rng.choice([names[0], names[0] + "_"])
    message.joint_names = names.tolist()


def spoil(message, rng):
    message.points[-1].positions[rng.integers(7)] = float(rng.choice([np.nan, np.inf, -np.inf]))


def enlarge(message, rng):
    message.points = message.points[:1]
    message.points[0].positions[rng.integers(6)] = float(rng.choice([1e9, -1e9, 1e300]))


def postdate(message, rng):
    message.header.stamp.sec += int(10 ** rng.uniform(0.5, 8))


def lengthen(message, rng):
    message.points = [JointTrajectoryPoint(positions=[0.0] * 7)] * int(rng.integers(65, 500))


def displace(message, rng):
    message.header.frame_id = str(rng.choice(["", "camera", "/base_link", "base_link "]))


def retime(message, rng):
    message.points[-1].time_from_start.sec = int(rng.choice([-5, 1000]))


def empty(message, rng):
    message.points = []


def strip(message, rng):
    message.points, message.joint_names = [], []
    message.header = JointTrajectory().header


FAULTS = {  # what is done to a sound chunk, and the counter that must name it
    cut: "holds/chunk_horizon", empty: "holds/chunk_horizon", lengthen: "holds/chunk_horizon",
    rename: "holds/chunk_names", strip: "holds/chunk_names", displace: "holds/chunk_frame",
    retime: "holds/chunk_timing", spoil: "holds/finite", enlarge: "clips/step", postdate: "holds/future_stamp",
}  # fmt: skip


def test_malformed_chunks_are_a_hold_or_a_clipped_step_each_and_named(tmp_path):
    with graph(DOMAIN, tmp_path) as bench:
        _, mover = Arm(bench), Mover(bench)
        bench.processes.start("widowx_node", driver="sim", joint_state_timeout=PATIENT)
        bench.wait_for_motion()
        mover.acting = False
        bench.require_hold(mover.sent_last, 1.5)
        before = bench.status(ARM)[1]
        rng, expected = np.random.default_rng(0), Counter()
        for _ in range(COUNT):
            message = mover.message(*rng.normal(0, [0.02] * 3 + [0.1] * 3 + [0.5], (rng.integers(1, 4), 7)))
            fault = list(FAULTS)[rng.integers(len(FAULTS))]
            fault(message, rng)
            expected[FAULTS[fault]] += 1
            sent = len(bench.recorder.messages)
            mover.publish(message)
            wait_until(lambda sent=sent: len(bench.recorder.messages) > sent, fault.__name__)
        _, values = bench.status(ARM)
        counted = {counter: int(values[counter]) - int(before[counter]) for counter in expected}
        assert counted == dict(expected)
        assert len(counted) == 7
        assert values["armed"] == "true"
        mover.acting = True
        bench.wait_for_motion()
        bench.recorder.require_safe()


@pytest.mark.parametrize(
    ("joints", "gripper", "elapsed", "found"),
    [
        (np.add(START, [0.39, 0, 0, 0, 0, 0]), 0.05, 0.19, "too fast"),  # 0.2 rad from the command before
        (START + 1e-3, 0.05, 0.1, "did not go on"),  # near the arm, but far from the command before
        (np.add(START, [0.19, -0.19, -0.19, 0, 0, 0]), 0.05, 0.2, "workspace"),
        (np.add(START, [0.19, 0, 0, 0, 0, np.pi]), 0.05, 0.2, "joint limits"),
        ([np.nan, *START[1:]], 0.05, 0.2, "not finite"),
        (START + 1e-3, 0.08, 0.2, "gripper"),
    ],
)
def test_the_recorder_finds_what_is_unsafe(tmp_path, joints, gripper, elapsed, found):
    with graph(DOMAIN + 1, tmp_path) as bench:
        Arm(bench)
        publisher = bench.create_publisher(JointState, "sim/joint_command", 10)
        wait_until(lambda: publisher.get_subscription_count() == 2 and bench.recorder.measured, "matches")

        def send(joints, gripper, stamp):
            count = len(bench.recorder.messages)
            positions = {**dict(zip(NAMES, joints, strict=True)), "gripper": gripper}
            publisher.publish(joint_state_to_ros(positions, stamp))
            wait_until(lambda: len(bench.recorder.messages) > count, "it arrives")

        send(START, 0.05, 1.0)
        send(np.add(START, [0.19, 0, 0, 0, 0, 0]), 0.05, 1.2)
        bench.recorder.require_safe()
        send(joints, gripper, 1.2 + elapsed)
        with pytest.raises(AssertionError, match=found):
            bench.recorder.require_safe()


def test_after_a_hold_outside_the_box_the_recorder_wants_the_way_back(tmp_path):
    with graph(DOMAIN + 1, tmp_path) as bench:
        arm = Arm(bench)
        bench.destroy_timer(next(iter(bench.timers)))  # joint states by hand
        publisher = bench.create_publisher(JointState, "sim/joint_command", 10)
        wait_until(lambda: publisher.get_subscription_count() == 2, "matches")
        out = np.add(START, [0.0, 0.9, -0.9, 0.0, 0.0, 0.0])
        assert outside(out) > 0.01
        arm._publisher.publish(joint_state_to_ros({**dict(zip(NAMES, out, strict=True)), "gripper": 0.05}, 1.0))
        wait_until(lambda: bench.recorder.measured, "the arm outside")
        back, further = (out + step * (START - out) for step in (0.02, -0.02))
        assert outside(back) < outside(out) < outside(further)
        for joints, stamp in ((out, 1.0), (back, 1.2), (further, 1.4)):
            count = len(bench.recorder.messages)
            publisher.publish(joint_state_to_ros({**dict(zip(NAMES, joints, strict=True)), "gripper": 0.05}, stamp))
            wait_until(lambda count=count: len(bench.recorder.messages) > count, "it arrives")
            if joints is not further:
                bench.recorder.require_safe()
        with pytest.raises(AssertionError, match="workspace"):
            bench.recorder.require_safe()

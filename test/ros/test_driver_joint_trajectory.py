"""The driver `joint_trajectory`: what reaches the controllers of Interbotix's and of Trossen's arms over real DDS."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from driver_harness import CLOSE, FORWARD, environment, malformed, require_sane, stand_in
from rclpy.node import Node
from scipy.interpolate import CubicHermiteSpline
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory
from widowx_harness import ARM, DEADLINE, START, running, wait_until

from dtp_ros.ros.conversions import joint_state_to_ros
from dtp_ros.ros.drivers.joint_trajectory import STRETCH
from dtp_ros.widowx.kinematics import forward, robot

DOMAIN = 82
WXAI = robot("wxai")
WXAI_START = [0.0, 1.2, 1.1, -1.3, 0.0, 0.0]


def position(joints, arm=ARM):
    return forward(arm, np.array(joints, float))[:3, 3]


def hear(bench, topic):
    heard = []
    bench.create_subscription(JointTrajectory, topic, heard.append, 100)
    return heard


def seconds(point):
    return point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec


@pytest.fixture
def interbotix():
    """A node that drives an Interbotix arm under ros2_control, and the ears of its two controllers."""
    with running(DOMAIN, driver="joint_trajectory", arm_namespace="/wx250s", joint_states="/wx250s/joint_states") as b:
        arm, gripper = (hear(b, f"/wx250s/{name}_controller/joint_trajectory") for name in ("arm", "gripper"))
        wait_until(lambda: b.status()[0] == "disarmed", "controllers found")
        yield b, arm, gripper


def test_each_command_is_one_short_trajectory_that_begins_now_and_ends_at_rest(interbotix):
    bench, arm, gripper = interbotix
    bench.armed()
    bench.send(FORWARD, FORWARD, CLOSE)
    wait_until(lambda: len(arm) >= 3, "three commands")
    for message in arm[:3]:
        assert tuple(message.joint_names) == ARM.joint_names
        assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (0, 0, "")
        (point,) = message.points
        assert list(point.velocities) == [0.0] * 6
        assert seconds(point) == pytest.approx(0.3)
    x = [position(message.points[0].positions)[0] - position(START)[0] for message in arm[:3]]
    np.testing.assert_allclose(x, [0.02, 0.04, 0.04], atol=3e-3)
    wait_until(lambda: len(gripper) >= 2, "two openings")
    assert [list(message.joint_names) for message in gripper] == [["left_finger"]] * 2
    np.testing.assert_allclose([message.points[0].positions[0] for message in gripper], [0.037, 0.015])


def test_the_way_to_a_target_is_nowhere_faster_than_the_gate_allows(interbotix):
    # What a cubic from rest to rest, which joint_trajectory_controller makes of a point, does at its fastest.
    bench, arm, _ = interbotix
    bench.armed()
    bench.send([0, 0, 0, 0, 0, 0.25, 1.0])
    wait_until(lambda: arm, "a command")
    (point,) = arm[0].points
    fastest = 1.5 * np.abs(np.array(point.positions) - START).max() / seconds(point)
    assert 0.9 < fastest <= 1.0 + 1e-6  # rad/s, max_joint_velocity


def test_a_stream_of_targets_is_followed_at_nearly_its_own_speed():
    # Cubics from where the one before had got to, at its speed, each to rest STRETCH periods ahead, replaced after one.
    at, speed, speeds = 0.0, 0.0, []
    for target in range(1, 40):
        cubic = CubicHermiteSpline([0.0, STRETCH], [at, target], [speed, 0.0])
        at, speed = cubic(1.0), cubic(1.0, 1)
        speeds += [*cubic(np.linspace(0.0, 1.0, 50), 1)] if target > 3 else []
    assert 0.8 < min(speeds) < max(speeds) < 1.13


def test_unarmed_nothing_goes_out_and_a_stop_is_one_hold(interbotix):
    bench, arm, gripper = interbotix
    bench.send(FORWARD, CLOSE)
    wait_until(lambda: int(bench.status()[1]["holds/not_armed"]) >= 2, "two refusals")
    assert (arm, gripper) == ([], [])
    bench.armed()
    bench.send(*[FORWARD] * 5)
    wait_until(lambda: len(arm) >= 2, "motion")
    assert bench.trigger("stop").success
    wait_until(lambda: np.allclose(arm[-1].points[0].positions, START), "a hold where the arm was measured")
    count = len(arm)
    bench.send(*[FORWARD] * 3)
    wait_until(lambda: int(bench.status()[1]["holds/not_armed"]) >= 5, "refusals")
    assert len(arm) == count


def test_what_must_not_be_sent_is_not(interbotix):
    bench, arm, gripper = interbotix
    bench.armed()
    for chunk in malformed(bench):
        bench.chunks.publish(chunk)
    bench.measure(joints=[np.nan] * 6)
    bench.send(*[FORWARD] * 3)
    wait_until(lambda: arm and position(arm[-1].points[0].positions)[0] > position(START)[0] + 0.02, "a sane motion")
    require_sane(ARM, [message.points[0].positions for message in arm])
    fingers = np.array([message.points[0].positions[0] for message in gripper])
    assert ((fingers >= 0.015 - 1e-9) & (fingers <= 0.037 + 1e-9)).all()


def test_a_missing_controller_is_named():
    with running(DOMAIN, driver="joint_trajectory", arm_controller="left/arm_controller") as bench:
        assert "nobody listens to /left/arm_controller/joint_trajectory" in bench.status()[0]
        refused = bench.arm()
        assert (refused.success, "nobody listens" in refused.message) == (False, True)
        recorder = Node("rosbag2_recorder", context=bench.context)  # hears all, and drives nothing
        recorder.create_subscription(JointTrajectory, "/left/arm_controller/joint_trajectory", print, 10)
        wait_until(lambda: bench.count_subscribers("/left/arm_controller/joint_trajectory") == 1, "the recorder")
        time.sleep(0.5)
        assert "nobody listens to /left/arm_controller/joint_trajectory" in bench.status()[0]
        recorder.destroy_node()
        hear(bench, "/left/arm_controller/joint_trajectory")
        wait_until(lambda: "/gripper_controller/joint_trajectory" in bench.status()[0], "the gripper's named")


def test_trossens_arm_and_its_gripper_action(arm_messages):
    with (
        stand_in("parallel_gripper.py", DOMAIN, arm_messages),
        running(DOMAIN, driver="joint_trajectory", robot="wxai") as bench,
    ):
        bench.measures = False  # it measures a WidowX 250S
        names, goals = [*WXAI.joint_names, "left_carriage_joint"], []
        state = dict(zip(names, [*WXAI_START, 0.044], strict=True))
        bench.create_timer(0.02, lambda: bench.joint_states.publish(joint_state_to_ros(state, bench.now())))
        bench.create_subscription(JointState, "/parallel_gripper/goals", goals.append, 10)
        arm = hear(bench, "/arm_controller/joint_trajectory")
        wait_until(lambda: bench.status()[0] == "disarmed", lambda: f"an action server, {bench.status()[0]}")
        bench.armed()
        bench.send(FORWARD, CLOSE)
        wait_until(lambda: len(arm) >= 2, "two commands")
        assert list(arm[0].joint_names) == [f"joint_{i}" for i in range(6)]
        x = position(arm[0].points[0].positions, WXAI)[0] - position(WXAI_START, WXAI)[0]
        assert x == pytest.approx(0.02, abs=3e-3)
        wait_until(lambda: len(goals) >= 2, "two goals")
        assert [list(goal.name) for goal in goals] == [["left_carriage_joint"]] * 2
        np.testing.assert_allclose([goal.position[0] for goal in goals], [0.044, 0.0], atol=1e-9)


@pytest.mark.parametrize("there", [False, True])
def test_missing_messages_of_the_gripper_are_named_with_what_to_install(tmp_path, there):
    """No control_msgs at all, and one as Humble's, without the action."""
    if there:
        package = tmp_path / "control_msgs"
        package.mkdir()
        for name in ("__init__.py", "action.py"):
            (package / name).touch()
    given = os.environ.get("PYTHONPATH")
    around = environment(DOMAIN, {"PYTHONPATH": os.pathsep.join([str(tmp_path), *([given] if given else [])])})
    command = [sys.executable, "-m", "dtp_ros.ros.widowx_node", "--ros-args"]
    command += ["-p", "driver:=joint_trajectory", "-p", "robot:=wxai"]
    done = subprocess.run(command, env=around, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert ("needs ParallelGripperCommand" if there else "needs the package control_msgs") in line
    assert "apt-get install ros-$ROS_DISTRO-control-msgs, Jazzy or later" in line

"""The arm's node over real DDS: lock-step, real time, bad input, services, parameters, the end."""

import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from rclpy.exceptions import ParameterException
from rclpy.parameter import Parameter
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker
from widowx_harness import ARM, DEADLINE, PATIENT, START, running, wait_until

from dtp_ros.errors import ConfigError
from dtp_ros.ros.conversions import joint_state_to_ros
from dtp_ros.ros.widowx_node import WidowxNode
from dtp_ros.widowx.gate import CHECKS
from dtp_ros.widowx.kinematics import forward

DOMAIN = 94
FORWARD = [0.02, 0, 0, 0, 0, 0, 1.0]
CLOSE = [0, 0.02, 0, 0, 0, 0, 0.0]
STAY = [0, 0, 0, 0, 0, 0, 1.0]


def position(joints):
    return forward(ARM, np.array(joints[:6]))[:3, 3]


def exchange(bench, *actions, message=None, commands=None):
    """Send a chunk, wait for its commands (one an action), and see that no more follow before the next chunk."""
    before = len(bench.commands)
    if message is None:
        bench.send(*actions)
    else:
        bench.chunks.publish(message)
    expected = before + (len(actions) if commands is None else commands)
    wait_until(lambda: len(bench.commands) >= expected, f"{expected - before} commands")
    return bench.commands[before:]


def test_lock_step_one_command_an_action_whatever_the_action():
    with running(DOMAIN, lock_step=True, max_joint_velocity=3.0) as bench:
        here = position(START)
        first = exchange(bench, FORWARD, FORWARD, CLOSE)
        assert list(first[0].name) == [*ARM.joint_names, "gripper"]
        for command, expected in zip(first, [(0.02, 0), (0.04, 0), (0.04, 0.02)], strict=True):
            np.testing.assert_allclose(position(command.position) - here, [*expected, 0], atol=1e-5)
        assert [c.position[6] for c in first] == [0.074, 0.074, 0.030]
        held = position(bench.joints)
        # Not finite: the whole chunk is one hold. Too large: clipped. Out of the box: to its wall.
        (nan,) = exchange(bench, [math.nan, *STAY[1:]], STAY, commands=1)
        np.testing.assert_allclose(position(nan.position), held, atol=1e-6)
        (far,) = exchange(bench, [-1e9, 0, 0, 0, 0, 0, 0.0])
        np.testing.assert_allclose(position(far.position) - held, [-0.05, 0, 0], atol=1e-5)
        walled = [exchange(bench, [0, 0.05, 0, 0, 0, 0, 0.0])[0] for _ in range(6)]
        assert position(walled[-1].position)[1] == pytest.approx(0.25, abs=1e-4)
        commands = 3 + 1 + 1 + 6
        assert len(bench.commands) == commands
        assert bench.sim_time == pytest.approx(1.0 + 0.2 * commands)
        message, values = bench.status()
        assert values["holds/finite"] == "1"
        assert values["clips/step"] == "1"
        assert int(values["clips/workspace"]) >= 1
        assert len(bench.commands) == commands, message  # none was sent for a clock that stands still


def test_lock_step_malformed_chunks_are_one_hold_each_and_named():
    with running(DOMAIN, lock_step=True) as bench:
        messages = {}
        for cause in ("chunk_names", "chunk_frame", "chunk_horizon", "chunk_timing", "future_stamp", "image"):
            messages[cause] = bench.message(FORWARD)
        messages["chunk_names"].joint_names.reverse()
        messages["chunk_frame"].header.frame_id = "camera"
        messages["chunk_horizon"].points[0].positions = [0.0] * 6
        messages["chunk_timing"].points[0].time_from_start.sec = -5
        messages["future_stamp"].header.stamp.sec += 100
        bench.sim_time += 5.0
        bench.measure()
        for cause, message in messages.items():
            (command,) = exchange(bench, message=message, commands=1)
            np.testing.assert_array_equal(command.position[:6], START, err_msg=cause)
        exchange(bench, message=JointTrajectory(), commands=1)
        _, values = bench.status()
        counted = {cause: int(values[f"{CHECKS[cause].effect}/{cause}"]) for cause in messages}
        assert counted == {"chunk_names": 2, **dict.fromkeys(list(messages)[1:], 1)}
        (command,) = exchange(bench, FORWARD)
        assert position(command.position)[0] == pytest.approx(position(START)[0] + 0.02, abs=1e-5)


def test_lock_step_an_unreachable_target_holds_and_time_goes_on():
    with running(DOMAIN, lock_step=True, workspace_high=[1.0, 1.0, 1.0], max_joint_velocity=3.0) as bench:
        bench.joints = np.array([0.0, 0.9, -0.5, 0.0, -0.3, 0.0])
        bench.measure()
        commands = [exchange(bench, [0.05, 0, 0, 0, 0, 0, 1.0])[0] for _ in range(10)]
        _, values = bench.status()
        assert int(values["holds/kinematics"]) >= 2
        assert list(commands[-1].position) == list(commands[-2].position)
        assert bench.sim_time == pytest.approx(1.0 + 10 * 0.2)


def test_lock_step_goes_on_in_held_periods_after_a_policy_that_fell_silent():
    with running(DOMAIN, lock_step=True, lock_step_timeout=0.5) as bench:
        wait_until(lambda: bench.commands, "a held period before any chunk")
        np.testing.assert_allclose(bench.commands[0].position[:6], START, atol=1e-6)
        bench.send(FORWARD)
        wait_until(lambda: position(bench.joints)[0] > position(START)[0] + 0.01, "a motion")
        moved, count = bench.joints, len(bench.commands)
        wait_until(lambda: len(bench.commands) >= count + 2, "two held periods")
        for command in bench.commands[count:]:
            np.testing.assert_allclose(command.position[:6], moved, atol=1e-6)
        assert bench.sim_time == pytest.approx(1.0 + 0.2 * len(bench.commands), abs=0.21)
        assert int(bench.status()[1]["holds/command_timeout"]) >= 2
        bench.send(FORWARD)
        wait_until(lambda: position(bench.joints)[0] > position(moved)[0] + 0.01, "another motion")


def test_stop_and_arm_in_lock_step():
    with running(DOMAIN, lock_step=True) as bench:
        exchange(bench, FORWARD)
        assert bench.trigger("stop").success
        wait_until(lambda: len(bench.commands) == 2, "the hold")
        stopped = position(bench.commands[-1].position)
        (refused,) = exchange(bench, FORWARD)
        np.testing.assert_allclose(position(refused.position), stopped, atol=1e-9)
        message, values = bench.status()
        assert (values["armed"], values["stops/stop"], values["holds/not_armed"]) == ("false", "1", "1")
        assert message == "disarmed: stop"
        assert not bench.trigger("go_home").success
        bench.armed()
        (moved,) = exchange(bench, FORWARD)
        np.testing.assert_allclose(position(moved.position) - stopped, [0.02, 0, 0], atol=1e-5)


def test_going_home_in_lock_step():
    with running(DOMAIN, lock_step=True) as bench:
        wait_until(lambda: bench.trigger("go_home").success, "joint states heard")
        wait_until(lambda: np.abs(bench.joints - ARM.neutral).max() < 2e-3, lambda: f"home, at {bench.joints}")
        path = np.array([START, *(c.position[:6] for c in bench.commands)])
        assert np.abs(np.diff(path, axis=0)).max() <= 0.2 + 1e-9
        wait_until(lambda: bench.status()[1]["state"] != "going home", "the end of going home")
        assert bench.trigger("go_home").success  # there already
        assert bench.trigger("stop").success
        bench.armed()
        assert bench.trigger("go_home").success  # the hold before is not this one's refusal


def test_real_time_spacing_outputs_and_the_hold_after_a_gap():
    with running(DOMAIN, command_timeout=3.0) as bench:
        sent = bench.now()
        bench.send(FORWARD, FORWARD, CLOSE)
        poses, heard = bench.heard["commanded_pose"], bench.heard
        outputs = ("commanded_pose", "commanded_twist", "commanded_gripper")
        wait_until(lambda: all(len(heard[topic]) >= 4 for topic in outputs), "three motions and a hold")
        times = np.array([p.header.stamp.sec + p.header.stamp.nanosec * 1e-9 for p in poses])
        assert np.abs(np.diff(times)[:2] - 0.2).min() < 0.1  # a busy machine may let one of the three be late
        assert 3.0 <= times[3] - sent < 6.0
        assert all(p.header.frame_id == "base_link" for p in poses)
        x = np.array([p.pose.position.x for p in poses]) - position(START)[0]
        np.testing.assert_allclose(x[:3], [0.02, 0.04, 0.04], atol=3e-3)  # less where a tick came a little early
        targets = heard["target_pose"]
        assert len(targets) == 3
        assert targets[0].pose.position.x - position(START)[0] == pytest.approx(0.02, abs=1e-6)
        assert heard["commanded_twist"][0].twist.linear.x == pytest.approx(0.1, abs=1e-3)
        assert heard["commanded_twist"][3].twist.linear.x == 0.0
        assert [g.position[0] for g in heard["commanded_gripper"]] == [0.074, 0.074, 0.030, 0.030]
        assert len(heard["latency"]) == 1
        assert 0.0 <= heard["latency"][0].data < 3.0
        _, values = bench.status()
        assert (values["state"], values["holds/command_timeout"]) == ("holding", "1")
        markers = {m.ns: m for m in wait_until(lambda: heard["markers"], "markers")[-1].markers}
        assert set(markers) == {"workspace", "target", "path"}
        corners = np.array([[p.x, p.y, p.z] for p in markers["workspace"].points])
        assert len(corners) == 24
        np.testing.assert_allclose([corners.min(0), corners.max(0)], [[0.10, -0.15, -0.01], [0.45, 0.25, 0.25]])
        assert markers["path"].action == Marker.ADD
        bench.send(FORWARD)  # recovers by itself
        wait_until(lambda: len(heard["commanded_pose"]) > 4, "motion again")


def test_joint_states_that_stop_or_lie():
    with running(DOMAIN, joint_state_timeout=0.2) as bench:
        wait_until(lambda: bench.status()[1]["joint_states_age"] != "none", "joint states heard")
        bench.measures = False
        wait_until(lambda: float(bench.status()[1]["joint_states_age"].split()[0]) > 0.3, "stale joint states")
        bench.send(FORWARD, FORWARD)
        wait_until(lambda: int(bench.status()[1]["holds/joint_states"]) >= 1, "a hold that is due")
        assert not bench.arm().success
        assert not bench.commands  # nobody knows where to hold
        bench.joints = there = START + 0.1
        bench.measures = True
        wait_until(lambda: bench.commands, "the hold")
        np.testing.assert_allclose(bench.commands[0].position[:6], there, atol=1e-9)
        bench.measure(joints=[math.nan] * 6)
        wait_until(lambda: int(bench.status()[1]["drops/joint_finite"]) >= 1, "counted NaN")
        count = len(bench.commands)
        bench.send(FORWARD)
        wait_until(lambda: len(bench.commands) > count, "motion again")
        assert position(bench.commands[-1].position)[0] > position(there)[0] + 0.015


def test_an_arm_whose_clock_is_ahead_is_missed_as_soon_as_it_is_silent():
    with running(DOMAIN, joint_state_timeout=0.2) as bench:
        bench.measures = False
        positions = {**dict(zip(ARM.joint_names, START, strict=True)), "gripper": 0.074}
        bench.joint_states.publish(joint_state_to_ros(positions, bench.now() + 100.0))
        wait_until(lambda: bench.status()[1]["joint_states_age"] != "none", "joint states heard")
        wait_until(lambda: float(bench.status()[1]["joint_states_age"].split()[0]) > 0.3, "stale joint states")
        bench.send(FORWARD)
        wait_until(lambda: bench.status()[1]["holds/joint_states"] == "1", "a hold that is due")
        assert not bench.commands
        bench.measures = True
        wait_until(lambda: bench.commands, "the hold")
        np.testing.assert_allclose(bench.commands[0].position[:6], START)


def test_a_limit_violation_by_the_measured_arm_disarms():
    with running(DOMAIN, driver="dry_run") as bench:
        violating = START.copy()
        violating[1] = math.radians(114) + 0.1
        bench.joints = violating
        wait_until(lambda: bench.status()[1]["armed"] == "false", "disarmed")
        answer = bench.arm()
        assert not answer.success
        assert "shoulder" in answer.message
        bench.joints = START.copy()
        bench.armed()
        assert bench.status()[1]["stops/limit_violation"] == "1"


def test_another_publisher_disarms_and_alternating_ones_do_again():
    with running(DOMAIN) as bench:
        bench.send(STAY)
        wait_until(lambda: bench.commands, "a command")
        other = bench.create_publisher(JointTrajectory, "action_chunk", 10)
        wait_until(lambda: other.get_subscription_count() > 0, "a match")
        other.publish(bench.message(STAY))
        wait_until(lambda: bench.status()[1]["stops/publisher"] == "1", "disarmed")
        bench.armed()
        for publisher in (bench.chunks, other, bench.chunks, other):
            publisher.publish(bench.message(STAY))
        wait_until(lambda: bench.status()[1]["armed"] == "false", "disarmed by two policies at once")
        bench.destroy_publisher(other)
        wait_until(lambda: bench.status()[1]["publishers"] == "1", "the other one gone")
        bench.armed()
        count = len(bench.commands)
        bench.send(STAY)
        wait_until(lambda: len(bench.commands) > count, "a command")
        assert bench.status()[1]["armed"] == "true"


def test_parameters_are_checked_and_hold_from_the_next_step_on():
    with running(DOMAIN, lock_step=True) as bench:
        refusals = {
            "max_step_translation": (0.5, "0.001"),
            "max_joint_velocity": (math.nan, "10.0"),
            "command_timeout": (1, "Type.DOUBLE"),
            "workspace_low": ([0.5, 0.0, 0.0], "low < high"),
            "workspace_high": ([0.5, 0.0], "three"),
            "reference": ("target", "commanded, measured"),
            "late_actions": ("skip", "execute, drop"),
            "driver": ("dry_run", "read-only"),
        }
        for name, (value, reason) in refusals.items():
            (result,) = bench.set(**{name: value})
            assert not result.successful, name
            assert reason in result.reason, (name, result.reason)
        assert all(r.successful for r in bench.set(max_step_translation=0.01, gripper_threshold=0.9))
        (command,) = exchange(bench, [0.05, 0, 0, 0, 0, 0, 0.8])
        assert position(command.position)[0] == pytest.approx(position(START)[0] + 0.01, abs=1e-5)
        assert command.position[6] == 0.030


def test_joint_states_of_a_namespaced_arm():
    with running(DOMAIN, driver="dry_run", arm_namespace="/wx250s", joint_states="/wx250s/joint_states") as bench:
        bench.send(FORWARD)
        wait_until(lambda: bench.heard["commanded_pose"], "a command")
        assert not bench.commands  # a dry run drives nothing


@pytest.mark.parametrize(
    ("prefix", "topic"), [("", "/left/joint_states"), ("/", "/joint_states"), ("/wx250s/", "/wx250s/joint_states")]
)
def test_where_a_namespaced_node_listens_to_its_arm(prefix, topic):
    with running(DOMAIN, node=False):
        node = WidowxNode(namespace="/left", parameter_overrides=[Parameter("arm_namespace", value=prefix)])
        assert [s.topic_name for s in node.subscriptions if s.topic_name.endswith("joint_states")] == [topic]
        node.close()
        node.destroy_node()


def start_process(*arguments):
    environment = {**os.environ, "ROS_DOMAIN_ID": str(DOMAIN), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    command = [sys.executable, "-m", "dtp_ros.ros.widowx_node", "--ros-args"]
    for argument in arguments:
        command += ["-p", argument]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_is_a_hold_and_exit_code_0(number):
    with running(DOMAIN, node=False) as bench:
        process = start_process("driver:=sim", "max_joint_velocity:=0.5", f"joint_state_timeout:={PATIENT}")
        try:
            bench.ready(expect_sim=True)
            bench.follows = False
            bench.send(*[FORWARD] * 20)
            wait_until(lambda: len(bench.commands) >= 2, "motion")
            process.send_signal(number)
            assert process.wait(DEADLINE) == 0
            last = wait_until(lambda: bench.commands, "commands")
            wait_until(lambda: np.allclose(last[-1].position[:6], START), "a hold where the arm was measured")
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("argument", "reason"),
    [("driver:=teleport", "valid: dry_run, sim"), ("command_timeout:=1", "command_timeout")],
)
def test_a_parameter_that_cannot_stand_is_one_line_and_exit_code_1(argument, reason):
    process = start_process(argument)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert reason in errors
    assert len(errors.strip().splitlines()) == 1, errors


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("robot", "ur5", "valid: wx250s, wx250, wxai"),
        ("workspace_low", [0.6, 0.0, 0.0], "low < high"),
        ("max_step_rotation", 9.0, "max_step_rotation"),
        ("arm_namespace", "a b", "arm_namespace = 'a b' is not a ROS name"),
        ("arm_namespace", "/a//b", "arm_namespace = '/a//b' is not a ROS name"),
    ],
)
def test_a_node_with_such_a_parameter_is_not_made(name, value, reason):
    with running(DOMAIN, node=False), pytest.raises((ConfigError, ParameterException), match=reason):
        WidowxNode(parameter_overrides=[Parameter(name, value=value)])


def test_the_simulator_has_one_arm():
    overrides = [Parameter("driver", value="sim"), Parameter("robot", value="wxai")]
    with running(DOMAIN, node=False), pytest.raises(ConfigError, match=r"'wxai' is not known \(valid: wx250s\)"):
        WidowxNode(parameter_overrides=overrides)

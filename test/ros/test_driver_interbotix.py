"""The driver `interbotix` against a stand-in of xs_sdk in a process of its own, over real DDS."""

import math
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from driver_harness import CLOSE, FORWARD, environment, malformed, require_sane, stand_in, widowx
from sensor_msgs.msg import JointState
from widowx_harness import ARM, DEADLINE, START, running, wait_until

from dtp_ros.widowx.kinematics import forward

DOMAIN = 81
NAMESPACE = "/wx250s"
OPEN, CLOSED = 0.037, 0.015  # m, of one finger
NODE = {"driver": "interbotix", "arm_namespace": NAMESPACE}
SHIPPED, OURS = (
    {"Profile_Velocity": 2000, "Profile_Acceleration": 300},
    {
        "Profile_Velocity": 250,
        "Profile_Acceleration": 100,
    },
)


def position(joints):
    return forward(ARM, np.array(joints[:6], float))[:3, 3]


class Ear:
    """Everything that reaches the arm, and its registers."""

    def __init__(self, bench):
        from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
        from interbotix_xs_msgs.srv import RegisterValues, TorqueEnable

        bench.measures = False  # the arm does
        self.bench, self.kind, self.group, self.single, self.states = bench, RegisterValues, [], [], []
        bench.create_subscription(JointGroupCommand, f"{NAMESPACE}/commands/joint_group", self.group.append, 100)
        bench.create_subscription(JointSingleCommand, f"{NAMESPACE}/commands/joint_single", self.single.append, 100)
        bench.create_subscription(JointState, f"{NAMESPACE}/joint_states", self.states.append, 100)
        self.client = bench.create_client(RegisterValues, f"{NAMESPACE}/get_motor_registers")
        self.limp = partial(
            bench.call,
            bench.create_client(TorqueEnable, f"{NAMESPACE}/torque_enable"),
            TorqueEnable.Request(cmd_type="group", name="arm", enable=False),
        )

    def register(self, name):
        request = self.kind.Request(cmd_type="group", name="arm", reg=name)
        return list(self.bench.call(self.client, request).values)

    def has(self, profile):
        return all(set(self.register(name)) == {value} for name, value in profile.items())

    def measured(self):
        newest = dict(zip(self.states[-1].name, self.states[-1].position, strict=True))
        return np.array([newest[name] for name in ARM.joint_names]), newest["left_finger"]

    def holds(self):
        """Whether the last command goes no further: the arm lags its target, or is there."""
        return position(self.group[-1].cmd)[0] < position(self.group[-2].cmd)[0] + 1e-4

    def ready(self):
        wait_until(lambda: self.has(OURS), "our profile")
        wait_until(lambda: self.bench.status()[0] == "disarmed", "a driver that is set up")
        wait_until(lambda: self.states, "joint states")


@pytest.fixture
def arm(arm_messages):
    def begin(**parameters):
        return stand_in("xs_sdk.py", DOMAIN, arm_messages, NAMESPACE, **parameters)

    return begin


def with_node(**parameters):
    return running(DOMAIN, joint_states=f"{NAMESPACE}/joint_states", **NODE, **parameters)


def test_what_goes_out_for_moves_and_grasps_and_what_the_arm_makes_of_it(arm):
    with arm(), with_node() as bench:
        ear = Ear(bench)
        ear.ready()
        bench.armed()
        bench.send(FORWARD, FORWARD, CLOSE)
        wait_until(lambda: len(ear.group) >= 3, "three commands")
        assert {(command.name, len(command.cmd)) for command in ear.group} == {("arm", 6)}
        x = [position(command.cmd)[0] - position(START)[0] for command in ear.group]
        np.testing.assert_allclose(x[:3], [0.02, 0.04, 0.04], atol=3e-3)
        wait_until(lambda: abs(position(ear.measured()[0])[0] - position(START)[0] - x[2]) < 1e-3, "the arm there")
        # PWM: open, close, and off where the fingers are at their end.
        wait_until(lambda: ear.measured()[1] < CLOSED + 6e-4, "closed fingers")
        wait_until(lambda: ear.single[-1].cmd == 0.0, "rest")
        assert [command.cmd for command in ear.single if command.cmd] == [250.0, -250.0]
        assert {command.name for command in ear.single} == {"gripper"}


def test_a_gripper_in_linear_position_takes_metres(arm):
    with arm(gripper_mode="linear_position"), with_node() as bench:
        ear = Ear(bench)
        ear.ready()
        bench.armed()
        bench.send(FORWARD, CLOSE)
        wait_until(lambda: len(ear.single) >= 2, "two openings")
        np.testing.assert_allclose([command.cmd for command in ear.single], [2 * OPEN, 2 * CLOSED], atol=1e-6)


def test_unarmed_nothing_drives_a_motor_and_arming_puts_the_torque_on(arm):
    with arm(torque=False), with_node() as bench:
        ear = Ear(bench)
        ear.ready()
        bench.send(FORWARD, CLOSE)
        wait_until(lambda: int(bench.status()[1]["holds/not_armed"]) >= 2, "two refusals")
        assert (ear.group, ear.single, ear.register("Torque_Enable")) == ([], [], [0] * 6)
        bench.armed()
        bench.send(FORWARD, FORWARD)
        wait_until(lambda: ear.register("Torque_Enable") == [1] * 6, "torque")
        wait_until(lambda: ear.group, "a command")


def test_stop_is_one_hold_where_the_arm_is_and_no_more(arm):
    with arm(), with_node() as bench:
        ear = Ear(bench)
        ear.ready()
        bench.armed()
        bench.send(*[FORWARD] * 5)
        wait_until(lambda: len(ear.group) >= 3, "motion")
        assert bench.trigger("stop").success
        wait_until(ear.holds, "a hold")
        held, count = ear.group[-1].cmd, len(ear.group)
        bench.send(*[FORWARD] * 3)
        wait_until(lambda: int(bench.status()[1]["holds/not_armed"]) >= 3, "refusals")
        assert len(ear.group) == count
        wait_until(lambda: np.allclose(ear.measured()[0], held, atol=1e-5), "the arm at the hold")


def test_torque_that_was_switched_off_after_a_stop_is_on_again_once_armed(arm):
    with arm(), with_node() as bench:
        ear = Ear(bench)
        ear.ready()
        bench.armed()
        bench.send(FORWARD)
        wait_until(lambda: ear.group, "motion")
        assert bench.trigger("stop").success
        ear.limp()
        assert ear.register("Torque_Enable") == [0] * 6
        bench.armed()  # and no chunk came in between
        bench.send(FORWARD)
        wait_until(lambda: ear.register("Torque_Enable") == [1] * 6, "torque")


def test_with_the_profile_as_shipped_a_stream_hardly_moves_the_arm(arm):
    # What the profile is for; and the stand-in's word that it takes time profiles seriously.
    def share():
        with arm(), with_node(profile_move_time=2.0, profile_acceleration_time=0.3) as bench:
            ear = Ear(bench)
            wait_until(lambda: bench.status()[0] == "disarmed", "a driver that is set up")
            bench.armed()
            bench.send(*[FORWARD] * 4)
            wait_until(lambda: len(ear.group) >= 4, "four commands")
            asked = position(ear.group[3].cmd)[0] - position(START)[0]
            assert asked > 0.06
            return (position(ear.measured()[0])[0] - position(START)[0]) / asked

    assert any(share() < 0.2 for _ in range(3))  # a busy machine may give the arm more time between two commands


def test_what_must_not_be_sent_is_not(arm):
    with arm(), with_node() as bench:
        ear = Ear(bench)
        ear.ready()
        bench.armed()
        for number, chunk in enumerate(malformed(bench)):
            chunk.header.stamp = bench.message(FORWARD).header.stamp
            bench.chunks.publish(chunk)
            if number == 3:
                positions = [math.nan] * 6
                bench.joint_states.publish(JointState(name=list(ARM.joint_names), position=positions))
        bench.send(*[FORWARD] * 3)
        wait_until(lambda: ear.group and position(ear.group[-1].cmd)[0] > position(START)[0] + 0.02, "a sane motion")
        require_sane(ARM, [command.cmd for command in ear.group])
        assert {command.cmd for command in ear.single} <= {0.0, 250.0, -250.0}
        assert int(bench.status()[1]["holds/finite"]) >= 1


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"arm_mode": "velocity"}, "'velocity' with profile type 'time' (valid: position, time"),
        pytest.param({"profile_type": "velocity"}, "profile type 'velocity'", marks=pytest.mark.long),
        pytest.param({"gripper_mode": "current"}, "'current' (valid: pwm, linear_position)", marks=pytest.mark.long),
        ({"joint_names": "[a, b]"}, "has joints a, b (valid: waist, shoulder"),
    ],
)
def test_an_arm_in_another_mode_is_named_and_left_alone(arm, parameters, reason):
    with arm(**parameters), with_node() as bench:
        ear = Ear(bench)
        wait_until(lambda: reason in bench.status()[0], lambda: f"{reason}, not {bench.status()[0]}")
        refused = bench.arm()
        assert not refused.success
        assert reason in refused.message
        bench.send(FORWARD)
        bench.status()
        assert (ear.group, ear.single) == ([], [])
        assert ear.has(SHIPPED)


def test_an_arm_that_comes_late_or_again_is_set_up(arm):
    with with_node() as bench:
        ear = Ear(bench)
        wait_until(lambda: "no service /wx250s/get_robot_info" in bench.status()[0], "the missing arm named")
        with arm():
            ear.ready()
            bench.armed()
            bench.send(*[FORWARD] * 20)
            wait_until(lambda: len(ear.group) >= 2, "motion")
        wait_until(lambda: "no service" in bench.status()[0], "the arm missed")
        count = len(ear.group)
        with arm():  # at its start
            wait_until(lambda: ear.has(OURS), "our profile again")
            wait_until(lambda: bench.status()[0] == "disarmed: driver", "an arm that waits to be armed")
            bench.send(FORWARD, FORWARD)
            wait_until(lambda: int(bench.status()[1]["holds/not_armed"]) >= 2, "two refusals")
            assert bench.status()[1]["stops/driver"] == "1"
            assert len(ear.group) == count  # a hand may be on it
            bench.armed()
            bench.send(FORWARD)
            wait_until(lambda: len(ear.group) > count, "motion")
            x = position(ear.group[-1].cmd)[0] - position(START)[0]
            np.testing.assert_allclose(x, 0.02, atol=3e-3)  # from where the new arm is


def test_going_home_does_not_go_on_by_itself_when_the_arm_is_back(arm):
    with with_node() as bench:
        ear = Ear(bench)
        with arm():
            ear.ready()
            bench.armed()
            assert bench.trigger("go_home").success
            wait_until(lambda: len(ear.group) >= 2, "steps home")
        wait_until(lambda: "no service" in bench.status()[0], "the arm missed")
        count = len(ear.group)
        with arm():  # at its start
            wait_until(lambda: bench.status()[0] == "disarmed: driver", "an arm that waits to be armed")
            bench.armed()
            time.sleep(1.0)  # five steps
            assert len(ear.group) == count


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_the_end_is_a_hold_the_profiles_as_found_and_exit_code_0(arm, arm_messages, number):
    found = [2000, 1500, 1500, 2000, 2000, 1000]
    with running(DOMAIN, node=False, joint_states=f"{NAMESPACE}/unused") as bench, arm(profile_velocity=found):
        ear = Ear(bench)
        with widowx(DOMAIN, arm_messages, **NODE) as node:
            ear.ready()
            bench.armed()
            bench.send(*[FORWARD] * 20)
            wait_until(lambda: len(ear.group) >= 3, "motion")
            node.send_signal(number)
            assert node.wait(DEADLINE) == 0
        wait_until(ear.holds, "a hold")
        wait_until(lambda: np.allclose(ear.measured()[0], ear.group[-1].cmd, atol=1e-5), "the arm at the hold")
        assert ear.register("Profile_Velocity") == found
        assert ear.register("Profile_Acceleration") == [300] * 6


@pytest.mark.long
def test_profiles_that_a_crash_left_behind_are_not_taken_for_the_arms_own(arm, arm_messages):
    with running(DOMAIN, node=False, joint_states=f"{NAMESPACE}/unused") as bench, arm():
        ear = Ear(bench)
        with widowx(DOMAIN, arm_messages, **NODE) as node:
            ear.ready()
            node.kill()
            node.wait(DEADLINE)
        assert ear.has(OURS)
        with widowx(DOMAIN, arm_messages, **NODE) as node:
            ear.ready()
            node.send_signal(signal.SIGTERM)
            assert node.wait(DEADLINE) == 0
        assert ear.has(SHIPPED)


def test_missing_messages_are_named_with_what_to_install():
    command = [sys.executable, "-m", "dtp_ros.ros.widowx_node", "--ros-args", "-p", "driver:=interbotix"]
    done = subprocess.run(command, env=environment(DOMAIN, {}), capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "needs the package interbotix_xs_msgs" in line
    assert "interbotix_ros_core" in line


def test_messages_of_another_release_are_named_in_one_line(tmp_path):
    """A package of that name whose services are not those that are needed."""
    package = tmp_path / "interbotix_xs_msgs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "msg.py").write_text(
        "from sensor_msgs.msg import JointState\nJointGroupCommand = JointSingleCommand = JointState\n"
    )
    (package / "srv.py").touch()
    command = [sys.executable, "-m", "dtp_ros.ros.widowx_node", "--ros-args", "-p", "driver:=interbotix"]
    around = environment(DOMAIN, {"PYTHONPATH": str(tmp_path)})
    done = subprocess.run(command, env=around, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "lacks what is needed" in line
    assert "RobotInfo" in line


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"robot": "wxai"}, "valid: wx250s, wx250"),
        ({"profile_move_time": 0.1}, "valid: at most half of it, 0.05 s"),
        ({"arm_namespace": "a b"}, "not a ROS name"),
    ],
)
def test_settings_that_cannot_stand(arm_messages, parameters, reason):
    with widowx(DOMAIN, arm_messages, **{**NODE, **parameters}) as node:
        _, errors = node.communicate(timeout=DEADLINE)
        assert node.returncode == 1
        assert reason in errors
        assert len(errors.strip().splitlines()) == 1, errors

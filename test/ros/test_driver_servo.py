"""The driver `servo`: the stream of twists that MoveIt Servo hears, over real DDS."""

import signal
import time

import numpy as np
import pytest
from driver_harness import CLOSE, FORWARD, malformed, widowx
from geometry_msgs.msg import TwistStamped
from trajectory_msgs.msg import JointTrajectory
from widowx_harness import DEADLINE, running, wait_until

DOMAIN = 83
NODE = {"driver": "servo"}


class Servo:
    """The ears of MoveIt Servo and of the gripper's controller; twists with the time of their arrival."""

    def __init__(self, bench, topic="/servo_node/delta_twist_cmds"):
        self.bench, self.twists, self.arrivals, self.gripper = bench, [], [], []
        self.ears = bench.create_subscription(TwistStamped, topic, self.on_twist, 100)
        bench.create_subscription(JointTrajectory, "/gripper_controller/joint_trajectory", self.gripper.append, 10)

    def on_twist(self, message):
        self.arrivals.append((self.bench.get_clock().now().nanoseconds * 1e-9, message.header.stamp))
        twist = message.twist
        self.twists.append([getattr(part, axis) for part in (twist.linear, twist.angular) for axis in "xyz"])
        self.frame = message.header.frame_id

    def ready(self):
        wait_until(lambda: self.bench.status()[0] == "disarmed", lambda: f"a listener, {self.bench.status()[0]}")

    def moving(self):
        return [i for i, twist in enumerate(self.twists) if np.any(twist)]


def test_a_twist_lasts_for_its_period_freshly_stamped_then_zero():
    with running(DOMAIN, **NODE) as bench:
        servo = Servo(bench)
        servo.ready()
        bench.armed()
        for _ in range(5):  # a busy machine may stretch one
            since = len(servo.twists)
            bench.send([0, 0, 0, 0, 0, 0.1, 1.0], FORWARD)
            wait_until(lambda since=since: len(servo.twists) > since + 60, "moving, and zeros")
            moving = [i for i in servo.moving() if i >= since]
            times = np.array([stamp.sec + 1e-9 * stamp.nanosec for _, stamp in servo.arrivals])
            if moving and abs(times[moving[-1]] - times[moving[0]] - 0.4) < 0.15:
                break
        else:
            pytest.fail("no twist lasted for its period")
        twists = np.array([servo.twists[i] for i in moving])
        first, second = twists[0], twists[-1]
        np.testing.assert_allclose(first, [0, 0, 0, 0, 0, 0.5], atol=2e-3)  # m/s, rad/s: 0.1 rad in 0.2 s
        np.testing.assert_allclose(second, [0.1, 0, 0, 0, 0, 0], atol=2e-3)
        assert np.median(np.diff([arrival for arrival, _ in servo.arrivals])) <= 0.05  # 20 Hz or more
        ages = [arrival - stamp.sec - 1e-9 * stamp.nanosec for arrival, stamp in servo.arrivals]
        assert np.median(ages) < 0.05
        assert servo.frame == "base_link"
        assert not np.any(servo.twists[moving[-1] + 1 :])


def test_zeros_while_armed_and_silence_after_so_that_others_may_have_the_topic():
    with running(DOMAIN, command_timeout=2.0, **NODE) as bench:
        servo = Servo(bench)
        servo.ready()
        bench.armed()
        bench.send(FORWARD, CLOSE)
        wait_until(lambda: len(servo.gripper) == 2, "the gripper's commands")
        np.testing.assert_allclose([m.points[0].positions[0] for m in servo.gripper], [0.037, 0.015])
        time.sleep(4.0)
        wait_until(lambda: bench.now() - servo.arrivals[-1][0] < 0.5, "zeros that go on")
        assert servo.arrivals[servo.moving()[-1]][0] < bench.now() - 2.0
        stopped = bench.now()
        assert bench.trigger("stop").success
        bench.send(FORWARD)  # a policy goes on
        wait_until(lambda: bench.now() - servo.arrivals[-1][0] > 2.0, "silence")
        assert servo.arrivals[-1][0] - stopped > 1.0  # Servo is told for a while, of 3.2 s
        assert servo.arrivals[servo.moving()[-1]][0] < stopped


def test_unarmed_silence_and_a_stop_is_zero():
    with running(DOMAIN, **NODE) as bench:
        servo = Servo(bench)
        servo.ready()
        bench.send(FORWARD)
        wait_until(lambda: bench.status()[1]["holds/not_armed"] == "1", "a refusal")
        assert (servo.twists, servo.gripper) == ([], [])
        bench.armed()
        bench.send(*[FORWARD] * 20)
        wait_until(servo.moving, "motion")
        assert bench.trigger("stop").success
        stopped, count = bench.now(), len(servo.twists)
        wait_until(lambda: len(servo.twists) > count + 50, "a second of twists")
        stamp = servo.arrivals[servo.moving()[-1]][1]
        assert stamp.sec + 1e-9 * stamp.nanosec < stopped


def test_a_servo_that_comes_back_hears_nothing_before_the_arm_is_armed():
    with running(DOMAIN, **NODE) as bench:
        servo = Servo(bench)
        servo.ready()
        bench.armed()
        bench.send(*[FORWARD] * 20)
        wait_until(servo.moving, "motion")
        bench.destroy_subscription(servo.ears)
        wait_until(lambda: "nobody listens" in bench.status()[0], "the loss seen")
        back = Servo(bench)
        wait_until(lambda: bench.status()[0] == "disarmed: driver", "an arm that waits to be armed")
        time.sleep(1.0)
        assert bench.trigger("stop").success
        time.sleep(0.3)
        assert back.twists == []
        bench.armed()
        bench.send(FORWARD)
        wait_until(back.moving, "motion")


def test_what_must_not_be_sent_is_not():
    with running(DOMAIN, **NODE) as bench:
        servo = Servo(bench)
        servo.ready()
        bench.armed()
        for chunk in malformed(bench):
            bench.chunks.publish(chunk)
        bench.send(*[FORWARD] * 3)
        wait_until(lambda: any(twist[0] == pytest.approx(0.1, abs=5e-3) for twist in servo.twists), "a sane motion")
        twists = np.array(servo.twists)
        assert np.isfinite(twists).all()
        assert np.abs(twists[:, :3]).max() < 1.0
        assert np.abs(twists[:, 3:]).max() < 6 * 1.0 + 1e-6  # six joints at 1 rad/s


def test_the_end_is_a_zero_and_exit_code_0():
    with running(DOMAIN, node=False) as bench, widowx(DOMAIN, **NODE) as node:
        servo = Servo(bench)
        bench.ready(expect_sim=False)
        servo.ready()
        bench.armed()
        bench.send(*[FORWARD] * 20)
        wait_until(servo.moving, "motion")
        node.send_signal(signal.SIGTERM)
        assert node.wait(DEADLINE) == 0
        wait_until(lambda: not np.any(servo.twists[-1]), "zero")


def test_a_missing_gripper_controller_is_named_and_the_arm_moves_and_stops_without():
    with running(DOMAIN, **NODE) as bench:
        twists = []
        bench.create_subscription(TwistStamped, "/servo_node/delta_twist_cmds", twists.append, 100)
        wait_until(lambda: "nobody listens to /servo_node" not in bench.status()[0], "a listener")
        bench.armed()
        wait_until(lambda: "gripper_controller/joint_trajectory" in bench.status()[0], "the missing controller named")
        bench.send(*[FORWARD] * 5)
        wait_until(lambda: any(message.twist.linear.x > 0.05 for message in twists), "motion")
        assert bench.trigger("stop").message.startswith("holding, disarmed")
        wait_until(lambda: twists[-1].twist.linear.x == 0.0, "zero")
        gripper = []
        bench.create_subscription(JointTrajectory, "/gripper_controller/joint_trajectory", gripper.append, 10)
        wait_until(lambda: bench.status()[0] == "disarmed: stop", "the gripper's controller")
        bench.armed()
        bench.send(CLOSE)
        wait_until(lambda: gripper, "an opening")


def test_a_missing_servo_is_named():
    with running(DOMAIN, arm_namespace="/left", joint_states="/left/joint_states", **NODE) as bench:
        assert "nobody listens to /left/servo_node/delta_twist_cmds" in bench.status()[0]

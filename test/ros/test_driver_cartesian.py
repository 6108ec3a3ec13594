"""The driver `cartesian`: the poses that Cartesian controllers hear, and whose frames they are, over real DDS."""

import numpy as np
import pytest
from driver_harness import CLOSE, FORWARD, malformed
from geometry_msgs.msg import PoseStamped
from graph import spinning
from rclpy.node import Node
from rclpy.parameter import Parameter
from scipy.spatial.transform import Rotation
from trajectory_msgs.msg import JointTrajectory
from widowx_harness import ARM, START, running, wait_until

from dtp_ros.errors import ConfigError
from dtp_ros.ros.widowx_node import WidowxNode
from dtp_ros.widowx.kinematics import forward

DOMAIN = 84
FRAMES = {"robot_base_link": "base_link", "end_effector_link": "ee_gripper_link"}
START_POSE = forward(ARM, START)


class Controller(Node):
    """A stand-in of a Cartesian controller: parameters that name its frames, and what it heard."""

    def __init__(self, name, topic, frames):
        super().__init__(name)
        for parameter, value in frames.items():
            self.declare_parameter(parameter, value)
        self.poses, self.gripper = [], []
        self.create_subscription(PoseStamped, topic, self.poses.append, 3)
        self.create_subscription(JointTrajectory, "gripper_controller/joint_trajectory", self.gripper.append, 10)


def fzi(frames=FRAMES):
    return spinning(Controller("cartesian_motion_controller", "cartesian_motion_controller/target_frame", frames))


def disarmed(bench):
    wait_until(lambda: bench.status()[0] == "disarmed", lambda: f"checked frames, {bench.status()[0]}")


def test_poses_for_fzis_controller():
    with running(DOMAIN, driver="cartesian") as bench, fzi() as controller:
        disarmed(bench)
        bench.armed()
        bench.send(FORWARD, [0, 0, 0, 0, 0, 0.1, 0.0])
        wait_until(lambda: len(controller.poses) >= 2, "two poses")
        first, second = controller.poses[:2]
        assert first.header.frame_id == "base_link"
        stamp = first.header.stamp.sec + 1e-9 * first.header.stamp.nanosec
        assert abs(bench.now() - stamp) < 5.0
        p, q = first.pose.position, second.pose.orientation
        np.testing.assert_allclose([p.x, p.y, p.z], START_POSE[:3, 3] + [0.02, 0, 0], atol=3e-3)
        turned = Rotation.from_quat([q.x, q.y, q.z, q.w]) * Rotation.from_matrix(START_POSE[:3, :3]).inv()
        np.testing.assert_allclose(turned.as_rotvec(), [0, 0, 0.1], atol=5e-3)
        wait_until(lambda: len(controller.gripper) == 2, "two openings")
        np.testing.assert_allclose([m.points[0].positions[0] for m in controller.gripper], [0.037, 0.015])


def test_whoever_else_listens_is_not_taken_for_the_controller():
    """A node without such parameters, first in the order in which they are asked."""
    topic = "cartesian_motion_controller/target_frame"
    with running(DOMAIN, driver="cartesian") as bench, spinning(Controller("a_recorder", topic, {})) as recorder:
        wait_until(lambda: "cartesian_frame" in bench.status()[0], lambda: bench.status()[0])
        wait_until(lambda: "/a_recorder listens" in bench.status()[0], lambda: bench.status()[0])
        with fzi() as controller:
            disarmed(bench)
            bench.armed()
            bench.send(FORWARD)
            wait_until(lambda: controller.poses and recorder.poses, "a pose")


def test_crisp_has_its_own_topic_and_names():
    frames = {"base_frame": "arm_base", "end_effector_frame": "tool"}
    settings = {"cartesian_controller": "crisp", "base_frame": "arm_base", "end_effector_frame": "tool"}
    with (
        running(DOMAIN, driver="cartesian", arm_namespace="/left", joint_states="/left/joint_states", **settings) as b,
        spinning(Controller("cartesian_impedance_controller", "/left/target_pose", frames)) as controller,
    ):
        gripper = []
        b.create_subscription(JointTrajectory, "/left/gripper_controller/joint_trajectory", gripper.append, 10)
        disarmed(b)
        b.armed()
        chunk = b.message(FORWARD)
        chunk.header.frame_id = "arm_base"
        b.chunks.publish(chunk)
        wait_until(lambda: controller.poses, "a pose")
        assert controller.poses[0].header.frame_id == "arm_base"


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ({**FRAMES, "robot_base_link": "world"}, "robot_base_link is 'world', and base_frame 'base_link'"),
        ({**FRAMES, "end_effector_link": "flange"}, "end_effector_link is 'flange', and end_effector_frame"),
        ({}, "has no robot_base_link nor end_effector_link"),
    ],
)
def test_a_controller_of_other_frames_gets_nothing_and_is_named(frames, reason):
    with running(DOMAIN, driver="cartesian") as bench, fzi(frames) as controller:
        wait_until(lambda: reason in bench.status()[0], lambda: f"{reason}, not {bench.status()[0]}")
        assert not bench.arm().success
        bench.send(FORWARD)
        bench.status()
        assert controller.poses == []


def test_a_frame_that_is_given_is_not_asked_for_but_must_be_ours():
    with running(DOMAIN, driver="cartesian", cartesian_frame="base_link") as bench, fzi({}):
        disarmed(bench)
        overrides = {"driver": "cartesian", "cartesian_frame": "world"}
        with pytest.raises(ConfigError, match=r"cartesian_frame = 'world' .*valid: base_frame, 'base_link'"):
            WidowxNode(parameter_overrides=[Parameter(name, value=value) for name, value in overrides.items()])


def test_unarmed_nothing_goes_out_and_a_stop_is_one_hold():
    with running(DOMAIN, driver="cartesian") as bench, fzi() as controller:
        disarmed(bench)
        bench.send(FORWARD, CLOSE)
        wait_until(lambda: int(bench.status()[1]["holds/not_armed"]) >= 2, "two refusals")
        assert (controller.poses, controller.gripper) == ([], [])
        bench.armed()
        bench.send(*[FORWARD] * 5)
        wait_until(lambda: len(controller.poses) >= 2, "motion")
        assert bench.trigger("stop").success
        here = START_POSE[0, 3]
        wait_until(lambda: abs(controller.poses[-1].pose.position.x - here) < 1e-6, "a hold where it was measured")
        count = len(controller.poses)
        bench.send(*[FORWARD] * 3)
        wait_until(lambda: int(bench.status()[1]["holds/not_armed"]) >= 5, "refusals")
        assert len(controller.poses) == count


def test_what_must_not_be_sent_is_not():
    with running(DOMAIN, driver="cartesian") as bench, fzi() as controller:
        disarmed(bench)
        bench.armed()
        for chunk in malformed(bench):
            bench.chunks.publish(chunk)
        bench.send(*[FORWARD] * 3)
        target = START_POSE[0, 3] + 0.02
        wait_until(lambda: controller.poses and controller.poses[-1].pose.position.x > target, "a sane motion")
        for message in controller.poses:
            p, q = message.pose.position, message.pose.orientation
            xyz = np.array([p.x, p.y, p.z])
            np.testing.assert_allclose(xyz, np.clip(xyz, [0.1, -0.15, -0.01], [0.45, 0.25, 0.25]), atol=1e-3)
            assert np.linalg.norm([q.x, q.y, q.z, q.w]) == pytest.approx(1.0)

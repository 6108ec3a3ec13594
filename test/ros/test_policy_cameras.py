"""dtp_ros/ros/policy_inputs.py for a model with two cameras, intrinsics and the arm's state, over real DDS."""

import os
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from policy_harness import BEST_EFFORT, picture, spinning, time_at, wait_until
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image, JointState

from dtp_ros.ros import policy_metrics
from dtp_ros.ros.images import image_to_ros
from dtp_ros.ros.parameters import PolicyParameters
from dtp_ros.ros.policy_inputs import PolicyInputs
from dtp_ros.ros.policy_metrics import Figures

DOMAIN = 80
# The wx250s in BridgeData's neutral posture, and where that holds the gripper.
NEUTRAL = [-0.13192235, -0.76238847, 0.44485444, -0.01994175, 1.7564081, -0.15953401]
NEUTRAL_POSITION = [0.1202, -0.0191, 0.2467]
JOINTS = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]


@dataclass(frozen=True)
class Needs:
    """What PolicyInputs reads of an adapter."""

    num_cameras: int = 2
    needs_state: bool = True
    needs_intrinsics: bool = True


@pytest.fixture(scope="module")
def rig():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=DOMAIN)
    overrides = [Parameter("instruction", value="go"), Parameter("image_timeout", value=60.0)]
    node = Node("cameras", parameter_overrides=overrides)
    parameters = PolicyParameters(node, lambda old, new: None)
    frames, figures = [], Figures()
    inputs = PolicyInputs(
        node, MutuallyExclusiveCallbackGroup(), figures, lambda: parameters.settings, frames.append, lambda: None
    )
    inputs.connect(Needs(), parameters.settings)
    sender = Node("sender")
    topics = {"image": Image, "image_1": Image, "camera_info": CameraInfo, "joint_states": JointState}
    publishers = {name: sender.create_publisher(kind, name, BEST_EFFORT) for name, kind in topics.items()}
    with spinning(node, SingleThreadedExecutor()):
        wait_until(lambda: all(p.get_subscription_count() for p in publishers.values()), "the subscriptions")
        yield inputs, publishers, frames, figures
    sender.destroy_node()
    rclpy.shutdown()


def joint_states(stamp, positions=(*NEUTRAL, 0.026, -0.026)):
    message = JointState(name=[*JOINTS, "left_finger", "right_finger"], position=[float(p) for p in positions])
    message.header.stamp = stamp
    return message


def camera_info(stamp):
    message = CameraInfo(k=[600.0, 0.0, 320.0, 0.0, 610.0, 240.0, 0.0, 0.0, 1.0])
    message.header.stamp = stamp
    return message


def now():
    return time.time()


def test_a_set_of_two_cameras_with_state_and_intrinsics(rig):
    inputs, publishers, frames, _ = rig
    inputs.open()

    def sent():
        stamp, later = now(), time_at(now() + 0.02)
        publishers["joint_states"].publish(joint_states(time_at(stamp)))
        publishers["camera_info"].publish(camera_info(time_at(stamp)))
        publishers["image_1"].publish(image_to_ros(picture(2, 48, 64), later, "wrist"))
        publishers["image"].publish(image_to_ros(picture(1, 48, 64), time_at(stamp), "camera"))
        time.sleep(0.1)
        # Topics overtake one another: a frame that was whole before the first camera_info has no intrinsics.
        return [frame for frame in frames if frame.intrinsics is not None]

    frame = wait_until(sent, "a frame with intrinsics")[-1]
    assert [image.tolist() for image in frame.images] == [picture(s, 48, 64).tolist() for s in (1, 2)]
    assert frame.frame_id == "camera"
    np.testing.assert_array_equal(frame.intrinsics, [[600, 0, 320], [0, 610, 240], [0, 0, 1]])
    np.testing.assert_allclose(frame.state[:3], NEUTRAL_POSITION, atol=1e-4)
    assert frame.state[6] == pytest.approx((0.052 - 0.030) / (0.074 - 0.030))


def test_cameras_too_far_apart_make_no_frame(rig):
    inputs, publishers, frames, figures = rig
    inputs.open()
    frames.clear()
    before = figures.drops["not_paired"]

    def sent():
        stamp = now()
        publishers["image"].publish(image_to_ros(picture(1, 48, 64), time_at(stamp), "camera"))
        publishers["image_1"].publish(image_to_ros(picture(2, 48, 64), time_at(stamp - 0.2), "wrist"))
        time.sleep(0.1)
        return figures.drops["not_paired"] > before

    wait_until(sent, "not_paired")
    assert not frames


def test_no_fresh_joint_states_make_no_frame(rig):
    inputs, publishers, frames, figures = rig
    inputs.open()
    before = figures.drops["no_state"]

    def sent():
        stamp = now()
        frames.clear()  # of a time before, in which the images overtook the joint states
        publishers["joint_states"].publish(joint_states(time_at(stamp - 100.0)))
        time.sleep(0.05)
        for topic in ("image", "image_1"):
            publishers[topic].publish(image_to_ros(picture(1, 48, 64), time_at(stamp), "camera"))
        time.sleep(0.1)
        return figures.drops["no_state"] > before

    wait_until(sent, "no_state")
    assert not frames


def test_an_image_that_found_no_joint_states_serves_when_they_are_there(rig):
    """In lock-step the simulator repeats its moment until there is a command: refused, it would stand still."""
    inputs, publishers, frames, figures = rig
    inputs.open()
    before, stamp = figures.drops["no_state"], 0.0

    def show():
        for topic in ("image", "image_1"):
            publishers[topic].publish(image_to_ros(picture(1, 48, 64), time_at(stamp), "camera"))
        time.sleep(0.1)

    def show_without():
        nonlocal stamp
        stamp = now()
        frames.clear()
        publishers["joint_states"].publish(joint_states(time_at(stamp - 100.0)))
        time.sleep(0.05)
        show()
        return figures.drops["no_state"] > before

    wait_until(show_without, "no_state")
    assert not frames

    def show_with_state():
        publishers["joint_states"].publish(joint_states(time_at(stamp)))
        time.sleep(0.05)
        show()
        return frames

    wait_until(show_with_state, "a frame")
    assert frames[0].stamp_ns == round(stamp * 1e9)


def test_before_its_first_step_too_the_node_names_what_it_lacks(monkeypatch):
    figures = Figures()
    clock = 1000.0
    monkeypatch.setattr(policy_metrics, "time", SimpleNamespace(monotonic=lambda: clock))
    figures.restart()
    assert "no step yet" in figures.waiting()
    clock += 30.0
    assert figures.waiting() == "no image for 30 s"
    figures.image("stale")
    assert figures.waiting() == "images are dropped: stale"
    figures.restart()  # what was dropped before an episode says nothing of it
    assert "no step yet" in figures.waiting()

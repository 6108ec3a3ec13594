"""Models in policy_node, in the long tests all: tiny weights, camera, intrinsics and the arm's state over DDS."""

import json

import numpy as np
import pytest
from policy_harness import BEST_EFFORT, picture, running_policy, wait_until
from sensor_msgs.msg import CameraInfo, Image, JointState

from dtp_ros.models.registry import model_names

DOMAIN = 76
INSTRUCTION = "put the carrot on the plate"
# The wx250s in BridgeData's neutral posture, hand open.
JOINTS = {
    "waist": -0.13192235, "shoulder": -0.76238847, "elbow": 0.44485444, "forearm_roll": -0.01994175,
    "wrist_angle": 1.7564081, "wrist_rotate": -0.15953401, "left_finger": 0.037, "right_finger": -0.037,
}  # fmt: skip
CAMERA = [600.0, 0.0, 320.0, 0.0, 610.0, 240.0, 0.0, 0.0, 1.0]


LONGEST = ("spatialvla", "univla")
NAMES = [pytest.param(name, marks=pytest.mark.long) if name in LONGEST else name for name in model_names()]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_acts_and_shows_what_it_cut(name):
    parameters = {"model": name, "checkpoint": "tiny", "device": "cpu", "image_timeout": 60.0}
    with running_policy(DOMAIN, **parameters, instruction=INSTRUCTION, tolerance=0.05, max_pruned=0) as (policy, user):
        wait_until(lambda: user.state() == "active", "the model")
        horizon = policy._model.adapter.horizon
        info = user.create_publisher(CameraInfo, "camera_info", BEST_EFFORT)
        states = user.create_publisher(JointState, "joint_states", BEST_EFFORT)
        masks = []
        user.create_subscription(Image, "dtp_policy/debug/mask", masks.append, 10)

        def tell():
            info.publish(CameraInfo(k=CAMERA, header=header(user)))
            joints = JointState(name=list(JOINTS), position=list(JOINTS.values()), header=header(user))
            states.publish(joints)

        timer = user.create_timer(0.1, tell)
        chunk, trace = user.step(picture(0))
        assert len(chunk.points) == horizon
        assert np.isfinite([point.positions for point in chunk.points]).all()
        assert max(json.loads(trace["token_pruned"])) > 0
        assert wait_until(lambda: masks, "the mask's picture")[0].width == 640

        assert user.put(publish_whole_chunk=False, execute_horizon=1).successful
        chunk, trace = user.step(picture(1))
        assert len(chunk.points) == 1
        assert len(json.loads(trace["actions"])) == horizon
        timer.cancel()


def header(node):
    message = CameraInfo().header
    message.stamp = node.now()
    return message


def test_an_arm_whose_driver_does_not_stamp_has_a_state():
    parameters = {"model": "pi0_fast", "checkpoint": "tiny", "device": "cpu", "image_timeout": 60.0}
    with running_policy(DOMAIN, **parameters, instruction=INSTRUCTION) as (_, user):
        wait_until(lambda: user.state() == "active", "the model")
        states = user.create_publisher(JointState, "joint_states", BEST_EFFORT)
        unstamped = JointState(name=list(JOINTS), position=list(JOINTS.values()))
        timer = user.create_timer(0.1, lambda: states.publish(unstamped))
        user.step(picture(0))
        timer.cancel()


def test_options_of_the_model_come_through_the_node():
    parameters = {"model": "pi0_fast", "checkpoint": "tiny", "device": "cpu"}
    with running_policy(DOMAIN, **parameters, model_options="{convention: libero, cameras: 2}") as (policy, user):
        wait_until(lambda: user.state() == "active", "the model")
        assert policy._model.adapter.num_cameras == 2
        assert not user.put(model_options="{cameras: 1}").successful  # fixed while configured
    with running_policy(DOMAIN, **parameters, model_options="{camera: 2}") as (_, user):
        wait_until(lambda: "camera not known (valid: action_bound," in str(user.figures()), "the cause in /diagnostics")
        assert user.figures()["state"] == "unconfigured"

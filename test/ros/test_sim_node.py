"""The node `sim` as its own process, heard and commanded over real DDS."""

import itertools
import math
import os
import signal

import numpy as np
import pytest
from rcl_interfaces.srv import DescribeParameters
from sim_harness import NAMES, OTHER_DOMAIN, START, User, seconds, start

from dtp_ros.ros.images import image_from_ros
from dtp_ros.sim.tabletop import Tabletop


@pytest.fixture(scope="module")
def user():
    """A user of a node in lock-step; the node must end by SIGTERM with exit code 0."""
    process = start("real_time_factor:=0.0", "task:=stack_blocks", "episode:=1")
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    listener = User()
    try:
        listener.wait(lambda: listener.heard["image"] or process.poll() is not None, "the first image")
        assert process.poll() is None, process.stdout.read()
        listener.wait(lambda: listener.commands.get_subscription_count() > 0, "the command's subscription")
        yield listener
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        assert "Traceback" not in output, output
    finally:
        listener.close()
        if process.poll() is None:
            process.kill()


def test_lock_step_repeats_a_moment_until_it_is_commanded(user):
    user.reset(task="stack_blocks", episode=1)
    stamp = seconds(user.newest("image"))
    user.heard["image"].clear()
    user.wait(lambda: len(user.heard["image"]) >= 3, "repetitions")
    assert {seconds(message) for message in user.heard["image"][1:]} <= {seconds(user.heard["clock"][-1])}
    assert seconds(user.heard["image"][-1]) >= stamp


def test_one_command_advances_one_control_period(user):
    first = user.begin()
    for count in range(1, 4):
        image = user.step()
        assert seconds(image) == pytest.approx(first + 0.2 * count, abs=1e-6)
        assert seconds(user.heard["clock"][-1]) == pytest.approx(seconds(image))
        assert seconds(user.heard["joint_states"][-1]) == pytest.approx(seconds(image))
    assert user.info()["step"] == 3


def test_a_command_of_an_earlier_moment_moves_no_time(user):
    first = user.begin()
    before = user.refusals()["refused_late"]
    user.send(stamp=first)
    user.wait(lambda: user.info()["step"] == 1, "the command of this moment")
    user.send(stamp=first)  # again, as where a chunk was repeated or a reset came between
    user.wait(lambda: user.refusals()["refused_late"] == before + 1, "the refusal")
    user.send(stamp=first + 0.2)
    user.wait(lambda: user.info()["step"] == 2, "the next one")
    assert user.info()["time"] == pytest.approx(first + 0.4, abs=1e-6)


def test_what_it_publishes(user):
    user.begin(task="stack_blocks", episode=1, distractors=2, seed=5)
    image = user.step()
    table = Tabletop("stack_blocks", 1, distractors=2, seed=5)
    table.step(START[:6], START[6])
    assert (image.width, image.height, image.encoding) == (640, 480, "rgb8")
    assert image.header.frame_id == "camera_optical_frame"
    np.testing.assert_array_equal(image_from_ros(image), table.render(), "the same commands, the same picture")
    table.close()
    intrinsics = user.newest("camera_info")
    expected = [623.588, 0, 319.501, 0, 623.588, 239.545, 0, 0, 1]
    np.testing.assert_allclose(intrinsics.k, expected)
    joints = user.newest("joint_states")
    assert list(joints.name) == NAMES
    np.testing.assert_allclose(joints.position, [*table.joints, table.gripper], atol=1e-12)
    info, objects = user.info(), user.newest("objects")
    assert objects.header.frame_id == "base_link"
    assert info["objects"][:2] == ["green_block", "yellow_block"]
    assert len(info["objects"]) == len(objects.poses) == 4
    for name, pose in zip(info["objects"], objects.poses, strict=True):
        position, (w, x, y, z) = table.object_poses()[name]
        np.testing.assert_allclose([pose.position.x, pose.position.y, pose.position.z], position, atol=1e-9)
        heard = np.array([pose.orientation.w, pose.orientation.x, pose.orientation.y, pose.orientation.z])
        assert abs(heard @ (w, x, y, z)) == pytest.approx(1)
    assert info["task"] == "stack_blocks"
    assert info["instruction"] == "stack the green block on the yellow block"
    assert (info["episode"], info["grasped"], info["on_target"], info["grasp"]) == (1, None, False, "friction")
    assert user.newest("success").data is False


def test_time_goes_on_over_a_reset(user):
    user.begin()
    user.step()
    before = seconds(user.heard["image"][-1])
    user.heard["image"].clear()
    user.reset(episode=2)
    user.wait(lambda: user.heard["image"] and seconds(user.heard["image"][-1]) > before, "the first image")
    user.wait(lambda: user.info()["step"] == 0 and user.info()["episode"] == 2, "the new episode")
    stamps = [seconds(message) for message in user.heard["clock"]]
    assert all(b >= a for a, b in itertools.pairwise(stamps))


BAD = [
    (START[:6], NAMES[:6], "joint_names"),
    (START, [*NAMES[:6], "finger"], "joint_names"),
    (START[:6], NAMES, "joint_names"),
    ([*START, 0.0], [*NAMES, "waist"], "joint_names"),
    ([*START[:6], math.nan], NAMES, "finite"),
    ([math.inf, *START[1:]], NAMES, "finite"),
    ([0.0, 2.1, *START[2:]], NAMES, "limits"),
    ([*START[:6], 0.10], NAMES, "limits"),
]


def test_bad_commands_are_refused_counted_and_move_nothing(user):
    user.reset()
    user.wait(lambda: user.info()["step"] == 0, "the new episode")
    user.heard["diagnostics"].clear()
    before = user.refusals()
    stamp = seconds(user.newest("clock"))
    for positions, names, _ in BAD:
        user.send(positions, names)
    wanted = {cause: count + sum(f"refused_{bad[2]}" == cause for bad in BAD) for cause, count in before.items()}
    user.wait(lambda: user.refusals() == wanted, lambda: f"{user.refusals()}, wanted {wanted}")
    assert seconds(user.heard["clock"][-1]) == stamp
    assert user.newest("diagnostics").status[0].level == b"\x01"


def test_names_may_come_in_any_order(user):
    before = user.begin()
    order = [6, 2, 0, 5, 1, 3, 4]
    target = [0.1, 0.0, 0.2, 0.05, 1.3, -0.1, 0.05]
    user.send([target[i] for i in order], [NAMES[i] for i in order])
    user.wait(lambda: seconds(user.heard["joint_states"][-1]) > before + 0.1, "the new moment")
    np.testing.assert_allclose(user.heard["joint_states"][-1].position, target, atol=2e-3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"task": "make_tea"}, "spoon_on_towel"),
        ({"setting": "dark"}, "lookalike"),
        ({"episode": 24}, "range"),
        ({"distractors": 7}, "range"),
        ({"seed": -1}, "range"),
        ({"episode": "three"}, "type"),
        ({"real_time_factor": -1.0}, "range"),
        ({"real_time_factor": math.nan}, "real_time_factor"),
    ],
)
def test_bad_parameters_are_refused_with_the_choices(user, values, words):
    result = user.set(**values)[0]
    assert not result.successful
    assert words in result.reason


def test_parameters_wait_for_the_reset(user):
    user.reset(task="stack_blocks", episode=0, distractors=0)
    user.wait(lambda: user.info()["episode"] == 0, "episode 0")
    assert user.set(episode=3)[0].successful
    user.step()
    assert user.info()["episode"] == 0
    assert user.reset()["episode"] == 3
    request = DescribeParameters.Request(names=["task", "episode"])
    described = user.call(DescribeParameters, "/sim/describe_parameters", request).descriptors
    assert "eggplant_in_basket" in described[0].description
    assert described[1].integer_range[0].to_value == 23


def test_real_time(user):
    """Last in lock-step's module: pictures and joint states come by themselves, at their rates of simulated time."""
    user.reset(task="carrot_on_plate", episode=0, real_time_factor=1.0)
    for key in ("joint_states", "image", "clock"):
        user.heard[key].clear()
    user.wait(lambda: len(user.heard["joint_states"]) > 100, "joint states")
    stamps = np.array([seconds(message) for message in user.heard["joint_states"]])
    assert np.median(np.diff(stamps)) == pytest.approx(0.02, abs=1e-6)
    images = np.unique([seconds(message) for message in user.heard["image"]])
    assert np.min(np.diff(images)) >= 0.06 - 1e-6
    user.send([0.2, *START[1:]])
    user.wait(lambda: abs(user.heard["joint_states"][-1].position[0] - 0.2) < 1e-3, "the arm at its target")
    user.reset(real_time_factor=0.0)


def test_a_start_that_cannot_be_is_one_line_and_exit_code_1():
    for argument, words in (("task:=make_tea", "spoon_on_towel"), ("episode:=99", "episode")):
        process = start(argument)
        output, _ = process.communicate(timeout=150)
        assert process.returncode == 1, output
        assert "Traceback" not in output
        assert words in output.strip().splitlines()[-1]


@pytest.mark.parametrize("late", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_signal_ends_it_with_exit_code_0_also_while_it_starts(late):
    process = start("task:=stack_blocks", domain=OTHER_DOMAIN)
    listener = User(OTHER_DOMAIN)
    try:
        if late:
            listener.wait(lambda: listener.heard["image"] or process.poll() is not None, "the first image")
        else:
            listener.wait(lambda: listener.node.count_publishers("/clock") or process.poll() is not None, "its start")
        process.send_signal(signal.SIGINT if late else signal.SIGTERM)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        assert not late or "Traceback" not in output, output
    finally:
        listener.close()
        if process.poll() is None:
            process.kill()

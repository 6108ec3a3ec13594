"""The scripted expert: properties of single actions, and whole episodes through the arm's own controller."""

import math

import numpy as np
import pytest
from expert_scenes import CLOSED, FLIP, OPEN, end_effector, lying, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dtp_ros.errors import ConfigError
from dtp_ros.sim.expert import MAX_ROTATION, MAX_TRANSLATION, Scene, expert_action, expert_intent, expert_phase
from dtp_ros.sim.tasks import TASKS


def numbers(low, high):
    return st.floats(low, high, allow_nan=False)


tasks = st.sampled_from(list(TASKS.values()))
examples = settings(deadline=None, max_examples=80)


@st.composite
def scenes(draw, task, upright=False, tilted_objects=True):
    """Any scene of a task: things on the table or not, the arm anywhere over it."""

    def thing():
        x, y, z, yaw = (draw(numbers(*r)) for r in ((0.15, 0.45), (-0.2, 0.25), (0.0, 0.15), (-3.1, 3.1)))
        if not tilted_objects or draw(st.booleans()):
            return lying(x, y, z, yaw)
        quaternion = np.array([draw(numbers(0.5, 1)), *(draw(numbers(-1, 1)) for _ in range(3))])
        return np.array([x, y, z]), quaternion / np.linalg.norm(quaternion)

    source, target = thing(), thing()
    if draw(st.booleans()):  # the gripper at the source, so that grasping and carrying are drawn too
        offset = [draw(numbers(-0.02, 0.02)), draw(numbers(-0.02, 0.02)), draw(numbers(0.0, 0.03))]
        x, y, z = source[0] + offset
    else:
        x, y, z = (draw(numbers(*r)) for r in ((0.15, 0.45), (-0.15, 0.25), (0.02, 0.25)))
    roll, pitch = (0.0, 0.0) if upright else (draw(numbers(-0.4, 0.4)), draw(numbers(-0.4, 0.4)))
    pose = end_effector(x, y, z, draw(numbers(-1.4, 1.4)), roll, pitch)
    return scene(task, source, target, pose, draw(numbers(CLOSED, OPEN)))


# One action


@examples
@given(st.data(), tasks)
def test_actions_are_finite_and_within_the_limits(data, task):
    action = expert_action(task, data.draw(scenes(task)))
    assert action.shape == (7,)
    assert action.dtype == np.float64
    assert np.isfinite(action).all()
    assert np.linalg.norm(action[:2]) <= MAX_TRANSLATION + 1e-12
    assert abs(action[2]) <= MAX_TRANSLATION
    assert np.abs(action[3:6]).max() <= MAX_ROTATION
    assert action[6] in (0.0, 1.0)
    assert max(MAX_TRANSLATION, MAX_ROTATION) < 0.25
    assert MAX_TRANSLATION < 0.05


@examples
@given(st.data(), tasks)
def test_an_action_is_what_is_intended_as_far_as_a_step_goes(data, task):
    here = data.draw(scenes(task))
    intent, action = expert_intent(task, here), expert_action(task, here)
    way, step = np.hypot(*intent[:2]), np.hypot(*action[:2])
    assert step == pytest.approx(min(way, MAX_TRANSLATION), abs=1e-12)
    np.testing.assert_allclose(action[:2] * way, intent[:2] * step, atol=1e-12)
    limits = np.array([MAX_TRANSLATION] + [MAX_ROTATION] * 3)
    np.testing.assert_array_equal(action[2:6], np.clip(intent[2:6], -limits, limits))
    assert action[6] == intent[6]


@examples
@given(st.data(), tasks)
def test_the_action_is_a_function_of_the_state_alone(data, task):
    here, other = data.draw(scenes(task)), data.draw(scenes(task))
    poses = {name: (p.copy(), q.copy()) for name, (p, q) in here.objects.items()}
    first = expert_action(task, here)
    expert_action(task, other)
    copy = Scene(poses, here.transform_ee_to_base.copy(), here.gripper)
    np.testing.assert_array_equal(expert_action(task, copy), first)


@examples
@given(st.data(), tasks)
def test_a_mirrored_scene_gives_the_mirrored_action(data, task):
    here = data.draw(scenes(task, tilted_objects=False))
    mirrored = {
        name: (FLIP @ position, np.array([w, -x, y, -z])) for name, (position, (w, x, y, z)) in here.objects.items()
    }
    pose = here.transform_ee_to_base.copy()
    pose[:3, :3], pose[:3, 3] = FLIP @ pose[:3, :3] @ FLIP, FLIP @ pose[:3, 3]
    expected = expert_action(task, here) * [1, -1, 1, -1, 1, -1, 1]
    np.testing.assert_allclose(expert_action(task, Scene(mirrored, pose, here.gripper)), expected, atol=1e-9)


@examples
@given(st.data(), tasks, numbers(-0.5, 0.5))
def test_a_scene_turned_about_the_base_gives_the_turned_action(data, task, angle):
    here = data.draw(scenes(task, upright=True))
    turn = Rotation.from_euler("z", angle)
    w, z = math.cos(angle / 2), math.sin(angle / 2)
    left = np.array([[w, 0, 0, -z], [0, w, -z, 0], [0, z, w, 0], [z, 0, 0, w]])  # q -> (w, 0, 0, z) q
    turned = {name: (turn.apply(position), left @ q) for name, (position, q) in here.objects.items()}
    pose = here.transform_ee_to_base.copy()
    pose[:3, :3], pose[:3, 3] = turn.as_matrix() @ pose[:3, :3], turn.apply(pose[:3, 3])
    expected = expert_action(task, here)
    expected[:3] = turn.apply(expected[:3])
    np.testing.assert_allclose(expert_action(task, Scene(turned, pose, here.gripper)), expected, atol=1e-9)


@examples
@given(numbers(-3.1, 3.1), numbers(-0.7, 0.7), st.integers(-3, 3), tasks)
def test_an_object_turned_by_its_period_is_the_same_object(object_yaw, yaw, times, task):
    grasp = task.source.model().grasp
    target = lying(0.35, 0.15, task.target.model().rest_height)
    pose = end_effector(0.30, 0.0, 0.10, yaw)

    def turn(angle):
        return expert_action(task, scene(task, lying(0.28, -0.05, 0.015, angle), target, pose))[5]

    near_tie = abs(abs((object_yaw - yaw + grasp.period / 2) % grasp.period - grasp.period / 2) - grasp.period / 2)
    if near_tie > 1e-6:
        assert turn(object_yaw + times * grasp.period) == pytest.approx(turn(object_yaw), abs=1e-9)


@examples
@given(numbers(0.2, 0.4), numbers(-0.1, 0.2), numbers(-0.3, 0.3), numbers(-0.3, 0.3), tasks)
def test_a_tilted_gripper_is_turned_towards_pointing_down(x, y, roll, pitch, task):
    pose = end_effector(x, y, 0.15, 0.2, roll, pitch)
    here = scene(task, lying(0.3, -0.05, 0.015, 0.2), lying(0.35, 0.15, 0.004), pose)
    action = expert_action(task, here)
    after = Rotation.from_euler("xyz", action[3:6]).as_matrix() @ pose[:3, :3]

    def tilt(rotation):  # angle between the fingers and straight down
        return math.acos(np.clip(-rotation[2, 0], -1.0, 1.0))

    before = tilt(pose[:3, :3])
    assert tilt(after) <= before - min(0.3 * before, 0.1) + 1e-9


def test_far_above_the_source_it_goes_sideways_with_open_fingers():
    task = TASKS["carrot_on_plate"]
    here = scene(task, lying(0.25, -0.06, 0.0115), lying(0.35, 0.12, 0.004), end_effector(0.35, 0.04, 0.12))
    dx, dy, dz, _, _, _, opening = expert_action(task, here)
    assert expert_phase(task, here) == "reach"
    assert dx == pytest.approx(dy)  # the source lies along the diagonal
    assert dx < -0.02
    assert dz == pytest.approx(0.0, abs=1e-9)
    assert opening == 1.0


def test_steps_shrink_with_the_way_that_is_left():
    task = TASKS["carrot_on_plate"]
    target = lying(0.40, 0.15, 0.004)
    steps = []
    for distance in (0.001, 0.003, 0.01, 0.02, 0.04, 0.08):
        here = scene(task, lying(0.30, 0.0, 0.0115), target, end_effector(0.30 - distance, 0.0, 0.12))
        steps.append(expert_action(task, here)[0])
    assert steps == sorted(set(steps))
    assert all(step < d for step, d in zip(steps, (0.001, 0.003, 0.01, 0.02, 0.04, 0.08), strict=True))


def test_a_low_gripper_rises_before_it_moves_sideways():
    task = TASKS["carrot_on_plate"]
    here = scene(task, lying(0.25, -0.06, 0.0115), lying(0.35, 0.12, 0.004), end_effector(0.35, 0.04, 0.03))
    dx, dy, dz, *_ = expert_action(task, here)
    assert (dx, dy) == (0.0, 0.0)
    assert dz == MAX_TRANSLATION


def test_a_load_is_lifted_before_it_is_moved_sideways():
    task = TASKS["stack_blocks"]
    held = scene(task, lying(0.25, -0.06, 0.015), lying(0.35, 0.12, 0.015), end_effector(0.25, -0.06, 0.026), 0.054)
    assert expert_phase(task, held) == "carry"
    action = expert_action(task, held)
    np.testing.assert_allclose(action, [0, 0, MAX_TRANSLATION, 0, 0, 0, 0], atol=1e-9)


def test_fingers_close_at_the_object_and_open_above_the_target():
    task = TASKS["stack_blocks"]
    target = lying(0.35, 0.12, 0.015)
    at_source = scene(task, lying(0.25, -0.06, 0.015, 0.3), target, end_effector(0.251, -0.06, 0.027, 0.3))
    assert expert_phase(task, at_source) == "grasp"
    np.testing.assert_allclose(expert_action(task, at_source), np.zeros(7), atol=1e-9)
    above = scene(task, lying(0.351, 0.12, 0.049), target, end_effector(0.351, 0.12, 0.06), 0.054)
    assert expert_phase(task, above) == "release"
    assert expert_action(task, above)[6] == 1.0


def test_fingers_that_closed_on_nothing_open_again():
    task = TASKS["carrot_on_plate"]
    here = scene(task, lying(0.25, -0.06, 0.0115), lying(0.35, 0.12, 0.004), end_effector(0.25, -0.06, 0.026), CLOSED)
    assert expert_action(task, here)[6] == 1.0


def test_when_it_is_done_it_rises_and_then_stays():
    task = TASKS["carrot_on_plate"]
    objects = lying(0.35, 0.12, 0.020), lying(0.35, 0.12, 0.004)
    low, high = (scene(task, *objects, end_effector(0.35, 0.12, z)) for z in (0.05, 0.12))
    assert expert_phase(task, low) == expert_phase(task, high) == "retreat"
    np.testing.assert_allclose(expert_action(task, low), [0, 0, MAX_TRANSLATION, 0, 0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(expert_action(task, high), [0, 0, 0, 0, 0, 0, 1], atol=1e-9)


def test_fingers_go_where_the_other_block_is_not():
    task = TASKS["stack_blocks"]
    # The yellow block touches the green one on the side (y) where a finger would come down at yaw 0.
    here = scene(task, lying(0.30, 0.0, 0.015), lying(0.30, 0.032, 0.015), end_effector(0.30, 0.0, 0.12, 0.1))
    assert abs(expert_action(task, here)[5]) == MAX_ROTATION  # a quarter turn away
    free = scene(task, lying(0.30, 0.0, 0.015), lying(0.40, 0.15, 0.015), end_effector(0.30, 0.0, 0.12, 0.1))
    assert -0.1 < expert_action(task, free)[5] < 0.0  # back to yaw 0


def test_a_scene_without_the_task_s_objects_is_refused():
    with pytest.raises(ConfigError, match="carrot is not in the scene"):
        expert_action(TASKS["carrot_on_plate"], Scene({}, end_effector(0.3, 0, 0.1), OPEN))


# Episodes

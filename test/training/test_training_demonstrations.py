from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dtp_ros.sim.expert import expert_action, scene_of
from dtp_ros.sim.layout import UNSEEN_TABLES, fixed_layout
from dtp_ros.sim.lockstep import LockStep
from dtp_ros.sim.tasks import EPISODES, TASKS
from dtp_ros.training.demonstrations import Frames, Noise, demonstrations, training_layout
from dtp_ros.widowx.kinematics import forward, robot


def test_the_same_seed_gives_the_same_frames(frames):
    again = demonstrations(seed=7, frames=60, size=64)
    other = demonstrations(seed=8, frames=1, size=64)
    for name in Frames.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(frames, name))
    assert len(frames) >= 60
    assert not np.array_equal(other.images[0], frames.images[0])


def test_shapes_units_and_limits(frames):
    count = len(frames)
    assert frames.images.shape == (count, 64, 64, 3)
    assert frames.actions.shape == (count, 7)
    assert (np.linalg.norm(frames.actions[:, :2], axis=1) <= 0.04 + 1e-6).all()
    assert (np.abs(frames.actions[:, 2]) <= 0.04 + 1e-6).all()
    assert 0.15 < np.abs(frames.actions[:, 3:6]).max() <= np.pi  # not cut to a step
    assert set(np.unique(frames.actions[:, 6])) == {0.0, 1.0}
    np.testing.assert_allclose(np.linalg.norm(frames.yaw, axis=2), 1, atol=1e-5)
    assert set(np.unique(frames.held)) <= {0.0, 1.0}


def test_pixels_show_where_the_objects_are():
    """Carrot frames at the camera's own size: the marked spot is orange, more than the rest of the picture."""
    rng, found = np.random.default_rng(2), []
    while len(found) < 4:
        layout = training_layout(rng)
        if layout.task.name != "carrot_on_plate":
            continue
        episode = LockStep(layout)
        position = episode.table.object_poses()["carrot"][0]
        u, v = layout.camera.project(position[None])[0].round().astype(int)
        red, green, blue = episode.table.render()[v - 3 : v + 4, u - 3 : u + 4].reshape(-1, 3).mean(0)
        found.append((red > 1.5 * green, green > 1.3 * blue))
        episode.close()
    assert np.mean(found) > 0.7  # another object may stand before one


def test_training_never_sees_the_evaluation():
    rng = np.random.default_rng(0)
    layouts = [training_layout(rng) for _ in range(300)]
    fixed = {
        task: np.array([(p.x, p.y) for e in range(EPISODES) for p in fixed_layout(task, e).placements[:2]])
        for task in TASKS
    }
    for layout in layouts:
        both = np.array([(p.x, p.y) for p in layout.placements[:2]])
        pairs = fixed[layout.task.name].reshape(-1, 2, 2)
        assert np.abs(pairs - both).max(axis=(1, 2)).min() > 1e-4
        assert layout.appearance.table not in UNSEEN_TABLES
        assert np.abs(layout.appearance.camera_offset).max() <= 0.02
        assert len(layout.placements) <= 2 + 5
        assert len(set(layout.names)) == len(layout.names)
    assert {layout.task.name for layout in layouts} == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_lock_step_carries_out_an_action(task):
    """The end effector goes where Bridge semantics, worked out with scipy, says, to a few millimetres of servo lag."""
    episode = LockStep(fixed_layout(task, 0))
    arm, before = robot("wx250s"), episode.table.transform_ee_to_base
    action = np.array([0.02, -0.015, -0.02, 0.0, 0.0, 0.1, 1.0])
    episode.act(action)
    episode.act(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    after = episode.table.transform_ee_to_base
    np.testing.assert_allclose(after[:3, 3] - before[:3, 3], action[:3], atol=0.004)
    turn = Rotation.from_matrix(after[:3, :3] @ before[:3, :3].T).as_rotvec()
    np.testing.assert_allclose(turn, [0, 0, 0.1], atol=0.02)
    np.testing.assert_allclose(forward(arm, episode.table.joints), after, atol=1e-9)
    assert episode.table.time == pytest.approx(0.4)
    episode.close()


def test_a_hold_lets_time_go_by_and_changes_nothing_else():
    """With the gripper closed: a hold does not open it."""
    episode = LockStep(fixed_layout("stack_blocks", 1))
    for _ in range(2):
        episode.act(np.array([0, 0, 0, 0, 0, 0, 0.0]))
    joints, gripper = episode.table.joints, episode.table.gripper
    assert gripper < 0.035
    episode.hold()
    np.testing.assert_allclose(episode.table.joints, joints, atol=2e-3)
    assert episode.table.gripper == pytest.approx(gripper, abs=1e-3)
    assert episode.table.time == pytest.approx(0.6)
    episode.close()


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_an_episode_without_ros(task):
    episode = LockStep(fixed_layout(task, 5))
    for _ in range(30):
        episode.act(expert_action(episode.table.task, scene_of(episode.table)))
        if episode.table.success():
            break
    assert episode.table.success()
    assert 10 <= round(episode.table.time / 0.2) <= 25
    episode.close()


def test_noise_leaves_the_gripper_alone_but_for_flips():
    action = np.array([0.01, 0, 0, 0, 0, 0, 1.0])
    grippers, moved = [], []
    for seed in range(200):
        noise = Noise(np.random.default_rng(seed))
        for _ in range(20):
            noisy = noise(action)
            grippers.append(noisy[6])
            moved.append(np.abs(noisy[:3] - action[:3]).max())
    assert set(grippers) == {0.0, 1.0}
    assert 0.005 < np.mean(np.array(grippers) == 0.0) < 0.025
    assert 0.002 < np.median(moved) < 0.012

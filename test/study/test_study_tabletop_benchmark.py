"""dtp_ros/study/tabletop_benchmark.py: the tabletop as vla-eval's runner sees it, driven by the scripted expert."""

import numpy as np
import pytest
from vla_eval.recording import NullEpisodeRecorder

from dtp_ros.errors import ConfigError
from dtp_ros.sim.expert import expert_action, scene_of
from dtp_ros.sim.layout import fixed_layout
from dtp_ros.sim.lockstep import LockStep
from dtp_ros.sim.tasks import SETTINGS, TASKS
from dtp_ros.study.tabletop_benchmark import SETTLED, TabletopBenchmark, study_layout


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_layout_is_that_of_its_numbers_alone(setting):
    layout = study_layout("stack_blocks", 7, setting)
    assert study_layout("stack_blocks", 7, setting) == layout
    others = [
        study_layout("stack_blocks", 8, setting),
        study_layout("stack_blocks", 7, setting, seed=1),
        study_layout("stack_blocks", 7, SETTINGS[SETTINGS.index(setting) - 1]),
        *(fixed_layout("stack_blocks", number, setting=setting) for number in range(24)),
    ]
    starts = [[(p.x, p.y, p.yaw) for p in other.placements[:2]] for other in others]
    assert [(p.x, p.y, p.yaw) for p in layout.placements[:2]] not in starts


@pytest.mark.parametrize(
    ("setting", "last", "pose"),
    [
        ("plain", "yellow_block", (0.250461, -0.014131, 0.283429)),
        ("clutter", "pink_sponge", (0.214179, -0.015311, -0.394414)),
        ("lookalike", "yellow_cup", (0.377146, 0.157952, 0.543099)),
        ("unseen", "yellow_block", (0.328711, 0.133599, 0.32195)),
    ],
)
def test_layouts_are_those_of_the_published_evidence(setting, last, pose):
    """Whoever changes how things are placed takes from docs/evidence.md that it can be repeated."""
    placement = study_layout("stack_blocks", 7, setting).placements[-1]
    assert placement.item.name == last
    assert (placement.x, placement.y, placement.yaw) == pytest.approx(pose, abs=1e-6)


def test_what_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="lookalike"):
        TabletopBenchmark(setting="dark")


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="episode"):
        study_layout("stack_blocks", -1)
    with pytest.raises(ConfigError, match="distractors"):
        study_layout("stack_blocks", 0, distractors=7)


def begun(benchmark, name, episode):
    task = {**next(t for t in benchmark.get_tasks() if t["name"] == name), "episode_idx": episode}
    benchmark._recorder = NullEpisodeRecorder()
    return task, benchmark.reset(task)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_expert_solves_an_episode_and_it_ends_a_second_later(name):
    benchmark = TabletopBenchmark()
    task, image = begun(benchmark, name, 2)
    direct = LockStep(study_layout(name, 2))
    seen = benchmark.make_obs(image, task)
    assert seen["task_description"] == TASKS[name].instruction
    assert seen["images"]["camera"].shape == (480, 640, 3)
    np.testing.assert_array_equal(seen["images"]["camera"], direct.table.render())
    solved = None
    for step in range(1, TASKS[name].steps + 1):
        action = expert_action(direct.table.task, scene_of(direct.table))
        direct.act(action)
        result = benchmark.step({"actions": action})
        np.testing.assert_array_equal(result.obs, direct.table.render())
        solved = (solved or step) if direct.table.success() else None
        if benchmark.check_done(result):
            break
    assert benchmark.get_step_result(result) == {"success": True, "grasped": True}
    assert step == solved + SETTLED
    state = benchmark.make_obs(result.obs, task)["state"]
    np.testing.assert_allclose(state[:3], direct.table.transform_ee_to_base[:3, 3])
    benchmark.cleanup()
    direct.close()


def test_an_arm_that_only_holds_fails_when_the_time_is_over():
    benchmark = TabletopBenchmark()
    begun(benchmark, "carrot_on_plate", 0)
    steps = 0
    while True:
        result = benchmark.step(benchmark.get_hold_action(None))
        steps += 1
        if benchmark.check_done(result):
            break
    assert steps == TASKS["carrot_on_plate"].steps
    assert benchmark.get_step_result(result) == {"success": False, "grasped": False}
    benchmark.cleanup()

"""Recordings that hold what the policy node really publishes come out as the episodes that went in."""

import json
import shutil
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from bag_writer import (
    DTP,
    INSTRUCTION,
    OFF,
    STORAGES,
    Recorder,
    settings,
    step_result,
    steps,
    two_episodes,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dtp_ros.ros.trace import TRACE_NAME
from dtp_ros.study import bags, labels, log
from dtp_ros.study.recording import BagError

MEAN = ("unimportant_attention", "entropy_clean", "entropy_refined", "score_clean", "score_refined")


def figures(results):
    """The series, from the steps themselves."""
    series = {name: [float(np.mean([getattr(t, name) for t in r.trace.tokens])) for r in results] for name in MEAN}
    masks = [[int(t.mask.sum()) for t in r.trace.tokens] for r in results]
    series["pruned"] = [float(max(counts)) for counts in masks]
    series["fire_rate"] = [float(np.mean([count > 0 for count in counts])) for counts in masks]
    series["tolerance"] = [r.trace.tolerance for r in results]
    return {name: tuple(values) for name, values in series.items()}


@pytest.mark.parametrize("storage", STORAGES)
def test_what_comes_out_is_what_went_in(tmp_path, storage):
    recorded = bags.read_bags([two_episodes().write(tmp_path / "run", storage)])
    assert (recorded.left_out, recorded.foreign) == ({}, 0)
    one, other = recorded.episodes
    assert one.series == figures(steps(1, 3))
    assert other.series == figures(steps(2, 5, holds=(1, 4)))
    assert [(e.arm, e.benchmark, e.task, e.episode, e.success, e.grasped, e.steps, e.holds) for e in (one, other)] == [
        ("off", "run", INSTRUCTION, 0, True, False, 3, 0),
        ("dtp 0.5", "run", INSTRUCTION, 1, False, False, 5, 2),
    ]
    assert str(recorded) == "2 episodes read from recordings, 0 left out"


def test_a_log_of_recorded_episodes_reads_like_any_other(tmp_path):
    (one, other) = bags.read_bags([two_episodes().write(tmp_path / "run")]).episodes
    for episode in (one, other):
        log.append(tmp_path / "log.jsonl", episode)
    back = {episode.arm: episode for episode in log.read([tmp_path / "log.jsonl"])}
    assert replace(back["off"], series={}) == replace(one, series={})
    assert back["dtp 0.5"].series["entropy_clean"] == pytest.approx(other.series["entropy_clean"], rel=1e-4)


def test_every_parameter_is_kept(tmp_path):
    recorder = Recorder()
    recorder.episode(steps(0, 1), settings(variant="dtp", tolerance_mode="min_entropy", top_k=9))
    recorder.say(True)
    (episode,) = bags.read_bags([recorder.write(tmp_path / "run")]).episodes
    assert episode.arm == "min_entropy"
    chosen = settings(variant="dtp", tolerance_mode="min_entropy", top_k=9)
    for name, value in {**asdict(chosen.pruning), **asdict(chosen.generation)}.items():
        assert episode.setup[name] == (list(value) if isinstance(value, tuple) else value), name
    for name in ("model", "checkpoint", "execute_horizon", "revision", "device", "dtype"):
        assert episode.setup[name] == getattr(chosen, name), name


@pytest.mark.parametrize(
    ("changes", "arm"),
    [
        ({"variant": "random_all", "tolerance": 1.25}, "random_all 1.25"),
        ({"variant": "no_gaussian", "tolerance_mode": "min_entropy"}, "no_gaussian min_entropy"),
        ({"variant": "off", "tolerance_mode": "min_entropy"}, "off"),
    ],
)
def test_arms_are_named_as_in_a_study(tmp_path, changes, arm):
    recorder = Recorder()
    recorder.episode(steps(0, 1), settings(**changes))
    recorder.say(True)
    assert [e.arm for e in bags.read_bags([recorder.write(tmp_path / "run")]).episodes] == [arm]


def test_control_steps_are_those_that_are_executed(tmp_path):
    recorder = Recorder()
    recorder.episode(steps(0, 3, holds=(1,)), OFF, execute_horizon=3)  # of chunks of four
    recorder.say(True)
    assert bags.read_bags([recorder.write(tmp_path / "run")]).episodes[0].steps == 3 + 1 + 3


def test_the_name_of_the_status_is_the_nodes():
    assert bags.TRACE_NAME == TRACE_NAME


# How an episode ended


def endings(recorder, path, file=None):
    return [(e.success, e.grasped) for e in bags.read_bags([recorder.write(path)], file).episodes]


def labelled(folder, ended):
    """A file of labels."""
    rows = [{"bag": bag, "episode": episode, "success": success} for (bag, episode), success in ended.items()]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "labels.jsonl"


def test_success_that_came_with_the_last_action_counts_and_the_reset_after_it_does_not(tmp_path):
    recorder = Recorder()
    for said in ([True], [True, False, False], [False, True, False], [False, False]):
        recorder.say(False)
        recorder.episode(steps(0, 2), OFF)
        for success in said:
            recorder.say(success)
    recorder.step(step_result(0, 0), OFF)  # the next one, which was stopped
    assert endings(recorder, tmp_path / "run") == [(True, None)] * 3 + [(False, None)]


def test_success_that_was_lost_while_the_policy_acted_is_none(tmp_path):
    recorder = Recorder()
    recorder.step(step_result(0, 0), OFF)
    recorder.say(True)
    recorder.say(False)
    recorder.step(step_result(0, 1), OFF)
    recorder.say(False)
    recorder.step(step_result(0, 0), OFF)
    assert endings(recorder, tmp_path / "run") == [(False, None)]


@pytest.mark.parametrize("info", [True, False])
def test_what_was_stopped_before_its_time_is_no_failure(tmp_path, info):
    """With ~/info any run; ~/success alone cannot tell, and the last one may have been."""
    recorder = Recorder()
    for _ in range(2):
        recorder.episode(steps(0, 2), OFF)
        if info:
            recorder.inform(2, False, "carrot", steps=60)
        else:
            recorder.say(False)
    path = recorder.write(tmp_path / "run")
    recorded = bags.read_bags([path])
    assert recorded.left_out == {bags.UNFINISHED: 2 if info else 1}
    assert "that were not over" in str(recorded)
    labels_file = labelled(tmp_path, {("run", 0): False, ("run", 1): True})
    assert [e.success for e in bags.read_bags([path], labels_file).episodes] == [False, True]


def test_info_says_when_the_simulator_was_reset(tmp_path):
    recorder = Recorder()
    recorder.inform(0, False)
    recorder.episode(steps(0, 2), OFF)
    recorder.inform(1, True, "carrot")  # it stood for a moment
    recorder.inform(2, False)
    recorder.inform(0, False)  # reset
    recorder.episode(steps(1, 2), OFF)
    recorder.inform(1, False, "cup")
    recorder.inform(2, True)
    recorder.inform(0, False)  # reset; no policy acts
    recorder.inform(1, False, "carrot")
    assert endings(recorder, tmp_path / "run") == [(False, True), (True, False)]


def test_info_goes_before_success(tmp_path):
    recorder = Recorder()
    recorder.inform(0, False)
    recorder.episode(steps(0, 2), OFF)
    recorder.inform(1, True)
    recorder.say(False)
    assert endings(recorder, tmp_path / "run") == [(True, False)]


def test_an_episode_over_two_scenes_is_left_out(tmp_path):
    recorder = Recorder()
    recorder.inform(5, True)
    recorder.step(step_result(0, 0), OFF)
    recorder.inform(0, False)
    recorder.step(step_result(0, 1), OFF)
    recorded = bags.read_bags([recorder.write(tmp_path / "run")], labelled(tmp_path, {("run", 0): True}))
    assert (recorded.episodes, recorded.left_out) == ((), {bags.RESET: 1})


def test_labels_go_before_the_simulator_and_fill_what_it_did_not_say(tmp_path):
    given = labelled(tmp_path, {("a", 0): False})
    assert endings(two_episodes(), tmp_path / "a", given) == [(False, False)] * 2
    recorder = Recorder()
    for seed in range(3):
        recorder.episode(steps(seed, 2), OFF)
    file = labelled(tmp_path, {("b", 1): True, ("a", 7): True})
    recorded = bags.read_bags([recorder.write(tmp_path / "b")], file)
    assert [(e.episode, e.success) for e in recorded.episodes] == [(1, True)]
    assert recorded.left_out == {bags.UNLABELLED: 2}
    assert "2 left out (2 without a label)" in str(recorded)
    assert str(recorded).endswith("; the labels of a are of no recording here")
    with pytest.raises(BagError, match=r"b has no episode 3 \(it has 0 ... 2\)"):
        bags.read_bags([tmp_path / "b"], labelled(tmp_path, {("b", 3): True}))


@pytest.mark.parametrize(
    "text",
    [
        "bag,episode,success\nrun,0,true\nrun,1,0\n",
        "\ufeffsuccess, bag, episode\n yes,run, 0\nno,run,1\n",
        '{"bag": "run", "episode": 0, "success": true}\n\n{"bag": "run", "episode": 1, "success": false}\n',
    ],
)
def test_labels_are_read_from_either_form(tmp_path, text):
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    assert labels.read(tmp_path / "labels") == {("run", 0): True, ("run", 1): False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bag,success\nrun,true\n", "line 2 has bag, success .valid: bag, episode, success"),
        ("bag,episode,success\nrun,0,true,1\n", "line 2 has .*too much"),
        ("bag,episode,success\nrun,0,maybe\n", "line 2: success = 'maybe' is not known"),
        ("bag,episode,success\nrun,-1,true\n", "line 2: episode = '-1'"),
        ("bag,episode,success\nrun,0,1\nrun,0,0\n", "line 3: episode 0 of run was said to have ended otherwise"),
        ('{"bag": "run"}\n', "line 1 has bag "),
        ('{"bag": \n', "line 1 is no JSON"),
    ],
)
def test_labels_that_are_wrong_are_refused_with_their_line(tmp_path, text, message):
    (tmp_path / "labels").write_text(text)
    with pytest.raises(BagError, match=message):
        labels.read(tmp_path / "labels")


def test_labels_that_are_not_there(tmp_path):
    with pytest.raises(BagError, match="nowhere cannot be read"):
        labels.read(tmp_path / "nowhere")


# Episodes that are not whole


@hypothesis(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_only_runs_that_count_up_from_0_are_episodes(tmp_path_factory, numbers):
    recorder = Recorder()
    recorder.say(True)
    for number in numbers:
        recorder.step(step_result(0, number), OFF)
    recorded = bags.read_bags([recorder.write(tmp_path_factory.mktemp("bag") / "run", "sqlite3")])
    runs = [[numbers[0]]]
    for one, other in pairwise(numbers):
        runs[-1].append(other) if other > one else runs.append([other])
    whole = {number: len(run) for number, run in enumerate(runs) if run == list(range(len(run)))}
    assert {e.episode: len(e.series["pruned"]) for e in recorded.episodes} == whole
    assert sum(recorded.left_out.values()) == len(runs) - len(whole)


def test_settings_that_change_within_an_episode_belong_to_no_arm(tmp_path):
    recorder = Recorder()
    recorder.say(True)
    recorder.step(step_result(0, 0), OFF)
    recorder.step(step_result(0, 1), DTP)
    assert bags.read_bags([recorder.write(tmp_path / "run")]).left_out == {bags.CHANGED: 1}


# Files


def test_several_recordings_as_one_benchmark(tmp_path):
    paths = [two_episodes().write(tmp_path / name) for name in ("a", "b")]
    apart = bags.read_bags(paths).episodes
    assert [(e.benchmark, e.episode) for e in apart] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    together = bags.read_bags(paths, benchmark="arm").episodes
    assert [(e.benchmark, e.episode) for e in together] == [("arm", n) for n in range(4)]
    file = labelled(tmp_path, {("b", 0): False})
    assert bags.read_bags(paths, file, benchmark="arm").episodes[2].success is False
    again = shutil.copytree(paths[0], tmp_path / "c" / "a")
    with pytest.raises(BagError, match="have one name, a,"):
        bags.read_bags([paths[0], again])

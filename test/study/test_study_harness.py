"""dtp_ros/study/harness.py with real processes: episodes spread, results logged, a killed study that goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dtp_ros.errors import ConfigError
from dtp_ros.study import harness, log, outcomes
from dtp_ros.study.arms import OFF, pruning_arm
from dtp_ros.study.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("carrot_on_plate", "stack_blocks")


def plan(out, **changes):
    config = ROOT / "config" / "study"
    values = {
        "server": config / "servers" / "tabletop.yaml",
        "benchmark": config / "benchmarks" / "tabletop.yaml",
        "out": out,
        "shards": 1,
        "episodes": 2,
        "tasks": TASKS,
        "entries": ("plain",),
    }
    return Plan(**values | changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, harness.run(plan(out, shards=2), [OFF, pruning_arm("dtp", 0.25)])


def test_every_arm_has_every_episode(study):
    _, episodes = study
    assert log.arms(episodes) == ["off", "dtp 0.25"]
    for arm in log.arms(episodes):
        keys = [(e.task, e.episode) for e in episodes if e.arm == arm]
        assert sorted(keys) == [(task, number) for task in TASKS for number in range(2)]
    assert len(log.paired(episodes, "off", "dtp 0.25")) == 4
    assert {e.setup["variant"] for e in episodes if e.arm == "off"} == {"off"}
    assert {e.setup["tolerance"] for e in episodes if e.arm == "dtp 0.25"} == {0.25}


def test_what_was_run_is_not_run_again(study):
    out, episodes = study
    before = (out / "episodes.jsonl").read_bytes()
    assert harness.run(plan(out), [OFF, pruning_arm("dtp", 0.25)]) == episodes
    assert (out / "episodes.jsonl").read_bytes() == before


def test_a_log_from_elsewhere_is_gone_on_with(study, tmp_path):
    _, episodes = study
    log_file = tmp_path / "episodes.jsonl"
    for episode in episodes[:-1]:
        log.append(log_file, episode)
    again = harness.run(plan(tmp_path), [OFF, pruning_arm("dtp", 0.25)])
    assert again == episodes
    results = list((tmp_path / "vla-eval").glob("*/shard0.log"))
    assert len(results) == 1, "only the arm that lacked an episode was run"
    half = plan(tmp_path, tasks=TASKS[:1], half="tuning")
    other = [e for e in harness.run(half, [pruning_arm("dtp", 0.25, {"top_k": 9})]) if e not in episodes]
    assert [(e.arm, e.task) for e in other] == [("dtp 0.25 top_k=9", TASKS[0])], "other constants are another arm"
    assert not other[0].held_out


@pytest.mark.long
def test_a_killed_study_goes_on_and_ends_as_one_that_was_not(study, tmp_path):
    _, episodes = study
    arguments = ["sweep", "--out", str(tmp_path), "--shards", "2", "--episodes", "2", "--entries", "plain"]
    arguments += ["--tasks", *TASKS, "--arms", "off", "--tolerances", "0.25"]
    command = [sys.executable, "-m", "dtp_ros.study.main", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    path = tmp_path / "episodes.jsonl"
    end = time.monotonic() + 100
    while not path.exists() or not path.read_bytes():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < end, "no episode within 100 s"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(log.read([path])) < 4
    again = harness.run(plan(tmp_path), [OFF])  # with fewer processes, too
    assert len(again) == 4
    expected = [e for e in episodes if e.arm == "off"]
    assert outcomes.endings(again) == outcomes.endings(expected)
    assert [e.series for e in again] == [e.series for e in expected]


def test_episodes_that_break_off_are_said_and_run_again(tmp_path):
    config = json.loads(json.dumps(plan(tmp_path).entries_to_run()[0].config))
    broken = tmp_path / "broken.yaml"
    config["benchmarks"][0]["params"]["distractors"] = 7  # refused where the episode begins
    config["benchmarks"][0]["params"]["setting"] = "plain"
    broken.write_text(json.dumps(config))
    small = plan(tmp_path, benchmark=broken, episodes=1, tasks=TASKS[:1])
    with pytest.raises(harness.StudyError, match=r"1 of 1 episodes broke off; .*distractors"):
        harness.run(small, [OFF])
    with pytest.raises(harness.StudyError, match=r"1 of 1 episodes broke off; .*distractors"):
        harness.run(small, [OFF])


def test_an_episode_of_another_processor_is_run_again(study, tmp_path):
    _, episodes = study
    for episode in episodes:
        processor = {"processor": "another"} if episode == episodes[0] else {}
        log.append(tmp_path / "episodes.jsonl", replace(episode, setup={**episode.setup, **processor}))
    lines = len((tmp_path / "episodes.jsonl").read_text().splitlines())
    assert harness.run(plan(tmp_path), [OFF, pruning_arm("dtp", 0.25)]) == episodes
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == lines + 1


def test_an_entry_without_a_subname_is_none_of_those_chosen(tmp_path):
    config = {"benchmarks": [dict(entry) for entry in plan(tmp_path).entries_to_run()[0].config["benchmarks"]]}
    config["benchmarks"].append({name: value for name, value in config["benchmarks"][0].items() if name != "subname"})
    both = tmp_path / "both.yaml"
    both.write_text(json.dumps(config))
    assert len(plan(tmp_path, benchmark=both).entries_to_run()) == 1
    with pytest.raises(ConfigError, match=r"no entry dark \(valid: plain\)"):
        plan(tmp_path, benchmark=both, entries=("dark",)).entries_to_run()


def test_an_entry_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no entry dark \(valid: .*lookalike"):
        plan(tmp_path, entries=("dark",)).entries_to_run()
    with pytest.raises(ConfigError, match=r"none.yaml is not there"):
        plan(tmp_path, benchmark=tmp_path / "none.yaml").entries_to_run()


@pytest.mark.long
def test_where_the_tasks_are_not_known_the_queue_that_was_left_is_gone_on_with(tmp_path, monkeypatch):
    """As in a container: vla-eval's own queue says what is done, and what the log lacks is done again."""
    known = Plan.entries_to_run
    monkeypatch.setattr(Plan, "entries_to_run", lambda self: [replace(e, items=None) for e in known(self)])
    small = plan(tmp_path, episodes=1)
    first = harness.run(small, [OFF])
    assert [e.task for e in first] == list(TASKS)
    lines = small.log.read_text().splitlines()
    assert harness.run(small, [OFF]) == first
    assert small.log.read_text().splitlines() == lines
    small.log.write_text(lines[0] + "\n" + lines[1][:40])  # as a kill may leave it, when vla-eval has seen its end
    assert harness.run(small, [OFF]) == first
    assert small.log.read_text().splitlines() == lines

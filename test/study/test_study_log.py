"""dtp_ros/study/log.py and outcomes.py: what is written is read, whatever happens to the file in between."""

import json
import lzma
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp_ros.study import comparison, log, outcomes

EPISODE = log.Episode(
    arm="off",
    benchmark="bench",
    task="stack",
    episode=3,
    success=True,
    grasped=None,
    steps=12,
    holds=1,
    setup={"model": "tabletop", "tolerance": 0.5},
    series=dict.fromkeys(log.SERIES, (0.25, 0.5)),
)


def test_what_is_appended_is_read(tmp_path):
    path = tmp_path / "folder" / "log.jsonl"
    others = [EPISODE, replace(EPISODE, episode=1, success=False, grasped=True), replace(EPISODE, arm="dtp 0.5")]
    for episode in others:
        log.append(path, episode)
    assert log.read([path]) == sorted(others, key=lambda e: (e.arm, e.key))
    assert log.arms(log.read([path])) == ["off", "dtp 0.5"]


def test_a_line_that_was_cut_off_is_taken_out_before_the_next(tmp_path):
    path = tmp_path / "log.jsonl"
    for number in range(2):
        log.append(path, replace(EPISODE, episode=number))
    path.write_bytes(path.read_bytes()[:-20])
    log.mend(path)
    log.append(path, replace(EPISODE, episode=2))
    assert [episode.episode for episode in log.read([path])] == [0, 2]
    log.mend(tmp_path / "none.jsonl")


def test_two_checkpoints_under_one_arm_are_kept_apart(tmp_path):
    path = tmp_path / "log.jsonl"
    for model in ("nora", "spatialvla"):
        log.append(path, replace(EPISODE, setup={"model": model}))
    assert [episode.setup["model"] for episode in log.read([path])] == ["nora", "spatialvla"]


def test_episodes_that_began_otherwise_are_no_pairs(tmp_path):
    path = tmp_path / "log.jsonl"
    for arm, evaluation in (("off", "a"), ("dtp 1", "b")):
        log.append(path, replace(EPISODE, arm=arm, setup={"evaluation": evaluation}))
    with pytest.raises(log.LogError, match=r"line 2: bench was run in another way"):
        log.read([path])


def test_figures_that_are_not_finite_are_null_and_left_out_of_means(tmp_path):
    path = tmp_path / "log.jsonl"
    series = {**EPISODE.series, "entropy_clean": (math.nan, 0.5), "score_clean": (math.inf, -math.inf)}
    log.append(path, replace(EPISODE, series=series))
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    (read,) = log.read([path])
    assert read.mean("entropy_clean") == 0.5
    assert math.isnan(read.mean("score_clean"))
    assert read.series["unimportant_attention"] == (0.25, 0.5)


def test_a_log_without_suites_is_read(tmp_path):
    path = tmp_path / "log.jsonl"
    log.append(path, replace(EPISODE, suite="table"))
    assert log.read([path])[0].suite == "table"
    line = json.loads(path.read_text())
    del line["suite"]
    path.write_text(json.dumps(line) + "\n")
    assert log.read([path]) == [EPISODE]


@pytest.mark.parametrize("task", ["spoon", "carrot", "put x in y"])
def test_halves_have_one_of_every_two_neighbours_and_no_parity(task):
    held = [log.held_out("bench", task, number) for number in range(400)]
    assert all(one != other for one, other in zip(held[::2], held[1::2], strict=True))
    for period in (2, 3, 6):  # SIMPLER's starts repeat so
        for place in range(period):
            assert 0.3 < np.mean(held[place::period]) < 0.7
    others = [log.held_out("other", task, number) for number in range(400)]
    assert held != others
    assert [log.held_out(f"entry {n}", task, 0) for n in range(99)].count(True) in range(30, 70)


def test_a_packed_log_is_read_too(tmp_path):
    path = tmp_path / "log.jsonl"
    log.append(path, EPISODE)
    packed = tmp_path / "log.jsonl.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert log.read([packed]) == log.read([path])
    packed.write_bytes(b"no such thing")
    with pytest.raises(log.LogError, match=r"log.jsonl.xz cannot be read"):
        log.read([packed])


def test_an_episode_that_was_run_twice_counts_once_and_last(tmp_path):
    path = tmp_path / "log.jsonl"
    for steps in (5, 9):
        log.append(path, replace(EPISODE, steps=steps))
    assert [episode.steps for episode in log.read([path])] == [9]


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    for number in range(2):
        log.append(path, replace(EPISODE, episode=number))
    text = path.read_text()
    for end in range(len(text) - 40, len(text) - 1):
        path.write_text(text[:end])
        assert [episode.episode for episode in log.read([path])] == [0]


@pytest.mark.parametrize("line", ["{}", "[]", "12", "{broken", json.dumps({"arm": "off"})])
def test_any_other_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    log.append(path, EPISODE)
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(log.LogError, match=r"log.jsonl, line 1"):
        log.read([path])


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(log.LogError, match=r"none.jsonl cannot be read"):
        log.read([tmp_path / "none.jsonl"])


def test_series_of_unequal_length_are_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    log.append(path, replace(EPISODE, series={**EPISODE.series, "pruned": (1.0,)}))
    log.append(path, EPISODE)
    with pytest.raises(log.LogError, match="of one length"):
        log.read([path])


def test_only_episodes_of_both_arms_are_paired():
    first = [replace(EPISODE, episode=n) for n in (0, 1, 2)]
    second = [replace(EPISODE, arm="dtp 1", episode=n) for n in (4, 2, 1)]
    assert [a.episode for a, _ in log.paired(first + second, "off", "dtp 1")] == [1, 2]
    assert [b.arm for _, b in log.paired(first + second, "off", "dtp 1")] == ["dtp 1", "dtp 1"]
    with pytest.raises(log.LogError, match=r"'dtp 2' \(there are: off, dtp 1\)"):
        log.paired(first + second, "off", "dtp 2")


def test_what_parts_before_anything_is_pruned_is_found():
    def run(clean, pruned):
        series = {name: (0.0,) * len(clean) for name in log.SERIES} | {"entropy_clean": clean, "pruned": pruned}
        return replace(EPISODE, series=series)

    off = run((1.0, 2.0, math.nan, 4.0), (0.0,) * 4)
    assert not log.parted_early(off, run((1.0, 2.0, math.nan, 4.0), (0.0,) * 4))
    assert not log.parted_early(off, run((1.0, 2.0, 9.0, 9.0, 5.0), (0.0, 0.0, 3.0, 0.0, 0.0)))
    assert log.parted_early(off, run((1.0, 2.5, 9.0, 9.0), (0.0, 0.0, 3.0, 0.0)))
    assert log.parted_early(off, run((9.0, 9.0), (1.0, 0.0))) is None
    assert log.parted_early(off, run((1.0, 2.0, math.nan, 9.0), (0.0,) * 4))
    assert log.parted_early(off, run((1.0, 2.0, math.nan), (0.0,) * 3))  # it ended earlier
    assert log.parted_early(off, run((1.0, 2.0, math.nan, 4.0, 5.0), (0.0,) * 5))
    assert not log.parted_early(off, run((1.0 + 1e-7, 2.0), (0.0, 1.0)))  # below the digits that a log keeps


ENDINGS = st.dictionaries(
    st.tuples(
        st.sampled_from(["nora", "tabletop"]),
        st.sampled_from(["", "shipped"]),
        st.sampled_from("ab"),
        st.sampled_from("cd"),
        st.sampled_from(["off", "dtp 1"]),
        st.integers(0, 9),
    ),
    st.tuples(st.booleans(), st.sampled_from([None, True, False]), st.integers(1, 99)),
    min_size=1,
)


@given(ENDINGS)
def test_published_outcomes_are_those_of_the_log(tmp_path_factory, ends):
    episodes = [
        replace(
            EPISODE,
            setup={"model": model, "checkpoint": checkpoint},
            benchmark=b,
            task=t,
            arm=arm,
            episode=n,
            success=success,
            grasped=grasped,
            steps=steps,
        )
        for (model, checkpoint, b, t, arm, n), (success, grasped, steps) in ends.items()
    ]
    path = tmp_path_factory.mktemp("outcomes") / "outcomes.json"
    outcomes.write(path, episodes)
    assert outcomes.read(path) == ends
    assert outcomes.compare(ends, episodes) == (len(ends), [])


def test_an_episode_that_ended_otherwise_is_said():
    published = outcomes.endings([EPISODE, replace(EPISODE, episode=4)])
    shared, other = outcomes.compare(published, [replace(EPISODE, success=False), replace(EPISODE, episode=9)])
    assert shared == 1
    assert other == ["bench, stack, off, episode 3: failure, 12 steps, published success, 12 steps"]
    with pytest.raises(log.LogError, match="none of these episodes"):
        outcomes.compare(published, [replace(EPISODE, arm="dtp 1")])


@pytest.mark.parametrize("text", ["", "{}", '[{"benchmark": "b"}]', "[1]"])
def test_a_file_without_outcomes_is_named(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    if text == "{}":
        assert outcomes.read(path) == {}
        return
    with pytest.raises(log.LogError, match=r"other.json holds no outcomes"):
        outcomes.read(path)


EVIDENCE = Path(__file__).resolve().parents[2] / "docs" / "evidence"


@pytest.mark.parametrize("folder", sorted({path.parent for path in EVIDENCE.rglob("*.jsonl.xz")}), ids=lambda f: f.name)
def test_the_published_outcomes_are_those_of_the_published_log(folder):
    episodes = log.read(sorted(folder.glob("*.jsonl.xz")))
    assert outcomes.read(folder / "outcomes.json") == outcomes.endings(episodes)
    text = EVIDENCE.with_suffix(".md").read_text()
    before = "" if folder == EVIDENCE else f"{folder.name.replace('_', ' ')}, "
    for benchmark in sorted({episode.benchmark for episode in episodes}):
        section = text.split(f"### {before}{benchmark.removeprefix('tabletop_')}\n")[1].split("\n#")[0]
        members = [e for e in episodes if e.benchmark == benchmark]
        assert not any(parted for parted, _ in comparison.parted_early(members, "off").values())  # all of one machine
        for arm in log.arms(members):
            ends = [e.success for e in members if e.arm == arm]
            assert f"| `{arm}` | {sum(ends)}/{len(ends)}: " in section

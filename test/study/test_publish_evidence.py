"""tools/publish_evidence.py: what is published is whole, of one machine, and in the place of what was there."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from study_log import made

from dtp_ros.sim.tasks import TASKS
from dtp_ros.study import log, outcomes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import publish_evidence

PAGE = """# Page

### All settings at a glance

Words.

| arm | old |
| --- | --- |

### clutter

| arm | other |
| --- | --- |

### variants, plain

| arm | old |
| --- | --- |
| `off` | 1 |

More words.
"""
ARMS = {"off": lambda n: n == 0, "dtp 0.5": lambda n: True}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Two episodes a task, in a folder of its own."""
    monkeypatch.setattr(publish_evidence, "PER_TASK", 2)
    folder = tmp_path / "evidence"
    folder.mkdir()
    monkeypatch.setattr(publish_evidence, "FOLDER", folder)
    (tmp_path / "evidence.md").write_text(PAGE)


def run(arms=ARMS, numbers=range(2), **own):
    """Every task; each episode of an arm that prunes does so from its first step on."""
    found = [e for task in TASKS for e in made(arms, numbers, benchmark="tabletop_plain", task=task, **own)]
    return sorted(found, key=lambda e: (e.arm != "off", e.arm, e.key))


def late(episodes, clean):
    """Arms that prune only from the second step on, with this clean entropy in the first."""
    return [
        replace(e, series=e.series | {"pruned": (0.0, 1.0, 1.0), "entropy_clean": (clean, 1.0, 1.0)})
        for e in episodes
        if e.arm != "off"
    ]


def of_processor(episodes, name):
    return [replace(e, setup={**e.setup, "processor": name}) for e in episodes]


def test_arms_that_lack_episodes_are_named_and_left_out(capsys):
    short = [e for e in run() if e.arm == "off" or e.episode]
    assert log.arms(publish_evidence.whole(short, study=True)) == ["off"]
    assert "left out: tabletop_plain, dtp 0.5: 4 episodes, off: 8" in capsys.readouterr().out
    assert publish_evidence.whole([e for e in run() if e.arm != "off"], study=True) == []


def test_the_study_has_its_episodes_and_no_more():
    assert publish_evidence.whole(run(numbers=range(3)), study=True) == run()
    assert publish_evidence.whole(run(numbers=range(1)), study=True) == []
    for numbers in (range(1), range(3)):
        assert publish_evidence.whole(run(numbers=numbers), study=False) == run(numbers=numbers)


def test_an_arm_with_a_constant_of_its_own_is_none_of_the_study():
    variant = [replace(e, arm="dtp 0.5 top_k=9") for e in run() if e.arm != "off"]
    assert log.arms(publish_evidence.whole([*run(), *variant], study=True)) == ["off", "dtp 0.5"]
    assert len(log.arms(publish_evidence.whole([*run(), *variant], study=False))) == 3


def test_another_benchmark_is_refused():
    with pytest.raises(log.LogError, match=r"bench is no setting of the evidence \(valid: tabletop_plain, "):
        publish_evidence.by_setting(made(ARMS))


def test_arms_of_two_machines_are_refused():
    off, other = run({"off": ARMS["off"]}), [e for e in run() if e.arm != "off"]
    mixed = of_processor(off, "a") + of_processor(other, "b")  # no pair shows it: all prune in their first step
    with pytest.raises(log.LogError, match="run with processor a and b"):
        publish_evidence.whole(mixed, study=True)
    assert publish_evidence.whole(of_processor(off, "a") + other, study=True)  # an older log does not say
    with pytest.raises(log.LogError, match="8 of 8 episodes part from off before"):
        publish_evidence.whole(off + late(other, 7.0), study=True)


def test_a_table_takes_the_place_of_the_one_in_its_section(tmp_path):
    page = tmp_path / "evidence.md"
    publish_evidence.write_tables(page, {"plain": run()}, "variants")
    text = page.read_text()
    head, tail = PAGE.split("| arm | old |\n| --- | --- |\n| `off` | 1 |\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert "| `off` | 4/8: 50.0 % (" in text
    with pytest.raises(log.LogError, match="no section '### plain' with a table"):
        publish_evidence.write_tables(page, {"plain": run()}, "")
    assert page.read_text() == text


def test_what_was_tried_beside_is_compared_by_task_with_off_and_with_what_it_is_a_change_of():
    """Of two episodes a task `off` solves the first, `dtp 0.5` both, the variant the second."""
    other = [replace(e, arm="dtp 0.5 top_k=9") for e in run({"dtp 0.5": lambda n: n == 1})]
    page = publish_evidence.beside_page("variants, plain", [*run(), *other])
    assert f"| arm | {' | '.join(sorted(TASKS))} |" in page
    assert page.count("| `off` | 50.0 % (") == 1
    lines = [line.split(" | ") for line in page.splitlines() if "| 8 |" in line]
    assert [(line[0], line[1], line[4]) for line in lines] == [
        ("| `dtp 0.5`", "`off`", "4 / 0"),
        ("| `dtp 0.5 top_k=9`", "`off`", "4 / 4"),
        ("| `dtp 0.5 top_k=9`", "`dtp 0.5`", "0 / 4"),
    ]
    # Exact McNemar: 2 / 2^4. Holm: over two tests, and over one.
    assert [line[5:] for line in lines] == [["0.12", "0.25 |"], ["1.00", "1.00 |"], ["0.12", "0.12 |"]]


@pytest.mark.parametrize(
    ("arm", "plain"),
    [
        ("off", ""), ("dtp 0.25", ""), ("min_entropy", ""), ("min_entropy top_k=9", ""),
        ("random_all 0.25", "dtp 0.25"), ("dtp 0.25 relevance_layers=[3, 4, 5] top_k=9", "dtp 0.25"),
    ],
)  # fmt: skip
def test_what_an_arm_is_a_change_of(arm, plain):
    assert publish_evidence.unchanged(arm) == plain


def test_what_is_published_is_not_lost(tmp_path, capsys):
    """New episodes of `off` would leave the arm without: an error, and nothing is changed."""
    path, folder = tmp_path / "episodes.jsonl", tmp_path / "evidence" / "variants"
    for episode in run():
        log.append(path, episode)
    assert publish_evidence.main([str(path), "--beside", "variants"]) == 0
    published = log.read([folder / "plain.jsonl.xz"])
    assert outcomes.read(folder / "outcomes.json") == outcomes.endings(published)
    assert len(published) == 16
    page = (folder / "plain.md").read_text()
    assert page == publish_evidence.beside_page("variants, plain", published)
    assert "Against `dtp`" not in page  # no arm is a change of another
    before = {file: file.read_bytes() for file in (*folder.iterdir(), tmp_path / "evidence.md")}
    for episode in run({"off": ARMS["off"]}, range(2, 4)):
        log.append(path, episode)
    assert publish_evidence.main([str(path), "--beside", "variants"]) == 1
    assert "plain: dtp 0.5 would be lost" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before

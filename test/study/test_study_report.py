"""dtp_ros/study/report.py on made-up logs in which it is known who solves what."""

import math
import re
from dataclasses import replace

import pytest
from report_tables import exact, row_of, tables
from study_log import ABLATED, ABLATION, SETUP, episode, made, setup_of

from dtp_ros.study import comparison, log, report

PLAIN = {0, 1, 2, 3, 4, 5}  # what no pruning solves, of 20 episodes
SWEEP = {
    "off": lambda n: n in PLAIN,
    "dtp 0.25": lambda n: n in {0, 1, 2},
    "dtp 0.5": lambda n: n in PLAIN | {6, 7, 8, 10, 12, 13},
    "dtp 1": lambda n: n in PLAIN - {5} | {6, 8, 9, 10, 12},
    "min_entropy": lambda n: n in PLAIN | {18},
}
ESTIMATE = re.compile(r"[+-]?\d+(\.\d+)?( %)? \([+-]?\d+(\.\d+)? \.\.\. [+-]?\d+(\.\d+)?\)|-")
BARE = {"arm", "against", "episodes", "pairs", "gained / lost", "p", "p (Holm)", "held-out half"}


@pytest.fixture(scope="module", autouse=True)
def odd_ones_are_held_out():
    """In place of the lot, so that it can be seen who is in which half."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "held_out", lambda benchmark, task, episode: episode % 2 == 1)
        yield


@pytest.fixture(scope="module")
def sweep():
    return made(SWEEP)


@pytest.fixture(scope="module")
def swept(sweep):
    return report.sweep_report(sweep)


def test_a_row_has_the_effect_that_was_put_in(swept):
    row = row_of(swept, "stack", "dtp 1", "success")
    assert row["episodes"] == row["pairs"] == "20"
    assert row["success"] == "50.0 % (29.9 ... 70.1)"  # 10 of 20, Wilson
    assert row["gained / lost"] == "5 / 1"
    assert row["difference to `off`, points"].startswith("+20.0 (")
    assert row["p"] == f"{exact(5, 1):.2f}" == "0.22"
    # Four tests: 3 / 0 lost gives 0.25, 6 / 0 0.03125, 5 / 1 0.21875, 1 / 0 1.
    corrected = {arm: row_of(swept, "stack", arm, "p (Holm)")["p (Holm)"] for arm in SWEEP}
    assert corrected == {"off": "-", "dtp 0.25": "0.66", "dtp 0.5": "0.12", "dtp 1": "0.66", "min_entropy": "1.00"}


def test_arms_stand_in_order_whatever_the_log_s(sweep):
    text = report.sweep_report(sweep[::-1])
    assert [row["arm"] for row in tables(text)[0][1]] == [f"`{arm}`" for arm in SWEEP]
    assert text == report.sweep_report(sweep)


def test_no_figure_is_printed_without_its_interval(sweep):
    ablated = made({arm: lambda n: n % 3 == 0 for arm in ABLATION})
    for text in (report.sweep_report(sweep), report.ablation_report(ablated), report.sweep_report(sweep[:1])):
        body = tables(text)[1:]  # the first says what was run
        assert body
        for _, rows in body:
            for row in rows:
                assert all(ESTIMATE.fullmatch(cell) for name, cell in row.items() if name not in BARE), row
        assert not re.search(r"[\d.]+ %(?! \(| level|\.| for)", text.split("## How to read")[0])


def test_every_table_is_rectangular(swept):
    assert len(tables(swept)) == 4  # what was run, the choice, success, what the method did


def test_the_tolerance_is_chosen_on_the_tuning_half_alone(sweep, swept):
    """Even: off 3, dtp 0.25 2, dtp 0.5 3 + {6, 8, 10, 12}, dtp 1 3 + {6, 8, 10, 12}: a tie, which the larger takes."""
    assert "**Tolerance 1** (`dtp 1`)" in swept
    row = row_of(swept, "The choice of the tolerance", "dtp 0.5", "success on the tuning half")
    assert row["success on the tuning half"].startswith("70.0 % (")
    assert "`min_entropy`" not in swept.split("## The choice")[1].split("## ")[0]
    chosen = comparison.choice(sweep, "off")
    turned = [replace(e, success=not e.success) if e.held_out else e for e in sweep]
    other = comparison.choice(turned, "off")
    assert (chosen.arm, chosen.tuning, chosen.group) == (other.arm, other.tuning, other.group)
    assert (chosen.arm, {e.key[2] for e in chosen.group.episodes}) == ("dtp 1", set(range(0, 20, 2)))
    without = [replace(e, success=False) if e.held_out else e for e in sweep]
    assert comparison.choice(without, "off").arm == "dtp 1"


def test_a_better_tuning_half_wins_over_a_larger_tolerance(sweep):
    worse = [replace(e, success=False) if e.key[2] == 12 and e.arm == "dtp 1" else e for e in sweep]
    assert comparison.choice(worse, "off").arm == "dtp 0.5"


def test_the_choice_is_confirmed_on_the_held_out_half_alone(sweep, swept):
    """Odd: off solves 1, 3, 5; dtp 1 solves 1, 3, 9."""
    assert (
        "On the 10 held-out episodes `off` solves 30.0 % (10.8 ... 60.3) and `dtp 1` 30.0 % (10.8 ... 60.3): "
        "a difference of +0.0 (" in swept
    )
    assert "gained / lost 1 / 1, p = 1.00 (exact McNemar test). The two are not shown to differ" in swept
    turned = [replace(e, success=not e.success) if not e.held_out and e.arm in ("off", "dtp 1") else e for e in sweep]
    confirmed = comparison.versus([e for e in turned if e.held_out], ["off"])
    assert {t.arm: t.test for t in confirmed}["dtp 1"] == comparison.choice(sweep, "off").confirmed.test


def test_a_shown_difference_is_said():
    arms = {"off": lambda n: False, "dtp 0.5": lambda n: True}
    assert "The two differ at the 5 % level" in report.sweep_report(made(arms))


def test_without_a_held_out_half_nothing_is_confirmed(sweep):
    text = report.sweep_report([e for e in sweep if not e.held_out])
    assert "**Tolerance 1** (`dtp 1`). No test confirms it" in text
    assert "No tolerance is chosen" in report.sweep_report([e for e in sweep if e.held_out])


def test_without_a_baseline_rates_are_printed_and_nothing_is_compared(sweep):
    text = report.sweep_report([e for e in sweep if e.arm != "off"])
    assert "Not compared" not in text.split("## bench")[1]
    assert row_of(text, "stack", "dtp 0.5", "p")["p"] == "-"


def test_all_rows_of_a_table_are_over_the_same_episodes(sweep):
    """`dtp 0.5` lacks two of twenty, of which it gained 6: they are nobody's. With three less it is left out."""
    short = [e for e in sweep if e.arm != "dtp 0.5" or e.episode not in (0, 6)]
    text = report.sweep_report(short)
    for arm in SWEEP:
        assert row_of(text, "stack", arm, "success")["episodes"] == "18"
    assert row_of(text, "stack", "dtp 0.5", "pairs")["gained / lost"] == "5 / 0"
    assert row_of(text, "stack", "dtp 1", "pairs")["gained / lost"] == "4 / 1"  # it had gained 6 too
    assert "Left out: 2 episodes that not all of these arms have." in text.split("### stack")[1]
    few = report.sweep_report([e for e in short if e.arm != "dtp 0.5" or e.episode != 19])
    assert row_of(few, "stack", "dtp 1", "pairs")["pairs"] == "20"
    assert "with less than 90% of the episodes: `dtp 0.5` (17 of 20)." in few
    assert "`dtp 0.5` |" not in few.split("### stack")[1]


def test_a_tolerance_that_was_hardly_run_is_not_chosen(sweep):
    stray = [*sweep, episode("dtp 2", 6, True, setup=setup_of("dtp 2"))]
    assert comparison.choice(stray, "off") == replace(
        comparison.choice(sweep, "off"), group=replace(comparison.choice(sweep, "off").group, partial={"dtp 2": 1})
    )
    assert "`dtp 2` (1 of 10)" in report.sweep_report(stray)
    # Eight of ten tuning episodes: it would be dtp 0.5's turn where dtp 1 has too few.
    gone = [e for e in sweep if e.arm != "dtp 1" or e.episode not in (0, 2)]
    assert comparison.choice(gone, "off").arm == "dtp 0.5"


def test_pooled_tasks_are_those_that_every_arm_has(sweep):
    other = made({"off": lambda n: True}, task="lift")
    text = report.sweep_report([*sweep, *other])
    assert [row["arm"] for title, rows in tables(text) if title == "All tasks" for row in rows] == ["`off`", "`off`"]
    assert "`dtp 1` (20 of 40)" in text
    assert row_of(text, "stack", "dtp 1", "pairs")["pairs"] == "20"


def test_what_pruning_did_at_the_same_steps_has_an_interval_of_its_own(swept):
    row = row_of(swept, "stack", "dtp 1", "refined - clean (nats)")
    change = [-0.1 * (1 + n % 3) for n in range(20)]
    assert row["refined - clean (nats)"].startswith(f"{sum(change) / 20:.3f} (")
    assert row_of(swept, "stack", "off", "refined - clean (nats)")["refined - clean (nats)"] == "0 (0 ... 0)"


def test_steps_that_were_not_finite_are_left_out_and_held_steps_are_said(sweep):
    holes = {"entropy_refined": (math.nan, 1.5, 1.5), "entropy_clean": (math.nan, 1.0, 1.0)}
    gone = dict.fromkeys(("entropy_clean", "entropy_refined"), (math.nan,) * 3)
    made_up = [
        replace(e, holds=1, series={**e.series, **(gone if e.episode == 3 else holes)}) if e.arm == "dtp 1" else e
        for e in sweep
    ]
    text = report.sweep_report(made_up)
    row = row_of(text, "stack", "dtp 1", "steps without an action")
    assert row["steps without an action"] == "33.3 % (33.3 ... 33.3)"
    assert row["refined - clean (nats)"] == "0.5 (0.5 ... 0.5)"
    assert row_of(text, "stack", "off", "steps without an action")["steps without an action"] == "0.0 % (0.0 ... 0.0)"


def test_a_benchmark_that_does_not_say_grasped_has_no_column(sweep, swept):
    assert row_of(swept, "stack", "off", "grasp")["grasp"].startswith("40.0 % (")  # 6 solved; 10 and 15 only held
    silent = report.sweep_report([replace(e, grasped=None) for e in sweep])
    assert "grasp" not in silent.split("## How to read")[0]


def test_benchmarks_of_a_suite_are_sections_and_pooled(sweep):
    parts = [replace(e, suite="both") for e in [*sweep, *made(SWEEP, benchmark="other", task="lift")]]
    text, together = report.sweep_report(parts), "both, 2 benchmarks together"
    assert re.findall(r"^##+ (.*)", text, re.M)[2:] == [
        together, "All tasks", "lift", "stack", "bench", "stack", "other", "lift", "How to read this",
    ]  # fmt: skip
    assert row_of(text, "All tasks", "dtp 1", "pairs")["gained / lost"] == "10 / 2"
    held_out = next(rows for _, rows in tables(text) if "held-out half" in rows[0])
    assert [(row["held-out half"], row["pairs"], row["gained / lost"]) for row in held_out] == [
        (together, "20", "2 / 2"), ("bench", "10", "1 / 1"), ("other", "10", "1 / 1"),
    ]  # fmt: skip


def test_suites_are_never_pooled(sweep):
    """Visual matching and variant aggregation in one folder: each has its rows and a tolerance of its own."""
    worse = made({arm: (lambda n: n < 2) if arm == "dtp 1" else solves for arm, solves in SWEEP.items()})
    parts = [replace(e, suite="vm") for e in sweep] + [replace(e, suite="va", benchmark="aggregated") for e in worse]
    text = report.sweep_report(parts)
    assert re.findall(r"^## (.*)", text, re.M)[1:] == [
        "The choice of the tolerance, va", "The choice of the tolerance, vm", "aggregated", "bench", "How to read this",
    ]  # fmt: skip
    assert re.findall(r"\*\*Tolerance (\S+)\*\*", text) == ["0.5", "1"]


def test_a_suite_of_many_is_shown_as_a_whole(sweep):
    parts = [replace(e, suite="coke", benchmark=f"coke_{place}") for place in range(7) for e in sweep]
    text = report.sweep_report(parts)
    assert "## coke, 7 benchmarks together" in text
    assert "## coke_0" not in text
    assert row_of(text, "stack", "off", "episodes")["episodes"] == "140"


def test_what_all_arms_share_is_listed_once(swept):
    listed = swept.split("## What was run")[1].split("|")[0].strip().splitlines()
    assert listed[:2] == ["* model: tabletop", "* checkpoint: shipped"]
    assert "* relevance layers: 1, 2" in listed
    assert "* top k: 27" in listed
    assert not any(line.startswith(("* tolerance:", "* seed", "* variant")) for line in listed)
    (_, rows), *_ = tables(swept)
    assert set(rows[0]) == {"arm", "episodes", "variant", "tolerance", "tolerance mode"}
    assert [row["tolerance"] for row in rows] == ["-", "0.25", "0.5", "1", "-"]


def test_a_constant_that_only_some_episodes_have_is_not_said_of_all(sweep):
    newer = [replace(e, setup={**e.setup, "processor": "A CPU"}) if e.episode else e for e in sweep]
    assert "* processor: A CPU; unknown" in report.sweep_report(newer)
    assert "* processor: A CPU\n" in report.sweep_report([e for e in newer if e.episode])


def test_episodes_with_pruning_are_counted_and_the_first_step_is_shown_apart(sweep):
    strange = [
        replace(
            e,
            series=e.series
            | {"pruned": (0.0,) * 3, "entropy_refined": (e.series["entropy_clean"][0] + 0.25, 0.0, 0.0)},
        )
        if e.arm == "dtp 1" and e.episode % 4
        else e
        for e in sweep
    ]
    row = row_of(report.sweep_report(strange), "stack", "dtp 1", "episodes with pruning")
    assert row["episodes with pruning"].startswith("25.0 %")
    (first,) = re.findall(r"^(\S+) ", row["the same, first step"])
    quarter = [e for e in strange if e.arm == "dtp 1" and e.task == "stack" and not e.episode % 4]
    own = [e.series["entropy_refined"][0] - e.series["entropy_clean"][0] for e in quarter]
    assert float(first) == pytest.approx(0.25 * 0.75 + 0.25 * sum(own) / len(own), abs=0.01)


def test_where_pruning_raised_the_entropy_and_what_the_first_steps_attend(sweep):
    """Five steps: one does not prune, one lowers it, one raises it, one is not finite, one changes nothing."""
    series = {
        "pruned": (0.0, 1.0, 1.0, 2.0, 2.0),
        "entropy_clean": (1.0, 1.0, 1.0, math.nan, 1.0),
        "entropy_refined": (9.0, 0.5, 1.5, 9.0, 1.0),
    }
    made_up = [
        replace(e, series=dict.fromkeys(log.SERIES, (0.5,) * 5) | series) if e.arm == "dtp 1" else e for e in sweep
    ]
    text = report.sweep_report(made_up)
    assert row_of(text, "stack", "dtp 1", "fire rate")["it rose, of steps that prune"] == "33.3 % (33.3 ... 33.3)"
    assert row_of(text, "stack", "off", "fire rate")["it rose, of steps that prune"] == "-"
    rising = (*[0.25] * 5, *[0.75] * 5, *[9.0] * 9)  # the first ten: 0.5
    longer = [replace(e, series=dict.fromkeys(log.SERIES, rising)) for e in sweep]
    row = row_of(report.sweep_report(longer), "stack", "off", "fire rate")
    assert row["unimportant attention, first steps"] == "0.5 (0.5 ... 0.5)"


def test_arms_of_two_machines_are_named(sweep, swept):
    assert "it must do what" not in swept  # every episode prunes at once
    late = [replace(e, series=e.series | {"pruned": (0.0, *e.series["pruned"][1:])}) for e in sweep]
    pairs, own = (sum(e.arm in arms for e in sweep) for arms in ({e.arm for e in sweep} - {"off"}, {"dtp 1"}))
    assert f"In all {pairs} pairs in which it did not prune at once it did." in report.sweep_report(late)
    strange = [
        replace(e, series=e.series | {"entropy_clean": (1.5, *e.series["entropy_clean"][1:])})
        if e.arm == "dtp 1" and e.episode < 3
        else e
        for e in late
    ]
    assert f"**In 3 of {pairs} pairs it did not**: `dtp 1` (3 of {own})." in report.sweep_report(strange)
    assert "it must do what" not in report.sweep_report([e for e in late if e.arm != "off"])


def test_two_settings_under_one_name_are_refused(sweep):
    mixed = [*sweep, episode("dtp 1", 99, True, setup=setup_of("dtp 1", tolerance=0.9))]
    with pytest.raises(log.LogError, match=r"'dtp 1' was run with tolerance = 1.0 and with 0.9"):
        report.sweep_report(mixed)


def test_a_log_with_both_studies_gets_both_reports(tmp_path, sweep):
    pytest.importorskip("matplotlib")
    path = tmp_path / "episodes.jsonl"
    for e in [*sweep, *made({arm: ABLATED[arm] for arm in ABLATION[2:]})]:
        log.append(path, e)
    read = log.read([path])
    written = report.write_reports(read, tmp_path)
    assert [p.name for p in written] == ["sweep.md", "sweep_bench.png", "ablation.md", "ablation_bench.png"]
    text = (tmp_path / "sweep.md").read_text()
    assert text.startswith(report.sweep_report(sweep))  # the same from the file as from memory
    assert "no_gaussian" not in text
    assert "![sweep_bench](sweep_bench.png)" in text
    ablated = (tmp_path / "ablation.md").read_text()
    assert "dtp 0.25" not in ablated
    assert "min_entropy" not in ablated.split("## How to read")[0]


def test_constants_that_no_study_varies_make_studies_of_their_own(sweep):
    def suffixed(e):
        return replace(e, arm=f"{e.arm} mask_scope=action", setup={**e.setup, "mask_scope": "action"})

    both = [*sweep, *(suffixed(e) for e in sweep if e.arm != "off")]
    found = report.sweeps(both)
    assert set(found) == {"sweep_mask_scope=all", "sweep_mask_scope=action"}
    assert sorted(found["sweep_mask_scope=all"], key=lambda e: (e.arm, e.key)) == sorted(
        sweep, key=lambda e: (e.arm, e.key)
    )
    assert {e.arm for e in found["sweep_mask_scope=action"]} == {
        "off", *(f"{arm} mask_scope=action" for arm in SWEEP if arm != "off"),
    }  # fmt: skip


def test_checkpoints_are_not_pooled(sweep):
    other = [replace(e, benchmark="libero", setup={**e.setup, "checkpoint": "hub/other"}) for e in sweep]
    found = report.sweeps([*sweep, *other])
    assert set(found) == {"sweep_checkpoint=shipped", "sweep_checkpoint=hub_other"}
    assert len(found["sweep_checkpoint=hub_other"]) == len(other)
    plain = [replace(e, setup={**SETUP, "variant": "off", "checkpoint": "alone"}) for e in sweep if e.arm == "off"]
    assert set(report.sweeps([*sweep, *plain])) == {"sweep_checkpoint=shipped", "sweep_checkpoint=alone"}


def test_one_tolerance_that_no_ablation_has_is_reported():
    found = report.sweeps(made({**ABLATED, "dtp 1": ABLATED["dtp 0.5"]}))
    assert {e.arm for e in found["sweep"]} == {"off", "dtp 0.5", "dtp 1"}
    without_dtp = {arm: solves for arm, solves in ABLATED.items() if arm != "dtp 0.5"}
    found = report.sweeps(made({**without_dtp, "dtp 1": ABLATED["dtp 0.5"]}))
    assert {e.arm for e in found["sweep"]} == {"off", "dtp 1"}


def test_an_empty_log_is_refused(tmp_path):
    with pytest.raises(log.LogError, match="no episode"):
        report.write_reports([], tmp_path)

"""Unimportant attention of failures and successes: counted by hand, and where a difference must vanish."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from bag_writer import STORAGES, Recorder, settings, step_result
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from dtp_ros.study import log
from dtp_ros.study.attention import FIGURE, AttentionError, TaskEpisodes, analyse, resampled, write_attention
from dtp_ros.study.attention_figure import drawn, over_length, over_steps, write_figures
from dtp_ros.study.attention_report import section
from dtp_ros.study.bags import read_bags
from dtp_ros.study.statistics import mean
from dtp_ros.study.stratified import van_elteren

LEVELS = st.integers(0, 6).map(float)  # few, so that ties are common
GROUP = st.lists(LEVELS, min_size=2, max_size=8)


def episode(series, success, number=0, task="carrot", *, arm="off", benchmark="table", model="tabletop", **own):
    figures = {name: tuple(0.0 for _ in series) for name in log.SERIES} | {FIGURE: tuple(float(v) for v in series)}
    setup = {"model": model, "checkpoint": "shipped", **own}
    return log.Episode(arm, benchmark, task, number, success, None, len(series), 0, setup, figures)


def episodes(failures, successes, **about):
    rows = [(series, False) for series in failures] + [(series, True) for series in successes]
    return [episode(series, success, number, **about) for number, (series, success) in enumerate(rows)]


def test_failures_that_never_held_the_object_can_be_left_out():
    """They have less; those that held it have more than the successes."""
    made = episodes([(1, 1), (1, 1), (9, 9), (8, 8), (7, 7)], [(4, 4), (5, 5), (6, 6, 3)])
    chosen = [replace(e, grasped=e.success or min(e.series[FIGURE]) > 6) for e in made]
    attention = analyse(chosen)
    assert attention.whole.within.superiority.value == pytest.approx(9 / 15)
    held = attention.held
    assert [(test.first, test.second) for test in held] == [(3, 3)] * 2
    assert [test.superiority.value for test in held] == [1.0, 1.0]
    lines = [line for line in section(attention).splitlines() if line.startswith("| within tasks, held")]
    assert [line.split(" | ")[1:4] for line in lines] == [["all", "3", "3"], ["common", "3", "3"]]
    assert analyse(made).held is None
    assert "within tasks, held" not in section(analyse(made))


# Within strata


@given(first=GROUP, second=GROUP)
def test_of_one_stratum_it_is_the_mann_whitney_test(first, second):
    found = van_elteren([(first, second)])
    oracle = stats.mannwhitneyu(first, second, method="asymptotic", use_continuity=False)
    expected = 1.0 if np.isnan(oracle.pvalue) else oracle.pvalue  # all are tied
    assert found.p == pytest.approx(expected, abs=1e-12)
    assert found.superiority.value == pytest.approx(oracle.statistic / len(first) / len(second))


def wins(first, second):
    return sum((a > b) + (a == b) / 2 for a in first for b in second)


def deals(first, second):
    """U of every way to deal the members of a stratum to its groups."""
    members = [*first, *second]
    chosen = itertools.combinations(range(len(members)), len(first))
    return [wins([members[i] for i in c], [m for i, m in enumerate(members) if i not in c]) for c in chosen]


@hypothesis(max_examples=20, deadline=None)
@given(strata=st.lists(st.tuples(*[st.lists(LEVELS, min_size=2, max_size=3)] * 2), min_size=2, max_size=2))
def test_its_null_is_that_of_every_deal_within_strata(strata):
    weights = [1 / (len(a) + len(b) + 1) for a, b in strata]
    dealt = [
        sum(w * u for w, u in zip(weights, us, strict=True)) for us in itertools.product(*(deals(*s) for s in strata))
    ]
    found, seen = van_elteren(strata), sum(w * wins(*s) for w, s in zip(weights, strata, strict=True))
    if np.ptp(dealt) < 1e-12:
        assert found.p == 1.0
        return
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(seen - np.mean(dealt)) / np.std(dealt)), abs=1e-9)


def test_strata_weigh_by_the_pairs_they_have():
    strata = [([1, 2], [0, 3]), ([5, 6, 7], [1, 2, 3]), ([1], [0, 0, 0])]  # superiority 1/2 and 1; one is too small
    found = van_elteren(strata)
    weights = np.array([4 / 5, 9 / 7]) / (4 / 5 + 9 / 7)
    assert (found.strata, found.first, found.second) == (2, 5, 5)
    assert found.superiority.value == pytest.approx(weights @ [0.5, 1.0])
    alone = [van_elteren([s]).superiority for s in strata[:2]]
    below = np.hypot(*(w * (a.value - a.low) for w, a in zip(weights, alone, strict=True)))
    assert found.superiority.low == pytest.approx(found.superiority.value - below)
    assert found.superiority.low < found.superiority.value < found.superiority.high <= 1.0
    assert van_elteren(strata[2:]) is None


@given(first=GROUP, second=GROUP)
def test_the_other_way_round_it_says_the_opposite(first, second):
    one, other = van_elteren([(first, second)]), van_elteren([(second, first)])
    assert one.p == pytest.approx(other.p)
    assert one.superiority.low == pytest.approx(1 - other.superiority.high, abs=1e-9)


# Episodes


def test_pairs_counted_by_hand():
    found = analyse(episodes([[0.5, 0.5, 0.5], [0.6, 0.8]], [[0.4], [0.7, 0.5]]))
    (whole,) = found.whole.tests  # means 0.5, 0.7 against 0.4, 0.6
    assert (whole.first, whole.second, whole.u, whole.superiority.value) == (2, 2, 3.0, 0.75)
    assert found.tasks[0].common == 1
    (common,) = found.common.tests  # first steps 0.5, 0.6 against 0.4, 0.7
    assert common.u == 2.0
    assert [e.value for e in (*found.common.failures, *found.common.successes)] == pytest.approx([0.55, 0.55])
    assert found.pooled == whole


SPREAD = np.linspace(-0.05, 0.05, 8)
RISING = 0.2 + 0.01 * np.arange(60)


def test_what_comes_of_length_alone_vanishes_over_common_steps():
    """Both outcomes follow one course that rises; failures only go on for longer."""
    failures = [RISING + noise for noise in SPREAD]
    successes = [RISING[: 20 + i] + noise for i, noise in enumerate(SPREAD)]
    found = analyse(episodes(failures, successes))
    (whole,), (common,) = found.whole.tests, found.common.tests
    assert whole.superiority.value == 1.0
    assert found.whole.corrected[0] < 0.001
    assert found.tasks[0].common == 20
    assert common.superiority.value == 0.5
    assert common.p == pytest.approx(1.0)
    assert common.superiority.low < 0.5 < common.superiority.high
    assert [phase.superiority.value for phase in found.phases][1:] == [1.0, 1.0]
    assert [phase.superiority.value for phase in found.common_phases] == pytest.approx([0.5] * 3)
    text = section(found)
    of_one = "Of 1 comparisons, each within a task of a benchmark, failures have more unimportant attention in"
    assert f"**Whole episodes.** {of_one} 1 and less in 0; no difference is shown in 0." in text
    assert f"**Common steps.** {of_one} 0 and less in 0; no difference is shown in 1." in text


def test_what_comes_of_tasks_alone_vanishes_within_tasks():
    """One task shows more and fails more often; in neither do outcomes differ."""
    many = list(SPREAD) * 3
    easy = episodes([[0.1]] * 4, [[0.1 + n] for n in many], task="easy")
    hard = episodes([[0.5 + n] for n in many], [[0.5]] * 4, task="hard")
    found = analyse([*easy, *hard])
    assert found.pooled.p < 0.001
    assert found.pooled.superiority.value > 0.8
    assert found.whole.within.superiority.value == pytest.approx(0.5)
    assert found.whole.within.p == pytest.approx(1.0)


def test_a_difference_in_the_middle_is_found_there():
    wave = np.zeros(30)
    wave[10:20] = 0.3
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.05, (20, 30))
    found = analyse(episodes([0.4 + wave + n for n in noise[:10]], [0.4 + n for n in noise[10:]]))
    first, middle, last = (phase.superiority for phase in found.phases)
    assert middle.low > 0.5
    assert middle.value > max(first.value, last.value)
    assert [p.superiority.value for p in found.common_phases] == [p.superiority.value for p in found.phases]


def test_tasks_are_corrected_for_their_number():
    groups = [episodes([[0.5], [0.6], [0.7], [0.8]], [[0.1], [0.2], [0.3], [0.4]], task=f"task {i}") for i in range(3)]
    found = analyse(itertools.chain(*groups))
    assert [test.p for test in found.whole.tests] == pytest.approx([2 / 70] * 3)  # of 8 choose 4 deals
    assert found.whole.corrected == pytest.approx([6 / 70] * 3)


def test_one_arm_at_a_time():
    off = episodes([[0.9], [0.8]], [[0.2], [0.1]])
    dtp = episodes([[0.3], [0.4]], [[0.6], [0.7]], arm="dtp 0.5")
    assert analyse([*off, *dtp]).whole.tests[0].u == 4
    assert analyse([*off, *dtp], "dtp 0.5").whole.tests[0].u == 0
    with pytest.raises(AttentionError, match=r"'dtp' \(there are: off, dtp 0\.5\)"):
        analyse([*off, *dtp], "dtp")
    with pytest.raises(AttentionError, match="none at all"):
        analyse([])


def test_tasks_that_cannot_be_compared_are_named():
    rare = episodes([[0.1]], [[0.2]] * 5, task="rare")
    with pytest.raises(AttentionError, match="rare: 1 and 5"):
        analyse(rare)
    found = analyse(rare + episodes([[0.1], [0.3]], [[0.2], [0.4]]))
    assert [task.task for task in found.tasks] == ["carrot"]
    assert "Not compared, as they do not have 2 failures and 2 successes: table, rare: 1 and 5." in section(found)


def test_two_models_are_not_one_task():
    mixed = episodes([[0.1], [0.3]], [[0.2], [0.4]]) + episodes([[0.1], [0.3]], [[0.2], [0.4]], model="nora")
    with pytest.raises(AttentionError, match="table, carrot has episodes of nora shipped and tabletop shipped"):
        analyse(mixed)


# Over time


@given(
    series=st.lists(st.floats(0, 3), min_size=1, max_size=40).map(np.array),
    bins=st.integers(1, 30),
    times=st.integers(1, 5),
)
def test_resampling_keeps_the_mean_and_knows_no_length(series, bins, times):
    parts = resampled(series, bins)
    assert parts.shape == (bins,)
    assert parts.mean() == pytest.approx(series.mean(), abs=1e-9)
    assert parts == pytest.approx(resampled(np.repeat(series, times), bins), abs=1e-9)
    assert resampled(series, len(series)) == pytest.approx(series, abs=1e-9)


def test_parts_of_steps_by_hand():
    assert resampled(np.array([0.0, 3.0, 6.0]), 2) == pytest.approx([1.0, 5.0])  # (0 + 3 / 2) / 1.5, (3 / 2 + 6) / 1.5


def test_curves_by_hand():
    series = [np.array(v, dtype=float) for v in ([1, 2, 3, 4], [3, 4, 5], [5], [7])]
    curve = over_steps(series, 1)
    assert curve.x == (0, 1, 2)  # at the fourth only one of four still runs
    assert [m.value for m in curve.means] == [4.0, 3.0, 4.0]
    assert curve.means[0] == mean([1, 3, 5, 7])
    assert over_steps([*series, np.zeros(1)], 1).x == (0,)  # at the second two of five still run
    wide = over_steps(series, 2)
    assert (wide.x[0], wide.means[0].value) == (0.5, np.mean([1.5, 3.5, 5, 7]))
    length = over_length(series[:2], 2)
    assert length.x == (0.25, 0.75)
    assert [m.value for m in length.means] == pytest.approx([(1.5 + 10 / 3) / 2, (3.5 + 14 / 3) / 2])


# What is written


@pytest.fixture(scope="module")
def found():
    """Three tasks of two benchmarks, one of them with a name that is none for a file."""
    rng = np.random.default_rng(2)

    def group(task, benchmark, shift):
        failures = [0.4 + shift + rng.normal(0, 0.1, 9) for _ in range(6)]
        successes = [0.4 + rng.normal(0, 0.1, rng.integers(4, 9)) for _ in range(7)]
        return episodes(failures, successes, task=task, benchmark=benchmark)

    return analyse(group("carrot", "a/b", 0.2) + group("a long name of a task", "a/b", 0.0) + group("cup", "a b", 0.1))


def test_no_figure_is_printed_without_its_interval(found):
    text = section(found, ["x.png"])
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert len(rows) == 2 * (2 + 3) + (2 + 3) + (2 + 3)
    interval = re.compile(r"\d+(\.\d+)? \(\d+(\.\d+)? \.\.\. \d+(\.\d+)?\)")
    checked = 0
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if cells[0] in ("benchmark", "compared", "phase"):
            needing = [name.startswith(("mean", "P(", "of ")) for name in cells]
        elif "---" not in cells:
            estimates = [cell for cell, needs in zip(cells, needing, strict=True) if needs]
            assert all(interval.fullmatch(cell) for cell in estimates), row
            checked += len(estimates)
    assert checked == 2 * 3 * 3 + 3 + 3 * 2
    assert "![unimportant attention of failures and successes](x.png)" in text
    assert "tabletop shipped" in text


def test_pictures_have_their_legend_outside_and_nothing_overlaps(found):
    figure = drawn(found.tasks[1:], "two tasks")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert len(boxes) == 6
    inked = [*boxes, legend.get_window_extent(), figure._suptitle.get_window_extent()]
    for one, other in itertools.combinations(inked, 2):
        assert not one.overlaps(other)
    for box in inked:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_each_benchmark_has_its_picture(found, tmp_path):
    paths = write_figures(found, tmp_path)
    assert [path.name for path in paths] == ["attention_a_b.png", "attention_a_b_1.png"]
    sizes = [Image.open(path).size for path in paths]
    assert sizes == [(1440, 444), (1440, 768)]


@pytest.mark.parametrize("storage", STORAGES)
def test_recordings_and_logs_give_the_same_report(tmp_path, storage):
    """From messages in a file to the report: failures 0.6, 0.8, 0.9 and successes 0.5, 0.7 have U = 5 of 6."""
    recorder = Recorder()
    for seed, (level, success) in enumerate(((0.6, False), (0.5, True), (0.8, False), (0.9, False), (0.7, True))):
        recorder.say(False)
        results = [step_result(seed, i, level=level) for i in range(2 if success else 4)]
        recorder.episode(results, settings(variant="off"))
        recorder.say(success)
    recorded = read_bags([recorder.write(tmp_path / "run", storage)]).episodes
    for one in recorded:
        log.append(tmp_path / "log.jsonl", one)
    logged = log.read([tmp_path / "log.jsonl"])
    text = section(analyse(recorded))
    assert text == section(analyse(logged))
    assert "| run | put the carrot on the plate | all | 3 | 2 | 0.77 (" in text
    assert "| 0.83 (" in text
    assert "nora tiny" in text


def test_groups_need_no_log():
    group = TaskEpisodes("table", "carrot", (np.ones(3), np.ones(2)), (np.zeros(4), np.zeros(5)))
    assert (group.common, group.is_comparable) == (2, True)


def test_what_is_written(tmp_path):
    few = episodes([[0.5], [0.6]], [[0.4], [0.7]], arm="dtp 0.5")
    text, picture = write_attention(few, "dtp 0.5", tmp_path / "new")
    assert (text.name, picture.name) == ("attention_dtp_0.5.md", "attention_dtp_0.5_table.png")
    assert "arm `dtp 0.5`" in text.read_text()
    assert text.read_text().endswith("](attention_dtp_0.5_table.png)\n")
    own = write_attention(episodes([[0.5], [0.6]], [[0.4], [0.7]]), "off", tmp_path / "new")
    assert [path.name for path in own] == ["attention.md", "attention_table.png"]


def test_steps_without_a_figure_are_left_out():
    nan = math.nan
    found = analyse(episodes([[0.5, nan], [0.6, nan, 0.8], [nan, nan]], [[nan, 0.4], [0.6]]))
    assert [list(series) for series in found.tasks[0].failures] == [[0.5], [0.6, 0.8]]
    assert [list(series) for series in found.tasks[0].successes] == [[0.4], [0.6]]


def test_two_regions_are_not_one_figure():
    some, other = (episodes([[0.5], [0.6]], [[0.4], [0.7]], top_k=k, tolerance=k) for k in (27, 10))
    assert analyse(some).region == ("top_k = 27",)
    assert "The important region: top_k = 27." in section(analyse(some))
    with pytest.raises(AttentionError, match=r"episodes of top_k = 10 and top_k = 27: analyse them apart"):
        analyse([*some, *other])

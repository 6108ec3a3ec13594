"""dtp_ros/study/figures.py: what is drawn is what is in the log, and can be read."""

from itertools import combinations

import pytest
from study_log import ABLATION, made

from dtp_ros.study import figures

pytest.importorskip("matplotlib")
GRID = ("0.25", "0.5", "0.75", "1", "1.25", "1.5", "1.75", "2")
TASKS = ("spoon_on_towel", "carrot_on_plate", "green_cube_on_yellow_cube", "eggplant_in_yellow_basket")
RATES = {f"dtp {tolerance}": 4 + place for place, tolerance in enumerate(GRID)}  # solved of 12


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    kept = []
    saved = figures._saved
    monkeypatch.setattr(figures, "_saved", lambda figure, *where: kept.append(figure) or saved(figure, *where))
    return kept


def sweep(tasks=TASKS, **own):
    arms = {"off": 5, **RATES, "min_entropy": 11}
    solves = {arm: lambda n, count=count: n < count for arm, count in arms.items()}
    return [e for task in tasks for e in made(solves, range(12), task=task, **own)]


def ablation(**own):
    solves = {arm: lambda n, count=count: n < count for count, arm in enumerate(ABLATION, 3)}
    return [e for task in TASKS for e in made(solves, range(12), task=task, **own)]


def boxes(figure, artists):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    return [artist.get_window_extent(renderer) for artist in artists]


def assert_readable(figure):
    """The legend is outside the axes, and no two labels lie on each other."""
    (legend,) = boxes(figure, figure.legends)
    assert not any(legend.overlaps(box) for box in boxes(figure, figure.axes))
    ticks = [
        label for axes in figure.axes for label in axes.get_xticklabels() if label.get_visible() and label.get_text()
    ]
    titles = [axes.title for axes in figure.axes if axes.title.get_text()]
    names = [axes.yaxis.label for axes in figure.axes if axes.yaxis.label.get_text()]
    for kind in (ticks, titles, names):
        apart = [box.padded(2) for box in boxes(figure, kind)]
        assert not any(one.overlaps(other) for one, other in combinations(apart, 2))
    width, height = figure.bbox.size
    for box in boxes(figure, [*ticks, *titles, *names, *figure.legends]):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_a_sweep_shows_the_rates_of_the_log(tmp_path, drawn):
    (path,) = figures.write_sweep(sweep(), tmp_path)
    assert path == tmp_path / "sweep_bench.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    figure = drawn[0]
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes[:5]] == [
        "All tasks", *(task.replace("_", " ") for task in sorted(TASKS)),
    ]  # fmt: skip
    for axes in figure.axes[:5]:
        curve = next(
            line for line in axes.lines if line.get_ydata() == pytest.approx([100 * c / 12 for c in RATES.values()])
        )
        assert list(curve.get_xdata()) == [float(tolerance) for tolerance in GRID]
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert any(line.get_ydata()[0] == pytest.approx(100 * 5 / 12) for line in dashed)
        # The tolerance of least entropy stands beside the grid.
        assert any(
            line.get_ydata() == pytest.approx([100 * 11 / 12]) and line.get_xdata()[0] > 2 for line in axes.lines
        )
    assert_readable(figure)


def test_an_ablation_shows_the_rates_of_the_log(tmp_path, drawn):
    (path,) = figures.write_ablation(ablation(), tmp_path)
    assert path == tmp_path / "ablation_bench.png"
    success, grasp = drawn[0].axes
    heights = [bar.get_height() for bar in success.patches]
    assert heights == pytest.approx([100 * count / 12 for count in range(3, 8) for _ in range(5)])
    assert grasp.get_ylabel() == "grasp (%)"
    assert_readable(drawn[0])


def test_every_benchmark_has_its_own_and_any_name(tmp_path):
    episodes = [*sweep(TASKS[:1]), *sweep(TASKS[:1], benchmark="a/b c")]
    assert [path.name for path in figures.write_sweep(episodes, tmp_path)] == ["sweep_a_b_c.png", "sweep_bench.png"]


def test_what_the_log_lacks_is_left_out(tmp_path, drawn):
    silent = ablation(grasped=None)
    few = [e for e in silent if e.arm != "no_gaussian 0.5" or e.task != TASKS[0]]
    figures.write_ablation(few, tmp_path)
    assert len(drawn[0].axes) == 1
    assert figures.write_sweep([e for e in silent if e.arm == "off"], tmp_path) == []
    one = [e for e in sweep(TASKS[:2], grasped=None) if e.episode == 0 and e.arm != "off"]
    figures.write_sweep(one, tmp_path)
    assert {text.get_text() for text in drawn[1].legends[0].get_texts()} >= {"success", "fire rate"}
    assert "grasp" not in {text.get_text() for text in drawn[1].legends[0].get_texts()}
    assert not drawn[1].axes[4].lines[0].get_xdata().size  # no mean of one episode


@pytest.mark.parametrize("numbers", [range(1), range(12)])
def test_one_task_and_one_tolerance_can_be_read(tmp_path, drawn, numbers):
    episodes = made({"off": lambda n: n < 5, "dtp 0.5": lambda n: n < 7}, numbers)
    figures.write_sweep(episodes, tmp_path)
    figures.write_ablation(episodes, tmp_path)
    for figure in drawn:
        assert_readable(figure)


def test_the_same_log_gives_the_same_picture(tmp_path):
    for name in ("one", "two"):
        figures.write_ablation(ablation(), tmp_path, name)
    one, two = (tmp_path / f"{name}_bench.png" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()

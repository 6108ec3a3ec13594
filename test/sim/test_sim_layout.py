import itertools
import math

import cv2
import numpy as np
import pytest
from sim_hand import joints_at

from dtp_ros.errors import ConfigError
from dtp_ros.sim.catalog import COLOURS, KINDS, Item
from dtp_ros.sim.footprints import Placement, clearance
from dtp_ros.sim.layout import LOOKALIKE_ZONE, Appearance, fixed_layout, lookalikes, random_layout
from dtp_ros.sim.meshes import hulls
from dtp_ros.sim.tasks import EPISODES, TASKS

INSTRUCTIONS = {
    "spoon_on_towel": ("put the spoon on the towel", 60),
    "carrot_on_plate": ("put the carrot on the plate", 60),
    "stack_blocks": ("stack the green block on the yellow block", 60),
    "eggplant_in_basket": ("put the eggplant in the basket", 120),
}


def outline(placement):
    """Corners of the footprint in mm: a rectangle, or 48 points of a disc."""
    hx, hy = (1000 * half for half in placement.item.model().footprint)
    centre = (1000 * placement.x, 1000 * placement.y)
    if placement.item.kind in ("plate", "tomato", "can", "cup"):
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        return (np.stack([hx * np.cos(angle), hx * np.sin(angle)], axis=1) + centre).astype(np.float32)
    return cv2.boxPoints((centre, (2 * hx, 2 * hy), math.degrees(placement.yaw)))


def overlap(a, b):
    """Area in mm^2 that two footprints share, by OpenCV."""
    return cv2.intersectConvexConvex(outline(a), outline(b))[0]


def gap(a, b):
    """Distance in mm between two outlines, by sampling them densely."""

    def dense(corners):
        share = np.linspace(0, 1, 60, endpoint=False)[:, None, None]
        return (corners + share * (np.roll(corners, -1, axis=0) - corners)).reshape(-1, 2)

    return np.linalg.norm(dense(outline(a))[:, None] - dense(outline(b)), axis=2).min()


def test_the_four_tasks():
    assert {name: (task.instruction, task.steps) for name, task in TASKS.items()} == INSTRUCTIONS


@pytest.mark.parametrize("task", TASKS)
def test_configurations_are_distinct_and_well_spread(task):
    layouts = [fixed_layout(task, episode) for episode in range(EPISODES)]
    source = np.array([(la.placements[0].x, la.placements[0].y) for la in layouts])
    target = np.array([(la.placements[1].x, la.placements[1].y) for la in layouts])
    both = np.hstack([source, target])
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(both, 2)]
    assert min(distances) > 0.008
    assert (np.ptp(source, axis=0) > (0.09, 0.14)).all()
    yaws = np.array([la.placements[0].yaw for la in layouts]) % math.pi
    assert np.histogram(yaws, bins=4, range=(0, math.pi))[0].min() >= 3


@pytest.mark.parametrize("task", TASKS)
def test_configurations_do_not_change(task):
    """From one process to the next as well: a layout depends on its arguments only."""
    for episode in (0, 11, 23):
        assert fixed_layout(task, episode, distractors=4) == fixed_layout(task, episode, distractors=4)
        plain, busy = fixed_layout(task, episode), fixed_layout(task, episode, distractors=6, seed=9)
        assert plain.placements == busy.placements[:2], "distractors move nothing"
    assert fixed_layout(task, 0, distractors=3, seed=1) != fixed_layout(task, 0, distractors=3, seed=2)


def test_first_configurations_are_the_ones_that_were_reported():
    first = fixed_layout("carrot_on_plate", 0).placements
    places = np.array([(p.x, p.y) for p in first])
    np.testing.assert_allclose(places, FIRST_CARROT, atol=1e-6)


FIRST_CARROT = [(0.2799426, 0.0442402), (0.3947011, -0.0924663)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("setting", ["plain", "clutter", "lookalike", "unseen"])
def test_objects_do_not_overlap(task, setting):
    every = 4 if setting == "lookalike" else 1  # those take up to a second to be placed
    for episode in range(0, EPISODES, every):
        placements = fixed_layout(task, episode, setting=setting, distractors=4).placements
        for a, b in itertools.combinations(placements, 2):
            assert overlap(a, b) == 0, f"{episode}: {a.item.name} and {b.item.name}"


def test_clearance_is_the_distance_between_footprints():
    rng = np.random.default_rng(0)
    items = [Item("spoon", "lime"), Item("plate", "white"), Item("block", "red"), Item("basket", "straw")]
    apart = 0
    for _ in range(80):
        a, b = (Placement(items[rng.integers(4)], *rng.uniform(-0.12, 0.12, 2), rng.uniform(-3, 3)) for _ in range(2))
        if overlap(a, b) > 0.5:
            assert clearance(a, b) <= 5e-4
        elif overlap(a, b) == 0:
            apart += 1
            assert 1000 * clearance(a, b) == pytest.approx(gap(a, b), abs=1.5)
    assert apart > 15


@pytest.mark.parametrize("task", TASKS)
def test_source_and_target_are_in_reach(task):
    for episode in range(EPISODES):
        source, target = fixed_layout(task, episode).placements
        quarter = math.pi / 2
        yaw = (source.yaw + quarter) % math.pi - quarter
        for x, y in ((source.x, source.y), (target.x, target.y)):
            for z in (0.03, 0.15):
                assert joints_at(x, y, z, yaw) is not None, f"{episode}: ({x:.3f}, {y:.3f}, {z})"
            assert 0.10 <= x <= 0.45
            assert -0.15 <= y <= 0.25


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("setting", ["plain", "unseen"])
def test_everything_lies_inside_the_picture(task, setting):
    for episode in range(EPISODES):
        layout = fixed_layout(task, episode, setting=setting, distractors=3)
        for placement in layout.placements:
            corners = outline(placement) / 1000
            pixels = layout.camera.project(np.column_stack([corners, np.zeros(len(corners))]))
            assert (pixels > 0).all(), f"{episode}: {placement.item.name}"
            assert (pixels < (639, 479)).all(), f"{episode}: {placement.item.name}"


@pytest.mark.parametrize("count", range(7))
def test_number_of_distractors(count):
    assert len(fixed_layout("stack_blocks", 4, distractors=count).placements) == 2 + count


@pytest.mark.parametrize("task", TASKS)
def test_settings_are_what_they_say(task):
    for episode in (0, 7):
        plain = fixed_layout(task, episode, distractors=5)
        wanted, aim = plain.placements[0].item, plain.placements[1].item
        for other in plain.placements[2:]:
            assert other.item.kind not in (wanted.kind, aim.kind)
            assert other.item.colour not in (wanted.colour, aim.colour)
        assert len(fixed_layout(task, episode, setting="clutter").placements) == 8
        alike = fixed_layout(task, episode, setting="lookalike")
        assert len(alike.placements) == 8
        same_shape = [other.item.kind == wanted.kind for other in alike.placements[2:]]
        assert same_shape == sorted(same_shape, reverse=True)
        assert sum(same_shape) >= 3
        (left, right), (low, high) = LOOKALIKE_ZONE
        near = [left <= other.x <= right and low <= other.y <= high for other in alike.placements[2:]]
        assert sum(near) >= 3  # the others only where there is no room
        for other in alike.placements[2:]:
            cousin = (other.item.kind, wanted.kind) == ("fork", "spoon")
            shared = other.item.kind == wanted.kind or other.item.colour in (wanted.colour, aim.colour)
            assert shared or cousin, other.item.name
            assert other.item not in (wanted, aim)
        unseen = fixed_layout(task, episode, setting="unseen")
        assert unseen.appearance.table != plain.appearance.table
        shift = np.subtract(unseen.camera.position, plain.camera.position)
        assert 0.01 <= np.linalg.norm(shift) <= 0.03 * math.sqrt(3) + 1e-9


def test_lookalikes_suffice_for_every_count():
    assert all(len(set(lookalikes(task))) >= 6 for task in TASKS.values())


def test_random_layouts_follow_the_generator_and_are_no_fixed_ones():
    one = random_layout("stack_blocks", np.random.default_rng(3), distractors=2)
    two = random_layout("stack_blocks", np.random.default_rng(3), distractors=2)
    assert one == two
    fixed = {fixed_layout("stack_blocks", episode).placements[:2] for episode in range(EPISODES)}
    rng = np.random.default_rng(0)
    drawn = [random_layout("stack_blocks", rng) for _ in range(50)]
    assert not any(layout.placements[:2] in fixed for layout in drawn)
    assert len({layout.placements for layout in drawn}) == 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "make_tea"}, "spoon_on_towel, carrot_on_plate"),
        ({"episode": 24}, "0 ... 23"),
        ({"episode": -1}, "0 ... 23"),
        ({"distractors": 7}, "0 ... 6"),
        ({"setting": "dark"}, "plain, clutter, lookalike, unseen"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_refused_with_the_choices(arguments, words):
    valid = {"task": "stack_blocks", "episode": 0}
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        fixed_layout(**(valid | arguments))


def closed(mesh):
    """Whether every edge of the mesh belongs to two faces, once in each direction."""
    edges = np.concatenate([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)])
    forth, back = {tuple(e) for e in edges}, {tuple(e[::-1]) for e in edges}
    return len(forth) == len(edges) and forth == back


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_closed_and_stand_on_the_table(kind):
    model = Item(kind, "red").model()
    corners = []
    for part in model.parts:
        assert closed(part.mesh)
        a, b, c = (part.mesh.vertices[part.mesh.faces[:, i]] for i in range(3))
        assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0, "inside out"
        corners += hulls(part.mesh)
    points = np.concatenate(corners)
    assert points[:, 2].min() == pytest.approx(-model.rest_height, abs=1.5e-3)
    assert np.ptp(points[:, 2]) == pytest.approx(model.height, abs=5e-3)
    solids = min(s.position[2] - s.size[2] for s in model.solids if s.tilt == 0)
    assert solids == pytest.approx(-model.rest_height, abs=1.5e-3), "contacts and picture touch the table alike"


def test_every_colour_can_be_asked_for():
    names = {Item("block", colour).name for colour in COLOURS}
    assert len(names) == len(COLOURS)
    with pytest.raises(ConfigError, match="octarine"):
        Item("block", "octarine").model()


def test_a_random_layout_takes_the_look_and_the_items_it_is_given():
    look = Appearance("birch", light_strength=0.9, camera_offset=(0.01, 0.0, -0.01))
    items = [Item("can", "red"), Item("fork", "lime")]
    layout = random_layout("spoon_on_towel", np.random.default_rng(3), appearance=look, items=items)
    assert layout.appearance == look
    assert [p.item for p in layout.placements] == [Item("spoon", "lime"), Item("towel", "sky"), *items]
    assert layout.camera.position == pytest.approx((0.01, -0.16, 0.326))

"""Where things lie at the start: 24 fixed configurations a task, distractors, and the look of each setting."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dtp_ros.errors import SimulationError, require_choice, require_integer
from dtp_ros.sim.camera import HEIGHT, WIDTH, Camera
from dtp_ros.sim.catalog import Item
from dtp_ros.sim.footprints import ROUNDING, Placement, circles, clearance, distance_to_point
from dtp_ros.sim.tasks import EPISODES, MAX_DISTRACTORS, SETTINGS, Task, task_named

Array = NDArray[np.float64]

SOURCE_ZONE = ((0.235, 0.375), (-0.085, 0.115))
TARGET_ZONE = ((0.225, 0.400), (-0.120, 0.160))
DISTRACTOR_ZONE = ((0.19, 0.52), (-0.20, 0.30))
FINGER_CLEARANCE = 0.055
GAP = 0.012
IMAGE_MARGIN = 8
LOOKALIKES = 6
LOOKALIKE_ZONE = ((0.215, 0.405), (-0.13, 0.16))  # near source and target, where there is room
CAMERA_SHIFT = 0.03  # m along each axis, at most
MIN_CAMERA_SHIFT = 0.01  # m
UNSEEN_TABLES = ("oak", "bamboo", "walnut", "linen")
_UNSEEN_WALLS = ((0.62, 0.55, 0.45), (0.38, 0.48, 0.42), (0.55, 0.42, 0.42))
_TRIES = 4000

PLAIN_POOL = tuple(
    Item(kind, colour)
    for kind, colours in (
        ("tomato", ("red",)), ("lemon", ("yellow",)), ("banana", ("yellow",)), ("can", ("teal", "red", "blue")),
        ("cup", ("blue", "pink", "teal")), ("sponge", ("yellow", "pink")), ("block", ("red", "blue")),
        ("carrot", ("orange",)), ("eggplant", ("purple",)), ("spoon", ("lime",)),
    )
    for colour in colours
)  # fmt: skip


@dataclass(frozen=True)
class Appearance:
    """The room: table texture, wall colour, where the light comes from and how strong it is, camera offset in m."""

    table: str
    wall: tuple[float, float, float] = (0.60, 0.64, 0.70)
    light_azimuth: float = 0.9
    light_strength: float = 1.0
    warmth: float = 0.0
    camera_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Layout:
    """Everything that fixes an episode: placements (source first, target second, then distractors) and the look."""

    task: Task
    episode: int
    setting: str
    placements: tuple[Placement, ...]
    appearance: Appearance

    @property
    def camera(self) -> Camera:
        """The camera, with the setting's offset."""
        return self.task.camera.shifted(self.appearance.camera_offset)

    @property
    def names(self) -> tuple[str, ...]:
        """The items' names (all different) in the order of `placements`."""
        return tuple(placement.item.name for placement in self.placements)


def fixed_layout(task: str, episode: int, *, distractors: int = 0, setting: str = "plain", seed: int = 0) -> Layout:
    """Configuration `episode` (0 ... 23) of `task`.

    Source and target depend on task and episode alone; `seed` chooses the distractors and the unseen look. `clutter`
    and `lookalike` always have 6 distractors. Raises ConfigError.
    """
    chosen = task_named(task)
    require_integer("episode", episode, 0, EPISODES - 1)
    require_integer("seed", seed, 0, 2**31 - 1)
    key = zlib.crc32(task.encode())
    start = np.random.default_rng([key, episode])
    # The R2 sequence: any 24 consecutive points cover the square evenly.
    spread = (0.5 + (episode + key % 97) * np.array([0.7548776662, 0.5698402910, 0.6180339887])) % 1.0
    return _compose(
        chosen, episode, start, np.random.default_rng([key, episode, seed, 1]), distractors, setting, spread
    )


def random_layout(
    task: str,
    rng: np.random.Generator,
    *,
    distractors: int = 0,
    setting: str = "plain",
    appearance: Appearance | None = None,
    items: Sequence[Item] | None = None,
) -> Layout:
    """A configuration drawn at random (for training: never one of the fixed ones).

    appearance, items: the look and the distractors, instead of the setting's own. Raises ConfigError, and
    SimulationError where they leave no room.
    """
    return _compose(task_named(task), -1, rng, rng, distractors, setting, rng.random(3), appearance, items)


def visible(placement: Placement, camera: Camera, margin: float = IMAGE_MARGIN) -> bool:
    """Whether the whole object lies inside the 640x480 image, `margin` pixels from its edges."""
    model = placement.item.model()
    hx, hy = model.footprint
    c, s = math.cos(placement.yaw), math.sin(placement.yaw)
    corners = [
        (placement.x + c * u - s * v, placement.y + s * u + c * v, z)
        for u in (-hx, hx) for v in (-hy, hy) for z in (0.0, model.height)
    ]  # fmt: skip
    pixels = camera.project(np.array(corners))
    size = np.array([WIDTH - 1, HEIGHT - 1])
    return bool(np.all((pixels >= margin) & (pixels <= size - margin)))


def _compose(
    task: Task, episode: int, start: np.random.Generator, rest: np.random.Generator, distractors: int, setting: str,
    spread: Array, appearance: Appearance | None = None, items: Sequence[Item] | None = None,
) -> Layout:  # fmt: skip
    require_choice("setting", setting, SETTINGS)
    require_integer("distractors", distractors, 0, MAX_DISTRACTORS)
    placements = list(_source_and_target(task, start, spread))
    appearance = _appearance(task, setting, rest, placements) if appearance is None else appearance
    camera = task.camera.shifted(appearance.camera_offset)
    for item in _distractor_items(task, setting, distractors, rest) if items is None else items:
        zones = (LOOKALIKE_ZONE, DISTRACTOR_ZONE) if setting == "lookalike" else (DISTRACTOR_ZONE,)
        placements.append(_place_in_one(item, zones, placements, camera, rest))
    return Layout(task, episode, setting, tuple(placements), appearance)


def _source_and_target(task: Task, rng: np.random.Generator, spread: Array) -> tuple[Placement, Placement]:
    low, high = np.array(SOURCE_ZONE).T
    for _ in range(50):
        jittered = (spread + rng.uniform(-0.04, 0.04, 3)).clip(0, 1)
        x, y = low + (high - low) * jittered[:2]
        yaw = math.pi * (2 * float(jittered[2]) - 1)
        source = Placement(task.source, float(x), float(y), yaw)
        if not visible(source, task.camera):
            source = Placement(task.source, float(x), float(y), yaw + math.pi / 2)
        try:
            return source, _place(task.target, TARGET_ZONE, [source], task.camera, rng, turn=0.5)
        except SimulationError:
            spread = rng.random(3)
    raise SimulationError(f"no room for source and target of {task.name}")


def _place(
    item: Item, zone: Sequence[tuple[float, float]], others: Sequence[Placement], camera: Camera,
    rng: np.random.Generator, turn: float = math.pi,
) -> Placement:  # fmt: skip
    """A free spot of `zone`; clear of the fingers around the source, which is the first of `others`."""
    low, high = np.array([*zone, (-turn, turn)]).T
    before = rng.bit_generator.state
    tries = low + (high - low) * rng.random((_TRIES, 3))
    for index in np.flatnonzero(_may_be_clear(item, tries[:, :2], others)):
        candidate = Placement(item, *tries[index].tolist())
        if (
            _clear_of_fingers(candidate, others[0])
            and all(_clear(candidate, other) for other in others)
            and visible(candidate, camera)
        ):
            rng.bit_generator.state = before
            rng.random((int(index) + 1, 3))  # what comes next does not depend on how many were drawn at once
            return candidate
    raise SimulationError(f"no room on the table for {item.name} among {len(others)} objects")


def _may_be_clear(item: Item, centres: Array, others: Sequence[Placement]) -> NDArray[np.bool_]:
    """Of `centres` [N, 2], m, those where circles in the footprints leave room: the quick test of many spots."""
    inner, _ = circles(item)
    away = np.linalg.norm(centres[:, None] - np.array([(other.x, other.y) for other in others]), axis=2)
    least = np.array([inner + circles(other.item)[0] + GAP for other in others])
    least[0] = max(least[0], inner + FINGER_CLEARANCE)
    return np.asarray((away >= least - ROUNDING).all(axis=1))


def _place_in_one(
    item: Item, zones: Sequence[Sequence[tuple[float, float]]], others: Sequence[Placement], camera: Camera,
    rng: np.random.Generator,
) -> Placement:  # fmt: skip
    """A free spot of the first zone that has one."""
    for zone in zones[:-1]:
        with suppress(SimulationError):
            return _place(item, zone, others, camera, rng)
    return _place(item, zones[-1], others, camera, rng)


def _clear(a: Placement, b: Placement) -> bool:
    """Whether `clearance` is at least GAP. Circles about the footprints decide most cases, and fast."""
    away = math.hypot(a.x - b.x, a.y - b.y)
    return away > circles(a.item)[1] + circles(b.item)[1] + GAP + ROUNDING or clearance(a, b) >= GAP


def _clear_of_fingers(placement: Placement, source: Placement) -> bool:
    away = math.hypot(placement.x - source.x, placement.y - source.y)
    if away > circles(placement.item)[1] + FINGER_CLEARANCE + ROUNDING:
        return True
    return distance_to_point(placement, (source.x, source.y)) >= FINGER_CLEARANCE


def _distractor_items(task: Task, setting: str, count: int, rng: np.random.Generator) -> list[Item]:
    if setting == "clutter":
        count = MAX_DISTRACTORS
    if setting == "lookalike":
        count, pool = LOOKALIKES, lookalikes(task)
    else:
        kinds = {task.source.kind, task.target.kind}
        colours = {task.source.colour, task.target.colour}
        pool = [item for item in PLAIN_POOL if item.kind not in kinds and item.colour not in colours]
    chosen = [pool[i] for i in rng.permutation(len(pool))]
    if setting == "lookalike":  # those of the same shape first: they are sure of a place, and of one that is near
        chosen.sort(key=lambda item: item.kind != task.source.kind)
    return chosen[:count]


def lookalikes(task: Task) -> list[Item]:
    """Items with the source's shape or colour, or the target's colour, other than the two themselves."""
    shapes = [Item(task.source.kind, c) for c in ("red", "blue", "teal", "pink") if c != task.source.colour]
    cousins = {"spoon": [Item("fork", "lime"), Item("fork", "red")]}.get(task.source.kind, [])
    same_colour = [Item(kind, task.source.colour) for kind in ("can", "cup", "lemon")]
    target_colour = [Item(kind, task.target.colour) for kind in ("sponge", "cup")]
    return shapes[:3] + cousins + same_colour + target_colour


def _appearance(task: Task, setting: str, rng: np.random.Generator, placements: Sequence[Placement]) -> Appearance:
    if setting != "unseen":
        return Appearance(task.table)
    look = Appearance(
        table=UNSEEN_TABLES[int(rng.integers(len(UNSEEN_TABLES)))],
        wall=_UNSEEN_WALLS[int(rng.integers(len(_UNSEEN_WALLS)))],
        light_azimuth=float(rng.uniform(-1.1, 2.9)),
        light_strength=float(rng.choice([0.75, 1.25])),
        warmth=float(rng.uniform(-0.12, 0.12)),
    )
    for _ in range(_TRIES):
        x, y, z = (float(value) for value in rng.uniform(-CAMERA_SHIFT, CAMERA_SHIFT, 3))
        camera, moved = task.camera.shifted((x, y, z)), math.hypot(x, y, z) >= MIN_CAMERA_SHIFT
        if moved and all(visible(placement, camera) for placement in placements):
            return replace(look, camera_offset=(x, y, z))
    raise SimulationError(f"no camera offset within {CAMERA_SHIFT} m shows source and target of {task.name}")

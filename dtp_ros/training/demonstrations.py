"""Demonstrations for the tabletop policy: what the expert would do, seen from where a noisy arm has got to.

The arm is driven by the expert's action plus noise, or by a policy that is being trained (DAgger, Ross et al., AISTATS
2011); the label of every frame is the expert's own action there, but with its whole turn, not yet cut to a step. A
long turn that is cut to either end of the range would be a sharp peak, which wins over likelier small turns; of the
translation just that is wanted, since what stands against "up" is "stay". Layouts are random, never one of the 24 fixed
configurations, and the table's top is never one that `unseen` has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtp_ros.errors import SimulationError
from dtp_ros.models import images
from dtp_ros.sim.arm import GRIPPER_CLOSED, GRIPPER_OPEN, ROBOT, START_JOINTS
from dtp_ros.sim.catalog import Item
from dtp_ros.sim.expert import expert_action, expert_intent, gripper_yaw, scene_of
from dtp_ros.sim.layout import PLAIN_POOL, Appearance, Layout, lookalikes, random_layout
from dtp_ros.sim.lockstep import LockStep
from dtp_ros.sim.tasks import TASKS, Task
from dtp_ros.widowx.kinematics import inverse
from dtp_ros.widowx.semantics import BRIDGE_DOWN

Array = NDArray[np.float64]

DRAWN = (320, 240)  # pixels; a fourth of the camera's, and the same after the area filter but for its edges
MAX_STEPS = 45
AFTER_SUCCESS = 3  # frames kept of the retreat
LOOKALIKE_SHARE = 0.25  # of the layouts, at most two look-alikes each
LOOK_SHARE = 0.35  # of the layouts, with another light, wall or camera
CAMERA_SHIFT = 0.02  # m
RANDOM_START_SHARE = 0.5
MAX_NOISE = 0.01  # m, deviation of an episode's noise; it is drawn from 0 to this
BURST_SHARE, FLIP_SHARE = 0.05, 0.012  # of the steps that begin some random ones; with the gripper the wrong way
TASK_NAMES = tuple(TASKS)
START_LOW, START_HIGH = (0.16, -0.13, 0.05), (0.42, 0.20, 0.22)  # m, of random starts


@dataclass(frozen=True)
class Frames:
    """Frames of demonstrations, N of them.

    images: uint8 [N, S, S, 3]. tasks: index into TASK_NAMES, int64 [N]. actions: the expert's, its turn not
    cut, float32 [N, 7]. positions: source, target and end effector in the base frame, m, float32 [N, 3, 3].
    pixels: source and target in the image, 0 ... 1 to the right and down, float32 [N, 2, 2].
    held: whether the source is between the fingers, float32 [N]. yaw: cosine and sine of twice the heading of
    source and end effector, float32 [N, 2, 2].
    """

    images: NDArray[np.uint8]
    tasks: NDArray[np.int64]
    actions: NDArray[np.float32]
    positions: NDArray[np.float32]
    pixels: NDArray[np.float32]
    held: NDArray[np.float32]
    yaw: NDArray[np.float32]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.images)

    @classmethod
    def joined(cls, parts: list[Frames]) -> Frames:
        """All frames of `parts` in their order."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def emptied(self, count: int) -> Frames:
        """Room for `count` frames like these."""
        return Frames(
            *(np.empty((count, *v.shape[1:]), v.dtype) for v in (getattr(self, f.name) for f in fields(self)))
        )

    def put(self, start: int, part: Frames) -> None:
        """Write `part` over the frames from `start` on."""
        for field in fields(self):
            getattr(self, field.name)[start : start + len(part)] = getattr(part, field.name)


def training_layout(rng: np.random.Generator) -> Layout:
    """A random configuration of a random task: 0 to 5 distractors, at times look-alikes, or another light or camera."""
    while True:
        task = TASKS[TASK_NAMES[int(rng.integers(len(TASK_NAMES)))]]
        try:
            return random_layout(task.name, rng, appearance=_look(task, rng), items=_distractors(task, rng))
        except SimulationError:  # no room: other objects
            continue


def _look(task: Task, rng: np.random.Generator) -> Appearance:
    if rng.random() >= LOOK_SHARE:
        return Appearance(task.table)
    grey = rng.uniform(0.45, 0.75)
    return Appearance(
        table=("cherry", "birch")[int(rng.integers(2))] if rng.random() < 0.3 else task.table,
        wall=tuple(float(v) for v in np.clip(grey + rng.uniform(-0.08, 0.08, 3), 0, 1)),  # type: ignore[arg-type]
        light_azimuth=float(rng.uniform(-0.6, 2.4)),
        light_strength=float(rng.uniform(0.8, 1.2)),
        warmth=float(rng.uniform(-0.08, 0.08)),
        camera_offset=tuple(float(v) for v in rng.uniform(-CAMERA_SHIFT, CAMERA_SHIFT, 3)),  # type: ignore[arg-type]
    )


def _distractors(task: Task, rng: np.random.Generator) -> list[Item]:
    """0 to 5 items other than the task's two, each once; more often those of the other tasks than chance would."""
    own = {task.source, task.target}
    others = [t.source for t in TASKS.values()] + [Item("block", "yellow")]
    pool = [item for item in (*PLAIN_POOL, *others) if item not in own]
    pool = [item for item in pool if item.kind != task.source.kind and item.kind != task.target.kind]
    count = int(rng.integers(6))
    chosen = [pool[int(i)] for i in rng.permutation(len(pool))]
    if rng.random() < LOOKALIKE_SHARE:
        alike = lookalikes(task)
        chosen = [alike[int(i)] for i in rng.permutation(len(alike))[: 1 + int(rng.integers(2))]] + chosen
    return list(dict.fromkeys(chosen))[:count]


def begin(layout: Layout, rng: np.random.Generator) -> LockStep:
    """An episode of `layout`; at times the arm is somewhere above the table, turned, and its gripper closed."""
    if rng.random() >= RANDOM_START_SHARE:
        return LockStep(layout)
    for _ in range(20):
        pose = np.eye(4)
        pose[:3, 3] = rng.uniform(START_LOW, START_HIGH)
        turn = Rotation.from_euler("xyz", [*rng.uniform(-0.08, 0.08, 2), rng.uniform(-1.4, 1.4)])
        pose[:3, :3] = turn.as_matrix() @ BRIDGE_DOWN
        solution = inverse(ROBOT, pose, np.array(START_JOINTS), restarts=0)
        if solution.converged:
            gripper = GRIPPER_CLOSED if rng.random() < 0.15 else GRIPPER_OPEN
            return LockStep(layout, solution.joints, gripper)
    return LockStep(layout)


class Noise:
    """What is added to the expert's actions in one episode."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._scale = rng.uniform(0.0, MAX_NOISE) * np.array([1, 1, 1, 1, 1, 6, 0])
        self._burst = 0

    def __call__(self, action: Array) -> Array:
        """The action [7] that is carried out instead of the expert's."""
        rng = self._rng
        noisy: Array = action + self._scale * rng.standard_normal(7)
        if self._burst == 0 and rng.random() < BURST_SHARE:
            self._burst = int(rng.integers(1, 5))
            self._push = rng.uniform(-1, 1, 7) * np.array([0.04, 0.04, 0.03, 0.03, 0.03, 0.2, 0.0])
        if self._burst:
            self._burst -= 1
            noisy[:6] = self._push[:6]
        if rng.random() < FLIP_SHARE:
            noisy[6] = 1.0 - noisy[6]
        return noisy


class Recorder:
    """Keeps the frames of one episode with their labels."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: list[tuple[object, ...]] = []
        self._after = 0

    def record(self, episode: LockStep) -> Array:
        """Keep the present moment; returns what the expert would do there, an action [7]."""
        table, layout = episode.table, episode.table.layout
        scene = scene_of(table)
        action = expert_action(table.task, scene)
        label = np.concatenate([action[:3], expert_intent(table.task, scene)[3:6], action[6:]])
        source, target = (scene.objects[name][0] for name in (table.source, table.target))
        positions = np.stack([source, target, scene.transform_ee_to_base[:3, 3]])
        pixels = layout.camera.project(positions[:2]) / (640, 480)
        w, x, y, z = scene.objects[table.source][1]
        heading = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        turned = 2 * np.array([heading, gripper_yaw(scene.transform_ee_to_base)])
        held = table.grasped() == table.source
        row = (self.picture(table.render(*DRAWN)), TASK_NAMES.index(table.task.name), label, positions, pixels, held,
               np.stack([np.cos(turned), np.sin(turned)], axis=1))  # fmt: skip
        self._rows.append(row)
        self._after += table.success()
        return action

    def picture(self, drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A drawn picture as the policy takes it, [S, S, 3]."""
        return images.area(drawn, self._size)

    @property
    def last_image(self) -> NDArray[np.uint8]:
        """The picture that was kept last, [S, S, 3]."""
        image = self._rows[-1][0]
        assert isinstance(image, np.ndarray)
        return image

    @property
    def is_over(self) -> bool:
        """Whether the episode has been seen to its end."""
        return len(self._rows) >= MAX_STEPS or self._after > AFTER_SUCCESS

    def frames(self) -> Frames:
        """What was kept."""
        pictures, tasks, *numbers = zip(*self._rows, strict=True)
        floats = [np.asarray(column, dtype=np.float32) for column in numbers]
        return Frames(np.stack(pictures), np.asarray(tasks, dtype=np.int64), *floats)


def demonstrations(seed: int, frames: int, size: int) -> Frames:
    """At least `frames` frames of noisy expert episodes at size x size pixels; the same for the same seed."""
    rng = np.random.default_rng([seed, 0xDE])
    parts: list[Frames] = []
    for part in _episodes(rng, size):
        parts.append(part)
        if sum(map(len, parts)) >= frames:
            break
    return Frames.joined(parts)


def _episodes(rng: np.random.Generator, size: int) -> Iterator[Frames]:
    while True:
        episode, noise, recorder = begin(training_layout(rng), rng), Noise(rng), Recorder(size)
        try:
            while not recorder.is_over:
                episode.act(noise(recorder.record(episode)))
        finally:
            episode.close()
        yield recorder.frames()

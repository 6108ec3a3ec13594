"""The four WidowX tasks: instruction, what goes where, and when it has arrived."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtp_ros.errors import require_choice
from dtp_ros.sim.camera import BRIDGE_CAMERA, SINK_CAMERA, Camera
from dtp_ros.sim.catalog import Item

EPISODES = 24
MAX_DISTRACTORS = 6
SETTINGS = ("plain", "clutter", "lookalike", "unseen")


@dataclass(frozen=True)
class Region:
    """Where the source's centre of mass must be, in the target's frame.

    half: half extents (x, y), m; round: an ellipse instead of a rectangle.
    low, high: bounds of z above the target's origin, m.
    """

    half: tuple[float, float]
    low: float
    high: float
    round: bool = False

    def contains(self, offset: NDArray[np.float64]) -> bool:
        """Whether `offset` [3], m, lies inside."""
        x, y = abs(offset[0]) / self.half[0], abs(offset[1]) / self.half[1]
        inside = math.hypot(x, y) <= 1 if self.round else max(x, y) <= 1
        return bool(inside and self.low <= offset[2] <= self.high)


@dataclass(frozen=True)
class Task:
    """A pick-and-place task; steps: the length of an episode in control periods of 1/5 s."""

    name: str
    instruction: str
    source: Item
    target: Item
    region: Region
    steps: int
    camera: Camera
    table: str


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "spoon_on_towel", "put the spoon on the towel", Item("spoon", "lime"), Item("towel", "sky"),
            Region((0.070, 0.055), 0.0, 0.03), 60, BRIDGE_CAMERA, "cherry",
        ),
        Task(
            "carrot_on_plate", "put the carrot on the plate", Item("carrot", "orange"), Item("plate", "white"),
            Region((0.062, 0.062), 0.0, 0.04, round=True), 60, BRIDGE_CAMERA, "cherry",
        ),
        Task(
            "stack_blocks", "stack the green block on the yellow block",
            Item("block", "green"), Item("block", "yellow"),
            Region((0.015, 0.015), 0.025, 0.035), 60, BRIDGE_CAMERA, "cherry",
        ),
        Task(
            "eggplant_in_basket", "put the eggplant in the basket", Item("eggplant", "purple"), Item("basket", "straw"),
            Region((0.082, 0.062), 0.0, 0.05), 120, SINK_CAMERA, "birch",
        ),
    )
}  # fmt: skip


def task_named(name: str) -> Task:
    """The task called `name`; raises ConfigError naming the four."""
    require_choice("task", name, TASKS)
    return TASKS[name]

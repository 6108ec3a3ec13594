"""Whether the important region of DTP holds what the task is about: the simulator knows where that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig, StepTrace
from dtp_ros.models.base import Observation
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.sim.camera import HEIGHT, WIDTH, Camera
from dtp_ros.sim.layout import Layout
from dtp_ros.sim.lockstep import LockStep
from dtp_ros.sim.tabletop import CONTROL_PERIOD

PLACES = ("source", "target", "gripper")


@dataclass(frozen=True)
class Sight:
    """One step of an episode: what was seen, its trace, and whether the places lie in the important region.

    inside: for source, target and gripper. success: whether the task was solved after the step.
    """

    observation: Observation
    trace: StepTrace
    inside: dict[str, bool]
    success: bool


def token_of(camera: Camera, position: NDArray[np.float64], grid: tuple[int, int]) -> tuple[int, int] | None:
    """Row and column of the image token that shows `position` [3] m (base frame), or None outside the image."""
    u, v = camera.project(position[None])[0]
    if not (-0.5 <= u < WIDTH - 0.5 and -0.5 <= v < HEIGHT - 0.5):  # False for NaN too
        return None
    return int((v + 0.5) / HEIGHT * grid[0]), int((u + 0.5) / WIDTH * grid[1])


def sights(policy: DtpPolicy, layout: Layout, pruning: PruningConfig) -> Iterator[Sight]:
    """Let `policy` act until the task is solved or its time is over; every step, with what it saw."""
    policy.reset()
    episode = LockStep(layout)
    table = episode.table
    try:
        while table.time < table.task.steps * CONTROL_PERIOD - 1e-6 and not table.success():
            poses = table.object_poses()
            places = (poses[table.source][0], poses[table.target][0], table.transform_ee_to_base[:3, 3])
            observation = Observation((table.render(),), table.task.instruction, stamp=table.time)
            result = policy.step(observation, pruning, GenerationConfig())
            region = result.trace.region
            tokens = [token_of(layout.camera, place, policy.adapter.grid) for place in places]
            inside = [token is not None and bool(region[token]) for token in tokens]
            if result.chunk is None:
                episode.hold()
            else:
                episode.act(result.chunk.actions[0])
            yield Sight(observation, result.trace, dict(zip(PLACES, inside, strict=True)), table.success())
    finally:
        episode.close()

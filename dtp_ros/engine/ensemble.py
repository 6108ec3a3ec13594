"""Chunk ensembling: predictions of earlier steps for the same moment, averaged."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtp_ros.engine.types import GenerationConfig

EULER: Final = "xyz"  # extrinsic: R = Rz(yaw) Ry(pitch) Rx(roll)
ROTATION = slice(3, 6)


@dataclass(frozen=True)
class _Chunk:
    stamp: float
    actions: NDArray[np.float64]


class ChunkEnsemble:
    """Averages overlapping chunks; remembers as many as a chunk has actions, so none that no longer overlaps."""

    def __init__(self) -> None:
        self._history: deque[_Chunk] = deque()

    def reset(self) -> None:
        """Forget every chunk: a new episode begins."""
        self._history.clear()

    def add(self, actions: NDArray[np.float64], stamp: float, config: GenerationConfig) -> NDArray[np.float64]:
        """Take in the newest chunk and return the final one.

        Action i of a chunk is for the moment i / control_frequency after its stamp; chunks are placed on the newest
        one's moments by rounding. The n predictions for one moment, oldest first, weigh w_r = exp(k r), r = 0 ... n - 1
        (the rule of SIMPLER's SpatialVLA policy, there k = 0.8).

        Args:
            actions: float64 [horizon, 7], finite (see `ActionChunk`).
            stamp: time of the image they answer to, s. One that does not advance forgets the chunks before it.
            config: kind of ensemble, weight k and control frequency.

        Returns:
            float64 [horizon, 7]: `published` averages element by element, gripper included; `rotation` averages
            the rotations on SO(3) instead of their angles; `off` returns `actions` themselves.
        """
        if self._history and stamp <= self._history[-1].stamp:
            self._history.clear()
        self._history.append(_Chunk(stamp, actions))
        while len(self._history) > len(actions):
            self._history.popleft()
        ages = [round((stamp - chunk.stamp) * config.control_frequency) for chunk in self._history]
        while ages[0] >= len(self._history[0].actions):
            ages.pop(0)
            self._history.popleft()
        if config.ensemble == "off":
            return actions
        moments = []
        for i in range(len(actions)):
            predictions = [
                chunk.actions[i + age]
                for chunk, age in zip(self._history, ages, strict=True)
                if i + age < len(chunk.actions)
            ]
            weights = np.exp(config.ensemble_weight * np.arange(len(predictions)))
            moments.append(_average(np.stack(predictions), weights / weights.sum(), config.ensemble))
        return np.stack(moments)


def _average(predictions: NDArray[np.float64], weights: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Weighted mean of actions [n, 7] for one moment, [7]."""
    mean: NDArray[np.float64] = weights @ predictions
    if kind == "rotation" and len(predictions) > 1:
        rotations = Rotation.from_euler(EULER, predictions[:, ROTATION])
        mean[ROTATION] = rotations.mean(weights=weights).as_euler(EULER)
    return mean

"""What the tests of pi0-FAST share: an observation, the constants of DTP, ids and names of the tiny checkpoint."""

from __future__ import annotations

import numpy as np

from dtp_ros.models.base import Observation
from dtp_ros.models.registry import model_defaults
from dtp_ros.pruning.config import PruningConfig

INSTRUCTION = "put the carrot on the plate"
STATE = np.array([0.3, -0.02, 0.2, 0.1, -0.2, 0.3, 0.5])
LAST = 3072 - 1 - 128  # the id of FAST id 0: vocabulary, less one, less the 128 that are skipped
WEIGHTS = "model.safetensors"
PREFIX = "model.paligemma_with_expert.paligemma."


def observation(photo: np.ndarray, instruction: str = INSTRUCTION, state: np.ndarray | None = STATE) -> Observation:
    return Observation((photo,), instruction, state=state)


def constants(**changes: object) -> PruningConfig:
    defaults = model_defaults("pi0_fast")
    return PruningConfig(**{**{name: defaults[name] for name in PruningConfig.__dataclass_fields__}, **changes})

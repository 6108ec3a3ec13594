"""The loaded model behind the policy node. Imported by the worker on its first `configure`: torch takes seconds."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress

import torch

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import StepResult
from dtp_ros.errors import ObservationError
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter
from dtp_ros.ros.parameters import ModelLimits, Settings, parsed_options
from dtp_ros.ros.policy_inputs import Frame


class Inference:
    """One loaded model; every call belongs to the worker's thread.

    Construction loads it and raises ConfigError, CheckpointError or DeviceError; progress gets a message and the
    fraction done.
    """

    def __init__(self, settings: Settings, progress: Callable[[str, float], None]) -> None:
        self.adapter = load_adapter(
            settings.model,
            settings.checkpoint,
            revision=settings.revision,
            device=settings.device,
            dtype=settings.dtype,
            preprocess=settings.preprocess,
            options=parsed_options(settings.model_options),
            progress=progress,
        )
        self._policy = DtpPolicy(self.adapter)
        progress("warming up", 1.0)
        # What is wrong with the instruction is said at the step it belongs to.
        with suppress(ObservationError):
            self._policy.warm_up(settings.instruction, settings.pruning, settings.generation)

    @property
    def limits(self) -> ModelLimits:
        """What the parameters must fit."""
        rows, cols = self.adapter.grid
        return ModelLimits(self.adapter.num_layers, rows * cols, self.adapter.horizon)

    def about(self) -> dict[str, str]:
        """Where and as what it runs, for /diagnostics."""
        device = self.adapter.device
        about = {"device": str(device), "dtype": str(self.adapter.dtype).removeprefix("torch.")}
        if device.type == "cuda":
            about |= {
                "device_name": torch.cuda.get_device_name(device),
                "device_memory": f"{torch.cuda.memory_allocated(device) / 2**20:.0f} MiB",
            }
        return about

    def step(self, frame: Frame, settings: Settings) -> StepResult:
        """Act on a frame; raises ObservationError where the model cannot take it."""
        observation = Observation(
            frame.images, settings.instruction, frame.state, frame.intrinsics, frame.stamp_ns * 1e-9
        )
        return self._policy.step(observation, settings.pruning, settings.generation)

    def reset(self) -> None:
        """A new episode begins."""
        self._policy.reset()


def free_memory() -> None:
    """Give back what a model that nobody refers to any more has held."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was never used

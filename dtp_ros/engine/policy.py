"""The policy: an observation and the method's constants to a final chunk of actions and the trace of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.clock import StageClock
from dtp_ros.engine.ensemble import ChunkEnsemble
from dtp_ros.engine.passes import Passes
from dtp_ros.engine.refine import generate
from dtp_ros.engine.static import StaticPasses
from dtp_ros.engine.types import ActionChunk, GenerationConfig, StepResult, StepTrace
from dtp_ros.errors import ActionDecodeError
from dtp_ros.models.base import Observation, VlaAdapter
from dtp_ros.pruning.config import PruningConfig


class DtpPolicy:
    """A vision-language-action model that acts with Distracting Token Pruning.

    `step` and `reset` are the whole contract. The model is the same after a step as before, also where one raises.
    """

    def __init__(self, adapter: VlaAdapter, *, static: bool | None = None) -> None:
        """static: passes of fixed shapes, captured as graphs on CUDA; None: on CUDA only."""
        self.adapter = adapter
        static = adapter.device.type == "cuda" if static is None else static
        self._passes = StaticPasses(adapter) if static else Passes(adapter)
        self._ensemble = ChunkEnsemble()
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps since reset."""
        return self._steps

    def reset(self) -> None:
        """A new episode begins: forget history and chunks, count steps from 0."""
        self.adapter.reset()
        self._ensemble.reset()
        self._passes.prefix = None
        self._steps = 0

    def warm_up(self, instruction: str, pruning: PruningConfig, generation: GenerationConfig) -> None:
        """Act on black images, so that the first real step does not choose kernels and capture graphs.

        Under a tolerance that prunes all there is, so that every kind of pass runs; on CUDA under the given one too.
        Ends as `reset` does. Raises what `step` raises.
        """
        state = np.zeros(7) if self.adapter.needs_state else None
        images = (np.zeros((480, 640, 3), dtype=np.uint8),) * self.adapter.num_cameras
        observation = Observation(images, instruction or "pick up the object", state)
        configs = [replace(pruning, variant="dtp", tolerance=0.0, tolerance_mode="fixed")]
        configs += [pruning] if self.adapter.device.type == "cuda" else []
        try:
            for config in configs:
                self.step(observation, config, generation)
        finally:
            self.reset()

    def step(self, observation: Observation, pruning: PruningConfig, generation: GenerationConfig) -> StepResult:
        """Act on one observation.

        Returns:
            The final (ensembled) chunk, or None with the reason to hold where the tokens do not decode or a number is
            not finite; and the trace.

        Raises:
            ConfigError: `pruning` does not fit the model.
            ObservationError: an observation that the model cannot take.
            CaptureError: the model's attention could not be captured.
        """
        rows, cols = self.adapter.grid
        pruning.require_fits(self.adapter.num_layers, rows * cols)
        clock = StageClock(self.adapter.device)
        with torch.inference_mode():
            with clock.stage("prepare"):
                prompt = self.adapter.prepare(observation)
            grammar = self.adapter.grammar() if generation.fast_grammar else None
            with captured_attention(self.adapter.text_model):
                ids, trace = generate(
                    self.adapter,
                    prompt,
                    pruning,
                    grammar=grammar,
                    step=self._steps,
                    clock=clock,
                    speculative=generation.speculative,
                    passes=self._passes,
                )
            with clock.stage("decode"):
                chunk, hold_reason = self._act(ids, trace, observation.stamp, generation)
        self._steps += 1
        return StepResult(chunk, replace(trace, seconds=clock.seconds()), hold_reason)

    def _act(
        self, ids: Sequence[int], trace: StepTrace, stamp: float, generation: GenerationConfig
    ) -> tuple[ActionChunk | None, str]:
        """The final chunk of the step's tokens, or None and the reason to hold."""
        if not np.isfinite([(token.entropy_clean, token.entropy_refined) for token in trace.tokens]).all():
            return None, "the model's logits are not finite"
        try:
            actions = self.adapter.decode(ids)
        except ActionDecodeError as error:
            return None, str(error)
        if not np.isfinite(actions).all():
            return None, f"the decoded actions are not finite: {actions.tolist()}"
        return ActionChunk(self._ensemble.add(actions, stamp, generation)), ""

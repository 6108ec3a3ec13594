"""Our policies as a model server of vla-eval, with the study's log: any model, any constant, any of its benchmarks.

`python -m dtp_ros.study.server --config config/study/servers/<name>.yaml`, or `vla-eval serve --config ...` with uv.
"""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vla_eval import specs
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig, StepTrace
from dtp_ros.errors import ConfigError, ObservationError, require_integer
from dtp_ros.models.checkpoint import commit_of
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.pruning.config import MAX_SEED, PruningConfig
from dtp_ros.resources import share_file
from dtp_ros.study import log
from dtp_ros.study.embodiments import Array, embodiment
from dtp_ros.study.step_model import processor

_PRUNING = {item.name for item in fields(PruningConfig)}
_GENERATION = {"fast_grammar", "speculative", "ensemble", "ensemble_weight"}
_EVALUATION = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-")


@dataclass(frozen=True)
class Constants:
    """Everything of an arm that is not the model: how it prunes, and how tokens become actions."""

    pruning: PruningConfig
    generation: GenerationConfig
    execute_horizon: int

    @classmethod
    def of(cls, model: str, checkpoint: str, frequency: float, parameters: Mapping[str, Any]) -> Constants:
        """The model's own (config/models), with some replaced. Raises ConfigError."""
        defaults = model_defaults(model, checkpoint)
        known = {*_PRUNING, *_GENERATION, "execute_horizon"}
        if unknown := sorted(parameters.keys() - known):
            raise ConfigError(f"parameters: {', '.join(unknown)} not known (valid: {', '.join(sorted(known))})")
        values: dict[str, Any] = {"speculative": True, **defaults}
        for name, value in parameters.items():
            values[name] = _like(values[name], value)
        generation = {name: values[name] for name in _GENERATION} | {"control_frequency": frequency}
        horizon = require_integer("execute_horizon", values["execute_horizon"], 1, 64)
        return cls(PruningConfig(**{n: values[n] for n in _PRUNING}), GenerationConfig(**generation), horizon)

    def of_episode(self, benchmark: str, task: str, episode: int) -> Constants:
        """The same with a seed of this episode's own, so that a random variant is not one draw for a whole study."""
        words = zlib.crc32(f"{benchmark}/{task}/{episode}".encode())
        seed = int(np.random.SeedSequence((self.pruning.seed, words)).generate_state(1)[0]) & MAX_SEED
        return replace(self, pruning=replace(self.pruning, seed=seed))


@dataclass
class _Running:
    """An episode: a policy with its own history over the shared weights, and what will be logged."""

    policy: DtpPolicy
    constants: Constants
    session: str  # of the shard: it runs one episode at a time
    arm: str
    benchmark: str
    task: Mapping[str, Any]
    setup: Mapping[str, Any]
    suite: str
    hand: Callable[[float], float]
    traces: list[StepTrace] = field(default_factory=list)
    holds: int = 0
    gripper: float = 1.0  # of the last action: a hold keeps it


class DtpModelServer(PredictModelServer):
    """A policy with Distracting Token Pruning for vla-eval's benchmarks.

    Observations of several shards are answered one at a time; each shard has its own history.
    """

    def __init__(
        self,
        model: str = "tabletop",
        checkpoint: str = "",
        *,
        embodiment: str = "tabletop",
        parameters: dict[str, Any] | None = None,
        arm: str = "",
        log: str = "",
        revision: str = "",
        device: str = "auto",
        dtype: str = "auto",
        preprocess: str = "",
        options: dict[str, Any] | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: name of the registry (tabletop, nora, spatialvla, univla, openvla, pi0_fast).
            checkpoint: folder, hub id or `tiny`; the model's own if empty.
            embodiment: robot of the benchmark, see embodiments.py.
            parameters: constants that replace the model's own, by the names of the ROS parameters: those of
                PruningConfig, `execute_horizon`, `ensemble`, `ensemble_weight`, `fast_grammar`, `speculative`.
            arm: name of this setting in the log.
            log: file that gets one JSON line an episode; none if empty.
            revision, device, dtype, preprocess, options: see `load_adapter`.

        Raises:
            ConfigError, CheckpointError, DeviceError: see `load_adapter`.
        """
        self._robot = _embodiment(embodiment)
        self._log = Path(log) if log else None
        if self._log is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._log.open("ab").close()  # a file that cannot be written is said now, not after an episode
        defaults = model_defaults(model)
        self._model, self._checkpoint = model, checkpoint or str(defaults["checkpoint"])
        if not revision and self._checkpoint == defaults["checkpoint"]:
            revision = str(defaults["revision"])
        # A branch of the hub may move between two runs of a study, whose episodes are then no pairs.
        commit = commit_of(self._checkpoint, revision)
        self._weights = f"{self._checkpoint}@{commit}" if commit else self._checkpoint
        how: dict[str, Any] = {"device": device, "dtype": dtype, "preprocess": preprocess}
        own = _shipped(options or {})
        self._adapter = load_adapter(model, self._checkpoint, revision=commit or revision, options=own, **how)
        if self._adapter.device.type == "cpu":
            torch.set_num_threads(1)  # the order of sums, and with it the last digit, depends on the number of threads
        self._processor = processor(self._adapter.device)
        self._running: dict[str, _Running] = {}
        self._free: list[DtpPolicy] = []  # with their buffers, and on CUDA their captured graphs
        self._parameters = dict(parameters or {})
        super().__init__(chunk_size=1)
        self.begin(arm)

    def begin(
        self,
        arm: str,
        parameters: Mapping[str, Any] | None = None,
        benchmark: str = "",
        evaluation: str = "",
        suite: str = "",
    ) -> None:
        """From now on, act with these constants, and log under these names. Raises ConfigError, changing nothing.

        parameters: replace those of the constructor, one by one. benchmark: what the episodes to come belong to; if
        empty, vla-eval's name of the evaluation. evaluation: what else tells them from others of the same name.
        suite: what the benchmark is a part of.
        """
        frequency = self._robot.control_frequency
        chosen = {**self._parameters, **(parameters or {})}
        constants = Constants.of(self._model, self._checkpoint, frequency, chosen)
        rows, cols = self._adapter.grid
        constants.pruning.require_fits(self._adapter.num_layers, rows * cols)
        require_integer("execute_horizon", constants.execute_horizon, 1, self._adapter.horizon)
        self._constants, self.chunk_size = constants, constants.execute_horizon
        self._arm, self._benchmark, self._evaluation, self._suite = arm, benchmark, evaluation, suite

    @property
    def running(self) -> int:
        """Episodes that have begun and not ended; the log lacks them."""
        return len(self._running)

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        """Forget the episode before."""
        await super().on_episode_start(config, ctx)
        # After an error of the simulator vla-eval goes on without an end. Its policy is not used again: a step of it
        # may still be computed.
        for left in [name for name, one in self._running.items() if one.session == ctx.session_id]:
            del self._running[left]
        # A shallow copy has the weights and its own history.
        policy = self._free.pop() if self._free else DtpPolicy(copy.copy(self._adapter))
        policy.reset()
        benchmark, task = self._benchmark or _EVALUATION.sub("", ctx.eval_id), config.get("task", {})
        constants = self._constants.of_episode(benchmark, *_which(task))
        # By episode: after a lost connection two of one shard's may be known for a while.
        self._running[ctx.episode_id] = _Running(
            policy, constants, ctx.session_id, self._arm, benchmark, task, self.setup(), self._suite, self._robot.hand()
        )

    def predict(self, obs: dict[str, Any], ctx: SessionContext) -> dict[str, Any]:
        """Act: `actions` float64 [H, 7] as the benchmark takes them, or one that holds, [7], with `hold`: True."""
        if ctx.episode_id not in self._running:
            raise ObservationError("an observation of an episode that has ended")
        episode, adapter = self._running[ctx.episode_id], self._adapter
        constants = episode.constants
        seen = self._robot.observe(obs, adapter.num_cameras, with_state=adapter.needs_state, step=ctx.step)
        result = episode.policy.step(seen, constants.pruning, constants.generation)
        episode.traces.append(result.trace)
        if result.chunk is None:
            episode.holds += 1
            return {"actions": self._acted(np.array([0.0] * 6 + [episode.gripper]), episode), "hold": True}
        actions = result.chunk.actions[: constants.execute_horizon]
        episode.gripper = float(actions[-1, 6])
        return {"actions": np.stack([self._acted(action, episode) for action in actions])}

    def _acted(self, action: Array, episode: _Running) -> Array:
        """An action [7] as the benchmark takes it, [7]."""
        given = self._robot.act(action).copy()
        given[6] = episode.hand(float(given[6]))
        return given

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        """Log the episode, unless it broke off."""
        await super().on_episode_end(result, ctx)
        episode = self._running.get(ctx.episode_id)
        try:
            if self._log is not None and episode is not None:
                self._write(self._log, episode, result)
        finally:
            if self._running.pop(ctx.episode_id, None) is not None and episode is not None:
                self._free.append(episode.policy)

    def _write(self, path: Path, episode: _Running, result: Mapping[str, Any]) -> None:
        metrics = result.get("metrics") or {}
        if not episode.traces or "success" not in metrics:
            return  # it broke off
        grasped, (task, number) = metrics.get("grasped"), _which(episode.task)
        line = log.Episode(
            arm=episode.arm,
            benchmark=episode.benchmark,
            task=task,
            episode=number,
            success=bool(metrics["success"]),
            grasped=None if grasped is None else bool(grasped),
            steps=int(result.get("steps", 0)),
            holds=episode.holds,
            setup=episode.setup,
            series=series(episode.traces),
            suite=episode.suite,
        )
        log.append(path, line)

    def get_action_spec(self) -> dict[str, specs.DimSpec]:
        """What the actions are."""
        return {
            "position": specs.POSITION_DELTA,
            "rotation": specs.DimSpec("rotation", 3, self._robot.rotation),
            "gripper": specs.DimSpec("gripper", 1, self._robot.gripper),
        }

    def get_observation_spec(self) -> dict[str, specs.DimSpec]:
        """What a benchmark must send."""
        return {self._robot.cameras[0]: specs.IMAGE_RGB, "language": specs.LANGUAGE}

    def get_observation_params(self) -> dict[str, Any]:
        """What a benchmark is asked to send besides."""
        adapter, wanted = self._adapter, dict(self._robot.wants)
        if adapter.needs_state:
            wanted |= self._robot.wants_state
        if adapter.num_cameras > 1:
            wanted |= self._robot.wants_wrist
        return wanted

    def setup(self) -> dict[str, Any]:
        """Model and constants as the log has them."""
        constants = self._constants
        return {
            "evaluation": self._evaluation,
            "model": self._model,
            "checkpoint": self._weights,
            "device": str(self._adapter.device.type),
            "processor": self._processor,
            "dtype": str(self._adapter.dtype).removeprefix("torch."),
            **asdict(constants.pruning),
            **asdict(constants.generation),
            "execute_horizon": constants.execute_horizon,
        }


def _which(task: Mapping[str, Any]) -> tuple[str, int]:
    """Name and number of the episode that vla-eval describes."""
    return str(task.get("name", "")), int(task.get("episode_idx", 0))


def _shipped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, in which a file of this package such as `config/study/...` is found from wherever one is."""
    root = share_file("package.xml").parent
    return {
        name: str(root / value)
        if isinstance(value, str) and value.startswith("config/study/") and not Path(value).exists()
        else value
        for name, value in options.items()
    }


def _like(default: object, value: Any) -> Any:
    """A file's value as the default's type: jsonargparse reads `off` as False, YAML 1 as a whole number."""
    if isinstance(default, str) and value is False:
        return "off"
    if isinstance(default, float) and type(value) is int:
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def series(traces: list[StepTrace]) -> dict[str, tuple[float, ...]]:
    """The figures of each step that the log keeps."""
    own = {"fire_rate", "pruned", "tolerance"}
    return {
        name: tuple(float(getattr(trace, name) if name in own else trace.mean(name)) for trace in traces)
        for name in log.SERIES
    }


_embodiment = embodiment  # the constructor's argument has the same name, which jsonargparse shows to users


if __name__ == "__main__":
    from vla_eval.model_servers.serve import run_server

    run_server(DtpModelServer)

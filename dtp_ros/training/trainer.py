"""The training loop of the tabletop policy: optimisers, averaged weights, resuming."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dtp_ros.errors import ConfigError, require_integer, require_range
from dtp_ros.models.tabletop_network import TabletopNetwork
from dtp_ros.training.objective import Batch, Batches, Objective, half_precision

_CLIP = 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """How the policy is trained; `steps` batches of `batch` frames.

    muon_rate: of the matrices of the language model (Muon, Jordan et al. 2024); rate: of everything else (AdamW). Both
    rise over `warm_up` steps and fall to 2 % as half a cosine. average: decay of the averaged weights, which are what
    acts. report, save: every so many steps. drop: largest share of image tokens hidden from a sample (`Batches`).
    Raises ConfigError out of range.
    """

    steps: int = 5400
    batch: int = 64
    muon_rate: float = 1e-3
    rate: float = 1e-3
    weight_decay: float = 0.02
    warm_up: int = 200
    average: float = 0.998
    report: int = 50
    save: int = 200
    seed: int = 0
    drop: float = 0.0

    def __post_init__(self) -> None:
        for name, high in (("steps", 10**7), ("batch", 10**5), ("warm_up", 10**6), ("report", 10**6), ("save", 10**6)):
            require_integer(name, getattr(self, name), 1, high)
        require_integer("seed", self.seed, 0, 2**31 - 1)
        for name in ("muon_rate", "rate", "weight_decay", "average", "drop"):
            require_range(name, getattr(self, name), 0.0, 1.0)

    def share(self, step: int) -> float:
        """Of the learning rate at `step`."""
        rise = min(1.0, (step + 1) / self.warm_up)
        return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


class Trainer:
    """A network in training, on the device of its weights: `run` goes on from the state saved in `folder`, if any.

    data: on what it is trained. Raises ConfigError where that state is of a training with another configuration or on
    other data.
    """

    def __init__(
        self, objective: Objective, config: TrainingConfig, folder: Path, data: Mapping[str, int | str] | None = None
    ) -> None:
        self.config, self.objective, self._folder = config, objective, folder
        self._identity = asdict(config) | dict(data or {})
        self.device = objective.network.image_positions.device
        self.step = 0
        self.seconds = 0.0
        self._averaged = {name: value.detach().clone() for name, value in objective.network.state_dict().items()}
        self._optimisers = _optimisers(objective, config)
        self._resume()

    def averaged(self, network: TabletopNetwork) -> TabletopNetwork:
        """`network`, filled with the averaged weights, in evaluation mode."""
        network.load_state_dict(self._averaged)
        return network.eval()

    def run(self, batches: Batches, until: int, validate: Callable[[], dict[str, float]]) -> None:
        """Train to step `until`, with a progress bar; figures go to `training.jsonl`. Saves at the end."""
        sums: dict[str, Tensor] = {}
        counted = 0
        began = time.monotonic()
        with tqdm(total=self.config.steps, initial=self.step, unit="step", desc="training") as bar:
            while self.step < until:
                losses = self._update(batches(self.step, self.config.batch))
                for name, value in losses.items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach()
                self.step, counted = self.step + 1, counted + 1
                bar.update()
                if self.step % self.config.report == 0:
                    figures = {name: float(value) / counted for name, value in sums.items()}
                    sums, counted = {}, 0
                    bar.set_postfix_str(f"action {figures['action']:.2f} source {1e3 * figures['source_error']:.0f} mm")
                    if self.step % self.config.save == 0:
                        figures |= {f"validation_{name}": value for name, value in validate().items()}
                    self._log({"step": self.step, "seconds": self.seconds + time.monotonic() - began, **figures})
                if self.step % self.config.save == 0:
                    self._save(self.seconds + time.monotonic() - began)
        self.seconds += time.monotonic() - began
        self._save(self.seconds)

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        with half_precision(self.device):
            losses: dict[str, Tensor] = self.objective(batch.to(self.device))
        share = self.config.share(self.step)
        for optimiser in self._optimisers:
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
        losses["total"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.objective.parameters(), _CLIP)
        for optimiser in self._optimisers:
            optimiser.step()
        decay = min(self.config.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.objective.network.state_dict().items():
                self._averaged[name].lerp_(value, 1 - decay)
        return losses

    def _log(self, record: dict[str, float]) -> None:
        with (self._folder / "training.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: round(value, 6) for name, value in record.items()}) + "\n")

    @property
    def _state_file(self) -> Path:
        return self._folder / "state.pt"

    def _save(self, seconds: float) -> None:
        state = {
            "config": self._identity,
            "step": self.step,
            "seconds": seconds,
            "objective": self.objective.state_dict(),
            "averaged": self._averaged,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }
        draft = self._state_file.with_suffix(".draft")
        torch.save(state, draft)
        draft.replace(self._state_file)

    def _resume(self) -> None:
        if not self._state_file.is_file():
            return
        state = torch.load(self._state_file, map_location=self.device, weights_only=True)
        if state.get("config") != self._identity:
            raise ConfigError(
                f"{self._state_file} is of a training with {state.get('config')}, not {self._identity}"
                " (valid: the same configuration, or another folder)"
            )
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.objective.load_state_dict(state["objective"])
        self._averaged = state["averaged"]
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def _optimisers(objective: Objective, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the language model's embeddings and its head, AdamW for the rest."""
    inner = {id(p) for p in _matrices(objective.network)}
    matrices = [p for p in objective.parameters() if id(p) in inner]
    rest = [p for p in objective.parameters() if id(p) not in inner]
    muon = torch.optim.Muon(
        [{"params": matrices, "peak": config.muon_rate}], weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() > 1], "peak": config.rate, "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() <= 1], "peak": config.rate, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    return [muon, adam]


def _matrices(network: TabletopNetwork) -> Iterator[Tensor]:
    for layer in network.language_model.layers:
        yield from (p for p in layer.parameters() if p.dim() == 2)

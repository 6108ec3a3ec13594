"""`make train`: demonstrations, training, and the choice of a checkpoint for the tabletop policy, from nothing.

`--finetune CHECKPOINT` goes on from a policy that is there, with its words and its bins.

Everything goes to one folder and is taken up where it was left: shards of demonstrations, the state of the training,
the candidates, and `checkpoint`, which the package loads (`checkpoint:=out/train/checkpoint`). No step sees the fixed
configurations that evaluations use.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from dtp_ros.errors import DtpError, require_integer
from dtp_ros.models.action_tokens import ActionStatistics
from dtp_ros.models.checkpoint import DEVICES, resolve_device
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.tabletop import TabletopAdapter, write_checkpoint
from dtp_ros.models.tabletop_network import TabletopConfig, TabletopNetwork
from dtp_ros.sim.expert import MAX_ROTATION, MAX_TRANSLATION
from dtp_ros.training.curves import write_training_curve
from dtp_ros.training.demonstrations import Frames, demonstrations
from dtp_ros.training.objective import Batches, Objective, tabletop_tokenizer
from dtp_ros.training.rollouts import own_demonstrations, success
from dtp_ros.training.shards import process_pool, read_shard, read_shards, require_made, shard_path, write_shards
from dtp_ros.training.trainer import Trainer, TrainingConfig

OUT = Path("out/train")
SHARD_FRAMES = 1000
VALIDATION_SEED, OWN_SEED, CHOICE_SEED = 9000, 5000, 9001
SEEDS = 10_000  # of one training
VALIDATION_SAMPLES = 512
LABELS = "the expert's action with its whole turn"  # what the frames' actions are
STAGES = ("demonstrations", "training", "choice")
OWN_AT = (0.4, 0.6, 0.8)  # shares of the training after which episodes of the policy's own join the demonstrations
CANDIDATES = (0.9, 1.0)  # shares of the training after which the averaged weights are a candidate


@dataclass(frozen=True)
class Plan:
    """Sizes of the run: shards of demonstrations and, each time, of own episodes; episodes a task for the choice."""

    shards: int = 100
    own_shards: int = 10
    choice_episodes: int = 24
    workers: int = min(os.cpu_count() or 1, 99)

    def __post_init__(self) -> None:
        """Raises ConfigError out of range."""
        for name, low in (("shards", 1), ("own_shards", 0), ("choice_episodes", 1), ("workers", 1)):
            require_integer(name, getattr(self, name), low, OWN_SEED - 1 if name == "shards" else 99)


class Run:
    """One training from what is in `out` on; `execute` leaves `checkpoint` and `report.json` there."""

    def __init__(
        self, out: Path, plan: Plan, training: TrainingConfig, device: torch.device, finetuned: str = ""
    ) -> None:
        """finetuned: the checkpoint to begin with, as `load_adapter` takes it; without one, random weights."""
        self.out, self.plan, self.training, self.device = out, plan, training, device
        self._finetuned = finetuned
        self._shards = out / "demonstrations"
        self._begin = _loaded(finetuned) if finetuned else None
        self.tokenizer = self._begin.tokenizer if self._begin else tabletop_tokenizer()
        self.config = self._begin.network.config if self._begin else new_config(self.tokenizer)

    def execute(self) -> dict[str, object]:
        """Every stage; the report."""
        clock = [time.monotonic()]
        seeds = [self._seed(i) for i in range(self.plan.shards)]
        require_made(self._shards, {"labels": LABELS, "frames": SHARD_FRAMES, "pixels": self.config.image_size})
        make = partial(demonstrations, frames=SHARD_FRAMES, size=self.config.image_size)
        write_shards(self._shards, [*seeds, self._seed(VALIDATION_SEED)], make, self.plan.workers, "demonstrations")
        clock.append(time.monotonic())
        frames = read_shards(self._shards, seeds)
        trainer = self._trainer(frames)
        trainer.run(self._batches(frames), self._step(OWN_AT[0]), self._validate)
        del frames
        own: list[int] = []
        for share, end in zip(OWN_AT, (*OWN_AT[1:], CANDIDATES[0]), strict=True):
            own += self._own_episodes(trainer, share)
            # Read anew each time, so that the memory holds the frames once.
            trainer.run(self._batches(read_shards(self._shards, [*seeds, *own])), self._step(end), self._validate)
        names = self._candidates(trainer, [*seeds, *own])
        clock.append(time.monotonic())
        with process_pool(self.plan.workers) as pool:
            solved = list(pool.map(partial(_judge, self.out, self.plan.choice_episodes), names))
        candidates = dict(zip(names, solved, strict=True))
        chosen = max(candidates, key=lambda name: (sum(candidates[name].values()), name))
        shutil.copytree(self.out / chosen, self.out / "checkpoint", dirs_exist_ok=True)
        clock.append(time.monotonic())
        return {
            "plan": asdict(self.plan),
            "training": asdict(self.training),
            "finetuned": self._finetuned,
            "parameters": sum(p.numel() for p in TabletopNetwork(self.config).parameters()),
            "frames": {"demonstrations": self._count(seeds), "own episodes": self._count(own)},
            "candidates": candidates,
            "chosen": chosen,
            "seconds_of_this_run": dict(zip(STAGES, np.diff(clock).round().tolist(), strict=True)),
            "training_seconds": round(trainer.seconds),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }

    def _trainer(self, frames: Frames) -> Trainer:
        """A trainer, from where it was left; percentiles of the actions are the demonstrations', or the beginning's."""
        network = new_network(self.config, self.training.seed)
        if self._begin:
            network.load_state_dict(self._begin.network.state_dict())
        self._statistics = self._begin.statistics if self._begin else action_statistics(frames)
        objective = Objective(network).to(self.device)
        # The bins of the actions are those of the shards too.
        data: dict[str, int | str] = {"shards": self.plan.shards, "own_shards": self.plan.own_shards}
        if self._begin:
            data["finetuned"] = self._finetuned
        trainer = Trainer(objective, self.training, self.out, data)
        held_out = self._batches(read_shards(self._shards, [self._seed(VALIDATION_SEED)]))
        self._validate = partial(_validation, trainer, self.config, held_out)
        return trainer

    def _own_episodes(self, trainer: Trainer, share: float) -> list[int]:
        """Seeds of the shards that the policy drives itself after this share of its training."""
        first = OWN_SEED + 100 * OWN_AT.index(share)
        seeds = [self._seed(first + i) for i in range(self.plan.own_shards)]
        driver = f"driver_{round(100 * share)}"
        if trainer.step == self._step(share):
            self._save(trainer, driver)
        make = partial(own_demonstrations, self.out / driver, frames=SHARD_FRAMES)
        write_shards(self._shards, seeds, make, self.plan.workers, "own episodes")
        return seeds

    def _candidates(self, trainer: Trainer, seeds: Sequence[int]) -> list[str]:
        """Train to the end on these shards; the names of the checkpoints to choose from."""
        batches = self._batches(read_shards(self._shards, seeds))
        names = {share: f"candidate_{round(100 * share)}" for share in CANDIDATES}
        for share, name in names.items():
            trainer.run(batches, self._step(share), self._validate)
            if trainer.step == self._step(share):
                self._save(trainer, name)
        return list(names.values())

    def _save(self, trainer: Trainer, name: str) -> None:
        network = trainer.averaged(TabletopNetwork(self.config))
        write_checkpoint(self.out / name, network, self.tokenizer, self._statistics)

    def _batches(self, frames: Frames) -> Batches:
        training = self.training
        return Batches(frames, self._statistics, self.config, self.tokenizer, training.seed, training.drop)

    def _seed(self, number: int) -> int:
        """Seed of shard `number`: another training has other demonstrations."""
        return SEEDS * self.training.seed + number

    def _step(self, share: float) -> int:
        return round(share * self.training.steps)

    def _count(self, seeds: Sequence[int]) -> int:
        return sum(len(read_shard(shard_path(self._shards, seed))) for seed in seeds)


def _loaded(checkpoint: str) -> TabletopAdapter:
    """Raises CheckpointError."""
    adapter = load_adapter("tabletop", checkpoint, device="cpu")
    assert isinstance(adapter, TabletopAdapter)
    return adapter


def new_config(tokenizer: Tokenizer) -> TabletopConfig:
    """Sizes of a policy that is trained from nothing."""
    return TabletopConfig(tokenizer.get_vocab_size(), max_translation=MAX_TRANSLATION, max_rotation=MAX_ROTATION)


def new_network(config: TabletopConfig, seed: int) -> TabletopNetwork:
    """A network with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return TabletopNetwork(config)


def action_statistics(frames: Frames) -> ActionStatistics:
    """First and last percentile of the actions; the gripper is kept as it is."""
    q01, q99 = np.quantile(frames.actions.astype(np.float64), [0.01, 0.99], axis=0)
    return ActionStatistics(q01, q99, np.array([True] * 6 + [False]))


def _validation(trainer: Trainer, config: TabletopConfig, batches: Batches) -> dict[str, float]:
    """Losses of the averaged weights on frames that are never trained on."""
    network = trainer.averaged(TabletopNetwork(config))
    objective = Objective(network).to(trainer.device)
    heads = {n: v for n, v in trainer.objective.state_dict().items() if not n.startswith("network.")}
    objective.load_state_dict(heads, strict=False)
    index = np.linspace(0, len(batches.frames) - 1, VALIDATION_SAMPLES).astype(np.int64)
    with torch.inference_mode():
        parts = [
            objective(batches.plain(part).to(trainer.device))
            for part in np.array_split(index, VALIDATION_SAMPLES // 64)
        ]
    return {name: float(torch.stack([part[name] for part in parts]).mean()) for name in parts[0]}


def _judge(out: Path, episodes: int, name: str) -> dict[str, int]:
    return success(out / name, CHOICE_SEED, episodes)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=TrainingConfig.steps)
    parser.add_argument("--shards", type=int, default=Plan.shards)
    parser.add_argument("--own-shards", type=int, default=Plan.own_shards)
    parser.add_argument("--choice-episodes", type=int, default=Plan.choice_episodes)
    parser.add_argument("--workers", type=int, default=Plan.workers)
    parser.add_argument("--device", choices=DEVICES, default="auto", help="of the training; auto takes a GPU if any")
    parser.add_argument("--seed", type=int, default=TrainingConfig.seed)
    parser.add_argument("--rate", type=float, default=TrainingConfig.rate, help="of learning, at its peak")
    parser.add_argument("--finetune", default="", metavar="CHECKPOINT", help="begin with it: shipped, or a folder")
    parser.add_argument("--drop", type=float, default=TrainingConfig.drop, help="largest share of image tokens hidden")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all; 0 when a checkpoint was chosen."""
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        plan = Plan(options.shards, options.own_shards, options.choice_episodes, options.workers)
        rates = {"rate": options.rate, "muon_rate": options.rate}
        training = TrainingConfig(steps=options.steps, seed=options.seed, drop=options.drop, **rates)
        report = Run(options.out, plan, training, resolve_device(options.device), options.finetune).execute()
    except DtpError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    log = options.out / "training.jsonl"
    if log.is_file():  # a training shorter than its first report has nothing to plot
        write_training_curve(log, training.batch, options.out / "curve.png")
    text = json.dumps(report, indent=2)
    (options.out / "report.json").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\nwritten: {options.out}/checkpoint; try it: make demo CHECKPOINT={options.out}/checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())

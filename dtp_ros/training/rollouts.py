"""A policy drives many tabletops at once: for the choice of a checkpoint, and to learn from its own errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from dtp_ros.models.registry import load_adapter
from dtp_ros.models.tabletop import TabletopAdapter
from dtp_ros.models.tabletop_network import DIMENSIONS
from dtp_ros.sim.layout import random_layout
from dtp_ros.sim.lockstep import LockStep
from dtp_ros.sim.tasks import TASKS
from dtp_ros.training.demonstrations import Frames, Recorder, begin, training_layout
from dtp_ros.training.objective import Batch, prefix

BATCH = 24  # tabletops at once
Drive = Callable[[NDArray[np.uint8], Sequence[str]], NDArray[np.float64]]


class BatchPolicy:
    """Greedy actions for many images at once, token by token; the engine's way is one at a time and analyses itself."""

    def __init__(self, adapter: TabletopAdapter) -> None:
        self._network = adapter.network
        self._adapter = adapter

    @property
    def image_size(self) -> int:
        """Pixels of the policy's square images."""
        return self._network.config.image_size

    def __call__(self, images: NDArray[np.uint8], instructions: Sequence[str]) -> NDArray[np.float64]:
        """Actions [B, 7] for images uint8 [B, S, S, 3]."""
        return np.concatenate([self._adapter.decode(ids) for ids in self.tokens(images, instructions).tolist()])

    @torch.inference_mode()
    def tokens(self, images: NDArray[np.uint8], instructions: Sequence[str]) -> torch.Tensor:
        """Action ids int64 [B, 7]."""
        words = [torch.tensor(self._adapter.words(text)) for text in instructions]
        nothing = torch.empty(0)
        batch = Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2).float(),
            torch.nn.utils.rnn.pad_sequence(words, batch_first=True),
            torch.tensor([len(ids) for ids in words]),
            torch.zeros(len(images), self._network.config.side**2, dtype=torch.bool),
            *[nothing] * 7,
        )
        embeddings, there, positions = prefix(self._network, batch)
        model, cache, first = self._network.language_model, DynamicCache(), self._network.config.vocabulary
        mask, position = there[:, None, None].expand(-1, 1, there.shape[1], -1), positions
        chosen: list[torch.Tensor] = []
        while True:
            output = model(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=position, past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
            logits = self._network.lm_head(output.last_hidden_state[:, -1])
            chosen.append(logits[:, first:].argmax(-1) + first)
            if len(chosen) == DIMENSIONS:
                return torch.stack(chosen, dim=1)
            embeddings = model.embed_tokens(chosen[-1][:, None])
            position = position[:, -1:] + 1
            there = torch.cat([there, torch.ones_like(there[:, :1])], dim=1)
            mask = there[:, None, None]


def roll_out(episodes: Sequence[LockStep], drive: Drive, size: int) -> tuple[list[bool], Frames]:
    """Let `drive` act in all episodes until each is over; whether each ended in success, and the labelled frames."""
    recorders = [Recorder(size) for _ in episodes]
    try:
        while active := [i for i, recorder in enumerate(recorders) if not recorder.is_over]:
            for i in active:
                recorders[i].record(episodes[i])
            images = np.stack([recorders[i].last_image for i in active])
            actions = drive(images, [episodes[i].table.task.instruction for i in active])
            for i, action in zip(active, actions, strict=True):
                episodes[i].act(action)
        return [e.table.success() for e in episodes], Frames.joined([recorder.frames() for recorder in recorders])
    finally:
        for episode in episodes:
            episode.close()


def own_demonstrations(checkpoint: Path, seed: int, frames: int) -> Frames:
    """At least `frames` frames of episodes that the policy in `checkpoint` drives, labelled by the expert (DAgger)."""
    policy, rng = _batch_policy(checkpoint), np.random.default_rng([seed, 0xDA])
    parts: list[Frames] = []
    while sum(map(len, parts)) < frames:
        episodes = [begin(training_layout(rng), rng) for _ in range(BATCH)]
        parts.append(roll_out(episodes, policy, policy.image_size)[1])
    return Frames.joined(parts)


def success(checkpoint: Path, seed: int, episodes: int) -> dict[str, int]:
    """How many of `episodes` random plain configurations a task the policy in `checkpoint` solves, by task."""
    policy, solved = _batch_policy(checkpoint), {}
    for task in TASKS:
        rng = np.random.default_rng([seed, 0x5E])
        layouts = [random_layout(task, rng) for _ in range(episodes)]
        starts = range(0, episodes, BATCH)
        batches = ([LockStep(layout) for layout in layouts[start : start + BATCH]] for start in starts)
        solved[task] = sum(sum(roll_out(batch, policy, policy.image_size)[0]) for batch in batches)
    return solved


def _batch_policy(checkpoint: Path) -> BatchPolicy:
    adapter = load_adapter("tabletop", str(checkpoint), device="cpu")
    assert isinstance(adapter, TabletopAdapter)
    return BatchPolicy(adapter)

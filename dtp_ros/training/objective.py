"""What the tabletop policy is trained for: batches of demonstrations, and the losses on them.

The actions are learned by cross entropy on their bins, softened by a Gaussian: near bins count as nearly right. Two
auxiliary losses, whose heads are thrown away after training, make the layers that DTP looks at say where things are:
regression of the positions of source, target and gripper from the instruction's tokens, and pointing at the image
tokens of source and target. Without them the target stays unlearnt for tens of thousands of frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtp_ros.models.action_tokens import ActionStatistics, UniformBins
from dtp_ros.models.tabletop import ACT_ID, UNKNOWN_ID, word_tokenizer
from dtp_ros.models.tabletop_network import DIMENSIONS, TabletopConfig, TabletopNetwork
from dtp_ros.sim.instructions import phrases
from dtp_ros.sim.tasks import TASKS
from dtp_ros.training.demonstrations import TASK_NAMES, Frames

SOFT_BINS = 2.0  # sigma of the target over the bins
POINTING_LAYER, REGRESSION_LAYER = 2, 3  # the residual stream after so many layers
POINTING_WEIGHT, REGRESSION_WEIGHT = 0.5, 0.3
OWN_PHRASE_SHARE, UNKNOWN_SHARE = 0.3, 0.02
CENTRE, SPREAD = (0.32, 0.01, 0.06), 0.08  # m: positions are regressed as (p - CENTRE) / SPREAD


def tabletop_tokenizer() -> Tokenizer:
    """The words of every phrase of every task."""
    return word_tokenizer(sorted({word for task in TASKS.values() for p in phrases(task) for word in p.split()}))


@dataclass(frozen=True)
class Batch:
    """B training samples on one device.

    pixels: float32 [B, 3, S, S], 0 ... 255. words: padded ids int64 [B, T]; lengths: words in each, int64 [B]. hidden:
    image tokens that no row sees, as if they had been pruned, bool [B, N].
    action: normalised, gripper too, float32 [B, 7] in [-1, 1]; bins: int64 [B, 7]. known: bins of the first six as the
    later ones see them, int64 [B, 6].
    positions: normalised float32 [B, 9]; headings: float32 [B, 4]; held: float32 [B]; points: float32 [B, 2, 2], as in
    Frames.
    """

    pixels: Tensor
    words: Tensor
    lengths: Tensor
    hidden: Tensor
    action: Tensor
    bins: Tensor
    known: Tensor
    positions: Tensor
    headings: Tensor
    held: Tensor
    points: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Batches:
    """Draws augmented batches; batch number n is the same whenever it is asked for.

    drop: largest share of a sample's image tokens that is hidden; each sample's own is drawn from 0 ... drop.
    """

    def __init__(
        self,
        frames: Frames,
        statistics: ActionStatistics,
        config: TabletopConfig,
        tokenizer: Tokenizer,
        seed: int,
        drop: float = 0.0,
    ) -> None:
        self.frames = frames
        self._image_tokens, self._drop = config.side**2, drop
        bins = config.bins
        self._seed, self._count = seed, bins
        self._phrases = [
            [torch.tensor(tokenizer.encode(phrase).ids) for phrase in phrases(TASKS[name])] for name in TASK_NAMES
        ]
        normal = statistics.normalise(frames.actions.astype(np.float64))
        normal[:, 6] = 2.0 * normal[:, 6] - 1.0
        self._actions = torch.from_numpy(normal).float()
        self._bins = torch.from_numpy(UniformBins(bins).encode(normal))
        grasps = [TASKS[name].source.model().grasp for name in TASK_NAMES]
        # Twice the angle is the same after half a turn; of a block, whose sides look alike, four times after a quarter.
        self._quarter = torch.tensor([grasp is not None and grasp.period < math.pi - 1e-6 for grasp in grasps])

    def __call__(self, number: int, size: int) -> Batch:
        """Batch `number` of `size` samples, augmented."""
        rng = np.random.default_rng([self._seed, number])
        index = rng.integers(len(self.frames), size=size)
        said = [self._phrase(int(task), rng) for task in self.frames.tasks[index]]
        batch = self._batch(index, said, _jittered(self._pixels(index), rng))
        hidden = self._hidden(size, np.random.default_rng([self._seed, number, 1]))
        return replace(batch, known=_drawn(batch.known, self._count, rng), hidden=hidden)

    def plain(self, index: np.ndarray) -> Batch:
        """The samples `index`, not augmented, with the tasks' own instructions."""
        said = [self._phrases[int(task)][0] for task in self.frames.tasks[index]]
        return self._batch(index, said, self._pixels(index))

    def _hidden(self, size: int, rng: np.random.Generator) -> Tensor:
        share = rng.uniform(0.0, self._drop, (size, 1))
        return torch.from_numpy(rng.random((size, self._image_tokens)) < share)

    def _headings(self, index: np.ndarray) -> Tensor:
        """Cosine and sine [B, 4] of the headings of source and gripper, times the source's symmetry."""
        twice = torch.from_numpy(self.frames.yaw[index])
        cosine, sine = twice.unbind(2)
        four_times = torch.stack([cosine**2 - sine**2, 2 * cosine * sine], dim=2)
        quarter = self._quarter[torch.from_numpy(self.frames.tasks[index])]
        return torch.where(quarter[:, None, None], four_times, twice).flatten(1)

    def _pixels(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(self.frames.images[index]).permute(0, 3, 1, 2).float().contiguous()

    def _phrase(self, task: int, rng: np.random.Generator) -> Tensor:
        choices = self._phrases[task]
        own = rng.random() < OWN_PHRASE_SHARE
        ids = choices[0 if own else int(rng.integers(len(choices)))]
        lost = torch.from_numpy(rng.random(len(ids)) < UNKNOWN_SHARE)
        return torch.where(lost, UNKNOWN_ID, ids)

    def _batch(self, index: np.ndarray, said: list[Tensor], pixels: Tensor) -> Batch:
        frames, rows = self.frames, torch.from_numpy(index)
        positions = (torch.from_numpy(frames.positions[index]) - torch.tensor(CENTRE)) / SPREAD
        return Batch(
            pixels=pixels,
            words=nn.utils.rnn.pad_sequence(said, batch_first=True),
            lengths=torch.tensor([len(ids) for ids in said]),
            action=self._actions[rows],
            bins=self._bins[rows],
            known=self._bins[rows, :-1],
            positions=positions.flatten(1),
            headings=self._headings(index),
            held=torch.from_numpy(frames.held[index]),
            points=torch.from_numpy(frames.pixels[index]).clamp(0, 0.999),
            hidden=torch.zeros(len(index), self._image_tokens, dtype=torch.bool),
        )


def _drawn(bins: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Bins [B, 6] drawn from the soft targets about the true ones.

    Else the later tokens learn what only labels have, and greedy decoding has not: a way of exactly nothing, in one and
    the same bin, means to close the fingers, and a way of nearly nothing to go on.
    """
    drawn = bins + torch.from_numpy(rng.normal(0.0, SOFT_BINS, bins.shape).round().astype(np.int64))
    return drawn.clamp(0, count - 1)


def _jittered(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Another brightness, contrast and tint for each image, and a little noise."""
    count = len(pixels)
    gain = rng.uniform(0.8, 1.2, (count, 1, 1, 1)) * rng.uniform(0.94, 1.06, (count, 3, 1, 1))
    contrast = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 1, 1, 1))).float()
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    changed = ((pixels - mean) * contrast + mean) * torch.from_numpy(gain).float()
    noise = torch.from_numpy(rng.standard_normal(pixels.shape[1:], dtype=np.float32))
    return (changed + noise * float(rng.uniform(0.0, 4.0))).clamp(0, 255)


def prefix(network: TabletopNetwork, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [B, L, hidden], which keys are there bool [B, L], and positions [B, L] of image, words and [ACT].

    Words are padded in the batch; a pad is hidden, and takes no position from what follows.
    """
    words, lengths = batch.words, batch.lengths
    image = network.image_tokens(batch.pixels)
    count, num_image = image.shape[:2]
    ids = torch.cat([words, torch.full_like(words[:, :1], ACT_ID)], dim=1)
    embeddings = torch.cat([image, network.language_model.embed_tokens(ids)], dim=1)
    device = words.device
    steps = torch.arange(words.shape[1], device=device)
    there = torch.ones(count, embeddings.shape[1], dtype=torch.bool, device=device)
    there[:, :num_image] = ~batch.hidden
    there[:, num_image:-1] = steps < lengths[:, None]
    positions = torch.arange(embeddings.shape[1], device=device).repeat(count, 1)
    positions[:, -1] = num_image + lengths
    return embeddings, there, positions


@contextmanager
def half_precision(device: torch.device) -> Iterator[None]:
    """bfloat16 where that is the faster way: on a GPU, and on a CPU with matrix tiles (AMX)."""
    tiles = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    with ExitStack() as stack:
        if tiles or device.type == "cuda":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        if tiles:  # the fused attention's backward pass takes 13 times as long in bfloat16 (torch 2.13)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


class Objective(nn.Module):
    """The losses of a batch, with the auxiliary heads that only training needs."""

    def __init__(self, network: TabletopNetwork) -> None:
        super().__init__()
        hidden = network.config.hidden
        self.network = network
        self.regression = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 14))
        self.queries = nn.Linear(hidden, 2 * hidden)
        self.keys = nn.Linear(hidden, hidden)
        self.offsets = nn.Linear(hidden, 4)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, their weighted sum as `total`, and two figures: `source_error` (m) and `accuracy`."""
        network, num_image = self.network, self.network.config.side**2
        embeddings, there, positions = prefix(network, batch)
        known = batch.known + network.config.vocabulary
        embeddings = torch.cat([embeddings, network.language_model.embed_tokens(known)], dim=1)
        later = positions[:, -1:] + torch.arange(1, DIMENSIONS, device=positions.device)
        output = network.language_model(
            inputs_embeds=embeddings,
            attention_mask=_mask(there, DIMENSIONS - 1),
            position_ids=torch.cat([positions, later], dim=1),
            use_cache=False,
            output_hidden_states=True,
        )
        logits = network.lm_head(output.last_hidden_state[:, -DIMENSIONS:])[..., network.config.vocabulary :].float()
        states = output.hidden_states
        pointing, offset = self._pointing(states[POINTING_LAYER], there, batch, num_image)
        guess = self.regression(_said(states[REGRESSION_LAYER], there, num_image)).float()
        losses = {
            "action": _action_loss(logits, batch),
            "pointing": pointing + offset,
            "position": functional.smooth_l1_loss(guess[:, :9], batch.positions, beta=0.1),
            "heading": functional.smooth_l1_loss(guess[:, 9:13], batch.headings, beta=0.1),
            "held": functional.binary_cross_entropy_with_logits(guess[:, 13], batch.held),
        }
        auxiliary = losses["position"] + losses["heading"] + 0.5 * losses["held"]
        losses["total"] = losses["action"] + POINTING_WEIGHT * losses["pointing"] + REGRESSION_WEIGHT * auxiliary
        away = (guess[:, :3] - batch.positions[:, :3]).detach() * SPREAD
        losses["source_error"] = away.norm(dim=1).median()
        losses["accuracy"] = ((logits.detach().argmax(-1) - batch.bins).abs() <= SOFT_BINS).float().mean()
        return losses

    def _pointing(self, states: Tensor, there: Tensor, batch: Batch, num_image: int) -> tuple[Tensor, Tensor]:
        """Cross entropy over image tokens for source and target, and the offset within the right one."""
        side, image = self.network.config.side, states[:, :num_image]
        queries = self.queries(_said(states, there, num_image)).unflatten(1, (2, -1))
        scores = (queries @ self.keys(image).transpose(1, 2)).float() * image.shape[-1] ** -0.5  # [B, 2, tokens]
        place = batch.points * side
        cell = place.long()
        index = cell[..., 1] * side + cell[..., 0]  # [B, 2]
        offsets = self.offsets(image).float().unflatten(2, (2, 2))
        rows = torch.arange(len(index), device=index.device)
        found = torch.stack([offsets[rows, index[:, i], i] for i in range(2)], dim=1)
        within = place - cell - 0.5
        return functional.cross_entropy(scores.flatten(0, 1), index.flatten()), functional.smooth_l1_loss(found, within)


def _said(states: Tensor, there: Tensor, num_image: int) -> Tensor:
    """Mean of the words' states, [B, hidden]."""
    words = there[:, num_image:-1, None].float()
    mean: Tensor = (states[:, num_image : num_image + words.shape[1]] * words).sum(1) / words.sum(1)
    return mean


def _mask(there: Tensor, actions: int) -> Tensor:
    """Which keys each row sees, bool [B, 1, L + actions, L + actions]: the whole prefix, and earlier actions."""
    count, length = there.shape
    total = length + actions
    mask = torch.zeros(count, total, total, dtype=torch.bool, device=there.device)
    mask[:, :, :length] = there[:, None]
    mask[:, length:, length:] = torch.ones(actions, actions, dtype=torch.bool).tril()
    return mask[:, None]


def _action_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross entropy [B, 7, bins] against Gaussians about the true values; the gripper's is one bin."""
    bins = logits.shape[-1]
    middles = torch.arange(bins, device=logits.device) + 0.5
    distance = (middles - (batch.action[..., None] + 1) * 0.5 * bins) / SOFT_BINS
    target = (-0.5 * distance**2).softmax(-1)
    target[:, -1] = functional.one_hot(batch.bins[:, -1], bins).float()
    return -(target * logits.log_softmax(-1)).sum(-1).mean()

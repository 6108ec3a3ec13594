"""The package's own small policy for its tabletop: an image and an instruction to seven binned action tokens.

A convolutional tower gives 8 x 8 image tokens; then come the instruction's words, the token [ACT], and the actions, all
through a small Llama. The prompt is bidirectional (a prefix language model, as PaliGemma), so the order image before
instruction gives relevance by attention (Eq. 1). It was trained in this package (docs/tabletop.md), which ships its
weights; nothing of it comes from elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn

from dtp_ros.errors import ActionDecodeError, CheckpointError, ObservationError, require_choice
from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models import images
from dtp_ros.models.action_tokens import ActionStatistics, UniformBins, load_statistics
from dtp_ros.models.base import ActionVocabulary, Observation, Prompt, TokenLayout
from dtp_ros.models.decoder import DecoderAdapter
from dtp_ros.models.request import LoadRequest
from dtp_ros.models.tabletop_network import DIMENSIONS, MAX_WORDS, MODEL_TYPE, TabletopConfig, TabletopNetwork
from dtp_ros.resources import package_folder

SHIPPED = "shipped"
STATISTICS_KEY = "tabletop"
FILES = ("config.json", "tokenizer.json", "norm_stats.json")
PREPROCESS = ("area",)
UNKNOWN, ACT = "[UNK]", "[ACT]"
UNKNOWN_ID, ACT_ID = 0, 1
_TINY_WORDS = ("put", "the", "carrot", "spoon", "on", "plate", "towel")


class TabletopAdapter(DecoderAdapter):
    """The tabletop policy for the engine (`VlaAdapter`)."""

    name = "tabletop"

    def __init__(self, network: TabletopNetwork, tokenizer: Tokenizer, statistics: ActionStatistics) -> None:
        config = network.config
        super().__init__(network.language_model, network.lm_head)
        self.network = network
        self.tokenizer = tokenizer
        self.statistics = statistics
        self._bins = UniformBins(config.bins)
        self._first = config.vocabulary
        self.grid = (config.side, config.side)
        self.vocabulary = ActionVocabulary(
            torch.arange(config.bins) + self._first, min_tokens=DIMENSIONS, max_tokens=DIMENSIONS
        )

    def prepare(self, observation: Observation) -> Prompt:
        """Build the prefill; raises ObservationError for no image, or an instruction of no or too many words."""
        pixels = images.area(images.main_camera(observation.images), self.network.config.image_size)
        words = self.words(observation.instruction)
        ids = torch.tensor([[*words, ACT_ID]], device=self.device)
        with torch.no_grad():
            batch = torch.from_numpy(pixels).to(self.device, self.dtype).permute(2, 0, 1)[None]
            embeddings = torch.cat([self.network.image_tokens(batch), self.embed(ids)], dim=1)
        length, tokens = embeddings.shape[1], self.grid[0] * self.grid[1]
        positions = torch.arange(length, device=self.device)
        layout = TokenLayout(positions[:tokens], positions[tokens : length - 1], *self.grid, relevance="attention")
        return Prompt(embeddings, positions[None], length, layout, bidirectional=True)

    def words(self, instruction: str) -> list[int]:
        """Ids of an instruction's words, 1 ... 32; a word that the policy never saw is [UNK].

        Raises ObservationError.
        """
        try:
            ids: list[int] = self.tokenizer.encode(instruction, add_special_tokens=False).ids
        except (UnicodeError, TypeError):
            raise ObservationError("the instruction holds characters that are not Unicode text") from None
        if not 1 <= len(ids) <= MAX_WORDS:
            shown = instruction[:80]
            raise ObservationError(f"the instruction {shown!r} has {len(ids)} words (valid: 1 ... {MAX_WORDS})")
        return ids

    def decode(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """The step [1, 7] that seven ids stand for, gripper 0 ... 1 (1 = open); raises ActionDecodeError.

        The direction along the table is kept where the way is longer than a step.
        """
        if len(ids) != DIMENSIONS:
            raise ActionDecodeError(f"{len(ids)} action tokens (valid: {DIMENSIONS})")
        values = self._bins.decode([i - self._first for i in ids])
        action, config = self.statistics.unnormalise(values), self.network.config
        action[:2] *= min(1.0, config.max_translation / max(math.hypot(action[0], action[1]), 1e-9))
        action[2] = np.clip(action[2], -config.max_translation, config.max_translation)
        action[3:6] = np.clip(action[3:6], -config.max_rotation, config.max_rotation)
        action[6] = np.clip(0.5 * (values[6] + 1.0), 0.0, 1.0)
        return action[None]


def load(request: LoadRequest) -> TabletopAdapter:
    """Load the shipped weights (`shipped`), a folder that `make train` wrote, a hub id or `tiny`.

    See `registry.load_adapter` for the errors.
    """
    require_choice("preprocess", request.preprocess, PREPROCESS)
    place = ckpt.resolve_device(request.device)
    if request.checkpoint == SHIPPED:
        folder = package_folder("models/tabletop_weights")
    else:
        folder = request.folder("tabletop", _write_tiny, FILES)
    config = TabletopConfig.read(folder)
    kind = ckpt.resolve_dtype(request.dtype, place, "float32")
    statistics = load_statistics(folder, STATISTICS_KEY)
    tokenizer = _load_tokenizer(folder, config)
    with request.blank_model(place, kind):
        network = TabletopNetwork(config)
    request.load_weights(network, network.language_model, folder, lambda key: key, {}, request.reading())
    network.requires_grad_(False).eval()
    return TabletopAdapter(network, tokenizer, statistics)


def _load_tokenizer(folder: Path, config: TabletopConfig) -> Tokenizer:
    path = ckpt.require_file(folder, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    special = tokenizer.token_to_id(UNKNOWN), tokenizer.token_to_id(ACT)
    if special != (UNKNOWN_ID, ACT_ID) or tokenizer.get_vocab_size() != config.vocabulary:
        size = tokenizer.get_vocab_size()
        raise CheckpointError(f"{path} has {size} words, not {config.vocabulary} with {UNKNOWN} and {ACT} first")
    return tokenizer


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer of lower-case words: [UNK] is 0, [ACT] 1, then `words` in their order; all else separates them."""
    vocabulary = {word: i for i, word in enumerate((UNKNOWN, ACT, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z]+"), behavior="removed")
    return tokenizer


def write_checkpoint(
    folder: Path, network: TabletopNetwork, tokenizer: Tokenizer, statistics: ActionStatistics
) -> None:
    """Write what `load` reads: config.json, tokenizer.json, norm_stats.json and model.safetensors (float32)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": MODEL_TYPE, "dtype": "float32", **vars(network.config)}
    quantiles = {name: getattr(statistics, name).tolist() for name in ("q01", "q99", "mask")}
    for name, value in (("config.json", config), ("norm_stats.json", {STATISTICS_KEY: {"action": quantiles}})):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {name: value.detach().float().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / ckpt.WEIGHTS, metadata={"format": "pt"})


def _write_tiny(folder: Path) -> None:
    """Random weights, spread so far that attention is not uniform."""
    tokenizer = word_tokenizer(_TINY_WORDS)
    generator = torch.Generator().manual_seed(0)
    network = TabletopNetwork(
        TabletopConfig(tokenizer.get_vocab_size(), widths=(16, 24, 32), hidden=32, layers=6, heads=2, mlp=64)
    )
    for name, value in network.named_parameters():
        if "norm" not in name and value.dim() > 1:
            nn.init.normal_(value, std=0.2, generator=generator)
    limit = np.array([0.04, 0.04, 0.04, 0.1, 0.1, 0.15, 1.0])
    write_checkpoint(folder, network, tokenizer, ActionStatistics(-limit, limit, np.array([True] * 6 + [False])))

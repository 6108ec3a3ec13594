"""NORA (declare-lab/nora, nora-long): Qwen2.5-VL 3B that answers an image and an instruction with FAST tokens.

Facts from the published training and inference code (github.com/declare-lab/nora). The prompt is one user turn, image
before instruction, under the checkpoint's chat template; the model is causal, so relevance is attention (Eq. 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dtp_ros.errors import (
    CheckpointError,
    ConfigError,
    require_choice,
    require_integer,
)
from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models import images
from dtp_ros.models.action_tokens import ActionStatistics, FastCodec, load_fast_codec, load_statistics
from dtp_ros.models.base import ActionVocabulary, Grammar, Observation, Prompt, TokenLayout
from dtp_ros.models.decoder import DecoderAdapter
from dtp_ros.models.fast_grammar import FastGrammar
from dtp_ros.models.prompt import InstructionTemplate, load_tokenizer
from dtp_ros.models.request import LoadRequest
from dtp_ros.models.tiny_nora import write_tiny_nora

MODEL_TYPE = "qwen2_5_vl"
FIRST_ACTION_ID = 151665
IMAGE_SIZE = 224
PREPROCESS = ("widowx", "reference")
FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.*", "special_tokens_map.*", "added_tokens.*", "vocab.*", "merges.*", "norm_stats.*", "fast/*.json",
)  # fmt: skip
FAST_FILES = ("tokenizer.json", "processor_config.json")
TIED = {"lm_head.weight": "model.language_model.embed_tokens.weight"}


@dataclass(frozen=True)
class NoraOptions:
    """What the adapter leaves to the user; raises ConfigError.

    lower_case_instruction: lower-case the instruction, as every training prompt was.
    horizon: actions a chunk; None: the FAST folder's `time_horizon`, else 5 for a nora-long and 1 otherwise.
    statistics_key: data set in norm_stats.json whose quantiles un-normalise the actions.
    statistics: hub id whose norm_stats.json serves a hub checkpoint that has none.
    fast_tokenizer, fast_revision: folder or hub id of the FAST tokenizer of a checkpoint without a folder `fast`.
    """

    lower_case_instruction: bool = True
    horizon: int | None = None
    statistics_key: str = "bridge_orig"
    statistics: str = "declare-lab/nora"
    fast_tokenizer: str = "physical-intelligence/fast"
    fast_revision: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.lower_case_instruction, bool):
            raise ConfigError(f"lower_case_instruction = {self.lower_case_instruction!r} (valid: true, false)")
        if self.horizon is not None:
            require_integer("horizon", self.horizon, 1, 64)


def rename(key: str) -> str:
    """Name in today's transformers of a weight: checkpoints of 2025 call them `visual.*` and `model.layers.*`."""
    if key.startswith("visual."):
        return f"model.{key}"
    if key.startswith("model.") and not key.startswith(("model.visual.", "model.language_model.")):
        return key.replace("model.", "model.language_model.", 1)
    return key


@dataclass(frozen=True)
class NoraAssets:
    """What a NORA checkpoint holds besides the weights, loaded."""

    template: InstructionTemplate
    codec: FastCodec
    statistics: ActionStatistics
    end_ids: tuple[int, ...]
    image_token_id: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    patch: int
    merge: int
    frames: int


class NoraAdapter(DecoderAdapter):
    """NORA for the engine (`VlaAdapter`).

    model: a Qwen2_5_VLForConditionalGeneration, in evaluation mode. preprocess: `widowx` (JPEG round trip and Lanczos
    resize, as the published WidowX client and the training data) or `reference` (PIL's bicubic resize, as the published
    inference class alone).
    """

    name = "nora"

    def __init__(self, model: nn.Module, assets: NoraAssets, preprocess: str, lower_case: bool) -> None:
        whole: Any = model
        super().__init__(whole.model.language_model, whole.lm_head)
        self._core: Any = whole.model
        self._assets = assets
        self._preprocess = require_choice("preprocess", preprocess, PREPROCESS)
        self._lower_case = lower_case
        self.horizon = assets.codec.horizon
        self._grammar = FastGrammar(assets.codec, FIRST_ACTION_ID, assets.end_ids)
        side = IMAGE_SIZE // (assets.patch * assets.merge)
        self.grid = (side, side)
        self.vocabulary = ActionVocabulary(
            action_ids=torch.arange(len(assets.codec.token_bytes)) + FIRST_ACTION_ID,
            end_ids=assets.end_ids,
            max_tokens=assets.codec.max_tokens,
        )

    def prepare(self, observation: Observation) -> Prompt:
        """Build the prefill; raises ObservationError for an image or an instruction that NORA cannot take."""
        assets = self._assets
        text = observation.instruction.lower() if self._lower_case else observation.instruction
        template, instruction = assets.template, assets.template.instruction(text)
        ids = torch.tensor([[*template.before, *instruction, *template.after]], device=self.device)
        image = torch.nonzero(ids[0] == assets.image_token_id).flatten()
        prompt = torch.arange(len(instruction), device=self.device) + len(template.before)
        side = IMAGE_SIZE // assets.patch
        grid = torch.tensor([[1, side, side]], device=self.device)
        with torch.no_grad():
            pixels = torch.from_numpy(self.pixels(observation)).to(self.device, self.dtype)
            embeddings = self.embed(ids).clone()
            embeddings[0, image] = self._core.visual(pixels, grid_thw=grid).pooler_output.to(embeddings.dtype)
            # get_rope_index, unlike the model's own forward pass, leaves model.rope_deltas as they were.
            position_ids, _ = self._core.get_rope_index(
                ids, mm_token_type_ids=(ids == assets.image_token_id).int(), image_grid_thw=grid
            )
        layout = TokenLayout(image, prompt, *self.grid, relevance="attention")
        return Prompt(embeddings, position_ids, int(position_ids.max()) + 1, layout)

    def pixels(self, observation: Observation) -> NDArray[np.float32]:
        """Normalised patches of the main camera, float32 [256, 1176]; raises ObservationError."""
        image = images.main_camera(observation.images)
        if self._preprocess == "widowx":
            image = images.lanczos3(images.jpeg_round_trip(image), IMAGE_SIZE)
        a = self._assets
        return images.patches(images.bicubic(image, IMAGE_SIZE), a.mean, a.std, a.patch, a.merge, a.frames)

    def grammar(self) -> Grammar:
        """The grammar of FAST tokens that decode."""
        return self._grammar

    def decode(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Actions [horizon, 7], gripper clipped to 0 ... 1 (1 = open); raises ActionDecodeError."""
        actions = self._assets.statistics.unnormalise(self._assets.codec.decode(ids, FIRST_ACTION_ID))
        actions[:, 6] = np.clip(actions[:, 6], 0.0, 1.0)
        return actions


def load(request: LoadRequest) -> NoraAdapter:
    """Load NORA from a folder, a hub id or `tiny`; see `registry.load_adapter` for the errors."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    settings = NoraOptions(**request.options)
    require_choice("preprocess", request.preprocess, PREPROCESS)
    place = ckpt.resolve_device(request.device)
    folder = request.folder("nora", write_tiny_nora, FILES)
    config, kind = _load_config(folder, request.dtype, place)
    assets = _load_assets(request.checkpoint, folder, config, settings)
    needed = FIRST_ACTION_ID + len(assets.codec.token_bytes)
    if config.text_config.vocab_size < needed:
        raise CheckpointError(f"{folder} has {config.text_config.vocab_size} tokens, not the {needed} of NORA")
    with request.blank_model(place, kind):
        model = Qwen2_5_VLForConditionalGeneration(config)
    tied = TIED if config.tie_word_embeddings else {}
    request.load_weights(model, model.model.language_model, folder, rename, tied, request.reading())
    model.set_attn_implementation("sdpa")
    model.requires_grad_(False).eval()
    return NoraAdapter(model, assets, request.preprocess, settings.lower_case_instruction)


def _load_config(folder: Path, dtype: str, device: torch.device) -> tuple[Any, torch.dtype]:
    """The model's configuration, and the type of its weights on `device`."""
    from transformers import Qwen2_5_VLConfig

    raw = ckpt.require_model_type(folder, MODEL_TYPE)
    stored = raw.get("dtype") or raw.get("torch_dtype") or (raw.get("text_config") or {}).get("dtype")
    kind = ckpt.resolve_dtype(dtype, device, str(stored))
    try:
        config = Qwen2_5_VLConfig.from_dict(raw)
    except Exception as error:  # the validators of transformers share no base class
        raise CheckpointError(f"{folder / 'config.json'} is not a valid configuration: {error}") from error
    for part in (config, config.text_config, config.vision_config):
        part.dtype = kind
    return config, kind


def _load_assets(checkpoint: str, folder: Path, config: Any, options: NoraOptions) -> NoraAssets:
    image = ckpt.read_json(folder, "preprocessor_config.json")
    ends = ckpt.read_json(folder, "generation_config.json").get("eos_token_id")
    end_ids = tuple(ends) if isinstance(ends, list) else (ends,)
    if not all(isinstance(end, int) for end in end_ids):
        raise CheckpointError(f"{folder / 'generation_config.json'} names no eos_token_id")
    try:
        mean, std = (np.asarray(image[key], dtype=np.float32) for key in ("image_mean", "image_std"))
        patch, merge, frames = (int(image[key]) for key in ("patch_size", "merge_size", "temporal_patch_size"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'preprocessor_config.json'} is incomplete ({error})") from None
    vision = config.vision_config
    if (patch, merge, frames) != (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size):
        raise CheckpointError(f"{folder}: preprocessor_config.json and config.json differ in the patches' sizes")
    if IMAGE_SIZE % (patch * merge):
        raise CheckpointError(f"{folder}: {IMAGE_SIZE} is no multiple of patch_size * merge_size = {patch * merge}")
    image_token_id = int(config.image_token_id)
    tokens = (IMAGE_SIZE // (patch * merge)) ** 2
    template = InstructionTemplate(load_tokenizer(folder), image_token_id, tokens)
    statistics = load_statistics(_statistics_folder(checkpoint, folder, options), options.statistics_key)
    codec = _load_codec(checkpoint, folder, options)
    return NoraAssets(template, codec, statistics, end_ids, image_token_id, mean, std, patch, merge, frames)


def _statistics_folder(checkpoint: str, folder: Path, options: NoraOptions) -> Path:
    """The published code reads norm_stats.json from declare-lab/nora for every checkpoint of the family."""
    if (folder / "norm_stats.json").is_file() or not ckpt.is_hub_id(checkpoint):
        return folder
    return ckpt.resolve(options.statistics, "", ("norm_stats.json",), weights=False)


def _load_codec(checkpoint: str, folder: Path, options: NoraOptions) -> FastCodec:
    fast = folder / "fast"
    if not fast.is_dir():
        fast = ckpt.resolve(options.fast_tokenizer, options.fast_revision, FAST_FILES, weights=False)
    horizon = options.horizon or ckpt.read_json(fast, "processor_config.json").get("time_horizon")
    if horizon is not None and type(horizon) is not int:
        raise CheckpointError(
            f"{fast / 'processor_config.json'}: time_horizon = {horizon!r} (valid: an integer, or null)"
        )
    return load_fast_codec(fast, horizon or (5 if "nora-long" in checkpoint else 1))

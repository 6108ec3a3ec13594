"""UniVLA (Yuqi1997/UniVLA): Emu3 8B that continues a film of image codes and FAST tokens.

Facts from the published training and evaluation code (github.com/baaivision/UniVLA; the model of that name by
OpenDriveLab is another). The sequence is `bos instruction [frame action eoa] frame`, where a frame is `boi "1*32*32"
img 1024 codes eof eoi boa`, and the first frame and the action are those of the step before. Codes and text are
ordinary tokens of one causal model. The prompt comes before the images, so relevance is the similarity of embeddings
(Eq. 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dtp_ros.errors import (
    CheckpointError,
    ConfigError,
    ObservationError,
    require_choice,
    require_integer,
    require_range,
)
from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models import emu3_vision, images
from dtp_ros.models.action_tokens import ActionStatistics, FastCodec, load_fast_codec
from dtp_ros.models.base import ActionVocabulary, Grammar, Observation, Prompt, TokenLayout
from dtp_ros.models.decoder import DecoderAdapter
from dtp_ros.models.download import folder_of
from dtp_ros.models.emu3_vision import Emu3VisionTokenizer, load_vision_tokenizer
from dtp_ros.models.fast_grammar import FastGrammar
from dtp_ros.models.request import FETCHED, LoadRequest
from dtp_ros.models.tiktoken_bpe import TiktokenBpe, load_ranks
from dtp_ros.models.tiny_univla import write_tiny_univla

MODEL_TYPE = "Emu3"
IMAGE_SIZE = 256
PREPROCESS = ("simpler",)
LAST_ACTION_ID = 151642  # stands for FAST id 0; from there FAST ids count down
FIRST_SPECIAL_ID = 151643
FIRST_VISION_ID = 151851  # 3 named and 205 numbered special tokens precede the lines of emu3_vision_tokens.txt
BOA_ID, EOA_ID, EOF_ID, BOS_ID = 151844, 151845, 151847, 151849
VISION_TOKENS = ("<|image token|>", "<|image start|>", "<|image end|>", "<|visual token 000000|>")
IMG_ID, BOI_ID, EOI_ID, FIRST_CODE_ID = range(FIRST_VISION_ID, FIRST_VISION_ID + len(VISION_TOKENS))
AFTER_CODES = (EOF_ID, EOI_ID, BOA_ID)
TEXT_FILES = ("emu3.tiktoken", "emu3_vision_tokens.txt")
VISION_FOLDER = "vision_tokenizer"
FAST_FOLDER = "fast_bridge_t5_s50"
FAST_FILES = ("tokenizer.json", "processor_config.json")
STATISTICS = "norm_stats.json"
# What a policy may have of its own goes before what the options name.
FILES = ("config.json", "emu3.*", "emu3_vision_tokens.*", "norm_stats.*", f"{FAST_FOLDER}/*", f"{VISION_FOLDER}/*")
_CONFIG = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "pad_token_id", "bos_token_id",
    "eos_token_id", "attention_dropout", "initializer_range", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class UniVlaOptions:
    """What the adapter leaves to the user; raises ConfigError.

    subfolder: folder of the policy in a checkpoint that holds several; a checkpoint without it is the policy itself.
    vision_tokenizer, vision_revision: folder or hub id of the image tokeniser.
    text_tokenizer, text_revision: folder or hub id of the text tokenizer of a policy that has none of its own.
    fast_tokenizer, statistics: folders of the FAST tokenizer and of norm_stats.json, or https addresses of such
    folders, for a policy that has none of its own.
    statistics_key: data set whose quantiles un-normalise the actions. horizon: actions a chunk.
    history_age: s, how old the step before may be to precede the newest frame.
    """

    subfolder: str = ""
    vision_tokenizer: str = "BAAI/Emu3-VisionTokenizer"
    vision_revision: str = ""
    text_tokenizer: str = "BAAI/Emu3-Stage1"
    text_revision: str = ""
    fast_tokenizer: str = ""
    statistics: str = ""
    statistics_key: str = "bridge_robot"
    horizon: int = 5
    history_age: float = 10.0

    def __post_init__(self) -> None:
        require_integer("horizon", self.horizon, 1, 64)
        require_range("history_age", self.history_age, 0.0, 3600.0)
        for name, value in vars(self).items():
            if name not in ("horizon", "history_age") and not isinstance(value, str):
                raise ConfigError(f"{name} = {value!r} is not a text")


@dataclass(frozen=True)
class UniVlaAssets:
    """What UniVLA needs besides its weights. codec: its tokens in the order of the model's ids, FAST id 0 last."""

    text: TiktokenBpe
    vision: Emu3VisionTokenizer
    codec: FastCodec
    statistics: ActionStatistics
    max_positions: int


@dataclass(frozen=True)
class _Step:
    """A step: at what time, for which instruction, on what frame (its tokens), and, once decided, its action tokens."""

    stamp: float
    instruction: str
    frame: tuple[int, ...]
    action: tuple[int, ...] = ()


class UniVlaAdapter(DecoderAdapter):
    """UniVLA for the engine (`VlaAdapter`), with the history that its evaluation gives it.

    The step before (frame and action) precedes the newest frame, from its second step on. It is forgotten by `reset`,
    by a new instruction, where its tokens did not decode (nothing was executed then), and where it is older than
    `history_age` (a camera that was away) or newer than the frame (a clock that was set back).

    model: an Emu3ForCausalLM, in evaluation mode. history_age: s.
    """

    name = "univla"

    def __init__(self, model: nn.Module, assets: UniVlaAssets, history_age: float) -> None:
        whole: Any = model
        super().__init__(whole.model, whole.lm_head)
        self._assets = assets
        self._history_age = history_age
        self.horizon = assets.codec.horizon
        side = IMAGE_SIZE // assets.vision.factor
        self.grid = (side, side)
        self._first_action = LAST_ACTION_ID + 1 - len(assets.codec.token_bytes)
        self._grammar = FastGrammar(assets.codec, self._first_action, (EOA_ID,))
        size = assets.text.encode(f"1*{side}*{side}")
        self._before_codes = (BOI_ID, *size, IMG_ID)
        # The published evaluation allows one id more than there are FAST tokens; it does not decode.
        self.vocabulary = ActionVocabulary(
            action_ids=torch.arange(self._first_action - 1, LAST_ACTION_ID + 1),
            end_ids=(EOA_ID,),
            max_tokens=assets.codec.max_tokens,
        )
        frame = len(self._before_codes) + side * side + len(AFTER_CODES)
        self._max_words = assets.max_positions - 2 * (frame + self.vocabulary.max_tokens + 1)
        self._before: _Step | None = None
        self._now: _Step | None = None

    def prepare(self, observation: Observation) -> Prompt:
        """Build the prefill; raises ObservationError for an image or an instruction that UniVLA cannot take.

        Only the newest frame is encoded: the one before is kept as tokens.
        """
        instruction = self._words(observation.instruction)
        now = _Step(observation.stamp, observation.instruction, self._frame(observation))
        if self._now is not None and self._now.stamp != now.stamp:
            self._before = None  # the step between was not decided, whatever the reason: it executed nothing
        past = self._history(now)
        ids = torch.tensor([[BOS_ID, *instruction, *past, *now.frame]])
        length = ids.shape[1]
        start = length - len(now.frame) + len(self._before_codes)
        layout = TokenLayout(
            torch.arange(start, start + self.grid[0] * self.grid[1], device=self.device),
            torch.arange(1, 1 + len(instruction), device=self.device),
            *self.grid,
            relevance="embedding",
        )
        self._now = now
        return Prompt(self.embed(ids), torch.arange(length, device=self.device)[None], length, layout)

    def _history(self, now: _Step) -> tuple[int, ...]:
        """Tokens of the step before, empty where there is none that `now` goes on from."""
        before = self._before
        if before is None or before.instruction != now.instruction:
            return ()
        return (*before.frame, *before.action, EOA_ID) if 0.0 <= now.stamp - before.stamp <= self._history_age else ()

    def _words(self, instruction: str) -> list[int]:
        """Ids of an instruction that leaves room for two steps, so that no episode fails at its second."""
        ids = self._assets.text.encode(instruction)
        if not instruction.strip():
            raise ObservationError(f"the instruction {instruction!r} has no tokens")
        if len(ids) > self._max_words:
            raise ObservationError(f"the instruction has {len(ids)} tokens (valid: 1 ... {self._max_words})")
        return ids

    def _frame(self, observation: Observation) -> tuple[int, ...]:
        """Tokens of the newest frame, up to the one that asks for its action; raises ObservationError."""
        codes = self._assets.vision.encode(self.image(observation)) + FIRST_CODE_ID
        return (*self._before_codes, *codes.flatten().tolist(), *AFTER_CODES)

    def image(self, observation: Observation) -> NDArray[np.uint8]:
        """The main camera's picture as it is encoded, RGB uint8 [256, 256, 3]; raises ObservationError."""
        return images.bicubic(images.main_camera(observation.images), IMAGE_SIZE)

    def grammar(self) -> Grammar:
        """The grammar of FAST tokens that decode."""
        return self._grammar

    def decode(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Actions [horizon, 7], gripper clipped to 0 ... 1 (1 = open); raises ActionDecodeError.

        The tokens become the history of the next step.
        """
        self._before = None
        normalised = self._assets.codec.decode(ids, self._first_action)
        actions = self._assets.statistics.unnormalise(normalised)
        actions[:, 6] = np.clip(actions[:, 6], 0.0, 1.0)
        if self._now is not None:
            self._before, self._now = replace(self._now, action=tuple(ids)), None
        return actions

    def reset(self) -> None:
        """Forget the step before."""
        self._before = self._now = None


def load(request: LoadRequest) -> UniVlaAdapter:
    """Load UniVLA from a folder, a hub id or `tiny`; see `registry.load_adapter` for the errors."""
    from transformers import Emu3ForCausalLM

    settings = UniVlaOptions(**request.options)
    require_choice("preprocess", request.preprocess, PREPROCESS)
    place = ckpt.resolve_device(request.device)
    folder = request.folder("univla", write_tiny_univla, FILES, settings.subfolder)
    config, kind = _load_config(folder, request.dtype, place)
    text = _load_text(folder, settings)
    codec = _load_codec(folder, settings)
    statistics = _load_statistics(folder, settings)
    vision = _load_vision(folder, settings, config.vocab_size, place, request.reading(FETCHED, 0.5))
    with request.blank_model(place, kind):
        model = Emu3ForCausalLM(config)
    request.load_weights(model, model.model, folder, lambda key: key, {}, request.reading(0.5))
    model.set_attn_implementation("sdpa")
    model.requires_grad_(False).eval()
    assets = UniVlaAssets(text, vision, codec, statistics, config.max_position_embeddings)
    return UniVlaAdapter(model, assets, settings.history_age)


def _load_config(folder: Path, dtype: str, device: torch.device) -> tuple[Any, torch.dtype]:
    """Configuration of the language model, and the type of its weights on `device`."""
    from transformers import Emu3TextConfig

    raw = ckpt.require_model_type(folder, MODEL_TYPE)
    if raw.get("architectures") == ["Emu3ForCausalLM"]:
        raise CheckpointError(f"{folder} looks like Emu3 itself (Emu3ForCausalLM), not UniVLA (Emu3MoE)")
    if raw.get("action_experts") or raw.get("rope_scaling") or raw.get("qkv_bias"):
        raise CheckpointError(f"{folder / 'config.json'}: no UniVLA has action_experts, rope_scaling or qkv_bias set")
    kind = ckpt.resolve_dtype(dtype, device, str(raw.get("dtype") or raw.get("torch_dtype")))
    rope = {"rope_type": "default", "rope_theta": raw.get("rope_theta", 1e6)}
    try:
        config = Emu3TextConfig(**{name: raw[name] for name in _CONFIG}, rope_parameters=rope, dtype=kind)
    except Exception as error:  # the validators of transformers share no base class
        raise CheckpointError(f"{folder / 'config.json'} is not a valid configuration: {error}") from error
    return config, kind


def _load_text(folder: Path, options: UniVlaOptions) -> TiktokenBpe:
    """The text tokenizer; raises CheckpointError where its ids are not Emu3's."""
    if not (folder / TEXT_FILES[0]).is_file():
        folder = ckpt.resolve(options.text_tokenizer, options.text_revision, TEXT_FILES, weights=False)
    ranks = load_ranks(folder, TEXT_FILES[0])
    if len(ranks) != FIRST_SPECIAL_ID:
        raise CheckpointError(f"{folder / TEXT_FILES[0]} has {len(ranks)} tokens, not the {FIRST_SPECIAL_ID} of Emu3")
    path = ckpt.require_file(folder, TEXT_FILES[1])
    tokens = tuple(path.read_text(encoding="utf-8", errors="replace").split("\n")[: len(VISION_TOKENS)])
    if tokens != VISION_TOKENS:
        raise CheckpointError(f"{path} does not begin with {', '.join(VISION_TOKENS)}")
    return TiktokenBpe(ranks)


def _load_vision(
    folder: Path, options: UniVlaOptions, vocabulary: int, device: torch.device, progress: ckpt.Progress
) -> Emu3VisionTokenizer:
    vision_folder = folder / VISION_FOLDER
    if not vision_folder.is_dir():
        fetch = ckpt.stage(progress, 0.0, 0.5)
        vision_folder = ckpt.resolve(options.vision_tokenizer, options.vision_revision, emu3_vision.FILES, fetch)
    vision = load_vision_tokenizer(vision_folder, device, ckpt.stage(progress, 0.5, 1.0))
    if vocabulary != FIRST_CODE_ID + vision.codes:
        needed = f"{FIRST_CODE_ID} and the {vision.codes} codes of {vision_folder}"
        raise CheckpointError(f"{folder} has {vocabulary} tokens, not {needed}")
    if IMAGE_SIZE % vision.factor:
        raise CheckpointError(f"{vision_folder}: {IMAGE_SIZE} pixels are no multiple of {vision.factor} a code")
    return vision


def _load_codec(folder: Path, options: UniVlaOptions) -> FastCodec:
    """The FAST code in the order of the model's ids, which count down: the engine and the grammar count up."""
    fast = folder / FAST_FOLDER
    if not fast.is_dir():
        fast = folder_of(options.fast_tokenizer, FAST_FILES)
    return load_fast_codec(fast, options.horizon).counting_down()


def _load_statistics(folder: Path, options: UniVlaOptions) -> ActionStatistics:
    """Quantiles of norm_stats.json, as openpi writes it: no level `action` and no mask, all seven are normalised."""
    if not (folder / STATISTICS).is_file():
        folder = folder_of(options.statistics, (STATISTICS,))
    path, key = folder / STATISTICS, options.statistics_key
    sets = ckpt.read_json(folder, STATISTICS).get("norm_stats")
    if not isinstance(sets, dict) or key not in sets:
        valid = ", ".join(sorted(sets)) if isinstance(sets, dict) else "none"
        raise CheckpointError(f"{path} has no statistics {key!r} (valid: {valid})")
    try:
        q01, q99 = (np.asarray(sets[key][name], dtype=np.float64) for name in ("q01", "q99"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {key} has no numbers q01, q99 ({error})") from None
    if q01.shape != (7,) or q99.shape != (7,) or not (np.isfinite([q01, q99]).all() and (q01 <= q99).all()):
        raise CheckpointError(f"{path}: q01 and q99 of {key} are not seven numbers each, finite and ascending")
    return ActionStatistics(q01, q99, np.ones(7, dtype=np.bool_))

"""pi0-FAST as LeRobot publishes it (lerobot/pi0fast-base, pi0fast-libero): PaliGemma that answers with FAST tokens.

Facts from huggingface/lerobot (src/lerobot/policies/pi0_fast) and Physical-Intelligence/openpi. The sequence is 256
tokens a camera, then `Task: ..., State: ...;` with the arm's state in 256 bins: a bidirectional prefix, image before
instruction, so relevance is attention (Eq. 1). The answer is `Action: `, FAST tokens, `|`. FAST ids count down from the
end of PaliGemma's vocabulary. LeRobot pads the prompt to 200 tokens and masks absent cameras; neither takes a position
nor is seen by any row, so both are left out here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from dtp_ros.errors import (
    CheckpointError,
    ConfigError,
    ObservationError,
    require_choice,
    require_integer,
)
from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models import images, lerobot
from dtp_ros.models.action_tokens import FastCodec, load_fast_codec
from dtp_ros.models.base import ActionVocabulary, Grammar, Observation, Prompt, TokenLayout
from dtp_ros.models.decoder import DecoderAdapter
from dtp_ros.models.fast_grammar import FastGrammar
from dtp_ros.models.prompt import PlainPrompt, read_tokenizer
from dtp_ros.models.request import LoadRequest
from dtp_ros.models.tiny import TINY
from dtp_ros.models.tiny_pi0_fast import write_tiny_pi0_fast

POLICY = "pi0_fast"
IMAGE_SIZE = 224
PREPROCESS = ("lerobot", "openpi")
FILES = (*lerobot.FILES, "tokenizer/*.json", "action_tokenizer/*.json", "action_tokenizer/bpe_tokenizer/*.json")
FAST_FILES = ("processor_config.json", "*tokenizer.json", "bpe_tokenizer/*.json")
STATE_BINS = 256
MAX_HORIZON = 64
MAX_BOUND = 100.0  # of normalised actions
PUBLISHED = ("lerobot/pi0fast-libero", TINY)
PREFIX, END, BOS = "Action: ", "|", "<bos>"
CORE = "paligemma_with_expert.paligemma."
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
_log = logging.getLogger(__name__)

# LeRobot's config.json names a variant, not sizes; `tiny` is ours.
VARIANTS: Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]] = {
    "gemma_2b": (
        {"vocab_size": 257152, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
         "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256},
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
    ),
    "tiny": (
        {"vocab_size": 3072, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 18,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pi0FastOptions:
    """What the adapter leaves to the user; raises ConfigError.

    convention: what state and actions of the training data mean, see `lerobot.CONVENTIONS`; "": `libero`, for the
    published checkpoint only.
    cameras: how many cameras the node waits for. statistics: see `lerobot.load_normaliser`.
    action_bound: largest normalised magnitude that decodes; None: that of the data.
    text_tokenizer, fast_tokenizer: folder or hub id instead of the checkpoint's own, and their revisions.
    """

    convention: str = ""
    cameras: int = 1
    statistics: str = ""
    action_bound: float | None = None
    text_tokenizer: str = ""
    text_revision: str = ""
    fast_tokenizer: str = ""
    fast_revision: str = ""

    def __post_init__(self) -> None:
        if self.convention:
            require_choice("convention", self.convention, lerobot.CONVENTIONS)
        require_integer("cameras", self.cameras, 1, 8)
        bound = self.action_bound
        if bound is not None and not (type(bound) in (int, float) and 0 < bound <= MAX_BOUND):
            raise ConfigError(f"action_bound = {bound!r} is out of range (valid: null, or above 0 and up to 100)")


@dataclass(frozen=True)
class Pi0FastAssets:
    """What a checkpoint holds besides the weights, loaded.

    codec: its tokens in the order of the model's ids, FAST id 0 last. first_action_id: the id of the first of them.
    prefix: ids that begin every answer.
    """

    prompt: PlainPrompt
    prefix: tuple[int, ...]
    bos_id: int
    end_id: int
    codec: FastCodec
    state: lerobot.Normaliser
    action: lerobot.Normaliser
    first_action_id: int
    max_prompt: int
    max_tokens: int


class Pi0FastAdapter(DecoderAdapter):
    """pi0-FAST for the engine (`VlaAdapter`).

    model: a PaliGemmaForConditionalGeneration, in evaluation mode. preprocess: `lerobot` (bilinear resize without
    antialiasing, case kept, a second BOS after the prompt) or `openpi` (PIL's bilinear resize, lower case, no second
    BOS; the first generated token leaves one position free, as openpi's decode loop does).
    """

    name = "pi0_fast"
    needs_state = True

    def __init__(self, model: nn.Module, assets: Pi0FastAssets, preprocess: str, options: Pi0FastOptions) -> None:
        whole: Any = model
        super().__init__(whole.model.language_model, whole.lm_head)
        self._core: Any = whole.model
        self._assets = assets
        self._preprocess = require_choice("preprocess", preprocess, PREPROCESS)
        self._convention = options.convention
        self.horizon = assets.codec.horizon
        self.num_cameras = options.cameras
        side = IMAGE_SIZE // whole.config.vision_config.patch_size
        self.grid = (side, side)
        first = assets.first_action_id
        self.vocabulary = ActionVocabulary(
            action_ids=torch.arange(len(assets.codec.token_bytes)) + first,
            end_ids=(assets.end_id,),
            forced_prefix_ids=assets.prefix,
            max_tokens=min(assets.codec.max_tokens, assets.max_tokens - len(assets.prefix)),
        )
        self._grammar = _grammar(assets.codec, first, assets.end_id)

    def prepare(self, observation: Observation) -> Prompt:
        """Build the prefill: up to `num_cameras` images, the main one first; the others may be missing.

        Raises ObservationError for images, an instruction or a state that the model cannot take.
        """
        ids, prompt = self.prompt_ids(observation)
        pixels = torch.from_numpy(self.pixels(observation)).to(self.device)
        with torch.no_grad():
            features = self._core.multi_modal_projector(self._core.vision_tower(pixels).last_hidden_state)
            seen = features.flatten(0, 1)[None].to(self.dtype)
            embeddings = torch.cat([seen, self.embed(torch.tensor([ids]))], dim=1)
        positions = torch.arange(embeddings.shape[1], device=self.device)
        layout = TokenLayout(
            image=positions[: self.grid[0] * self.grid[1]],
            prompt=positions[torch.tensor(prompt) + seen.shape[1]],
            rows=self.grid[0],
            cols=self.grid[1],
            relevance="attention",
        )
        next_position = len(positions) + (self._preprocess == "openpi")
        return Prompt(embeddings, positions[None], next_position, layout, bidirectional=True)

    def pixels(self, observation: Observation) -> NDArray[np.float32]:
        """Pixels in [-1, 1] of the cameras that are there, float32 [cameras, 3, 224, 224]; raises ObservationError."""
        if not observation.images:
            raise ObservationError(f"no image (needed: 1 ... {self.num_cameras})")
        fit = images.letterbox_bilinear if self._preprocess == "lerobot" else images.letterbox_pil
        views = [fit(images.require_rgb(image), IMAGE_SIZE) for image in observation.images[: self.num_cameras]]
        return np.stack(views).transpose(0, 3, 1, 2) * np.float32(2) - np.float32(1)

    def prompt_ids(self, observation: Observation) -> tuple[list[int], list[int]]:
        """Ids of the prompt, and which of them overlap the instruction; raises ObservationError."""
        before, text = "Task: ", observation.instruction.strip().replace("_", " ")
        text = text.lower() if self._preprocess == "openpi" else text.replace("\n", " ")
        after = f", State: {' '.join(map(str, self.state_bins(observation.state)))};\n"
        words, prompt = self._assets.prompt.encode(before, text, after)
        ids = [self._assets.bos_id, *words]
        if len(ids) > self._assets.max_prompt:
            raise ObservationError(
                f"instruction and state take {len(ids)} tokens (valid: up to {self._assets.max_prompt}); shorten the "
                "instruction"
            )
        return [*ids, self._assets.bos_id] if self._preprocess == "lerobot" else ids, [i + 1 for i in prompt]

    def state_bins(self, state: NDArray[np.float64] | None) -> list[int]:
        """The bins of a state, -1 (below all) ... 255; raises ObservationError."""
        if state is None:
            raise ObservationError("no state: pi0-FAST needs the arm's (joint_states)")
        if state.shape != (7,) or not np.isfinite(state).all():
            raise ObservationError(f"state {state.tolist()} is not x y z roll pitch yaw gripper, 7 finite numbers")
        values = self._assets.state.normalise(lerobot.state_as_data(state, self._convention, self._assets.state.size))
        # Upstream never clips: with mean and deviation many values fall outside -1 ... 1, and into the outer bins.
        bins: list[int] = (np.digitize(values, np.linspace(-1, 1, STATE_BINS + 1)[:-1]) - 1).tolist()
        return bins

    def grammar(self) -> Grammar | None:
        """The grammar of FAST tokens that decode; None where the FAST vocabulary allows none (a warning said so)."""
        return self._grammar

    def decode(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Actions [horizon, 7], gripper clipped to 0 ... 1 (1 = open); raises ActionDecodeError."""
        normalised = self._assets.codec.decode(ids, self._assets.first_action_id)
        return lerobot.actions_from_data(self._assets.action.unnormalise(normalised), self._convention)


def _grammar(codec: FastCodec, first: int, end: int) -> Grammar | None:
    """A vocabulary fitted to a small data set may lack a byte that the grammar needs; the model runs without it."""
    try:
        return FastGrammar(codec, first, (end,))
    except CheckpointError as error:
        _log.warning("pi0_fast runs without fast_grammar: %s", error)
        return None


def rename(key: str) -> str:
    """Name in transformers' PaliGemma of a weight of LeRobot's policy."""
    name = key.removeprefix("model.").removeprefix(CORE)
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def load(request: LoadRequest) -> Pi0FastAdapter:
    """Load pi0-FAST from a folder, a hub id or `tiny`; see `registry.load_adapter` for the errors."""
    from transformers import PaliGemmaForConditionalGeneration

    settings = Pi0FastOptions(**request.options)
    require_choice("preprocess", request.preprocess, PREPROCESS)
    place = ckpt.resolve_device(request.device)
    folder = request.folder("pi0_fast", write_tiny_pi0_fast, FILES)
    raw = ckpt.require_model_type(folder, POLICY, "type")
    settings = _with_convention(request.checkpoint, settings)
    kind = ckpt.resolve_dtype(request.dtype, place, str(raw.get("dtype", "float32")))
    config = _model_config(folder, raw, kind)
    assets = _load_assets(folder, raw, config, settings)
    with request.blank_model(place, kind):
        model = PaliGemmaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("vision_tower", "multi_modal_projector", "norm")):
            parameter.data = parameter.data.float()  # as LeRobot, whatever the rest is
    # LeRobot ties head and embedding; its files hold either.
    tied = {HEAD: EMBEDDING, EMBEDDING: HEAD}
    request.load_weights(model, model.model.language_model, folder, rename, tied, request.reading())
    model.set_attn_implementation("sdpa")
    model.requires_grad_(False).eval()
    return Pi0FastAdapter(model, assets, request.preprocess, settings)


def _with_convention(checkpoint: str, options: Pi0FastOptions) -> Pi0FastOptions:
    """No checkpoint says its convention, and a wrong one turns the gripper round: only the published one's is known."""
    if options.convention:
        return options
    if checkpoint not in PUBLISHED:
        raise ConfigError(
            f"the option convention of {checkpoint} is not set (valid: {', '.join(lerobot.CONVENTIONS)}; what its "
            "states and actions mean)"
        )
    return replace(options, convention="libero")


def _model_config(folder: Path, raw: Mapping[str, Any], kind: torch.dtype) -> Any:
    from transformers import PaliGemmaConfig

    variant = raw.get("paligemma_variant", "gemma_2b")
    if variant not in VARIANTS:
        raise CheckpointError(f"{folder} has paligemma_variant {variant!r} (valid: {', '.join(VARIANTS)})")
    if raw.get("image_resolution", [IMAGE_SIZE, IMAGE_SIZE]) != [IMAGE_SIZE, IMAGE_SIZE]:
        raise CheckpointError(
            f"{folder} has image_resolution {raw['image_resolution']} (valid: {IMAGE_SIZE} both ways)"
        )
    text, vision = VARIANTS[variant]
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh", **text},
        vision_config={
            "model_type": "siglip_vision_model", "image_size": IMAGE_SIZE, "patch_size": 14, "vision_use_head": False,
            **vision,
        },
        projection_dim=text["hidden_size"], hidden_size=text["hidden_size"], vocab_size=text["vocab_size"],
        image_token_index=text["vocab_size"], tie_word_embeddings=False,
    )  # fmt: skip
    for part in (config, config.text_config, config.vision_config):
        part.dtype = kind
    return config


def _load_assets(folder: Path, raw: Mapping[str, Any], config: Any, options: Pi0FastOptions) -> Pi0FastAssets:
    lerobot.require_inputs(folder, raw, options.cameras)
    state = lerobot.load_normaliser(folder, raw, lerobot.STATE, options.statistics)
    action = lerobot.load_normaliser(folder, raw, lerobot.ACTION, options.statistics)
    sizes = lerobot.CONVENTIONS[options.convention]
    if state.size not in sizes or action.size != 7:
        raise CheckpointError(
            f"{folder} has states of {state.size} and actions of {action.size} numbers (valid under the convention "
            f"{options.convention!r}: {' or '.join(map(str, sizes))}, and 7)"
        )
    bound = options.action_bound or action.bound()
    if bound is not None and not bound <= MAX_BOUND:
        raise CheckpointError(
            f"{folder}: normalised actions reach {bound:.3g}: set the option action_bound (0 ... 100)"
        )
    if bound is None:
        raise CheckpointError(f"{folder}: the statistics of the actions lack min, max: set the option action_bound")
    horizon = lerobot.integer(folder, raw, "chunk_size", 50, MAX_HORIZON)
    text, fast = (options.text_tokenizer, options.text_revision), (options.fast_tokenizer, options.fast_revision)
    tokenizer, bos, end = _load_tokenizer(lerobot.tokenizer_folder(folder, raw, "text", *text, ("tokenizer.json",)))
    fast_folder = lerobot.tokenizer_folder(folder, raw, "action", *fast, FAST_FILES)
    codec = load_fast_codec(fast_folder, horizon, bound).counting_down()
    stop = tokenizer.get_vocab_size(with_added_tokens=False)
    stop -= lerobot.integer(folder, raw, "fast_skip_tokens", 128, 4096)
    first, vocabulary = stop - len(codec.token_bytes), config.text_config.vocab_size
    if not 0 <= first < stop <= vocabulary:
        raise CheckpointError(
            f"{folder}: {len(codec.token_bytes)} FAST tokens below id {stop - 1} do not fit {vocabulary} embeddings"
        )
    max_prompt = lerobot.integer(folder, raw, "tokenizer_max_length", 200, 4096)
    max_tokens = lerobot.integer(folder, raw, "max_decoding_steps", 256, 4096)
    prefix = tuple(tokenizer.encode(PREFIX, add_special_tokens=False).ids)
    return Pi0FastAssets(
        PlainPrompt(tokenizer), prefix, bos, end, codec, state, action, first, max_prompt, max_tokens
    )  # fmt: skip


def _load_tokenizer(folder: Path) -> tuple[Tokenizer, int, int]:
    """PaliGemma's tokenizer, and its ids of BOS and of the end of an action."""
    tokenizer = read_tokenizer(folder)
    bos, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(END)
    if bos is None or end is None:
        absent = BOS if bos is None else END
        raise CheckpointError(f"{folder / 'tokenizer.json'} lacks the token {absent}: it is not PaliGemma's")
    return tokenizer, bos, end

"""OpenVLA (openvla/openvla-7b): DINOv2 and SigLIP see the image, Llama-2 answers with seven binned action tokens.

Facts from the published code (github.com/openvla/openvla, prismatic/extern/hf). The sequence is BOS, 256 image tokens,
the prompt; the model is causal, so relevance is attention (Eq. 1). The modules carry the checkpoint's own names, those
of timm for the towers, so that no weight is renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtp_ros.errors import ActionDecodeError, CheckpointError, ConfigError, ObservationError, require_choice
from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models import images
from dtp_ros.models.action_tokens import ActionStatistics, UniformBins, select_statistics
from dtp_ros.models.base import ActionVocabulary, Observation, Prompt, TokenLayout
from dtp_ros.models.decoder import DecoderAdapter
from dtp_ros.models.prompt import PlainPrompt, read_tokenizer
from dtp_ros.models.request import LoadRequest
from dtp_ros.models.tiny_openvla import write_tiny_openvla
from dtp_ros.models.vit import Mlp, VisionTower

MODEL_TYPE = "openvla"
IMAGE_SIZE = 224
PATCH = 14
SIDE = IMAGE_SIZE // PATCH
DIMENSIONS = 7
SPACE_ID = 29871  # Llama-2's piece of a lone space: in training it stood between "Out:" and the actions
REGISTERS = 4
CROP_SHARE = 0.9
PREPROCESS = ("widowx", "reference", "simpler")
PROMPTS = {"question": ("In: What action should the robot take to ", "?\nOut:"), "bare": ("", "")}
FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "dataset_statistics.*", "action_head--*")
# What timm builds for the names in config.json; a checkpoint's own `timm_model_args` (the tiny one's) replace it.
TOWERS: Mapping[str, Mapping[str, float]] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0},
    "vit_so400m_patch14_siglip_224": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362},
}


@dataclass(frozen=True)
class OpenVlaOptions:
    """What the adapter leaves to the user; raises ConfigError.

    prompt: `question` (the published template, instruction in lower case) or `bare` (the instruction alone, as the
    SIMPLER wrapper of OpenVLA passes it). center_crop: look at the middle 90 % of the image, for checkpoints fine-tuned
    with random crops. statistics_key: data set whose quantiles un-normalise the actions.
    """

    prompt: str = "question"
    center_crop: bool = False
    statistics_key: str = "bridge_orig"

    def __post_init__(self) -> None:
        require_choice("prompt", self.prompt, PROMPTS)
        if not isinstance(self.center_crop, bool):
            raise ConfigError(f"center_crop = {self.center_crop!r} (valid: true, false)")


class OpenVlaNetwork(nn.Module):
    """Both towers, the projector, and Llama with its head."""

    def __init__(self, towers: Sequence[Mapping[str, Any]], text_config: Any) -> None:
        from transformers import LlamaForCausalLM

        super().__init__()
        dino, siglip = towers
        tower = partial(VisionTower, tokens=SIDE * SIDE, patch=PATCH)
        self.vision_backbone = nn.ModuleDict(
            {"featurizer": tower(**dino, registers=REGISTERS), "fused_featurizer": tower(**siglip, registers=0)}
        )
        width, hidden = dino["embed_dim"] + siglip["embed_dim"], text_config.hidden_size
        self.projector = Mlp(width, 4 * width, hidden, hidden)
        self.language_model: Any = LlamaForCausalLM(text_config)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Image tokens [1, 256, hidden] of pixels [1, 6, 224, 224]: three channels for each tower."""
        towers = zip(self.vision_backbone.values(), pixels.chunk(2, dim=1), strict=True)
        tokens: Tensor = self.projector(torch.cat([tower(part) for tower, part in towers], dim=-1))
        return tokens


@dataclass(frozen=True)
class OpenVlaAssets:
    """What an OpenVLA checkpoint holds besides the weights, loaded.

    around: what stands before and after the instruction. mean, std: float32 [3] for each tower. action_ids: the ids
    that stand for an action, ascending; the *last* is the lowest bin.
    """

    prompt: PlainPrompt
    around: tuple[str, str]
    bos_id: int
    statistics: ActionStatistics
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    action_ids: range


class OpenVlaAdapter(DecoderAdapter):
    """OpenVLA for the engine (`VlaAdapter`).

    preprocess: `widowx` (JPEG round trip and Lanczos resize, as the published WidowX evaluation and the training data),
    `reference` (PIL's bicubic resize, as the published processor alone) or `simpler` (OpenCV's area resize, as the
    SIMPLER wrapper).
    """

    name = "openvla"
    grid = (SIDE, SIDE)

    def __init__(
        self, network: OpenVlaNetwork, assets: OpenVlaAssets, preprocess: str, options: OpenVlaOptions
    ) -> None:
        super().__init__(network.language_model.model, network.language_model.lm_head)
        self.network = network
        self._assets = assets
        self._preprocess = require_choice("preprocess", preprocess, PREPROCESS)
        self._options = options
        # 256 ids name the edges of 255 bins; the first, for exactly 1, shares the last bin with its neighbour.
        self._bins = UniformBins(len(assets.action_ids) - 1)
        self.vocabulary = ActionVocabulary(
            torch.arange(assets.action_ids.start, assets.action_ids.stop), min_tokens=DIMENSIONS, max_tokens=DIMENSIONS
        )

    def prepare(self, observation: Observation) -> Prompt:
        """Build the prefill; raises ObservationError for an image or an instruction that OpenVLA cannot take."""
        ids, words = self.prompt_ids(observation.instruction)
        tokens = SIDE * SIDE
        with torch.no_grad():
            pixels = torch.from_numpy(self.pixels(observation))[None].to(self.device, self.dtype)
            text = self.embed(torch.tensor([ids]))
            embeddings = torch.cat([text[:, :1], self.network.image_tokens(pixels), text[:, 1:]], dim=1)
        length = embeddings.shape[1]
        positions = torch.arange(length, device=self.device)
        prompt = torch.tensor(words, device=self.device) + tokens
        layout = TokenLayout(positions[1 : 1 + tokens], prompt, *self.grid, relevance="attention")
        return Prompt(embeddings, positions[None], length, layout)

    def prompt_ids(self, instruction: str) -> tuple[list[int], list[int]]:
        """Ids of the text, BOS first, and which of them are the instruction's; raises ObservationError."""
        text = instruction.lower() if self._options.prompt == "question" else instruction
        before, after = self._assets.around
        ids, words = self._assets.prompt.encode(before, text, after)
        ids = [self._assets.bos_id, *ids]
        if ids[-1] != SPACE_ID:
            ids.append(SPACE_ID)
        limit = self.network.language_model.config.max_position_embeddings - SIDE * SIDE - DIMENSIONS
        if len(ids) > limit:
            raise ObservationError(f"the prompt has {len(ids)} tokens (valid: at most {limit})")
        return ids, [i + 1 for i in words]

    def pixels(self, observation: Observation) -> NDArray[np.float32]:
        """Normalised pixels of the main camera for both towers, float32 [6, 224, 224]; raises ObservationError."""
        image = images.main_camera(observation.images)
        if self._preprocess == "widowx":
            image = images.lanczos3(images.jpeg_round_trip(image), IMAGE_SIZE)
        elif self._preprocess == "simpler":
            image = images.area(image, IMAGE_SIZE)
        if self._options.center_crop:
            image = images.centre_crop(image, CROP_SHARE, IMAGE_SIZE)
        image = images.bicubic(image, IMAGE_SIZE)
        towers = zip(self._assets.mean, self._assets.std, strict=True)
        return np.concatenate([images.normalised_planes(image, mean, std) for mean, std in towers])

    def decode(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """The step [1, 7] that seven ids stand for, gripper clipped to 0 ... 1 (1 = open); raises ActionDecodeError.

        The original takes any other token for the nearest end of the range: here that is no action.
        """
        if len(ids) != DIMENSIONS:
            raise ActionDecodeError(f"{len(ids)} action tokens (valid: {DIMENSIONS})")
        valid = self._assets.action_ids
        if outside := [i for i in ids if i not in valid]:
            raise ActionDecodeError(f"token {outside[0]} is not an action ({valid[0]} ... {valid[-1]})")
        values = self._bins.decode([min(valid[-1] - i, self._bins.count - 1) for i in ids])
        action = self._assets.statistics.unnormalise(values)
        action[6] = np.clip(action[6], 0.0, 1.0)
        return action[None]


def load(request: LoadRequest) -> OpenVlaAdapter:
    """Load OpenVLA from a folder, a hub id or `tiny`; see `registry.load_adapter` for the errors."""
    settings = OpenVlaOptions(**request.options)
    require_choice("preprocess", request.preprocess, PREPROCESS)
    place = ckpt.resolve_device(request.device)
    folder = request.folder("openvla", write_tiny_openvla, FILES)
    raw = ckpt.require_model_type(folder, MODEL_TYPE)
    towers = _tower_sizes(folder, raw)
    kind = ckpt.resolve_dtype(request.dtype, place, str(raw.get("dtype") or raw.get("torch_dtype")))
    text_config = _text_config(folder, raw, kind)
    assets = _load_assets(folder, raw, text_config, settings)
    with request.blank_model(place, kind):
        network = OpenVlaNetwork(towers, text_config)
    unused = partial(_is_unused, [int(tower["depth"]) for tower in towers])
    request.load_weights(
        network, network.language_model.model, folder, lambda key: key, {}, request.reading(), unused=unused
    )
    network.language_model.set_attn_implementation("sdpa")
    network.requires_grad_(False).eval()
    return OpenVlaAdapter(network, assets, request.preprocess, settings)


def _is_unused(depths: Sequence[int], key: str) -> bool:
    """Whether a weight lies behind the second to last block of its tower, of which nothing is read."""
    names = ("featurizer", "fused_featurizer")
    parts = [rf"{name}\.(blocks\.{depth - 1}|norm|attn_pool)\." for name, depth in zip(names, depths, strict=True)]
    return re.match(rf"vision_backbone\.({'|'.join(parts)})", key) is not None


def _tower_sizes(folder: Path, raw: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Arguments of the two towers; raises CheckpointError for a relative of OpenVLA with other parts or actions."""
    path = folder / "config.json"
    expected = {
        "timm_model_ids": list(TOWERS), "timm_override_act_layers": [None, None], "use_fused_vision_backbone": True,
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE], "image_resize_strategy": "resize-naive",
    }  # fmt: skip
    for key, value in expected.items():
        if raw.get(key) != value:
            raise CheckpointError(f"{path}: {key} = {raw.get(key)!r} (valid: {value!r}, as in openvla-7b)")
    if heads := sorted(file.name for file in folder.glob("action_head--*")):
        raise CheckpointError(f"{folder} holds {heads[0]}: it looks like OpenVLA-OFT, whose actions are not tokens")
    towers = raw.get("timm_model_args", list(TOWERS.values()))
    fields = {"embed_dim", "depth", "num_heads", "mlp_ratio"}
    if len(towers) != len(TOWERS) or any(set(tower) != fields for tower in towers):
        raise CheckpointError(f"{path}: timm_model_args = {towers!r} (valid: two mappings of {sorted(fields)})")
    sizes: Sequence[Mapping[str, Any]] = towers
    return sizes


def _text_config(folder: Path, raw: Mapping[str, Any], kind: torch.dtype) -> Any:
    """Llama's configuration: what config.json leaves out has transformers' defaults, as in the published code."""
    from transformers import LlamaConfig

    try:
        config = LlamaConfig.from_dict(raw["text_config"])
    except Exception as error:  # the validators of transformers share no base class
        raise CheckpointError(f"{folder / 'config.json'} has no valid text_config: {error}") from error
    config.dtype = kind
    return config


def _load_assets(folder: Path, raw: Mapping[str, Any], config: Any, options: OpenVlaOptions) -> OpenVlaAssets:
    path = folder / "preprocessor_config.json"
    image = ckpt.read_json(folder, path.name)
    try:
        mean, std = (np.asarray(image[key], dtype=np.float32) for key in ("means", "stds"))
        last, bins = int(config.vocab_size) - int(raw["pad_to_multiple_of"]), int(raw["n_action_bins"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: config.json or {path.name} is incomplete ({error})") from None
    if mean.shape != (2, 3) or std.shape != (2, 3) or not (std > 0).all():
        raise CheckpointError(f"{path}: means and stds are {mean.tolist()}, {std.tolist()}, not three for each tower")
    if not 2 <= bins <= last:
        raise CheckpointError(f"{folder / 'config.json'}: {bins} action bins in {last} tokens")
    tokenizer = read_tokenizer(folder)
    if tokenizer.token_to_id("▁") != SPACE_ID:
        raise CheckpointError(f"{folder / 'tokenizer.json'} is not Llama-2's: id {SPACE_ID} is not its lone space")
    statistics = _load_statistics(folder, raw, options.statistics_key)
    return OpenVlaAssets(
        PlainPrompt(tokenizer), PROMPTS[options.prompt], config.bos_token_id, statistics, mean, std,
        range(last - bins, last),
    )  # fmt: skip


def _load_statistics(folder: Path, raw: Mapping[str, Any], key: str) -> ActionStatistics:
    """Those of a fine-tuned checkpoint's dataset_statistics.json, else config.json's; without a mask all are scaled."""
    source, found = folder / "config.json", raw.get("norm_stats") or {}
    if (folder / "dataset_statistics.json").is_file():
        source = folder / "dataset_statistics.json"
        found = ckpt.read_json(folder, source.name)
    if "action" in found.get(key, {}):
        action = {"mask": [True] * DIMENSIONS, **found[key]["action"]}
        found = {**found, key: {"action": action}}
    return select_statistics(found, key, source)

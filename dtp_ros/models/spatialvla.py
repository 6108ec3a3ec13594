"""SpatialVLA (IPEC-COMMUNITY/spatialvla-4b-224-*): PaliGemma 2 with depth, which answers with three tokens a step.

Facts from the published code (github.com/SpatialVLA/SpatialVLA) and its SIMPLER policy
(github.com/DelinQu/SimplerEnv-OpenVLA). Image tokens come first, then <bos>, the instruction and a newline, and all of
them attend to each other; so relevance is attention (Eq. 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtp_ros.errors import ActionDecodeError, CheckpointError, ConfigError, ObservationError, require_choice
from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models import images
from dtp_ros.models.action_tokens import ActionStatistics, CellGrid, select_statistics, spherical_to_cartesian
from dtp_ros.models.base import ActionVocabulary, Observation, Prompt, TokenLayout
from dtp_ros.models.decoder import DecoderAdapter
from dtp_ros.models.prompt import PlainPrompt, read_tokenizer
from dtp_ros.models.request import LoadRequest
from dtp_ros.models.spatialvla_network import MODEL_TYPE, SpatialVlaConfig, SpatialVlaNetwork, rename
from dtp_ros.models.tiny_spatialvla import write_tiny_spatialvla

PREPROCESS = ("simpler", "reference")
PROMPTS = {"bare": ("", ""), "question": ("What action should the robot take to ", "?")}
FILES = ("config.json", "processor_config.json", "tokenizer.json")
PROCESSOR = "processor_config.json"
BOS, IMAGE, FIRST_ACTION = "<bos>", "<image>", "<ACTION00000>"
KINDS = ("translation", "rotation", "gripper")  # of a step's tokens, in their order
AXES = {"translation": ("theta", "phi", "r"), "rotation": ("roll", "pitch", "yaw")}
GRIPPER_CELLS = 2  # closed, open
MAX_HORIZON = 64
TIED = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}


@dataclass(frozen=True)
class SpatialVlaOptions:
    """What the adapter leaves to the user; raises ConfigError.

    prompt: `bare` (the instruction alone, as in training and in SIMPLER) or `question` (as on the model's card).
    lower_case_instruction: lower-case the instruction, as every training prompt was.
    statistics_key: data set in processor_config.json whose quantiles un-normalise the actions, and whose camera serves
    where the robot's own is not known.
    """

    prompt: str = "bare"
    lower_case_instruction: bool = True
    statistics_key: str = "bridge_orig/1.0.0"

    def __post_init__(self) -> None:
        require_choice("prompt", self.prompt, PROMPTS)
        if not isinstance(self.lower_case_instruction, bool):
            raise ConfigError(f"lower_case_instruction = {self.lower_case_instruction!r} (valid: true, false)")


@dataclass(frozen=True)
class SpatialVlaAssets:
    """What a checkpoint holds besides the weights, loaded.

    around: what stands before and after the instruction. intrinsics: the data set's camera matrix float64 [3, 3], in
    pixels of the model's image.
    """

    prompt: PlainPrompt
    around: tuple[str, str]
    bos_id: int
    translation: CellGrid
    rotation: CellGrid
    statistics: ActionStatistics
    intrinsics: NDArray[np.float64]
    horizon: int


class StepGrammar:
    """Translation, rotation and gripper in turn: equal to unrestricted greedy decoding whenever that decodes."""

    def __init__(self, ids: Sequence[range]) -> None:
        self._ids = [torch.arange(kind.start, kind.stop) for kind in ids]

    def allowed(self, ids: Sequence[int]) -> Tensor:
        """Ids that may follow the action tokens `ids`, int64 [M]."""
        return self._ids[len(ids) % len(self._ids)]


class SpatialVlaAdapter(DecoderAdapter):
    """SpatialVLA for the engine (`VlaAdapter`).

    preprocess: `simpler` (OpenCV's INTER_AREA resize, as the published SIMPLER policy) or `reference` (PIL's bicubic
    resize, as the published processor alone).
    """

    name = "spatialvla"
    needs_intrinsics = True

    def __init__(
        self, network: SpatialVlaNetwork, assets: SpatialVlaAssets, preprocess: str, lower_case: bool = True
    ) -> None:
        config = network.config
        language_model: Any = network.language_model
        super().__init__(language_model.model, language_model.lm_head, config.text.final_logit_softcapping)
        self.network = network
        self._assets = assets
        self._preprocess = require_choice("preprocess", preprocess, PREPROCESS)
        self._lower_case = lower_case
        self.grid = (config.rows, config.rows)
        self.horizon = assets.horizon
        first = config.first_action_id
        borders = np.cumsum([first, assets.translation.size, assets.rotation.size, GRIPPER_CELLS]).tolist()
        self.kinds = [range(low, high) for low, high in pairwise(borders)]
        tokens = assets.horizon * len(KINDS)
        self.vocabulary = ActionVocabulary(torch.arange(first, borders[-1]), min_tokens=tokens, max_tokens=tokens)

    def prepare(self, observation: Observation) -> Prompt:
        """Build the prefill; raises ObservationError for an image, an instruction or a camera that it cannot take."""
        config, assets = self.network.config, self._assets
        text = observation.instruction.lower() if self._lower_case else observation.instruction
        before, after = assets.around
        words, inside = assets.prompt.encode(before, text, after)
        ids = torch.tensor([[assets.bos_id, *words]], device=self.device)
        with torch.no_grad():
            pixels = torch.from_numpy(self.pixels(observation)).to(self.device)
            intrinsics = torch.from_numpy(self.intrinsics(observation)).to(self.device, torch.float32)
            tokens = self.network.image_tokens(pixels, intrinsics)
            embeddings = torch.cat([tokens, self.embed(ids)], dim=1)
        places = torch.arange(embeddings.shape[1], device=self.device)
        image = places[: config.rows**2]
        prompt = torch.tensor(inside, device=self.device) + config.rows**2 + 1
        layout = TokenLayout(image, prompt, *self.grid, relevance="attention")
        # PaliGemma counts positions from 1.
        return Prompt(embeddings, places[None] + 1, len(places) + 1, layout, bidirectional=True)

    def pixels(self, observation: Observation) -> NDArray[np.float32]:
        """The main camera's image, float32 [1, 3, S, S] in 0 ... 1; raises ObservationError."""
        image, size = images.main_camera(observation.images), self.network.config.vision.image_size
        resized = images.area(image, size) if self._preprocess == "simpler" else images.bicubic(image, size)
        return (resized.transpose(2, 0, 1)[None] / 255.0).astype(np.float32)

    def intrinsics(self, observation: Observation) -> NDArray[np.float64]:
        """Camera matrix float64 [3, 3] in pixels of the model's image: the robot's own, or else the data set's.

        Raises ObservationError for what is no camera matrix.
        """
        if observation.intrinsics is None:
            return self._assets.intrinsics
        height, width = observation.images[0].shape[:2]
        try:
            return _camera(observation.intrinsics, width, height, self.network.config.vision.image_size)
        except ValueError as error:
            raise ObservationError(str(error)) from None

    def grammar(self) -> StepGrammar:
        """The order of the kinds of tokens."""
        return StepGrammar(self.kinds)

    def decode(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Actions [horizon, 7], gripper 0 or 1 (1 = open); raises ActionDecodeError.

        Where tokens are missing or out of turn the original takes the first cell of every kind: an arbitrary motion.
        """
        if len(ids) != self.vocabulary.max_tokens:
            raise ActionDecodeError(f"{len(ids)} action tokens (valid: {self.vocabulary.max_tokens})")
        cells = []
        for i, token in enumerate(ids):
            kind = self.kinds[i % len(KINDS)]
            if token not in kind:
                name = KINDS[i % len(KINDS)]
                raise ActionDecodeError(f"token {i} is {token}, no {name} ({kind.start} ... {kind.stop - 1})")
            cells.append(token - kind.start)
        steps = [self._step(*cells[i : i + len(KINDS)]) for i in range(0, len(cells), len(KINDS))]
        return self._assets.statistics.unnormalise(np.stack(steps))

    def _step(self, translation: int, rotation: int, gripper: int) -> NDArray[np.float64]:
        """The normalised action [7] of three cells. The sphere is around the cube of actions, hence the clip."""
        xyz = spherical_to_cartesian(*self._assets.translation.middle(translation))
        return np.concatenate([np.clip(xyz, -1.0, 1.0), self._assets.rotation.middle(rotation), [float(gripper)]])


def load(request: LoadRequest) -> SpatialVlaAdapter:
    """Load SpatialVLA from a folder, a hub id or `tiny`; see `registry.load_adapter` for the errors."""
    settings = SpatialVlaOptions(**request.options)
    require_choice("preprocess", request.preprocess, PREPROCESS)
    place = ckpt.resolve_device(request.device)
    folder = request.folder(MODEL_TYPE, write_tiny_spatialvla, FILES)
    config = SpatialVlaConfig.read(folder)
    kind = ckpt.resolve_dtype(request.dtype, place, config.dtype)
    for part in (config.text, config.vision, config.depth, config.depth.backbone_config):
        part.dtype = kind
    assets = _load_assets(folder, config, settings)
    with ckpt.blank_model(place, kind):
        network = SpatialVlaNetwork(config)
    tied = TIED if config.text.tie_word_embeddings else {}
    ckpt.load_weights(network, folder, rename, tied, request.reading())
    network.language_model.set_attn_implementation("eager")  # fused attention has no softcap
    network.requires_grad_(False).eval()
    network.merge_action_embeddings()
    return SpatialVlaAdapter(network, assets, request.preprocess, settings.lower_case_instruction)


def _load_assets(folder: Path, config: SpatialVlaConfig, options: SpatialVlaOptions) -> SpatialVlaAssets:
    path, raw = folder / PROCESSOR, ckpt.read_json(folder, PROCESSOR)
    tokenizer = read_tokenizer(folder)
    for token, expected in ((IMAGE, config.image_id), (FIRST_ACTION, config.first_action_id)):
        if tokenizer.token_to_id(token) != expected:
            found = tokenizer.token_to_id(token)
            raise CheckpointError(f"{folder}: {token} is {found} in tokenizer.json, {expected} in config.json")
    bos_id = tokenizer.token_to_id(BOS)
    if bos_id is None:
        raise CheckpointError(f"{folder / 'tokenizer.json'} has no {BOS}")
    try:
        translation, rotation = (_grid(raw["bin_policy"][kind], AXES[kind]) for kind in KINDS[:2])
        spherical, horizon = raw["action_config"]["use_spherical"], raw["action_chunk_size"]
        cameras, frames, statistics = raw["intrinsic_config"], raw["num_obs_steps"], raw.get("statistics") or {}
        camera = cameras.get(options.statistics_key, cameras["default"])
        matrix = np.array(camera["intrinsic"], dtype=np.float64)
        intrinsics = _camera(matrix, camera["width"], camera["height"], config.vision.image_size)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} is incomplete ({type(error).__name__}: {error})") from None
    if spherical is not True or frames != 1 or type(horizon) is not int or not 1 <= horizon <= MAX_HORIZON:
        raise CheckpointError(
            f"{path}: use_spherical = {spherical}, num_obs_steps = {frames}, action_chunk_size = {horizon} "
            f"(valid: true, 1, 1 ... {MAX_HORIZON})"
        )
    cells = translation.size + rotation.size + GRIPPER_CELLS
    if cells != config.actions:
        raise CheckpointError(f"{path} has {cells} cells, but config.json {config.actions} action tokens")
    before, after = PROMPTS[options.prompt]
    return SpatialVlaAssets(
        PlainPrompt(tokenizer), (before, f"{after}\n"), bos_id, translation, rotation,
        select_statistics(statistics, options.statistics_key, path), intrinsics, horizon,
    )  # fmt: skip


def _grid(bins: Mapping[str, Any], axes: Sequence[str]) -> CellGrid:
    first, second, third = (np.asarray(bins[f"{axis}_bins"], dtype=np.float64) for axis in axes)
    for edges in (first, second, third):
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():  # NaN is not > 0 either
            raise ValueError(f"bins that do not ascend: {edges.tolist()}")
    return CellGrid((first, second, third))


def _camera(matrix: NDArray[np.float64], width: float, height: float, size: int) -> NDArray[np.float64]:
    """The camera matrix after an image of width x height is resized to size x size; ValueError where it is none."""
    valid = matrix.shape == (3, 3) and np.isfinite(matrix).all() and matrix[2].tolist() == [0.0, 0.0, 1.0]
    if not valid or matrix[0, 0] <= 0.0 or matrix[1, 1] <= 0.0:
        raise ValueError(f"camera matrix {matrix.tolist()} (valid: finite [3, 3], fx and fy > 0, last row 0 0 1)")
    return np.diag([size / width, size / height, 1.0]) @ matrix

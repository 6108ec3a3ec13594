"""SpatialVLA's network: SigLIP, ZoeDepth, Ego3D position encoding, a projector and Gemma 2.

A depth model gives a depth for every pixel, the camera matrix turns it into points in metres, and a small network turns
the points of a patch into a vector that is added to the patch's feature (Ego3D; Qu et al., arXiv 2501.15830). Between
the two networks all is float32 whatever the dtype of the weights: in bfloat16, as in the published inference, a pixel's
coordinates are off by half a pixel, and the phases of the highest waves by a quarter of a radian.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtp_ros.errors import CheckpointError
from dtp_ros.models import checkpoint as ckpt

MODEL_TYPE = "spatialvla"
DEPTH_SIZE = 384  # pixels a side of the depth model's input
PADDING = 31  # pixels mirrored on each side of a 224-pixel image: int(sqrt(224 / 2) * 3)
CENTRE = (0.0, 0.0, 2.0)  # m: what the network takes as its origin
HALF_RANGE = 2.0  # m

# Names in today's transformers of weights saved by that of early 2025.
_RENAMES = (
    (r"^vision_tower\.vision_model\.", "vision_tower."),
    (r"^vision_zoe_model\.backbone\.embeddings\.", "vision_zoe_model.backbone.beit.embeddings."),
    (r"^vision_zoe_model\.backbone\.encoder\.layer\.", "vision_zoe_model.backbone.beit.layers."),
    (r"(\.beit\.layers\.\d+)\.attention\.attention\.(relative_position_bias\.)", r"\1.\2"),
    (r"(\.beit\.layers\.\d+\.attention)\.attention\.(q|k|v)[a-z]+\.", r"\1.\2_proj."),
    (r"(\.beit\.layers\.\d+\.attention)\.output\.dense\.", r"\1.o_proj."),
    (r"(\.beit\.layers\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(\.beit\.layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)


def rename(key: str) -> str:
    """Name in today's transformers of a weight of the checkpoint."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


@dataclass(frozen=True)
class SpatialVlaConfig:
    """config.json: the three models' own configurations, and what joins them.

    dtype: name of the weights' type. points: points a patch, along each side; frequencies: waves of each coordinate.
    """

    text: Any
    vision: Any
    depth: Any
    dtype: str
    points: int
    frequencies: int
    image_id: int
    first_action_id: int
    actions: int

    @property
    def rows(self) -> int:
        """Image tokens along each side."""
        return int(self.vision.image_size // self.vision.patch_size)

    @classmethod
    def read(cls, folder: Path) -> SpatialVlaConfig:
        """From config.json; raises CheckpointError."""
        from transformers import Gemma2Config, SiglipVisionConfig, ZoeDepthConfig

        raw = ckpt.require_model_type(folder, MODEL_TYPE)
        names = "ego3d_patch_reso", "n_freqs", "image_token_index", "action_token_begin_idx", "spatial_token_num"
        try:
            text, vision, depth = (
                kind.from_dict(raw[name])
                for kind, name in (
                    (Gemma2Config, "text_config"), (SiglipVisionConfig, "vision_config"),
                    (ZoeDepthConfig, "vision_zoe_config"),
                )
            )  # fmt: skip
            dtype = str(raw.get("dtype") or raw.get("torch_dtype"))
            config = cls(text, vision, depth, dtype, *(int(raw[name]) for name in names))
        except Exception as error:  # the validators of transformers share no base class
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{folder / 'config.json'} is not a valid configuration ({reason})") from None
        for flag in ("use_vision_zoe", "use_spatial_token"):
            if raw.get(flag) is not True:
                raise CheckpointError(f"{folder / 'config.json'}: {flag} = {raw.get(flag)!r} (valid: true)")
        if vision.image_size % vision.patch_size or vision.patch_size % config.points:
            raise CheckpointError(
                f"{folder / 'config.json'}: image, patch and ego3d_patch_reso do not divide each other"
            )
        if config.first_action_id + config.actions != text.vocab_size:
            last = config.first_action_id + config.actions
            raise CheckpointError(
                f"{folder / 'config.json'}: vocab_size = {text.vocab_size}, but actions end at {last}"
            )
        return config


class _Projector(nn.Module):
    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, wider)


class SpatialVlaNetwork(nn.Module):
    """SigLIP, ZoeDepth, Ego3D, projector and Gemma 2, under the names of the checkpoint."""

    def __init__(self, config: SpatialVlaConfig) -> None:
        from transformers import Gemma2ForCausalLM, SiglipVisionModel, ZoeDepthForDepthEstimation

        super().__init__()
        width, hidden = config.vision.hidden_size, config.text.hidden_size
        self.config = config
        self.vision_tower = SiglipVisionModel(config.vision)
        self.vision_zoe_model = ZoeDepthForDepthEstimation(config.depth)
        self.position_embedding_3d = PointEncoding(config.points**2, config.frequencies, width)
        self.multi_modal_projector = _Projector(width, hidden)
        self.language_model = Gemma2ForCausalLM(config.text)
        self.spatial_embed_tokens: nn.Module | None = nn.Embedding(config.actions, hidden)

    def merge_action_embeddings(self) -> None:
        """Put the action tokens' embeddings, which the checkpoint holds apart, into the language model's."""
        embeddings: Any = self.spatial_embed_tokens
        self.language_model.model.embed_tokens.weight.data[-self.config.actions :] = embeddings.weight
        self.spatial_embed_tokens = None

    def image_tokens(self, pixels: Tensor, intrinsics: Tensor) -> Tensor:
        """Image tokens [1, rows * rows, hidden], row-major, as the language model's embeddings are.

        pixels: float32 [1, 3, S, S] in 0 ... 1; intrinsics: camera matrix float32 [3, 3] in these pixels.
        """
        dtype = self.multi_modal_projector.linear.weight.dtype
        features = self.vision_tower(pixel_values=_centred(pixels).to(dtype)).last_hidden_state
        depth = estimate_depth(self.vision_zoe_model, pixels)
        points = back_project(depth, intrinsics, self.config.vision.patch_size, self.config.points)
        tokens: Tensor = self.multi_modal_projector.linear(features + self.position_embedding_3d(points))
        return tokens


class PointEncoding(nn.Module):
    """Points of a patch to a vector: waves of their coordinates through two linear layers.

    points: number of points a patch; frequencies: waves of each coordinate, 1, 2, 4, ... rad per HALF_RANGE.
    """

    def __init__(self, points: int, frequencies: int, width: int) -> None:
        super().__init__()
        self._frequencies = frequencies
        self.position_embedding_head = nn.Sequential(
            nn.Linear(points * 3 * (2 * frequencies + 1), width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, width),
        )

    def forward(self, xyz: Tensor) -> Tensor:
        """Vectors [N, width], in the weights' dtype, of points float32 [N, points, 3], m (x right, y down, z ahead)."""
        centred = ((xyz - xyz.new_tensor(CENTRE)) / HALF_RANGE).flatten(1).unsqueeze(-1)
        phases = centred * 2.0 ** torch.arange(self._frequencies, device=xyz.device)
        waves = torch.cat([centred, phases.sin(), phases.cos()], dim=-1).flatten(1)
        encoded: Tensor = self.position_embedding_head(waves.to(next(self.parameters()).dtype))
        return encoded


def estimate_depth(model: nn.Module, pixels: Tensor) -> Tensor:
    """Depth float32 [1, 1, S, S] in m of an image float32 [1, 3, S, S] in 0 ... 1, by a ZoeDepth model.

    The image's borders are mirrored first, and cut off again: ZoeDepth is at its worst there.
    """
    size = pixels.shape[-1] + 2 * PADDING
    padded = functional.pad(pixels, (PADDING,) * 4, mode="reflect")
    enlarged = functional.interpolate(padded, (DEPTH_SIZE, DEPTH_SIZE), mode="bicubic", align_corners=True)
    dtype = next(model.parameters()).dtype
    output: Any = model(pixel_values=_centred(enlarged).to(dtype))
    depth = output.predicted_depth.float().unsqueeze(1)
    depth = functional.interpolate(depth, (size, size), mode="bicubic", align_corners=True)
    return depth[..., PADDING:-PADDING, PADDING:-PADDING]


def _centred(pixels: Tensor) -> Tensor:
    """Pixels 0 ... 1 as -1 ... 1."""
    return (pixels - 0.5) / 0.5


def back_project(depth: Tensor, intrinsics: Tensor, patch: int, points: int) -> Tensor:
    """Points of each patch in the camera's frame: float32 [patches, points^2, 3] in m, row-major, also within a patch.

    A patch of `patch` pixels has points x points of them, at the mean depth of their share of the patch.

    Args:
        depth: float32 [1, 1, S, S] in m. intrinsics: camera matrix float32 [3, 3] in pixels of that image.
    """
    size = depth.shape[-1]
    rows = size // patch
    side = rows * points
    mean = functional.interpolate(depth, (side, side), mode="area").reshape(1, -1)
    centres = (torch.arange(side, device=depth.device) + 0.5) * (patch / points)
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    rays = torch.linalg.inv(intrinsics) @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    xyz: Tensor = (rays * mean).reshape(3, rows, points, rows, points)
    return xyz.permute(1, 3, 2, 4, 0).reshape(rows * rows, points * points, 3)

"""Emu3's image tokeniser (BAAI/Emu3-VisionTokenizer): a picture to a grid of code numbers, by the stock `Emu3VQVAE`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtp_ros.errors import CheckpointError
from dtp_ros.models import checkpoint as ckpt

MODEL_TYPE = "Emu3VisionVQ"
FILES = ("config.json", "preprocessor_config.json")
# Names in the published configuration, and those of the stock one.
_CONFIG = {
    "codebook_size": "codebook_size", "embed_dim": "embed_dim", "z_channels": "latent_channels",
    "double_z": "double_latent", "in_channels": "in_channels", "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor", "ch": "base_channels",
    "ch_mult": "channel_multiplier", "num_res_blocks": "num_res_blocks", "attn_resolutions": "attn_resolutions",
}  # fmt: skip
_RENAMES = (
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"^(encoder|decoder)\.mid\.", r"\1.middle_block."),
    (r"\.attn_1\.norm\.", ".attn_norm."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(attn_1|attn\.\d+)\.(q|k|v)\.", r".\1.\2_proj."),
    (r"\.(attn_1|attn\.\d+)\.proj_out\.", r".\1.out_proj."),
)


def rename(key: str) -> str:
    """Name in transformers of a published weight."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


class Emu3VisionTokenizer:
    """Pictures to codes, always in float32: a code is the nearest of thousands of neighbours, and rounding flips it.

    model: an Emu3VQVAE in evaluation mode; mean, std: float32 [3], of pixels in 0 ... 1.
    """

    def __init__(self, model: nn.Module, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        whole: Any = model
        self._model = whole
        self._mean = mean
        self._std = std
        self.codes = int(whole.config.codebook_size)
        self.factor: int = 2 ** (len(whole.config.channel_multiplier) - 1)
        """Pixels of a code, along each side."""

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalised pixels float32 [3, H, W] of RGB uint8 [H, W, 3]."""
        scaled = (image.astype(np.float64) * (1 / 255)).astype(np.float32)
        normalised: NDArray[np.float32] = (scaled - self._mean) / self._std
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    @torch.no_grad()
    def encode(self, image: NDArray[np.uint8]) -> Tensor:
        """Codes int64 [H / factor, W / factor], on the CPU, of RGB uint8 [H, W, 3], H and W multiples of the factor."""
        model = self._model
        frame = torch.from_numpy(self.pixels(image)).to(model.quantize.embedding.weight.device)
        # The tokeniser is one of videos: a picture is a clip of equal frames, which gives one frame of codes.
        clip = frame.repeat(1, model.config.temporal_downsample_factor, 1, 1, 1)
        hidden = model.encoder(clip).permute(0, 2, 1, 3, 4)
        codes: Tensor = model.quantize(model.quant_conv(hidden).permute(0, 2, 1, 3, 4))
        return codes[0, 0].cpu()


def load_vision_tokenizer(folder: Path, device: torch.device, progress: ckpt.Progress) -> Emu3VisionTokenizer:
    """Load the published layout; raises CheckpointError."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    raw = ckpt.require_model_type(folder, MODEL_TYPE)
    image = ckpt.read_json(folder, "preprocessor_config.json")
    try:
        known = {stock: raw[name] for name, stock in _CONFIG.items()}
        config = Emu3VQVAEConfig(**known, hidden_size=raw["ch"] * raw["ch_mult"][-1])
        mean, std = (np.asarray(image[name], dtype=np.float32) for name in ("image_mean", "image_std"))
    except Exception as error:  # the validators of transformers share no base class
        raise CheckpointError(f"{folder}: config.json or preprocessor_config.json is incomplete: {error}") from error
    if mean.shape != (3,) or std.shape != (3,) or not (std > 0).all():
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'}: image_mean, image_std are not three numbers each"
        )
    with ckpt.blank_model(device, torch.float32):
        model: Any = Emu3VQVAE(config)
    _load(model, folder, progress)
    del model.decoder, model.post_quant_conv  # only pictures go in; codes are never painted
    model.requires_grad_(False).eval()
    return Emu3VisionTokenizer(model, mean, std)


def _load(model: nn.Module, folder: Path, progress: ckpt.Progress) -> None:
    """Published attention projects by 1x1 convolutions, whose weights have two axes more than the stock Linear's."""
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    for weight in linear:
        weight.data = weight.data[..., None, None]
    ckpt.load_weights(model, folder, rename, {}, progress)
    for weight in linear:
        weight.data = weight.data[..., 0, 0]

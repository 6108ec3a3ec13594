"""The network of the tabletop policy (see `tabletop.py`): a convolutional tower, a small Llama, an action head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtp_ros.errors import CheckpointError
from dtp_ros.models import checkpoint as ckpt

MODEL_TYPE = "dtp_tabletop"
DIMENSIONS = 7
MAX_WORDS = 32
STRIDE = 16  # pixels of the model's image a token
NORM_GROUPS = 8


@dataclass(frozen=True)
class TabletopConfig:
    """Sizes of the network, and how much of an action is one step.

    image_size: pixels, a multiple of 16; widths: channels of the tower's three stages. max_translation (m, along the
    table and vertically) and max_rotation (rad about each axis): an action that says more, as of the whole turn that is
    left, is cut to it.
    """

    vocabulary: int
    image_size: int = 128
    widths: tuple[int, int, int] = (48, 96, 192)
    hidden: int = 160
    layers: int = 6
    heads: int = 5
    mlp: int = 416
    bins: int = 256
    max_translation: float = 0.04
    max_rotation: float = 0.15

    @property
    def side(self) -> int:
        """Image tokens along each side."""
        return self.image_size // STRIDE

    @classmethod
    def read(cls, folder: Path) -> TabletopConfig:
        """From config.json; raises CheckpointError."""
        raw = ckpt.require_model_type(folder, MODEL_TYPE)
        try:
            values = {name: raw[name] for name in cls.__dataclass_fields__}
            config = cls(**{**values, "widths": tuple(values["widths"])})
            steps = ("max_translation", "max_rotation")
            sizes = [*(size for name, size in vars(config).items() if name not in ("widths", *steps)), *config.widths]
            valid = all(type(size) is int and size > 0 for size in sizes)
            limits = [getattr(config, name) for name in steps]
            valid = valid and all(type(limit) in (int, float) and 0.0 < limit < math.inf for limit in limits)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / 'config.json'} is incomplete ({error})") from None
        valid = valid and len(config.widths) == 3 and not any(width % NORM_GROUPS for width in config.widths)
        if not valid or config.image_size % STRIDE or config.hidden % config.heads:
            raise CheckpointError(f"{folder / 'config.json'}: sizes that make no network: {values}")
        return config


def _convolution(width: int, wider: int, kernel: int, *, stride: int, padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, wider, kernel, stride, padding), nn.GroupNorm(NORM_GROUPS, wider), nn.SiLU()


class _Residual(nn.Module):
    """Two 3x3 convolutions and a short cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(NORM_GROUPS, width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(NORM_GROUPS, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.silu(self.first_norm(self.first(x)))
        return functional.silu(x + self.second_norm(self.second(inner)))


class TabletopNetwork(nn.Module):
    """Image tower, Llama and action head; `lm_head` gives the logits of words and actions."""

    def __init__(self, config: TabletopConfig) -> None:
        from transformers import LlamaConfig, LlamaModel

        super().__init__()
        narrow, middle, wide = config.widths
        self.config = config
        self.tower = nn.Sequential(
            *_convolution(3, narrow, 4, stride=4, padding=0),
            *_convolution(narrow, middle, 3, stride=2, padding=1), _Residual(middle),
            *_convolution(middle, wide, 3, stride=2, padding=1), _Residual(wide),
            nn.Conv2d(wide, config.hidden, 1),
        )  # fmt: skip
        self.image_positions = nn.Parameter(torch.empty(config.side**2, config.hidden).normal_(std=0.3))
        self.language_model = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocabulary + config.bins,
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                intermediate_size=config.mlp,
                max_position_embeddings=config.side**2 + MAX_WORDS + 1 + DIMENSIONS,
                pad_token_id=None, bos_token_id=None, eos_token_id=None,
            )
        )  # fmt: skip
        self.lm_head = nn.Linear(config.hidden, config.vocabulary + config.bins, bias=False)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Image tokens [B, side * side, hidden], row-major, of pixels [B, 3, image_size, image_size] in 0 ... 255."""
        features: Tensor = self.tower((pixels - 127.5) / 64.0)
        return features.flatten(2).transpose(1, 2) + self.image_positions

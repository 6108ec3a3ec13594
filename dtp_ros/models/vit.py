"""A vision transformer under timm's names, up to its second to last block: what Prismatic models and OpenVLA look with.

The weights of such checkpoints load as they are: no query, key and value to separate, and no last block to run.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = self.proj(mixed)
        return projected


class Mlp(nn.Module):
    """Linear layers fc1, fc2 ... with the exact GELU between them (transformers' SigLIP has the tanh form)."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self._last = len(widths) - 1
        for i, (width, wider) in enumerate(pairwise(widths), start=1):
            self.add_module(f"fc{i}", nn.Linear(width, wider))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., widths[-1]] of [..., widths[0]]."""
        x = self.get_submodule("fc1")(x)
        for i in range(2, self._last + 1):
            x = self.get_submodule(f"fc{i}")(functional.gelu(x))
        return x


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, *, layer_scale: bool) -> None:
        super().__init__()
        norm, scale = partial(nn.LayerNorm, eps=1e-6), _Scale if layer_scale else nn.Identity
        self.norm1, self.attn, self.ls1 = norm(width), _Attention(width, heads), scale(width)
        self.norm2, self.mlp, self.ls2 = norm(width), Mlp(width, inner, width), scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x


class VisionTower(nn.Module):
    """Patch features of the second to last block, without its norm.

    tokens: patches of an image. registers: DINOv2's, which come with a class token and LayerScale (none of them has a
    position); 0: a plain transformer, as SigLIP's.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        tokens: int,
        patch: int,
        registers: int,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, embed_dim, patch, patch)})
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, embed_dim))
        self._prefix = registers + 1 if registers else 0
        if registers:
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
            self.reg_token = nn.Parameter(torch.empty(1, registers, embed_dim))
        block = partial(_Block, embed_dim, num_heads, int(embed_dim * mlp_ratio), layer_scale=registers > 0)
        self.blocks = nn.ModuleList(block() for _ in range(depth - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [B, tokens, embed_dim], row-major, of normalised pixels [B, 3, H, W]."""
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2) + self.pos_embed
        if self._prefix:
            tokens = torch.cat([self.cls_token, self.reg_token], dim=1)
            x = torch.cat([tokens.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        patches: Tensor = x[:, self._prefix :]
        return patches

"""Checks of what reaches the method. They read shapes and types only: no value leaves the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dtp_ros.errors import ConfigError


def require_shape(name: str, tensor: Tensor, **axes: int | None) -> None:
    """Raise ConfigError unless `tensor` has these axes, in order, each of the given size (None: any size >= 1)."""
    shape, sizes = tuple(tensor.shape), tuple(axes.values())
    if len(shape) == len(sizes) and all(
        size == expected or (expected is None and size >= 1) for size, expected in zip(shape, sizes, strict=True)
    ):
        return
    valid = ", ".join(f"{axis} >= 1" if size is None else f"{axis} = {size}" for axis, size in axes.items())
    raise ConfigError(f"{name} has the shape {list(shape)} (valid: [{valid}])")


def require_layers(name: str, layers: Sequence[Tensor], **axes: int | None) -> None:
    """Raise ConfigError unless there is a layer, the first has these axes and the others are shaped like it."""
    if not layers:
        raise ConfigError(f"{name} is empty (valid: one tensor a layer, at least one)")
    require_shape(name, layers[0], **axes)
    for layer in layers[1:]:
        require_shape(name, layer, **dict(zip(axes, layers[0].shape, strict=True)))


def require_mask(name: str, tensor: Tensor, **axes: int | None) -> None:
    """`require_shape`, and the type bool: in any other, `~` would flip bits."""
    require_shape(name, tensor, **axes)
    if tensor.dtype is not torch.bool:
        raise ConfigError(f"{name} has the type {tensor.dtype} (valid: torch.bool)")

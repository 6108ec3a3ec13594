"""Weight-only int8 and int4: the matrices of the decoder's layers held as whole numbers, for a GPU of little memory.

torchao rounds and multiplies; activations stay in bfloat16, as do embeddings, head, norms, biases and vision tower.

int8: W = s q, a scale s = max |W| / 127.5 (float32) for each row, q in -128 ... 127.
int4: W = s (q - 8) + z, for each GROUP weights of a row, s = (max - min) / 15, z = min + 8 s (bfloat16), q in 0 ... 15.

torchao is imported where it is needed only. Of int4 it has one layout for CUDA (tinygemm, compute capability 8.0 and
above; columns are padded to multiples of 1024) and one, among its prototypes, for the CPU.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dtp_ros.errors import ConfigError
from dtp_ros.models.checkpoint import DTYPES

HOST = torch.device("cpu")
LIBRARY = "torchao==0.18.0"
GROUP = 32  # weights that share a scale in int4: the finest there is, 5 bits a weight in all
ROWS = 16  # int4: rows come in multiples of it (CPU; on CUDA they are padded)

_log = logging.getLogger(__name__)


def require_library(dtype: str) -> None:
    """Raise ConfigError where `dtype` is a quantised one and torchao does not import."""
    if dtype not in DTYPES or not DTYPES[dtype].bits:
        return
    try:
        importlib.import_module("torchao.quantization")
    except ImportError as error:
        floats = ", ".join(name for name, (_, bits) in DTYPES.items() if not bits)
        raise ConfigError(
            f"dtype = {dtype!r} needs torchao ({error}): pip install {LIBRARY} (valid without it: auto, {floats})"
        ) from error


def load_quantised(
    model: nn.Module, decoder: Any, dtype: str, place: torch.device, load: Callable[[Callable[[str], None]], None]
) -> None:
    """Load `model`, blank on the host, onto `place`, the matrices of `decoder.layers` quantised as they arrive.

    load: fills the model, and calls what it is given with the name of each weight that it has filled. Only those on the
    host that were written count as memory, so the peak is the weights as they end, one matrix of bfloat16, what torchao
    needs to round it (about 10 bytes a weight), and where `place` is a GPU, the other weights once more on the host.

    Raises ConfigError for a matrix that `dtype` cannot hold, and what `load` raises.
    """
    bits, waiting = DTYPES[dtype].bits, _matrices(model, decoder)
    for name, linear in waiting.items():
        if bits == 4 and (linear.out_features % ROWS or linear.in_features % GROUP):
            size = f"{linear.out_features} x {linear.in_features}"
            raise ConfigError(
                f"dtype = 'int4': {name} is {size} (valid: multiples of {ROWS} x {GROUP}; int8 takes any)"
            )
    count = len(waiting)

    def filled(name: str) -> None:
        if name in waiting:
            quantise_linear(waiting.pop(name), bits, place)
            with suppress(OSError, AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)  # else what was freed between living matrices still counts as memory

    load(filled)
    model.to(place)
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
    total = sum(map(weight_bytes, model.parameters()))
    _log.info("%d matrices of the decoder are %s: %.2f GB of weights in all", count, dtype, total / 1e9)


def quantise_linear(linear: nn.Linear, bits: int, place: torch.device) -> None:
    """Move a layer of bfloat16 to `place` and quantise its weight [rows, columns] to 8 or 4 bits there, for good."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    config: Any
    if bits == 8:
        config = Int8WeightOnlyConfig(set_inductor_config=False)
    elif place.type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        config = PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
    else:
        layout = Int4PackingFormat.TILE_PACKED_TO_4D
        config = Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format=layout, set_inductor_config=False)
    quantize_(linear, config, device=place)


def weight_bytes(weight: Tensor) -> int:
    """Bytes that a weight takes: of a quantised one those of its numbers, scales and offsets, padding included."""
    maybe: Any = weight
    if is_traceable_wrapper_subclass(maybe):
        return sum(weight_bytes(getattr(weight, name)) for name in maybe.__tensor_flatten__()[0])
    return weight.numel() * weight.element_size()


def _matrices(model: nn.Module, decoder: Any) -> dict[str, nn.Linear]:
    """The linear layers within `decoder.layers`, by their weight's name in `model`."""
    inside = set(decoder.layers.modules())
    linear = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))
    return {f"{name}.weight": m for name, m in linear if m in inside}

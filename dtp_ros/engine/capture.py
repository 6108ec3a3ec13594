"""Attention rows and hidden states, read while a language model runs.

The paper hooks eager attention, which builds every row of every layer. The method needs a few rows only: those of the
instruction in some layers and one in each layer. An attention function of our own computes just these in float32 and
leaves the forward pass to the fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dtp_ros.errors import CaptureError

IMPLEMENTATION = "dtp_rows"
FEW_ROWS = 32  # up to here a copy of the keys for each query head costs more than further rows


@dataclass(frozen=True)
class RowRequest:
    """The attention rows that one forward pass is to record.

    columns: key positions to keep, int64 [N_v].
    rows: for each layer (from 0), indices into the pass's query rows, int64 [n].
    """

    columns: Tensor
    rows: Mapping[int, Tensor]


@dataclass
class RowRecorder:
    """Collects the rows of one forward pass; travels to the attention function as the keyword `row_recorder`."""

    request: RowRequest
    _rows: dict[int, Tensor] = field(default_factory=dict)

    def record(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
    ) -> None:
        """Compute and keep the wanted rows of `layer`; raises CaptureError where the mask was lost on the way."""
        if layer not in self.request.rows:
            return
        if mask is None:
            raise CaptureError(f"layer {layer} got no attention mask (valid: the 4-D mask given to the model)")
        rows = self.request.rows[layer]
        self._rows[layer] = attention_rows(query, key, mask, rows, scaling, softcap)[..., self.request.columns]

    def recorded(self, implementation: str) -> dict[int, Tensor]:
        """The rows, float32 [H, n, N_v] a layer; raises CaptureError naming the layers that recorded nothing."""
        missing = sorted(set(self.request.rows) - set(self._rows))
        if missing:
            raise CaptureError(
                f"no attention was captured in layers {missing} with the attention implementation "
                f"{implementation!r} (valid: {IMPLEMENTATION!r}, set by captured_attention)"
            )
        return self._rows


def attention_rows(
    query: Tensor, key: Tensor, mask: Tensor, rows: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """Attention probabilities of some query rows, in float32 whatever the model's dtype.

    softmax(softcap(q k^T * scaling) + mask), softcap(x) = c tanh(x / c); query head h reads key head h // (H / H_kv).

    Args:
        query: [1, H, Lq, d], rotated. key: [1, H_kv, Lk, d], rotated, cache included.
        mask: [1, 1 or H, Lq, >= Lk]: bool (True: visible), or float to be added.
        rows: indices into Lq, int64 [n].
        scaling: of the scores. softcap: c, or None.

    Returns:
        float32 [H, n, Lk].
    """
    scores = _scores(query[:, :, rows].float(), key.float(), scaling, softcap)
    return _masked(scores, mask[:, :, rows, : key.shape[2]])[0].softmax(dim=-1)


def softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float
) -> Tensor:
    """Attention with softcapped scores, which the fused kernel lacks: [B, Lq, H, d] in the model's dtype.

    Scores in the model's dtype and the softmax in float32, as the eager form of Gemma 2 computes it.
    """
    scores = _scores(query, key, scaling, softcap)
    if mask is not None:
        scores = _masked(scores, mask[..., : key.shape[2]])
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    batch, num_key_heads = value.shape[:2]
    grouped = weights.reshape(batch, num_key_heads, -1, weights.shape[-1]) @ value
    return grouped.reshape(query.shape).transpose(1, 2).contiguous()


def packed_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Fused attention of a few rows with grouped heads, [B, Lq, H, d], without a copy of the keys for each query head.

    The heads of a group stand as further rows beside each other.
    """
    batch, num_heads, num_rows, width = query.shape
    groups = num_heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], groups * num_rows, width)
    visible = mask[..., : key.shape[2]].repeat(1, 1, groups, 1)
    output = nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=visible, scale=scaling)
    return output.reshape(query.shape).transpose(1, 2).contiguous()


def _scores(query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Scores [B, H, n, Lk] of query [B, H, n, d] and key [B, H_kv, Lk, d]; the keys are not copied for query heads."""
    batch, num_heads, num_rows, width = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, width) @ key.mT * scaling
    scores = grouped.reshape(batch, num_heads, num_rows, key.shape[2])
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask


def recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    row_recorder: RowRecorder | None = None,
    plain_causal: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function registered with transformers: fused attention, or softcapped, and the wanted rows.

    plain_causal: the mask says no more than that row i sees keys 0 ... i, for which the fused kernel needs none and
    leaves out half of the work.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if row_recorder is not None:
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int):
            raise CaptureError(f"{type(module).__name__} does not say which layer it is (valid: an int layer_idx)")
        row_recorder.record(layer, query, key, attention_mask, scaling, softcap)
    if softcap is not None:
        return softcapped_attention(query, key, value, attention_mask, scaling, softcap), None
    if plain_causal:
        attention_mask = None
    if attention_mask is not None and attention_mask.shape[1] == 1 and query.shape[2] <= FEW_ROWS:
        return packed_attention(query, key, value, attention_mask, scaling), None
    output: Tensor = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )[0]
    return output, None


@contextmanager
def captured_attention(text_model: nn.Module) -> Iterator[None]:
    """Inside, `text_model` runs `recording_attention`, in evaluation mode; on leaving it is as it was.

    May be nested. Raises CaptureError where no transformers model is found, or it takes no attention function.
    """
    AttentionInterface.register(IMPLEMENTATION, recording_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # without it transformers drops 2-D masks silently
    models = [m for m in text_model.modules() if isinstance(m, PreTrainedModel)]
    if not models:
        raise CaptureError(f"{type(text_model).__name__} holds no transformers model (valid: a PreTrainedModel)")
    configs = [config for model in models for config in _config_tree(model.config)]
    implementations = [config._attn_implementation for config in configs]
    training = [module for module in text_model.modules() if module.training]
    try:
        for model in models:
            model.set_attn_implementation(IMPLEMENTATION)
            if model.config._attn_implementation != IMPLEMENTATION:
                raise CaptureError(f"{type(model).__name__} takes no attention function of ours")
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
        # Parents come first: setting one sets its sub-configs too, which then get their own value back.
        for config, implementation in zip(configs, implementations, strict=True):
            config._attn_implementation = implementation


def _config_tree(config: PretrainedConfig) -> list[PretrainedConfig]:
    """`config` and its sub-configs, parents first."""
    children = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(c for child in children if child is not None for c in _config_tree(child))]


@contextmanager
def captured_states(layers: Sequence[nn.Module], wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Yields a dict that forward passes inside fill with the residual stream [1, L, hidden] after the wanted layers."""
    states: dict[int, Tensor] = {}

    def keep(layer: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        states[layer] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as hooks:
        for layer in wanted:
            hooks.callback(layers[layer].register_forward_hook(partial(keep, layer)).remove)
        yield states

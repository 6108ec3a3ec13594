"""Steps of the engine, as functions of a model and a prompt; to be called without gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.decoder import Chain, TokenSequence
from dtp_ros.engine.refine import generate
from dtp_ros.engine.selection import TokenSelector
from dtp_ros.engine.types import StepTrace
from dtp_ros.models.base import Prompt, VlaAdapter
from dtp_ros.pruning.config import PruningConfig


def clean_step(adapter: VlaAdapter, prompt: Prompt) -> list[int]:
    """The action ids of a step of the same engine without DTP: no attention is captured, nothing is analysed."""
    sequence = TokenSequence(adapter, prompt)
    chain = Chain(sequence)
    selector = TokenSelector(adapter.vocabulary, None, prompt.embeddings.device)
    ids: list[int] = []
    while True:
        token_id, _ = selector.choose(chain.extend().logits[0], ids)
        if selector.is_end(token_id):
            return ids
        ids.append(token_id)
        if selector.finished(ids):
            return ids
        sequence.append(token_id)


def clean_run(adapter: VlaAdapter, prompt: Prompt) -> list[int]:
    """`clean_step` with the engine's attention function, as every step of the engine has it."""
    with captured_attention(adapter.text_model):
        return clean_step(adapter, prompt)


def prefill_run(adapter: VlaAdapter, prompt: Prompt) -> None:
    """One prefill of the language model, to the logits of the first token."""
    with captured_attention(adapter.text_model):
        Chain(TokenSequence(adapter, prompt)).extend()


def dtp_run(
    adapter: VlaAdapter, prompt: Prompt, config: PruningConfig, *, speculative: bool = True
) -> tuple[list[int], StepTrace]:
    """The engine's step, and its trace."""
    with captured_attention(adapter.text_model):
        return generate(adapter, prompt, config, **_supported(generate, speculative=speculative))


def _supported(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those of `options` that `function` has. To be removed when every `generate` has `speculative`."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


def setting(config: PruningConfig, schedule: str, scope: str) -> PruningConfig:
    """The same constants under another schedule and scope."""
    return replace(config, mask_schedule=schedule, mask_scope=scope)

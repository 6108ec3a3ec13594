"""Steps of the engine, as functions of a model and a prompt; to be called without gradients."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.models import RandomAdapter
from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.decoder import Chain
from dtp_ros.engine.passes import Passes
from dtp_ros.engine.refine import generate
from dtp_ros.engine.selection import TokenSelector
from dtp_ros.engine.sequence import TokenSequence
from dtp_ros.engine.types import StepTrace
from dtp_ros.models.base import Prompt, VlaAdapter
from dtp_ros.pruning.config import PruningConfig


def clean_step(adapter: VlaAdapter, prompt: Prompt, passes: Passes | None = None) -> list[int]:
    """The action ids of a step of the same engine without DTP: no attention is captured, nothing is analysed.

    To be called inside `captured_attention`. passes: what runs the model.
    """
    sequence = TokenSequence(adapter, prompt, passes)
    chain = Chain(sequence)
    selector = TokenSelector(adapter.vocabulary, None, sequence.device)
    sequence.restrict(selector.support)
    ids: list[int] = []
    while True:
        token_id, _ = selector.choose(chain.extend().logits[0], ids)
        more = selector.goes_on(token_id, ids)
        if not selector.is_end(token_id):
            ids.append(token_id)
        if not more:
            return ids
        sequence.append(token_id)


def clean_run(adapter: RandomAdapter, prompt: Prompt) -> list[int]:
    """`clean_step` with the engine's attention function, as every step of the engine has it."""
    with captured_attention(adapter.text_model):
        return clean_step(adapter, prompt, adapter.fresh_passes())


def prefill_run(adapter: RandomAdapter, prompt: Prompt) -> None:
    """One prefill of the language model, to the logits of the first token."""
    with captured_attention(adapter.text_model):
        sequence = TokenSequence(adapter, prompt, adapter.fresh_passes())
        sequence.restrict(adapter.vocabulary.support.to(sequence.device))
        Chain(sequence).extend()


def dtp_run(
    adapter: RandomAdapter, prompt: Prompt, config: PruningConfig, *, speculative: bool = True
) -> tuple[list[int], StepTrace]:
    """The engine's step, and its trace."""
    with captured_attention(adapter.text_model):
        return generate(adapter, prompt, config, speculative=speculative, passes=adapter.fresh_passes())


def setting(config: PruningConfig, schedule: str, scope: str) -> PruningConfig:
    """The same constants under another schedule and scope."""
    return replace(config, mask_schedule=schedule, mask_scope=scope)

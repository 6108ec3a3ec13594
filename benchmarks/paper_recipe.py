"""Baselines: the paper's recipe as its users would write it, and transformers' own `generate`.

The recipe hooks nothing and saves nothing: eager attention with all of its probabilities at every forward pass, each
token generated, analysed and, where something distracts, generated again with that masked. Fair all the same: one
cache in normal use, the same pure functions, the same choice of tokens. Where the mask lies over the visual input, as
the paper has it (`all`), the second time is a prefill; where it holds for action rows only, just the last row runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from dtp_ros.engine.selection import TokenSelector
from dtp_ros.models.base import Prompt, VlaAdapter
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.pruning.detect import distracting_tokens
from dtp_ros.pruning.pattern import visual_attention_pattern
from dtp_ros.pruning.region import important_region
from dtp_ros.pruning.relevance import attention_relevance, embedding_relevance


def paper_step(adapter: VlaAdapter, prompt: Prompt, config: PruningConfig) -> list[int]:
    """The action ids of one step, pruned token by token (`per_token`) in the scope of `config`.

    config: a fixed tolerance and the variant `dtp`; the schedule is not read. The model has no forced prefix.
    """
    with attention_implementation(adapter.text_model, "eager"):
        recipe = _Recipe(adapter, prompt)
        region = recipe.region(config)
        selector = TokenSelector(adapter.vocabulary, None, prompt.embeddings.device)
        ids: list[int] = []
        while True:
            pattern = visual_attention_pattern(recipe.attention())
            mask = distracting_tokens(pattern, region, config.tolerance, config.max_pruned)
            logits = recipe.logits()
            if mask.any():
                logits = recipe.anew(mask) if config.mask_scope == "all" else recipe.again(mask)
            token_id, _ = selector.choose(logits, ids)
            more = selector.goes_on(token_id, ids)
            if not selector.is_end(token_id):
                ids.append(token_id)
            if not more:
                return ids
            recipe.append(token_id)


class _Recipe:
    """The prompt and the tokens so far in one cache, and the whole output of the last forward pass."""

    def __init__(self, adapter: VlaAdapter, prompt: Prompt) -> None:
        self._adapter, self._prompt = adapter, prompt
        self._cache = DynamicCache()
        self._output: Any = None
        self._everything = prompt.embeddings, prompt.position_ids
        length = prompt.embeddings.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=prompt.embeddings.device)
        if not prompt.bidirectional:
            visible = visible.tril()
        self._next_position = prompt.next_position
        self._last = prompt.embeddings, prompt.position_ids
        self._forward(visible)
        self._last = prompt.embeddings[:, -1:], prompt.position_ids[..., -1:]

    def region(self, config: PruningConfig) -> Tensor:
        """The important region, bool [N_v], from the prefill."""
        layout, layers = self._prompt.layout, config.relevance_layers
        if layout.relevance == "attention":
            probabilities = [self._output.attentions[layer][0] for layer in layers]
            relevance = attention_relevance([p[:, layout.prompt][..., layout.image] for p in probabilities])
        else:  # hidden_states[0] are the embeddings
            states = [self._output.hidden_states[layer + 1][0] for layer in layers]
            relevance = embedding_relevance([s[layout.prompt] for s in states], [s[layout.image] for s in states])
        grid = layout.rows, layout.cols
        return important_region(relevance, *grid, config.top_k, config.sigma, spatial_bias=True)[0]

    def attention(self) -> Tensor:
        """The last row's attention to the image, [L, H, N_v]."""
        image = self._prompt.layout.image
        return torch.stack([layer[0, :, -1][:, image] for layer in self._output.attentions])

    def logits(self) -> Tensor:
        """Logits [vocabulary] of the next token."""
        return self._adapter.logits(self._output.last_hidden_state[0, -1])

    def anew(self, mask: Tensor) -> Tensor:
        """Logits [vocabulary] of the whole sequence once more, the image tokens `mask` [N_v] masked in all rows."""
        embeddings, positions = self._everything
        length, prompt = embeddings.shape[1], self._prompt.embeddings.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        if self._prompt.bidirectional:
            visible[:prompt, :prompt] = True
        visible[:, self._prompt.layout.image] &= ~mask
        visible.fill_diagonal_(True)
        kept = self._cache, self._last, self._output
        self._cache, self._last = DynamicCache(), (embeddings, positions)
        self._forward(visible)
        logits = self.logits()
        self._cache, self._last, self._output = kept
        return logits

    def again(self, mask: Tensor) -> Tensor:
        """Logits [vocabulary] of the last row once more, with the image tokens `mask` [N_v] masked."""
        self._cache.crop(-1)
        visible = torch.ones(1, self._cache.get_seq_length() + 1, dtype=torch.bool, device=mask.device)
        visible[0, self._prompt.layout.image] = ~mask
        self._forward(visible)
        return self.logits()

    def append(self, token_id: int) -> None:
        """Run a token that was kept."""
        device = self._prompt.embeddings.device
        embedding = self._adapter.embed(torch.tensor([[token_id]], device=device))
        axes = self._prompt.position_ids.shape[:-1]
        self._last = embedding, torch.full((*axes, 1), self._next_position, device=device)
        self._next_position += 1
        embeddings, positions = self._everything
        self._everything = torch.cat([embeddings, self._last[0]], 1), torch.cat([positions, self._last[1]], -1)
        self._forward(torch.ones(1, self._cache.get_seq_length() + 1, dtype=torch.bool, device=device))

    def _forward(self, visible: Tensor) -> None:
        """Run what is last under a mask [rows, keys], in which True is visible."""
        embeddings, positions = self._last
        lowest = torch.finfo(embeddings.dtype).min
        additive = torch.zeros(visible.shape, dtype=embeddings.dtype, device=visible.device)
        self._output = self._adapter.text_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=additive.masked_fill(~visible, lowest)[None, None],
            past_key_values=self._cache,
            use_cache=True,
            output_attentions=True,
            output_hidden_states=self._prompt.layout.relevance == "embedding",
        )


def stock_generate(whole: Any, prompt: Prompt, count: int) -> list[int]:
    """`count` greedy tokens by transformers' own `generate`, without DTP and with any token allowed.

    whole: a ForCausalLM. Attention is `sdpa`, or eager where the class has none (Gemma 2: softcapping); positions and
    mask are those that `generate` makes by itself, one after another and causal.
    """
    settings = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
    attended = torch.ones(prompt.embeddings.shape[:2], dtype=torch.int64, device=prompt.embeddings.device)
    with attention_implementation(whole, "sdpa" if whole._supports_sdpa else "eager"):
        ids: Tensor = whole.generate(
            inputs_embeds=prompt.embeddings, attention_mask=attended, generation_config=settings
        )
    return [int(i) for i in ids[0]]


@contextmanager
def attention_implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, `model` runs the attention function `name`; on leaving it is as it was."""
    models = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    before = [m.config._attn_implementation for m in models]
    try:
        for each in models:
            each.set_attn_implementation(name)
        yield
    finally:
        for each, previous in zip(models, before, strict=True):
            each.config._attn_implementation = previous

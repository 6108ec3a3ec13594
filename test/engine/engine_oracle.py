"""Oracles for the engine: eager forward passes over whole sequences, no cache, the method rewritten in numpy."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from engine_models import TinyAdapter
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dtp_ros.models.base import Prompt
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.pruning.detect import variant_mask

LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Eager:
    logits: Tensor  # [N, vocabulary]
    attention: Tensor  # [L, H, N, N]
    states: tuple[Tensor, ...]  # the residual stream before each layer [N, hidden]


class EagerModel:
    """A copy of an adapter's model with eager attention and additive float masks."""

    def __init__(self, adapter: TinyAdapter) -> None:
        self.adapter = adapter
        self.model = copy.deepcopy(adapter.text_model).eval()
        self.model.set_attn_implementation("eager")

    @torch.no_grad()
    def __call__(self, embeddings: Tensor, position_ids: Tensor, visible: Tensor) -> Eager:
        """embeddings [1, N, hidden]; visible bool [N, N]."""
        additive = torch.zeros(visible.shape).masked_fill(~visible, LOWEST)[None, None]
        output = self.model(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            attention_mask=additive,
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )
        return Eager(
            self.adapter.logits(output.last_hidden_state[0]),
            torch.stack([a[0] for a in output.attentions]),
            tuple(h[0] for h in output.hidden_states),
        )


def base_visible(length: int, prefix: int) -> Tensor:
    """Causal, with a prefix of rows that see each other."""
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[:prefix, :prefix] = True
    return visible


def hide(visible: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """`columns` (positions) hidden from `rows`, each row keeping itself."""
    visible = visible.clone()
    for row in rows.tolist():
        kept = bool(visible[row, row])
        visible[row, columns] = False
        visible[row, row] = kept
    return visible


def extended(adapter: TinyAdapter, prompt: Prompt, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Embeddings and positions of the prompt, the forced prefix and `ids`."""
    tokens = [*adapter.vocabulary.forced_prefix_ids, *ids]
    embeddings, positions = prompt.embeddings, prompt.position_ids
    if tokens:
        embeddings = torch.cat([embeddings, adapter.embed(torch.tensor([tokens]))], dim=1)
        new = torch.arange(len(tokens)) + prompt.next_position
        positions = torch.cat([positions, new.expand(*positions.shape[:-1], -1)], dim=-1)
    return embeddings.detach(), positions


class Reference:
    """The whole loop of one step by full recomputation, as method.md defines it."""

    def __init__(self, adapter: TinyAdapter, prompt: Prompt, config: PruningConfig, step: int = 0) -> None:
        self.adapter, self.prompt, self.config, self.step = adapter, prompt, config, step
        self.eager = EagerModel(adapter)
        self.prefix = prompt.embeddings.shape[1] if prompt.bidirectional else 0
        self.image = prompt.layout.image
        self.ids: list[int] = []
        self.masks: list[np.ndarray] = []  # D of every token, bool [N_v]
        self.patterns: list[np.ndarray] = []
        self.entropies: list[tuple[float, float]] = []
        self.clean_ids: list[int] = []
        self.token_ids: list[int] = []
        self.tolerance = config.tolerance
        self._region()

    # ------------------------------------------------------------------ passes
    def last_row(self, mask: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Logits [vocabulary] and attention to the image [L, H, N_v] of the row that predicts the next token."""
        run = self._all if self.config.mask_scope == "all" else self._action
        result, row, image = run(mask)
        return result.logits[row], result.attention[:, :, row, image]

    def _all(self, mask: np.ndarray | None) -> tuple[Eager, int, Tensor]:
        embeddings, positions = extended(self.adapter, self.prompt, self.ids)
        length = embeddings.shape[1]
        visible = base_visible(length, self.prefix)
        if mask is not None:
            visible = hide(visible, self.image[torch.from_numpy(mask)], torch.arange(length))
        return self.eager(embeddings, positions, visible), length - 1, self.image

    def _action(self, mask: np.ndarray | None) -> tuple[Eager, int, Tensor]:
        """Rows of earlier tokens mask their own D; the row that predicts the first token comes twice."""
        embeddings, positions = extended(self.adapter, self.prompt, self.ids)
        first = embeddings.shape[1] - len(self.ids) - 1  # predicts the first token
        order = torch.cat([torch.arange(first + 1), torch.arange(first, embeddings.shape[1])])
        length = len(order)
        visible = base_visible(length, self.prefix)
        visible[first + 1 :, first] = False  # the clean copy
        masks = [*self.masks[: len(self.ids)], mask]
        for i, hidden in enumerate(masks):
            if hidden is not None:
                visible = hide(visible, self.image[torch.from_numpy(hidden)], torch.tensor([first + 1 + i]))
        return self.eager(embeddings[:, order], positions[..., order], visible), length - 1, self.image

    # ------------------------------------------------------------------ method
    def _region(self) -> None:
        layout, config = self.prompt.layout, self.config
        embeddings, positions = extended(self.adapter, self.prompt, [])
        clean = self.eager(embeddings, positions, base_visible(embeddings.shape[1], self.prefix))
        maps = []
        for layer in config.relevance_layers:
            if layout.relevance == "attention":
                rows = clean.attention[layer][:, layout.prompt][:, :, layout.image].double().numpy()
                maps.append(rows.mean(axis=(0, 1)))
            else:
                states = clean.states[layer + 1].double().numpy()
                states = states / np.linalg.norm(states, axis=1, keepdims=True)
                maps.append((states[layout.prompt] @ states[layout.image].T).mean(axis=0))
        self.relevance = np.mean(maps, axis=0)
        grid = self.relevance.reshape(layout.rows, layout.cols)
        corners = np.ix_([0, -1], [0, -1])
        if config.variant != "no_gaussian":
            grid = grid - grid.min()
            grid[corners] = 0
            grid = gaussian_filter(grid, config.sigma, mode="reflect", truncate=4.0)
            grid[corners] = -np.inf
        order = np.argsort(-grid.ravel(), kind="stable")
        self.region = np.zeros(grid.size, dtype=bool)
        self.region[order[: config.top_k]] = True

    def _pattern(self, rows: Tensor) -> np.ndarray:
        attention = rows.double().numpy().mean(axis=1)
        weights = attention.sum(axis=1) / attention.sum()
        if self.config.weights == "first_token":
            if not self.patterns:
                self._weights = weights
            weights = self._weights
        return weights @ attention

    def _detect(self, pattern: np.ndarray, tolerance: float, token: int) -> np.ndarray:
        config = self.config
        found = ~self.region & (pattern > tolerance * pattern[self.region].max())
        if config.max_pruned:
            order = np.argsort(-np.where(found, pattern, -np.inf), kind="stable")
            found &= np.isin(np.arange(found.size), order[: config.max_pruned])
        arguments = torch.from_numpy(found), torch.from_numpy(self.region), config.seed, self.step, token
        return variant_mask(config.variant, *arguments).numpy()

    def _entropy(self, logits: Tensor) -> float:
        support = [*self.adapter.vocabulary.action_ids.tolist(), *self.adapter.vocabulary.end_ids]
        values = logits.double().numpy()[support]
        p = np.exp(values - values.max())
        p /= p.sum()
        return float(-(p * np.log(p)).sum())

    def _choose(self, logits: Tensor) -> int:
        vocabulary = self.adapter.vocabulary
        allowed = vocabulary.action_ids.tolist()
        if len(self.ids) >= vocabulary.min_tokens:
            allowed = sorted([*allowed, *vocabulary.end_ids])
        return allowed[int(np.argmax(logits.numpy()[allowed]))]

    def run(self) -> Reference:
        vocabulary = self.adapter.vocabulary
        while len(self.ids) < vocabulary.max_tokens:
            token = len(self.token_ids)
            clean, rows = self.last_row(None)
            pattern = self._pattern(rows)
            mask, refined = self._refined(pattern, clean, token)
            self.masks.append(mask)
            self.patterns.append(pattern)
            self.entropies.append((self._entropy(clean), self._entropy(refined)))
            self.clean_ids.append(self._choose(clean))
            self.token_ids.append(self._choose(refined))
            if self.token_ids[-1] in vocabulary.end_ids:
                break
            self.ids.append(self.token_ids[-1])
        return self

    def _refined(self, pattern: np.ndarray, clean: Tensor, token: int) -> tuple[np.ndarray, Tensor]:
        config = self.config
        if config.mask_schedule == "per_step" and token > 0:
            return self.masks[0], self._logits(self.masks[0], clean)
        if config.tolerance_mode == "fixed":
            mask = self._detect(pattern, config.tolerance, token)
            return mask, self._logits(mask, clean)
        tried = []
        for tolerance in config.tolerance_grid:
            mask = self._detect(pattern, tolerance, token)
            logits = self._logits(mask, clean)
            # Equal masks give equal entropies, so rounding keeps ties ties without merging anything.
            tried.append((round(self._entropy(logits), 9), -tolerance, mask, logits))
        best = min(tried, key=lambda t: t[:2])
        self.tolerance = -best[1]
        return best[2], best[3]

    def _logits(self, mask: np.ndarray, clean: Tensor) -> Tensor:
        return self.last_row(mask)[0] if mask.any() else clean

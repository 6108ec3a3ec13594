"""Tiny random models of three attention kinds, each behind a small adapter. Real transformers modules throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Emu3TextConfig, Gemma2Config, Gemma2Model, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel
from transformers.models.emu3.modeling_emu3 import Emu3TextModel

from dtp_ros.errors import ActionDecodeError
from dtp_ros.models.base import ActionVocabulary, Grammar, Observation, Prompt, TokenLayout
from dtp_ros.pruning.config import PruningConfig

VOCABULARY = 80
HIDDEN = 32
LAYERS = 4
END = 70
CONFIG = PruningConfig(tolerance=0.55, top_k=8, relevance_layers=(1, 2))


@dataclass
class TinyAdapter:
    """A `VlaAdapter` whose vision tower is the mean colour of each patch through a random matrix."""

    name: str
    text_model: nn.Module
    vocabulary: ActionVocabulary
    grid: tuple[int, int]
    before: int  # text tokens before the image
    after: int  # and after it
    instruction_after: bool
    bidirectional: bool = False
    mrope: bool = False
    first_position: int = 0
    final_softcap: float | None = None
    grammar_object: Grammar | None = None
    horizon: int = 2
    num_cameras: int = 1
    needs_state: bool = False
    needs_intrinsics: bool = False
    prepared: int = 0
    decoded: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(11)
        self.head = torch.randn(VOCABULARY, HIDDEN, generator=generator) * 0.4
        self.vision = torch.randn(3, HIDDEN, generator=generator) * 1.5

    @property
    def num_layers(self) -> int:
        return LAYERS

    @property
    def device(self) -> torch.device:
        return self.head.device

    def to(self, device: str) -> TinyAdapter:
        self.text_model.to(device)
        self.head = self.head.to(device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        return next(self.text_model.parameters()).dtype

    def layers(self) -> Sequence[nn.Module]:
        return list(self.text_model.layers)

    def prepare(self, observation: Observation) -> Prompt:
        self.prepared += 1
        rows, cols = self.grid
        image = torch.from_numpy(observation.images[0].astype(np.float32) / 255)
        patches = image.unfold(0, image.shape[0] // rows, image.shape[0] // rows)
        patches = patches.unfold(1, image.shape[1] // cols, image.shape[1] // cols).mean(dim=(-1, -2))
        features = (patches.reshape(-1, 3) - 0.5) @ self.vision
        ids = [(ord(c) * 7 + i) % 40 for i, c in enumerate(observation.instruction.ljust(self.before + self.after))]
        text = self.embed(torch.tensor([ids[: self.before + self.after]], device=self.device))[0]
        parts = [text[: self.before], features.to(text), text[self.before :]]
        embeddings = torch.cat(parts)[None]
        start, end = self.before, self.before + rows * cols
        prompt = torch.arange(end + 1, end + self.after - 1) if self.instruction_after else torch.arange(1, start)
        positions, next_position = self._positions(embeddings.shape[1])
        return Prompt(
            embeddings=embeddings,
            position_ids=positions,
            next_position=next_position,
            layout=TokenLayout(
                torch.arange(start, end), prompt, rows, cols, "attention" if self.instruction_after else "embedding"
            ),
            bidirectional=self.bidirectional,
        )

    def _positions(self, length: int) -> tuple[Tensor, int]:
        if not self.mrope:
            return torch.arange(length)[None] + self.first_position, length + self.first_position
        rows, cols = self.grid
        start, size = self.before, max(rows, cols)
        axes = []
        for axis in (
            torch.zeros(rows * cols),
            torch.arange(rows).repeat_interleave(cols),
            torch.arange(cols).repeat(rows),
        ):
            tail = torch.arange(self.after) + start + size
            axes.append(torch.cat([torch.arange(start), axis.long() + start, tail]))
        return torch.stack(axes)[:, None], start + size + self.after

    def embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.text_model.embed_tokens(ids)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        logits = hidden.float() @ self.head.T
        return logits if self.final_softcap is None else self.final_softcap * torch.tanh(logits / self.final_softcap)

    def action_logits(self, hidden: Tensor) -> Tensor:
        return self.logits(hidden)[..., self.vocabulary.support.to(hidden.device)]

    def grammar(self) -> Grammar | None:
        return self.grammar_object

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        self.decoded.append(tuple(ids))
        if len(ids) < 2:
            raise ActionDecodeError(f"{len(ids)} tokens are too few (valid: 2 or more)")
        values = np.resize(np.asarray(ids, dtype=np.float64), (self.horizon, 7)) / 1e4
        return values

    def reset(self) -> None:
        self.prepared = 0


def _ready(model: nn.Module, seed: int) -> nn.Module:
    """Random weights of standard deviation 0.2: attention that is far from uniform. Norms stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model.embed_tokens.weight.mul_(4)
    return model.eval()


COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def qwen(seed: int = 0) -> TinyAdapter:
    """Causal, grouped heads, M-RoPE, variable length; text, image 4 x 6, instruction."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    model = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**COMMON, rope_parameters=rope))
    vocabulary = ActionVocabulary(torch.arange(44, 64), end_ids=(END,), min_tokens=3, max_tokens=6)
    return TinyAdapter("qwen", _ready(model, seed), vocabulary, (4, 6), 3, 6, True, mrope=True)


def gemma(seed: int = 0) -> TinyAdapter:
    """Bidirectional prefix, softcap, a sliding window, fixed length; image 4 x 5, instruction."""
    config = Gemma2Config(**COMMON, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=3.0, sliding_window=64)
    vocabulary = ActionVocabulary(torch.arange(44, 64), min_tokens=5, max_tokens=5)
    return TinyAdapter("gemma", _ready(Gemma2Model(config), seed), vocabulary, (4, 5), 0, 7, True, True, False, 1, 6.0)


def emu(seed: int = 0) -> TinyAdapter:
    """Text before the image (embedding relevance), causal, grouped heads, dropout in training; image 5 x 5."""
    rope = {"rope_type": "default", "rope_theta": 1e4}
    model = Emu3TextModel(Emu3TextConfig(**COMMON, rope_parameters=rope, attention_dropout=0.1))
    vocabulary = ActionVocabulary(torch.arange(44, 64), end_ids=(END,), min_tokens=4, max_tokens=6)
    return TinyAdapter("emu", _ready(model, seed), vocabulary, (5, 5), 7, 3, False)


MODELS = {"qwen": qwen, "gemma": gemma, "emu": emu}


def forced(adapter: TinyAdapter, ids: tuple[int, ...] = (5, 6)) -> TinyAdapter:
    """The same model with a forced prefix."""
    adapter.vocabulary = replace(adapter.vocabulary, forced_prefix_ids=ids)
    return adapter


def observation(seed: int = 0, stamp: float = 0.0, instruction: str = "put the carrot on it") -> Observation:
    """A random picture of 40 x 60 pixels."""
    image = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Observation(images=(image,), instruction=instruction, stamp=stamp)

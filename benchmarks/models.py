"""Random language models, shaped like three of the registry's, to measure the engine with: no weights, no vision tower.

Sizes are the real ones' with a narrower residual stream, and a smaller vocabulary, whose head would else weigh more
than the layers. What the cost of the method depends on is as in the real models: how many layers, which attention, how
many image tokens, where they stand, how many action tokens. Attention is far from uniform, so that masks are neither
empty nor full.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtp_ros.models.base import ActionVocabulary, Observation, Prompt, TokenLayout
from dtp_ros.models.checkpoint import blank_model
from dtp_ros.models.decoder import DecoderAdapter
from dtp_ros.pruning.config import PruningConfig

SEED = 5


@dataclass(frozen=True)
class Weights:
    """How large random weights are.

    Of a layer, the standard deviation of what comes out where unit numbers go in. query_key: of queries and keys; scores
    deviate by its square. inner: of values and of the MLP's two first layers. residual: of what a layer adds to the
    residual stream, small enough that a mask does not change every token.
    embedding, head: standard deviations of these two tables.
    """

    query_key: float = 1.6
    inner: float = 1.0
    residual: float = 0.12
    embedding: float = 1.0
    head: float = 1.0

    def deviation(self, name: str, parameter: Tensor) -> float:
        """Of a matrix of the model."""
        if "embed_tokens" in name:
            return self.embedding
        if "lm_head" in name:
            return self.head
        output = self.inner
        if any(part in name for part in ("q_proj", "k_proj")):
            output = self.query_key
        elif any(part in name for part in ("o_proj", "down_proj")):
            output = self.residual
        return float(output / parameter.shape[1] ** 0.5)


@dataclass(frozen=True)
class Shape:
    """A random model: its parts, and the order of its prompt.

    build: makes (whole model with a head, decoder, head). before, after: text tokens before the image and after it; the
    instruction is the last `instruction` of them, less one, on the side that has it.
    previous: tokens of the frame and the action before the newest image.
    tokens: action tokens, always so many. actions: ids that are actions. norms_after: layers end in norms, as Gemma's.
    config: constants of the method under which it fires.
    """

    name: str
    build: Callable[[], tuple[Any, nn.Module, nn.Module]]
    grid: tuple[int, int]
    before: int
    after: int
    tokens: int
    actions: int
    config: PruningConfig
    instruction: int = 8
    previous: int = 0
    ends: bool = False
    bidirectional: bool = False
    mrope: bool = False
    first_position: int = 0
    final_softcap: float | None = None
    norms_after: bool = False
    weights: Weights = field(default_factory=Weights)

    @property
    def image_tokens(self) -> int:
        """Of the newest image."""
        return self.grid[0] * self.grid[1]

    @property
    def prompt_tokens(self) -> int:
        """Of the whole prompt."""
        return self.before + self.previous + self.image_tokens + self.after


class RandomAdapter(DecoderAdapter):
    """A random model for the engine (`VlaAdapter`); a picture is as many random vectors, drawn from its stamp.

    whole: the model with its head, as transformers' users have it.
    """

    def __init__(self, shape: Shape, whole: Any, text_model: nn.Module, head: nn.Module) -> None:
        super().__init__(text_model, head)
        self.name, self.grid, self.shape, self.whole = shape.name, shape.grid, shape, whole
        rows = next(head.parameters()).shape[0]
        first = rows - shape.actions
        self.vocabulary = ActionVocabulary(
            action_ids=torch.arange(first, rows),
            end_ids=(first - 1,) if shape.ends else (),
            min_tokens=shape.tokens,
            max_tokens=shape.tokens,
        )

    @property
    def parameters(self) -> int:
        """Number of weights of decoder and head, each once."""
        distinct = {id(p): p.numel() for part in (self.text_model, self._head) for p in part.parameters()}
        return sum(distinct.values())

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that one generated token reads: layers and head, not the table of embeddings."""
        distinct = {id(p): p for part in (*self.layers(), self._head) for p in part.parameters()}
        return sum(p.numel() * p.element_size() for p in distinct.values())

    def prepare(self, observation: Observation) -> Prompt:
        """A prompt of random text and image tokens, as the stamp says."""
        shape, generator = self.shape, torch.Generator().manual_seed(SEED + int(observation.stamp))
        start, stop = shape.before + shape.previous, shape.prompt_tokens - shape.after
        ids = torch.randint(0, int(self.vocabulary.action_ids[0]) - 1, (1, shape.prompt_tokens), generator=generator)
        embeddings = self.embed(ids).clone()
        deviation = float(embeddings.float().std())
        image = torch.randn(shape.image_tokens, embeddings.shape[-1], generator=generator) * deviation
        embeddings[0, start:stop] = image.to(embeddings)
        positions, next_position = self._positions(start, stop)
        by_attention = shape.after > shape.instruction
        first = shape.prompt_tokens - 1 if by_attention else shape.before
        prompt = torch.arange(first - shape.instruction, first)
        layout = TokenLayout(
            torch.arange(start, stop), prompt, *shape.grid, relevance="attention" if by_attention else "embedding"
        )
        return Prompt(embeddings, positions.to(self.device), next_position, layout, shape.bidirectional)

    def _positions(self, start: int, stop: int) -> tuple[Tensor, int]:
        """Positions of the prompt, and the next one; under M-RoPE an image is as long as its longer side."""
        shape = self.shape
        if not shape.mrope:
            positions = torch.arange(shape.prompt_tokens + 1) + shape.first_position
            return positions[None, :-1], int(positions[-1])
        rows, cols = shape.grid
        grid = (torch.zeros(stop - start), torch.arange(rows).repeat_interleave(cols), torch.arange(cols).repeat(rows))
        next_position = start + max(rows, cols) + shape.after
        tail = torch.arange(next_position - shape.after, next_position)
        axes = [torch.cat([torch.arange(start), axis.long() + start, tail]) for axis in grid]
        return torch.stack(axes)[:, None], next_position

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [..., vocabulary]."""
        logits, cap = super().logits(hidden), self.shape.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def decode(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """An action of no meaning, [1, 7]: the engine's step wants one."""
        return np.resize(np.asarray(ids, dtype=np.float64), (1, 7)) / 1e6


def random_adapter(shape: Shape, dtype: torch.dtype, device: torch.device) -> RandomAdapter:
    """The random model of a shape: the same numbers on every device."""
    with blank_model(torch.device("cpu"), dtype):
        whole, text_model, head = shape.build()
    for name, parameter in whole.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEED)
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=shape.weights.deviation(name, parameter), generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            gain = shape.weights.residual if shape.norms_after and "post_" in name else 1.0
            nn.init.constant_(parameter, gain - 1.0 if shape.norms_after else gain)  # Gemma's count from 1
    whole.eval().requires_grad_(False).to(device)
    return RandomAdapter(shape, whole, text_model, head)


def _qwen(text: Mapping[str, Any]) -> Callable[[], tuple[Any, nn.Module, nn.Module]]:
    def build() -> tuple[Any, nn.Module, nn.Module]:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1}  # is never run
        vision |= {"out_hidden_size": text["hidden_size"]}
        config = Qwen2_5_VLConfig(text_config=dict(text), vision_config=vision, tie_word_embeddings=True)
        whole = Qwen2_5_VLForConditionalGeneration(config)
        return whole, whole.model.language_model, whole.lm_head

    return build


def _gemma(text: Mapping[str, Any]) -> Callable[[], tuple[Any, nn.Module, nn.Module]]:
    def build() -> tuple[Any, nn.Module, nn.Module]:
        from transformers import Gemma2Config, Gemma2ForCausalLM

        whole = Gemma2ForCausalLM(Gemma2Config(**text))
        return whole, whole.model, whole.lm_head

    return build


def _emu(text: Mapping[str, Any]) -> Callable[[], tuple[Any, nn.Module, nn.Module]]:
    def build() -> tuple[Any, nn.Module, nn.Module]:
        from transformers import Emu3ForCausalLM, Emu3TextConfig

        whole = Emu3ForCausalLM(Emu3TextConfig(**text))
        return whole, whole.model, whole.lm_head

    return build


VOCABULARY = 32768
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
NORA = Shape(
    name="nora",
    build=_qwen({
        **SPECIAL, "hidden_size": 1024, "intermediate_size": 5504, "num_hidden_layers": 24,
        "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }),
    grid=(8, 8), before=15, after=18, tokens=7, actions=2048, ends=True, mrope=True,
    config=PruningConfig(tolerance=0.5, top_k=27, relevance_layers=(12, 13, 21)),
)  # fmt: skip
SPATIALVLA = Shape(
    name="spatialvla",
    build=_gemma({
        **SPECIAL, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 26,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 256, "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096,
        "tie_word_embeddings": False,
    }),
    grid=(16, 16), before=0, after=20, tokens=12, actions=8194, bidirectional=True, first_position=1,
    final_softcap=30.0, norms_after=True, weights=Weights(residual=0.06, embedding=1 / 32, head=0.2),
    config=PruningConfig(tolerance=0.5, top_k=109, relevance_layers=(4, 6)),
)  # fmt: skip
UNIVLA = Shape(
    name="univla",
    build=_emu({
        **SPECIAL, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 25,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }),
    grid=(32, 32), before=12, previous=1045, after=3, tokens=8, actions=1025, ends=True,
    weights=Weights(query_key=1.5), config=PruningConfig(tolerance=0.4, top_k=436, relevance_layers=(11, 12)),
)  # fmt: skip
SHAPES: Mapping[str, Shape] = {shape.name: shape for shape in (NORA, SPATIALVLA, UNIVLA)}

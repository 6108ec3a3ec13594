"""Shapes of random models: like three of the registry's, and a small one to see how the cost grows.

Sizes are the real ones' with a narrower residual stream, and a smaller vocabulary, whose head would else weigh more
than the layers. What the cost of the method depends on is as in the real models: how many layers, which attention, how
many image tokens, where they stand, how many action tokens. Attention is far from uniform, so that masks are neither
empty nor full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dtp_ros.pruning.config import PruningConfig


@dataclass(frozen=True)
class Weights:
    """How large random weights are.

    Of a layer, the standard deviation of what comes out where unit numbers go in. query_key: of queries and keys, whose
    scores deviate by its square. inner: of values and of the MLP's two first layers. residual: of what a layer adds to
    the residual stream, small enough that a mask does not change every token.
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
    final_softcap=30.0, norms_after=True, weights=Weights(residual=0.04, embedding=1 / 32, head=0.2),
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


def growing(image_side: int = 8, words: int = 32, tokens: int = 7) -> Shape:
    """A causal model of 0.1 B parameters: `image_side`^2 image tokens, `words` of text around, `tokens` to say."""
    text = {
        "vocab_size": 8192, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_size": 640,
        "intermediate_size": 2560, "num_hidden_layers": 16, "num_attention_heads": 10, "num_key_value_heads": 2,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    config = PruningConfig(tolerance=0.5, top_k=max(1, round(0.426 * image_side**2)), relevance_layers=(6, 7))
    return Shape(
        f"{image_side}x{image_side}", _emu(text), (image_side, image_side), before=words // 2,
        after=words - words // 2, tokens=tokens, actions=2048, config=config,
    )  # fmt: skip

"""Random language models behind the engine's protocol, to measure it with: no weights, no vision tower."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.shapes import Shape
from dtp_ros.engine.passes import Passes
from dtp_ros.engine.static import StaticPasses
from dtp_ros.models.base import ActionVocabulary, Observation, Prompt, TokenLayout
from dtp_ros.models.checkpoint import blank_model
from dtp_ros.models.decoder import DecoderAdapter
from dtp_ros.study.roofline import Transformer, Vla

SEED = 5


class RandomAdapter(DecoderAdapter):
    """A random model for the engine (`VlaAdapter`); a picture is as many random vectors, drawn from its stamp.

    whole: the model with its head, as transformers' users have it.
    """

    def __init__(self, shape: Shape, whole: Any, text_model: nn.Module, head: nn.Module) -> None:
        super().__init__(text_model, head, shape.final_softcap)
        self.name, self.grid, self.shape, self.whole = shape.name, shape.grid, shape, whole
        self._passes: Passes | None = None
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
        """Bytes of weights that one generated token reads: layers, and the head's rows of action tokens."""
        layers = sum(p.numel() * p.element_size() for part in self.layers() for p in part.parameters())
        head = next(self._head.parameters())
        return layers + len(self.vocabulary.support) * head.shape[1] * head.element_size()

    def fresh_passes(self) -> Passes:
        """What runs the model, kept from step to step as the policy keeps it, with graphs on CUDA.

        Less the rows of the text before the image, which DTP's prefill would take over and the clean one not.
        """
        if self._passes is None:
            self._passes = StaticPasses(self) if self.device.type == "cuda" else Passes(self)
        self._passes.prefix = None
        return self._passes

    def sizes(self) -> Vla:
        """Of the step model: a decoder without an encoder."""
        config: Any = self.text_model.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = config.num_attention_heads, config.num_key_value_heads
        layers = Transformer(self.num_layers, config.hidden_size, *heads, width, config.intermediate_size)
        choices = len(self.vocabulary.support)
        return Vla(self.name, layers, config.vocab_size, choices, self.shape.prompt_tokens, self.shape.tokens)

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
        prompt = torch.arange(first - shape.instruction, first, device=self.device)
        places = torch.arange(start, stop, device=self.device)
        layout = TokenLayout(places, prompt, *shape.grid, relevance="attention" if by_attention else "embedding")
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

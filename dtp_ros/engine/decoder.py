"""The language model, pass by pass: prefill, step, rewind, masked step, masked prefill.

Every pass uses the same attention function and an explicit mask of the same form, so that nothing but the mask tells a
pruned pass from a clean one. Positions are those of the sequence and never depend on what is masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from dtp_ros.engine.capture import RowRecorder, RowRequest, captured_states
from dtp_ros.errors import CaptureError, ObservationError
from dtp_ros.models.base import Prompt, VlaAdapter
from dtp_ros.pruning.relevance import attention_relevance, embedding_relevance

Tail = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pass:
    """What one forward pass gave for its last n rows.

    logits: float32 [n, vocabulary].
    rows: their attention to the image, float32 [num_layers, H, n, N_v]; None where it was not asked for.
    """

    logits: Tensor
    rows: Tensor | None = None

    def attention(self, row: int = 0) -> Tensor:
        """Attention of one row to the image, [num_layers, H, N_v]; raises CaptureError where it was not captured."""
        if self.rows is None:
            raise CaptureError("this pass captured no attention (valid: a pass run with capture)")
        return self.rows[:, :, row]


class TokenSequence:
    """The prompt, the forced prefix and the tokens kept so far, embedded once.

    The vision tower is not run again: image features are part of the prompt's embeddings.
    """

    def __init__(self, adapter: VlaAdapter, prompt: Prompt) -> None:
        """Raises ObservationError where prompt and actions exceed the model's sliding window."""
        self.adapter = adapter
        device = prompt.embeddings.device
        image, instruction = prompt.layout.image.to(device), prompt.layout.prompt.to(device)
        self.layout = replace(prompt.layout, image=image, prompt=instruction)
        self.embeddings = prompt.embeddings
        self.position_ids = prompt.position_ids.to(device)
        self._next_position = prompt.next_position
        self._prefix_length = prompt.embeddings.shape[1] if prompt.bidirectional else 0
        for token_id in adapter.vocabulary.forced_prefix_ids:
            self.append(token_id)
        _require_window(adapter.text_model, len(self) + adapter.vocabulary.max_tokens)

    def __len__(self) -> int:
        """Number of tokens, N."""
        return int(self.embeddings.shape[1])

    def append(self, token_id: int) -> None:
        """Add a token at the next position."""
        device = self.embeddings.device
        embedding = self.adapter.embed(torch.full((1, 1), token_id, dtype=torch.int64, device=device))
        self.embeddings = torch.cat([self.embeddings, embedding], dim=1)
        axes = self.position_ids.shape[:-1]
        position = torch.full((*axes, 1), self._next_position, dtype=torch.int64, device=device)
        self.position_ids = torch.cat([self.position_ids, position], dim=-1)
        self._next_position += 1

    def mask(self, start: int, stop: int, hidden: Tensor | None = None) -> Tensor:
        """Which of the keys 0 ... stop - 1 the rows start ... stop - 1 see: bool [1, 1, stop - start, stop].

        Causal, or bidirectional among the rows of a prefix LM's prompt. `hidden` [N_v] are image tokens masked as keys
        in all these rows; a row that is itself such a token keeps itself, so that no row is wholly masked (nobody
        reads it: the result is that of removing the token).
        """
        device = self.embeddings.device
        rows = torch.arange(start, stop, device=device)[:, None]
        keys = torch.arange(stop, device=device)
        visible = (keys <= rows) | ((rows < self._prefix_length) & (keys < self._prefix_length))
        if hidden is not None:
            masked = torch.zeros(stop, dtype=torch.bool, device=device)
            masked[self.layout.image] = hidden
            visible = visible & (~masked | (keys == rows))
        return visible[None, None]


class Chain:
    """A key/value cache over a `TokenSequence`, and the passes that fill it."""

    def __init__(self, sequence: TokenSequence) -> None:
        self._sequence = sequence
        # Not by config: with explicit masks within the window (checked) sliding layers are plain ones.
        self._cache = DynamicCache()
        self._length = 0

    def prefill(self, relevance_layers: Sequence[int]) -> tuple[Pass, Tensor]:
        """The clean prefill: the pass of its last row, and the relevance R of the image tokens, float32 [N_v].

        R is read from attention (Eq. 1) or from the residual stream (Eq. 2), as the model's layout says. Raises
        CaptureError where a layer recorded nothing.
        """
        layout, stop = self._sequence.layout, len(self._sequence)
        by_attention = layout.relevance == "attention"
        rows = self._last_rows(stop, 1)
        if by_attention:
            rows |= {layer: torch.cat([layout.prompt, rows[layer]]) for layer in relevance_layers}
        hooked = () if by_attention else tuple(relevance_layers)
        with captured_states(self._sequence.adapter.layers(), hooked) as states:
            hidden, recorded = self._forward(0, stop, self._sequence.mask(0, stop), rows)
        if by_attention:
            relevance = attention_relevance([recorded[layer][:, :-1] for layer in relevance_layers])
        else:
            missing = [layer for layer in relevance_layers if layer not in states]
            if missing:
                raise CaptureError(f"no hidden states were captured after the layers {missing}")
            relevance = embedding_relevance(
                [states[layer][0, layout.prompt] for layer in relevance_layers],
                [states[layer][0, layout.image] for layer in relevance_layers],
            )
        return self._pass(hidden, recorded, 1), relevance

    def extend(self, hidden: Tensor | None = None, *, capture: bool = False, count: int = 1) -> Pass:
        """Run every token that is not in the cache yet, with the image tokens `hidden` [N_v] masked in these rows.

        Returns the pass of the last `count` rows, with their attention if `capture`. On an empty cache this is a
        masked prefill.
        """
        start, stop = self._length, len(self._sequence)
        rows = self._last_rows(stop - start, count) if capture else {}
        states, recorded = self._forward(start, stop, self._sequence.mask(start, stop, hidden), rows)
        return self._pass(states, recorded, count)

    def replay(self, count: int) -> Pass:
        """The last `count` rows again, clean and captured, each reading the cache as it was kept before that row.

        One pass of `count` independent rows: row i sees the kept rows before it and itself, not the other replayed
        ones. The cache is left as it was.
        """
        start, stop = self._length - count, self._length
        device = self._sequence.embeddings.device
        kept = self._sequence.mask(start, stop).tril(start - 1)
        mask = torch.cat([kept, torch.eye(count, dtype=torch.bool, device=device)[None, None]], dim=-1)
        states, recorded = self._forward(start, stop, mask, self._last_rows(count, count))
        self.rewind(count)
        return self._pass(states, recorded, count)

    def rewind(self, count: int = 1) -> None:
        """Forget the last `count` rows of the cache; the sequence stays."""
        self._cache.crop(-count)
        self._length -= count

    @property
    def complete(self) -> bool:
        """Whether every token of the sequence is in the cache."""
        return self._length == len(self._sequence)

    def tail(self) -> Tail:
        """A copy of the last row's keys and values, a pair a layer."""
        return [(layer.keys[..., -1:, :].clone(), layer.values[..., -1:, :].clone()) for layer in self._cache.layers]

    def replace_tail(self, tail: Tail) -> None:
        """Put `tail` in place of the last row's keys and values."""
        for layer, (keys, values) in zip(self._cache.layers, tail, strict=True):
            layer.keys[..., -1:, :] = keys
            layer.values[..., -1:, :] = values

    def _last_rows(self, length: int, count: int) -> dict[int, Tensor]:
        rows = torch.arange(length - count, length, device=self._sequence.embeddings.device)
        return dict.fromkeys(range(self._sequence.adapter.num_layers), rows)

    def _forward(
        self, start: int, stop: int, mask: Tensor, rows: Mapping[int, Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the tokens start ... stop - 1; their hidden states [stop - start, hidden], and the recorded rows."""
        sequence, model = self._sequence, self._sequence.adapter.text_model
        recorder = RowRecorder(RowRequest(sequence.layout.image, rows)) if rows else None
        output = model(
            inputs_embeds=sequence.embeddings[:, start:stop],
            position_ids=sequence.position_ids[..., start:stop],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            row_recorder=recorder,
        )
        self._length += stop - start
        recorded = {} if recorder is None else recorder.recorded(_implementation(model))
        return output.last_hidden_state[0], recorded

    def _pass(self, hidden: Tensor, recorded: Mapping[int, Tensor], count: int) -> Pass:
        logits = self._sequence.adapter.logits(hidden[-count:])
        if not recorded:
            return Pass(logits)
        layers = range(self._sequence.adapter.num_layers)
        return Pass(logits, torch.stack([recorded[layer][:, -count:] for layer in layers]))


def _implementation(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "_attn_implementation", "unknown"))


def _require_window(model: nn.Module, length: int) -> None:
    """Raise ObservationError where some layer of `model` would not see all of `length` tokens."""
    config = getattr(model, "config", None)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or any(kind == "sliding_attention" for kind in kinds)
    if window is not None and slides and length > window:
        raise ObservationError(
            f"prompt and action tokens take {length} positions, more than the model's sliding window "
            f"(valid: up to {window}); shorten the instruction"
        )

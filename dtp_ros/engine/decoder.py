"""The language model, pass by pass: prefill, steps, rows tried beside each other, masked and forked prefills.

Every pass uses the same attention function and says its mask, so that nothing but the mask tells a pruned pass from a
clean one. Where that is plain causal, as in the prefill of a causal model, the kernel is told so instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_ros.engine.cache import RowCache
from dtp_ros.engine.passes import Output, Request
from dtp_ros.engine.prefix import Prefix
from dtp_ros.engine.sequence import TokenSequence
from dtp_ros.errors import CaptureError
from dtp_ros.pruning.relevance import attention_relevance, embedding_relevance


@dataclass(frozen=True)
class Pass:
    """What one forward pass gave for its last n rows.

    logits: float32 [n, vocabulary].
    rows: attention to the image of the last rows, float32 [num_layers, H, <= n, N_v]; None where it was not asked for.
    """

    logits: Tensor
    rows: Tensor | None = None

    def attention(self, row: int = -1) -> Tensor:
        """Attention of one captured row to the image, [num_layers, H, N_v]; raises CaptureError without any."""
        if self.rows is None:
            raise CaptureError("this pass captured no attention (valid: a pass run with capture)")
        return self.rows[:, :, row]

    def split(self) -> list[Pass]:
        """A pass of one row each, all captured."""
        count = len(self.logits)
        rows = [None] * count if self.rows is None else self.rows.tensor_split(count, dim=2)
        return [Pass(*parts) for parts in zip(self.logits.tensor_split(count), rows, strict=True)]


class Chain:
    """A key/value cache over a `TokenSequence`, and the passes that fill it.

    It holds the sequence's tokens in order, as far as it has come, or all but those that were taken out (`without`).
    """

    def __init__(self, sequence: TokenSequence, cache: RowCache | None = None) -> None:
        self._sequence = sequence
        self._cache = sequence.passes.cache(sequence.capacity, 0) if cache is None else cache
        self._tokens = torch.arange(0, device=sequence.device)  # which token each row of the cache is
        self._reached = 0  # tokens of the sequence that are dealt with
        self._removed: Tensor | None = None  # bool [capacity]
        self._hidden: Tensor | None = None  # [k, 1, N_v], masked in all rows

    @property
    def complete(self) -> bool:
        """Whether every token of the sequence is in the cache."""
        return self._reached == len(self._sequence)

    def prefill(self, relevance_layers: Sequence[int]) -> tuple[Pass, Tensor]:
        """The clean prefill: the pass of its last row, and the relevance R of the image tokens, float32 [N_v].

        R is read from attention (Eq. 1) or from the residual stream (Eq. 2), as the model's layout says. Rows of text
        before the image are those of the step before, where they are the same. Raises CaptureError where a layer
        recorded nothing.
        """
        layout, passes = self._sequence.layout, self._sequence.passes
        by_attention = layout.relevance == "attention"
        layers = () if by_attention else tuple(relevance_layers)
        known = passes.prefix if passes.prefix and passes.prefix.serves(self._sequence, layers) else None
        if known is not None:
            self._begin(known.cache, self._sequence.text_length)
        start = self._reached
        wanted = self._last_rows(len(self._sequence) - start, 1)
        if by_attention:
            wanted |= dict.fromkeys(relevance_layers, torch.cat([layout.prompt - start, wanted[0]]))
        output = self._run(self._pending(), wanted=wanted, states=layers)
        missing = [layer for layer in layers if layer not in output.states]
        if missing:
            raise CaptureError(f"no hidden states were captured after the layers {missing}")
        instruction = known.states if known else {n: output.states[n][0, layout.prompt].clone() for n in layers}
        if known is None:
            passes.prefix = Prefix.of(self._sequence, self._cache, instruction)
        if by_attention:
            relevance = attention_relevance([output.attention[layer][:, :-1] for layer in relevance_layers])
        else:
            image = [output.states[layer][0, layout.image - start] for layer in layers]
            relevance = embedding_relevance([instruction[layer] for layer in layers], image)
        return self._pass(output.hidden[0, -1:], output, 1), relevance

    def extend(self, *, capture: bool = False, count: int = 1) -> Pass:
        """Run every token that is not in the cache yet; the pass of the last `count` rows, captured if `capture`.

        Of a batch (`branches`): logits [k, vocabulary] of the last row of each.
        """
        rows = self._pending()
        output = self._run(rows, hidden=self._hidden, wanted=self._last_rows(len(rows), count if capture else 0))
        return self._pass(output.hidden[:, -count:].flatten(0, 1), output, count)

    def attempt(self, tokens: Sequence[int], masks: Sequence[Tensor | None], *, keep: int, captured: int = 0) -> Pass:
        """Run rows of the last tokens beside each other in one pass.

        A row sees the rows in the cache of earlier tokens, itself, and the kept ones of this pass of earlier tokens.

        Args:
            tokens: which token each row is, ascending among those that are kept.
            masks: image tokens hidden from each row, bool [N_v], or None.
            keep: so many rows stay in the cache, the first ones; the others see only what was there before them.
            captured: the attention of so many rows is captured, the last ones.
        """
        rows = torch.tensor(tokens, device=self._sequence.device)
        nothing = torch.zeros(len(self._sequence.layout.image), dtype=torch.bool, device=self._sequence.device)
        hidden = torch.stack([nothing if mask is None else mask for mask in masks])[None]
        output = self._run(rows, keep=keep, hidden=hidden, wanted=self._last_rows(len(rows), captured))
        return self._pass(output.hidden[0], output, captured)

    def adopt(self, index: int) -> None:
        """Put row `index` of the last pass, which was not kept, in the place of the cache's last one."""
        self._cache.move(self._cache.length + index, self._cache.length - 1)

    def rewind(self, count: int = 1) -> None:
        """Forget the last `count` tokens; the sequence stays."""
        self._cache.length -= count
        self._tokens = self._tokens[:-count]
        self._reached -= count

    def without(self, mask: Tensor) -> Chain:
        """A chain of the same tokens but for the image tokens `mask` [N_v], which are taken out; still to be extended.

        Rows before the first of these never saw them, and serve again. Where shapes are fixed they are masked instead.
        """
        sequence = self._sequence
        if sequence.passes.static:
            chain = Chain(sequence, sequence.passes.cache(sequence.capacity, 1))
            chain._hidden = mask[None, None]
            return chain
        chain = self._fork(mask, 1)
        chain._removed = torch.zeros(sequence.capacity, dtype=torch.bool, device=sequence.device)
        chain._removed[sequence.layout.image] = mask
        return chain

    def branches(self, masks: Tensor) -> Chain:
        """A batch of k chains of the same tokens, each with the image tokens of its mask [k, N_v] masked in all."""
        chain = self._fork(masks.any(dim=0), len(masks))
        chain._hidden = masks[:, None]
        return chain

    def select(self, index: int) -> None:
        """Go on as one of the batch."""
        if self._hidden is not None:
            self._cache.select(index)
            self._hidden = self._hidden[index : index + 1]

    def _fork(self, mask: Tensor, batch: int) -> Chain:
        """A chain that has come as far as no row has seen an image token of `mask` [N_v]."""
        cache = RowCache(self._sequence.adapter.num_layers)
        cache.reserve(self._sequence.capacity)
        chain = Chain(self._sequence, cache)
        seen = self._sequence.layout.image[mask]
        shared = int(seen.min()) if len(seen) and not self._sequence.prefix_length else 0
        chain._begin(self._cache, shared, batch)
        return chain

    def _begin(self, cache: RowCache, length: int, batch: int = 1) -> None:
        """Take over the first `length` tokens from another cache."""
        self._cache.take(cache, length, batch)
        self._tokens, self._reached = torch.arange(length, device=self._sequence.device), length

    def _pending(self) -> Tensor:
        rows = torch.arange(self._reached, len(self._sequence), device=self._sequence.device)
        return rows if self._removed is None else rows[~self._removed[rows]]

    def _last_rows(self, length: int, count: int) -> dict[int, Tensor]:
        """The last `count` of `length` rows, for every layer; nothing for none."""
        if not count:
            return {}
        rows = torch.arange(length - count, length, device=self._sequence.device)
        return dict.fromkeys(range(self._sequence.adapter.num_layers), rows)

    def _run(
        self,
        rows: Tensor,
        *,
        keep: int | None = None,
        hidden: Tensor | None = None,
        wanted: Mapping[int, Tensor],
        states: tuple[int, ...] = (),
    ) -> Output:
        """Run the tokens `rows` [n] and keep the first `keep` (all) in the cache."""
        sequence, start = self._sequence, self._cache.length
        keep = len(rows) if keep is None else keep
        tokens = torch.cat([self._tokens, rows])
        keys = tokens.clone()
        keys[start + keep :] = -1
        place = torch.arange(len(tokens), device=sequence.device)
        request = Request(
            embeddings=sequence.embeddings[:, rows].expand(1 if hidden is None else len(hidden), -1, -1),
            position_ids=sequence.position_ids[..., rows],
            mask=sequence.mask(rows, keys, place == place[start:, None], hidden),
            columns=sequence.layout.image,
            attention=wanted,
            states=states,
            plain_causal=start == 0 and keep == len(rows) and hidden is None and not sequence.prefix_length,
        )
        output = sequence.passes.run(request, self._cache)
        self._cache.length += keep
        self._tokens = tokens[: start + keep]
        self._reached = len(sequence) if keep else self._reached
        return output

    def _pass(self, hidden: Tensor, output: Output, count: int) -> Pass:
        """hidden: of the rows whose logits are wanted, [n, hidden]; count: rows that were captured last."""
        logits = self._sequence.logits(hidden)
        if not output.attention:
            return Pass(logits)
        layers = range(self._sequence.adapter.num_layers)
        return Pass(logits, torch.stack([output.attention[layer][:, -count:] for layer in layers]))

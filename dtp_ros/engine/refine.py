"""Generation of one step: analyse each clean token, and generate it anew without the distracting image tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_ros.engine.clock import StageClock
from dtp_ros.engine.decoder import Pass, TokenSequence
from dtp_ros.engine.detector import Candidate, Detector
from dtp_ros.engine.scopes import ActionQueries, AllQueries, Scope
from dtp_ros.engine.selection import TokenSelector
from dtp_ros.engine.tracing import TokenRecord, step_trace
from dtp_ros.engine.types import StepTrace
from dtp_ros.models.base import Grammar, Prompt, VlaAdapter
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.pruning.metrics import action_entropy


def generate(
    adapter: VlaAdapter,
    prompt: Prompt,
    config: PruningConfig,
    *,
    grammar: Grammar | None = None,
    step: int = 0,
    clock: StageClock | None = None,
) -> tuple[list[int], StepTrace]:
    """Generate the tokens of one step; to be called inside `captured_attention`, without gradients.

    Args:
        adapter: the model.
        prompt: its prefill, of this adapter.
        config: constants of the method, which fit the model.
        grammar: restricts the tokens to sequences that decode, or None.
        step: steps since reset, from 0: seeds the random variants.
        clock: gets the time of each stage.

    Returns:
        The action ids (neither forced prefix nor end token), and the trace, its `seconds` still empty.

    Raises:
        CaptureError: attention was not captured. ObservationError: the prompt is too long for the model's window.
    """
    clock = clock or StageClock(adapter.device)
    sequence = TokenSequence(adapter, prompt)
    scope: Scope = (AllQueries if config.mask_scope == "all" else ActionQueries)(sequence, config.relevance_layers)
    with clock.stage("prefill"):
        clean, relevance = scope.prefill()
    with clock.stage("analyse"):
        detector = Detector(config, prompt.layout, relevance, step)
    selector = TokenSelector(adapter.vocabulary, grammar, prompt.embeddings.device)
    loop = TokenLoop(sequence, scope, detector, selector, clock)
    if config.mask_schedule == "per_step":
        loop.run_per_step(clean)
    else:
        loop.run_per_token(clean)
    with clock.stage("analyse"):
        trace = step_trace(loop.records, detector, prompt.layout, len(selector.support), loop.tolerance, step)
    return loop.ids, trace


@dataclass(frozen=True)
class _Emitted:
    """A chosen token, and the action tokens before it."""

    token_id: int
    context: tuple[int, ...]
    grammar_intervened: bool


@dataclass(frozen=True)
class _Refined:
    """A candidate that was run: its logits [vocabulary], their entropy, and what lets later tokens read that pass."""

    candidate: Candidate
    logits: Tensor
    entropy: float
    restore: Callable[[], None]


class TokenLoop:
    """The loop over the tokens of one step, after the clean prefill.

    ids: the action tokens kept so far. records: figures of every kept token, the end token included.
    tolerance: the one that was used last.
    """

    def __init__(
        self, sequence: TokenSequence, scope: Scope, detector: Detector, selector: TokenSelector, clock: StageClock
    ) -> None:
        self.ids: list[int] = []
        self.records: list[TokenRecord] = []
        self.tolerance = detector.nothing().tolerance
        self._sequence = sequence
        self._scope = scope
        self._detector = detector
        self._selector = selector
        self._clock = clock
        self._open = True

    def run_per_token(self, clean: Pass) -> None:
        """Detect anew at each token, on the refined prefix; `clean` is the pass of the first token."""
        self._token(clean, detect=True)
        while self._open:
            self._token(self._next_clean(), detect=True)

    def run_per_step(self, clean: Pass) -> None:
        """Keep the first token's mask for the whole step.

        Where it is not empty, later tokens need no clean pass of their own: one at the end gives the figures of all.
        """
        mask = self._token(clean, detect=True)
        if not mask.empty:
            self._follow(mask.mask)
        while self._open:
            self._token(self._next_clean(), detect=False)

    def _next_clean(self) -> Pass:
        with self._clock.stage("decode"):
            return self._scope.clean()

    def _token(self, clean: Pass, *, detect: bool) -> Candidate:
        """Keep one token, whose clean pass has just run; the mask it was generated with."""
        with self._clock.stage("analyse"):
            pattern = self._detector.pattern(clean.attention())
            candidates = [self._detector.nothing()]
            if detect:
                candidates = self._detector.candidates(pattern, len(self.records))
        with self._clock.stage("refine"):
            clean_logits = clean.logits[0]
            chosen, logits = self._refine(clean_logits, candidates)
        if detect:
            self.tolerance = chosen.tolerance
        with self._clock.stage("decode"):
            self._record(self._emit(logits), clean_logits, logits, pattern, chosen.mask)
        return chosen

    def _follow(self, mask: Tensor) -> None:
        """The later tokens of a step under its mask, then their clean passes in one."""
        refined = []
        while self._open:
            with self._clock.stage("refine"):
                logits = self._scope.refine(mask)
            with self._clock.stage("decode"):
                refined.append((self._emit(logits), logits))
        if not refined:
            return
        with self._clock.stage("analyse"):
            clean = self._scope.replay(len(refined))
            for i, (emitted, logits) in enumerate(refined):
                self._record(emitted, clean.logits[i], logits, self._detector.pattern(clean.attention(i)), mask)

    def _refine(self, clean_logits: Tensor, candidates: list[Candidate]) -> tuple[Candidate, Tensor]:
        """The candidate whose token has the least entropy (ties to the larger tolerance), and its logits [vocabulary].

        An empty mask takes the clean logits. Candidates come by falling tolerance, so an empty one comes first, while
        the clean pass is still the last that ran.
        """
        if len(candidates) == 1:
            return candidates[0], self._logits(candidates[0], clean_logits)
        best = self._attempt(candidates[0], clean_logits)
        for candidate in candidates[1:]:
            refined = self._attempt(candidate, clean_logits)
            if refined.entropy < best.entropy:
                best = refined
        best.restore()
        return best.candidate, best.logits

    def _attempt(self, candidate: Candidate, clean_logits: Tensor) -> _Refined:
        logits = self._logits(candidate, clean_logits)
        entropy = float(action_entropy(logits, self._selector.support))
        return _Refined(candidate, logits, entropy, self._scope.checkpoint())

    def _logits(self, candidate: Candidate, clean_logits: Tensor) -> Tensor:
        return clean_logits if candidate.empty else self._scope.refine(candidate.mask)

    def _emit(self, logits: Tensor) -> _Emitted:
        """Choose a token and append it to the sequence, if another may follow."""
        context = tuple(self.ids)
        token_id, intervened = self._selector.choose(logits, context)
        if self._selector.is_end(token_id):
            self._open = False
        else:
            self.ids.append(token_id)
            self._open = not self._selector.finished(self.ids)
        if self._open:
            self._sequence.append(token_id)
        return _Emitted(token_id, context, intervened)

    def _record(self, emitted: _Emitted, clean: Tensor, refined: Tensor, pattern: Tensor, mask: Tensor) -> None:
        """Note a token with the figures of its clean and refined logits [vocabulary], over the same tokens (Eq. 6)."""
        entropies = action_entropy(torch.stack([clean, refined]), self._selector.support)
        clean_id = emitted.token_id
        if refined is not clean:
            clean_id, _ = self._selector.choose(clean, emitted.context)
        self.records.append(
            TokenRecord(emitted.token_id, clean_id, pattern, mask, entropies, emitted.grammar_intervened)
        )

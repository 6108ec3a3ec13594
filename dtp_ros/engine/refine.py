"""Generation of one step: analyse each clean token, and generate it anew without the distracting image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_ros.engine.clock import StageClock
from dtp_ros.engine.decoder import Pass
from dtp_ros.engine.detector import Candidate, Detector
from dtp_ros.engine.passes import Passes
from dtp_ros.engine.scopes import ActionQueries, AllQueries, Scope
from dtp_ros.engine.selection import TokenSelector
from dtp_ros.engine.sequence import TokenSequence
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
    speculative: bool = True,
    passes: Passes | None = None,
) -> tuple[list[int], StepTrace]:
    """Generate the tokens of one step; to be called inside `captured_attention`, without gradients.

    Args:
        adapter: the model.
        prompt: its prefill, of this adapter.
        config: constants of the method, which fit the model.
        grammar: restricts the tokens to sequences that decode, or None.
        step: steps since reset, from 0: seeds the random variants.
        clock: gets the time of each stage.
        speculative: in scope `action`, run the token after a masked one in the same pass, as if pruning did not change
            it. The tokens are those of the sequential loop.
        passes: what runs the language model; None: passes of whatever shape.

    Returns:
        The action ids (neither forced prefix nor end token), and the trace, its `seconds` still empty.

    Raises:
        CaptureError: attention was not captured. ObservationError: the prompt is too long for the model's window.
    """
    clock = clock or StageClock(adapter.device)
    sequence = TokenSequence(adapter, prompt, passes)
    scope: Scope = (AllQueries if config.mask_scope == "all" else ActionQueries)(sequence, config.relevance_layers)
    selector = TokenSelector(adapter.vocabulary, grammar, sequence.device)
    sequence.restrict(selector.support)
    with clock.stage("prefill"):
        clean, relevance = scope.prefill()
    with clock.stage("analyse"):
        detector = Detector(config, prompt.layout, relevance, step)
    loop = TokenLoop(sequence, scope, detector, selector, clock, speculative=speculative and scope.looks_ahead)
    if config.mask_schedule == "per_step":
        loop.run_per_step(clean)
    else:
        loop.run_per_token(clean)
    with clock.stage("analyse"):
        trace = step_trace(loop.records, detector, selector, prompt.layout, loop.tolerance, step)
    return loop.ids, trace


@dataclass(frozen=True)
class _Analysis:
    """A clean pass that was looked at: logits [vocabulary], pattern A [N_v], the masks to try, and the clean choice."""

    logits: Tensor
    pattern: Tensor
    candidates: Sequence[Candidate]
    choice: tuple[int, bool]


class TokenLoop:
    """The loop over the tokens of one step, after the clean prefill.

    The host reads a few numbers once a pass, all together: which tokens, and how many each mask prunes. The figures of
    the tokens stay on the device until the step is done.

    ids: the action tokens kept so far. records: figures of every kept token, the end token included.
    tolerance: the one that was used last.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        scope: Scope,
        detector: Detector,
        selector: TokenSelector,
        clock: StageClock,
        *,
        speculative: bool,
    ) -> None:
        self.ids: list[int] = []
        self.records: list[TokenRecord] = []
        self.tolerance = detector.tolerances[0]
        self._sequence = sequence
        self._scope = scope
        self._detector = detector
        self._selector = selector
        self._clock = clock
        self._speculative = speculative
        self._open = True

    def run_per_token(self, clean: Pass) -> None:
        """Detect anew at each token, on the refined prefix; `clean` is the pass of the first token."""
        here: _Analysis | None = self._analyse(clean)[0]
        while here is not None:
            ahead = None
            if self._looks_ahead(here):
                ahead = self._speculate(here, here.candidates[0])
            else:
                self._token(here)
            here = ahead or (self._analyse(self._next_clean())[0] if self._open else None)

    def run_per_step(self, clean: Pass) -> None:
        """Keep the first token's mask for the whole step.

        Where it is not empty, the clean passes of later tokens run beside them, or all in one at the end.
        """
        here = self._analyse(clean)[0]
        ahead = None
        if self._looks_ahead(here):
            mask = here.candidates[0]
            ahead = self._speculate_held(here, mask)
        else:
            mask = self._token(here)
        if not mask.empty:
            self._follow(mask.mask, ahead)
        while self._open:
            self._token(self._analyse(self._next_clean(), detect=False)[0])

    # ------------------------------------------------------------------ a token
    def _token(self, here: _Analysis) -> Candidate:
        """Keep one token; the mask it was generated with. An empty mask takes the clean logits: nothing runs twice."""
        with self._clock.stage("refine"):
            chosen, logits = self._refine(here)
        with self._clock.stage("decode"):
            choice = here.choice if logits is here.logits else self._selector.choose(logits, self.ids)
            self._keep(here, chosen, logits, choice)
        return chosen

    def _refine(self, here: _Analysis) -> tuple[Candidate, Tensor]:
        """The candidate whose token has the least entropy (ties: the larger tolerance), and its logits [vocabulary]."""
        tried = here.candidates
        if len(tried) == 1:
            return tried[0], here.logits if tried[0].empty else self._scope.refine(tried[0].mask)
        masked = [candidate for candidate in tried if not candidate.empty]  # the empty one is the first
        found = self._scope.attempt(torch.stack([candidate.mask for candidate in masked]))
        logits = [here.logits] * (len(tried) - len(masked)) + list(found)
        entropies = action_entropy(torch.stack(logits), self._selector.support).tolist()
        best = 0
        for i, entropy in enumerate(entropies):
            best = i if entropy < entropies[best] else best
        if not tried[best].empty:
            self._scope.keep(best - len(tried) + len(masked))
        return tried[best], logits[best]

    def _speculate(self, here: _Analysis, mask: Candidate) -> _Analysis | None:
        """Refine a token and analyse the next in one pass, supposing that pruning leaves the token as it is.

        Returns that analysis if it does.
        """
        guess = here.choice[0]
        self._sequence.append(guess)
        with self._clock.stage("refine"):
            refined, clean = self._scope.look_ahead(mask.mask, held=False)
        following, greedy = self._analyse(clean, after=guess, refined=refined[0])
        accepted = self._settle(here, mask, refined[0], self._selector.choose(refined[0], self.ids, greedy))
        return following if accepted else None

    def _speculate_held(self, here: _Analysis, mask: Candidate) -> tuple[Tensor, Pass] | None:
        """The same where the mask holds for the whole step: returns what `follow` would for the next token."""
        self._sequence.append(here.choice[0])
        with self._clock.stage("refine"):
            refined, clean = self._scope.look_ahead(mask.mask, held=True)
        accepted = self._settle(here, mask, refined[0], self._selector.choose(refined[0], self.ids))
        return (refined[1], clean) if accepted else None

    def _settle(self, here: _Analysis, mask: Candidate, logits: Tensor, choice: tuple[int, bool]) -> bool:
        """Keep a token beyond which was looked; whether what was seen there holds."""
        accepted = choice[0] == here.choice[0]
        if not accepted:
            self._scope.forget()
        self._sequence.drop_last()
        self._keep(here, mask, logits, choice, accepted)
        return accepted

    def _follow(self, mask: Tensor, ahead: tuple[Tensor, Pass] | None) -> None:
        """The later tokens of a step under its mask; `ahead` is what has run already of the first of them."""
        followed: list[tuple[tuple[int, bool], list[int], Tensor]] = []
        passes: list[Pass] = []
        while self._open:
            with self._clock.stage("refine"):
                logits, clean = ahead or self._scope.follow(mask)
            passes += [] if clean is None else [clean]
            ahead = None
            with self._clock.stage("decode"):
                choice = self._selector.choose(logits, self.ids)
                followed.append((choice, list(self.ids), logits))
                self._append(choice[0])
        with self._clock.stage("analyse"):
            if followed and not passes:
                passes = self._scope.replay(len(followed)).split()
            for (choice, context, logits), clean in zip(followed, passes, strict=True):
                clean_id = self._selector.choose(clean.logits[-1], context)[0]
                pattern = self._detector.pattern(clean.attention())
                self.records.append(TokenRecord(*choice, clean_id, pattern, mask, clean.logits[-1], logits))

    # ------------------------------------------------------------------ its parts
    def _analyse(
        self, clean: Pass, *, detect: bool = True, after: int | None = None, refined: Tensor | None = None
    ) -> tuple[_Analysis, int | None]:
        """Look at the clean pass of the next token, or of the one behind it where that is taken to be `after`.

        What the host must know is read at once: the counts of the masks, the clean greedy choice, and that of `refined`
        logits [vocabulary] of the next token, which is returned.
        """
        ids = self.ids if after is None else [*self.ids, after]
        with self._clock.stage("analyse"):
            logits = clean.logits[-1]
            pattern = self._detector.pattern(clean.attention())
            greedy = [self._selector.greedy(logits, len(ids))]
            greedy += [] if refined is None else [self._selector.greedy(refined, len(self.ids))]
            masks = self._detector.masks(pattern, len(ids)) if detect else self._detector.nothing()
            *counts, free, of_refined = torch.stack([*masks.sum(dim=1), greedy[0], greedy[-1]]).tolist()
            candidates = self._detector.candidates(masks, counts) if detect else [self._nothing(masks)]
            choice = self._selector.choose(logits, ids, free)
        return _Analysis(logits, pattern, candidates, choice), of_refined

    def _next_clean(self) -> Pass:
        with self._clock.stage("decode"):
            return self._scope.clean()

    def _nothing(self, masks: Tensor) -> Candidate:
        return Candidate(self.tolerance, masks[0], empty=True)

    def _looks_ahead(self, here: _Analysis) -> bool:
        """Whether there is one mask to refine with, and a token that may follow the clean choice."""
        only = len(here.candidates) == 1 and not here.candidates[0].empty
        return only and self._speculative and self._selector.goes_on(here.choice[0], self.ids)

    def _keep(
        self, here: _Analysis, mask: Candidate, logits: Tensor, choice: tuple[int, bool], accepted: bool | None = None
    ) -> None:
        """Record a token with its clean and refined logits [vocabulary], and append it."""
        self.tolerance = mask.tolerance
        self.records.append(
            TokenRecord(*choice, here.choice[0], here.pattern, mask.mask, here.logits, logits, accepted)
        )
        self._append(choice[0])

    def _append(self, token_id: int) -> None:
        """Let the next token follow, if one may."""
        self._open = self._selector.goes_on(token_id, self.ids)
        if not self._selector.is_end(token_id):
            self.ids.append(token_id)
        if self._open:
            self._sequence.append(token_id)

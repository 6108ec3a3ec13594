"""What a step of the engine takes and gives besides the observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtp_ros.errors import require_choice, require_range

ENSEMBLES = ("off", "published", "rotation")


@dataclass(frozen=True)
class GenerationConfig:
    """How tokens become the published chunk, besides pruning; raises ConfigError out of range.

    fast_grammar: restrict FAST tokens to sequences that decode.
    speculative: in scope `action`, run the next token with a masked one, as if pruning did not change it.
    ensemble: `off`, `published` (mean of increments, element by element), or `rotation` (rotations averaged on SO(3)).
    ensemble_weight: k in w = exp(k * age rank), newest heaviest.
    control_frequency: actions per second, Hz; places older chunks in time.
    """

    fast_grammar: bool = False
    speculative: bool = True
    ensemble: str = "off"
    ensemble_weight: float = 0.8
    control_frequency: float = 5.0

    def __post_init__(self) -> None:
        require_choice("ensemble", self.ensemble, ENSEMBLES)
        require_range("ensemble_weight", self.ensemble_weight, 0.0, 10.0)
        require_range("control_frequency", self.control_frequency, 0.1, 100.0)


@dataclass(frozen=True)
class TokenTrace:
    """What happened at one generated token (an end token counts too).

    token_id: the id that was kept; clean_id: the greedy choice without pruning (equal where nothing was pruned).
    pattern: visual attention A of the clean pass (Eq. 4), float32 [rows, cols].
    mask: the pruned image tokens D, bool [rows, cols].
    unimportant_attention: sum of A over U.
    entropy_clean, entropy_refined: H(Y | V_A) in nats over action and end tokens (Eq. 6).
    grammar_intervened: the grammar changed the choice.
    accepted: whether the next token, run with this one as if pruning did not change it, was right; None where none was.
    """

    token_id: int
    clean_id: int
    pattern: NDArray[np.float32]
    mask: NDArray[np.bool_]
    unimportant_attention: float
    entropy_clean: float
    entropy_refined: float
    score_clean: float
    score_refined: float
    grammar_intervened: bool = False
    accepted: bool | None = None

    @property
    def pruned(self) -> int:
        """Number of image tokens masked for this token, len(D)."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class StepTrace:
    """Everything a step saw and cut; nothing here lives on the GPU.

    relevance_raw: R (Eq. 3) float32 [rows, cols]; relevance: after corner suppression and smoothing, corners 0.
    region: the important region I, bool [rows, cols].
    tolerance: the tolerance that was used (the chosen one of the last token under min_entropy).
    seconds: wall time of each stage (prepare, prefill, analyse, refine, decode, total), s.
    """

    relevance_raw: NDArray[np.float32]
    relevance: NDArray[np.float32]
    region: NDArray[np.bool_]
    tokens: tuple[TokenTrace, ...]
    tolerance: float
    seconds: Mapping[str, float]
    step: int = 0

    @property
    def attention(self) -> NDArray[np.float32]:
        """Visual attention A, mean over the step's tokens, float32 [rows, cols]."""
        mean: NDArray[np.float32] = np.mean([t.pattern for t in self.tokens], axis=0, dtype=np.float32)
        return mean

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Image tokens masked for at least one token of the step, bool [rows, cols]."""
        union: NDArray[np.bool_] = np.any([t.mask for t in self.tokens], axis=0)
        return union

    @property
    def pruned(self) -> int:
        """The largest number of image tokens masked for one token of the step."""
        return max(t.pruned for t in self.tokens)

    @property
    def fire_rate(self) -> float:
        """Share of the step's tokens with a non-empty mask, 0 ... 1."""
        return float(np.mean([t.pruned > 0 for t in self.tokens]))

    @property
    def accepted(self) -> float | None:
        """Share of tokens that were run ahead rightly, 0 ... 1; None where none was."""
        attempts = [t.accepted for t in self.tokens if t.accepted is not None]
        return float(np.mean(attempts)) if attempts else None

    def mean(self, figure: str) -> float:
        """Mean over tokens of a figure of TokenTrace, e.g. `entropy_clean`."""
        return float(np.mean([getattr(t, figure) for t in self.tokens]))


@dataclass(frozen=True)
class ActionChunk:
    """Actions of one step, final (ensembled).

    actions: float64 [horizon, 7]: increments of each step along the base frame's axes, dx dy dz in m,
    droll dpitch dyaw in rad as R = Rz(dyaw) Ry(dpitch) Rx(droll) with the pivot at the gripper, and the absolute
    gripper opening 0 ... 1 (1 = open).
    """

    actions: NDArray[np.float64]


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step: a chunk, or None with the reason to hold; the trace in both cases."""

    chunk: ActionChunk | None
    trace: StepTrace
    hold_reason: str = ""

"""What a step saw and did as key/value pairs on ~/trace, so that a recorded bag can be analysed alone.

Every value is JSON (numbers, lists, `true`/`false`) except the plain words of `instruction`, `hold_reason`, `model`,
`checkpoint` and the parameters that are words. Numbers carry all their digits: equal steps give equal strings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray

from dtp_ros.engine.types import StepResult, StepTrace
from dtp_ros.ros.pace import Pace
from dtp_ros.ros.parameters import Settings

TRACE_NAME = "dtp_policy: step"


def step_figures(trace: StepTrace) -> dict[str, float]:
    """The figures of one step that ~/metrics plots, by topic name (latency is the node's own)."""
    return {
        "tolerance": trace.tolerance,
        "pruned": float(trace.pruned),
        "fire_rate": trace.fire_rate,
        "unimportant_attention": trace.mean("unimportant_attention"),
        "entropy_clean": trace.mean("entropy_clean"),
        "entropy_refined": trace.mean("entropy_refined"),
    }


def trace_to_ros(
    result: StepResult, settings: Settings, stamp: Time, frame_id: str, latency: float | None, pace: Pace
) -> DiagnosticArray:
    """One status with everything about a step. latency: s from image stamp to publication, None where it held.

    Keys: `step`, `hold_reason`, `instruction`, `model`, `checkpoint`; the figures of step_figures, `score_clean`,
    `score_refined`, `latency`, `seconds_<stage>` (of the model); `seconds_waited` (from the image's stamp to the
    step's start), `seconds_step` (from there to publication: an overrun where it is longer than `period`), `period`;
    `actions` [H, 7]; `grid` [rows, cols]; `relevance`, `relevance_raw`, `attention` (row-major, mean over the tokens),
    `region` (token indices); by generated token `token_ids`, `token_clean_ids`, `token_pruned`, `token_masks` (token
    indices), `token_unimportant_attention`, `token_entropy_clean`, `token_entropy_refined`, `token_score_clean`,
    `token_score_refined`, `token_grammar_intervened`, `token_accepted` (speculations; null: none was made), and their
    share `accepted`; `parameter_<name>` in force.
    """
    level = DiagnosticStatus.WARN if result.hold_reason else DiagnosticStatus.OK
    status = DiagnosticStatus(level=level, name=TRACE_NAME, hardware_id=settings.model)
    status.message = f"hold: {result.hold_reason}" if result.hold_reason else "acted"
    pairs = {
        "step": result.trace.step,
        "hold_reason": result.hold_reason,
        "instruction": settings.instruction,
        "model": settings.model,
        "checkpoint": settings.checkpoint,
        "latency": latency,
        "seconds_waited": pace.waited,
        "seconds_step": pace.seconds,
        "period": pace.period,
        "actions": None if result.chunk is None else result.chunk.actions.tolist(),
        **_trace_values(result.trace),
        **{f"parameter_{name}": value for name, value in _parameters(settings)},
    }
    status.values = [KeyValue(key=key, value=_text(value)) for key, value in pairs.items()]
    message = DiagnosticArray(status=[status])
    message.header.stamp, message.header.frame_id = stamp, frame_id
    return message


def _trace_values(trace: StepTrace) -> dict[str, object]:
    tokens = trace.tokens
    figures = ("unimportant_attention", "entropy_clean", "entropy_refined", "score_clean", "score_refined")
    return {
        **step_figures(trace),
        "score_clean": trace.mean("score_clean"),
        "score_refined": trace.mean("score_refined"),
        **{f"seconds_{stage}": seconds for stage, seconds in trace.seconds.items()},
        "grid": list(trace.region.shape),
        "relevance": _flat(trace.relevance),
        "relevance_raw": _flat(trace.relevance_raw),
        "attention": _flat(trace.attention),
        "region": _indices(trace.region),
        "token_ids": [t.token_id for t in tokens],
        "token_clean_ids": [t.clean_id for t in tokens],
        "token_pruned": [t.pruned for t in tokens],
        "token_masks": [_indices(t.mask) for t in tokens],
        **{f"token_{name}": [float(getattr(t, name)) for t in tokens] for name in figures},
        "token_grammar_intervened": [t.grammar_intervened for t in tokens],
        "token_accepted": [t.accepted for t in tokens],
        "accepted": trace.accepted,
    }


def _parameters(settings: Settings) -> Iterator[tuple[str, object]]:
    yield from asdict(settings.pruning).items()
    yield from asdict(settings.generation).items()
    for name in (
        "execute_horizon",
        "publish_whole_chunk",
        "image_timeout",
        "preprocess",
        "revision",
        "device",
        "dtype",
    ):
        yield name, getattr(settings, name)


def _flat(grid: NDArray[np.float32]) -> list[float | None]:
    """Row-major values with the nine digits that identify a float32; None where one is not finite."""
    return [float(f"{v:.9g}") if np.isfinite(v) else None for v in grid.ravel()]


def _indices(mask: NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.flatnonzero(mask)]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

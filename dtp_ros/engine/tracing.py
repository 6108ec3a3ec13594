"""From figures on the device to the traces of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_ros.engine.detector import Detector
from dtp_ros.engine.selection import TokenSelector
from dtp_ros.engine.types import StepTrace, TokenTrace
from dtp_ros.models.base import TokenLayout
from dtp_ros.pruning.metrics import action_entropy, maximum_entropy, score, unimportant_attention


@dataclass(frozen=True)
class TokenRecord:
    """A kept token. Its figures are still on the device, so that nothing waits for them during the step.

    clean_id: the clean choice. pattern: A [N_v] of the clean pass. mask: D, bool [N_v].
    clean, refined: logits [vocabulary]. accepted: whether what was run ahead of it was right, None where nothing was.
    """

    token_id: int
    grammar_intervened: bool
    clean_id: int
    pattern: Tensor
    mask: Tensor
    clean: Tensor
    refined: Tensor
    accepted: bool | None = None


def step_trace(
    records: Sequence[TokenRecord],
    detector: Detector,
    selector: TokenSelector,
    layout: TokenLayout,
    tolerance: float,
    step: int,
) -> StepTrace:
    """The trace of a step, on the CPU; its `seconds` are still empty.

    Entropies (Eq. 6) are taken over the support of `selector`, and so is H_max (Eq. 7).
    """
    grid = layout.rows, layout.cols
    patterns = torch.stack([record.pattern for record in records]).cpu().numpy().reshape(-1, *grid)
    masks = torch.stack([record.mask for record in records]).cpu().numpy().reshape(-1, *grid)
    logits = torch.stack([torch.stack([record.clean, record.refined]) for record in records])
    entropies = action_entropy(logits, selector.support)
    scores = score(entropies, maximum_entropy(len(selector.support))).tolist()
    unimportant = torch.stack([unimportant_attention(record.pattern, detector.region) for record in records]).tolist()
    tokens = tuple(
        TokenTrace(
            token_id=record.token_id,
            clean_id=record.clean_id,
            pattern=patterns[i],
            mask=masks[i],
            unimportant_attention=unimportant[i],
            entropy_clean=entropy_clean,
            entropy_refined=entropy_refined,
            score_clean=scores[i][0],
            score_refined=scores[i][1],
            grammar_intervened=record.grammar_intervened,
            accepted=record.accepted,
        )
        for i, (record, (entropy_clean, entropy_refined)) in enumerate(zip(records, entropies.tolist(), strict=True))
    )
    return StepTrace(
        relevance_raw=detector.relevance.cpu().numpy().reshape(grid),
        relevance=detector.smoothed.cpu().numpy().reshape(grid),
        region=detector.region.cpu().numpy().reshape(grid),
        tokens=tokens,
        tolerance=tolerance,
        seconds={},
        step=step,
    )

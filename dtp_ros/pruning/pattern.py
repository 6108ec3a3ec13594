"""Which image tokens the model looks at while it predicts one action token: Eq. 4 of the paper.

`rows` are the attention probabilities of the query row that predicts the token, columns of V, in every layer:
[L, H, N_v], any float type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtp_ros.pruning.shapes import require_shape


def layer_weights(rows: Tensor) -> Tensor:
    """Layer weights w, float32 [L]: a layer's total visual attention over the sum across layers (Eq. 4).

    w_l = sum over v of a_l[v] / sum over l', v of a_l'[v], with a_l = mean over heads of `rows` [L, H, N_v]. Where no
    layer looks at the image, each weight is 1 / L: weights always sum to 1. Raises ConfigError for other axes.
    """
    return _weights(_mean_over_heads(rows))


def visual_attention_pattern(rows: Tensor, layer_weights: Tensor | None = None) -> Tensor:
    """Visual attention pattern A, float32 [N_v] (Eq. 4): A[v] = sum over l of w_l * a_l[v], a_l not normalised.

    rows: [L, H, N_v]. layer_weights: w [L]; None takes those of these rows (`weights: query`), the alternative are
    those of the first action token's rows (`weights: first_token`). Raises ConfigError where shapes do not fit.
    """
    attention = _mean_over_heads(rows)
    weights = _weights(attention) if layer_weights is None else layer_weights.float()
    require_shape("layer_weights", weights, L=rows.shape[0])
    return (weights[:, None] * attention).sum(dim=0)


def _mean_over_heads(rows: Tensor) -> Tensor:
    require_shape("rows", rows, L=None, H=None, N_v=None)
    return rows.float().mean(dim=1)


def _weights(attention: Tensor) -> Tensor:
    """Weights [L] of attention averaged over heads, [L, N_v]."""
    totals = attention.sum(dim=1)
    total = totals.sum()
    return torch.where(total > 0, totals / total, 1.0 / attention.shape[0])

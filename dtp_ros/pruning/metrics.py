"""What is measured on every step: unimportant attention, fire rate, entropy and score (Eq. 6, 7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dtp_ros.errors import ConfigError, require_range
from dtp_ros.pruning.shapes import require_mask, require_shape


def unimportant_attention(pattern: Tensor, region: Tensor) -> Tensor:
    """Attention outside the important region (paper, section 4.4): sum over v in U of A[v], float32 [].

    pattern: A (Eq. 4) of the clean pass, [N_v], any float type. region: I, bool [N_v].
    Raises ConfigError where shapes do not fit.
    """
    require_shape("pattern", pattern, N_v=None)
    require_mask("region", region, N_v=pattern.shape[0])
    return pattern.float().masked_fill(region, 0.0).sum()


def action_entropy(logits: Tensor, support: Tensor) -> Tensor:
    """Uncertainty about the action token, H(Y | V_A) = - sum over y of p(y) ln p(y) in nats (Eq. 6): float32 [...].

    p is the softmax over the support alone; a logit of -inf has p = 0 and adds nothing. H is in 0 ... ln K, and NaN
    where every logit of the support is -inf, which is no distribution.

    logits: [..., vocabulary], any float type. support: ids of action and end tokens, int64 [K], each once.
    Raises ConfigError where `support` is empty or not int64, or `logits` has no axis.
    """
    require_shape("support", support, K=None)
    if support.dtype is not torch.int64:
        raise ConfigError(f"support has the type {support.dtype} (valid: torch.int64)")
    if logits.dim() == 0:
        raise ConfigError("logits has the shape [] (valid: [..., vocabulary])")
    log_p = logits.index_select(-1, support).float().log_softmax(dim=-1)
    p = log_p.exp()
    return (p * -log_p.masked_fill(p == 0, 0.0)).sum(dim=-1)


def maximum_entropy(support_size: int) -> float:
    """H_max, the entropy of the uniform distribution over the support: ln K, in nats.

    support_size: K >= 1, or ConfigError is raised.
    """
    if support_size < 1:
        raise ConfigError(f"support_size = {support_size} is out of range (valid: 1 or more)")
    return math.log(support_size)


def score(entropy: Tensor, h_max: float) -> Tensor:
    """Normalised performance score S = 1 - H / H_max (Eq. 7), float32: 1 is certainty, 0 no information.

    Not clipped: against a measured H(Y) it may be negative. h_max 0 leaves a single choice, which is certain: S = 1.

    entropy: H, nats, any shape. h_max: H_max or a measured H(Y), nats; ConfigError unless finite and >= 0.
    """
    require_range("h_max", h_max, 0.0, math.inf)
    if h_max == 0:
        return torch.ones_like(entropy, dtype=torch.float32)
    return 1 - entropy.float() / h_max


def fire_rate(masks: Tensor) -> Tensor:
    """Share of tokens for which something was pruned, float32 [], 0 ... 1.

    masks: D of each token, bool [T, N_v], T >= 1. Raises ConfigError for other shapes.
    """
    require_mask("masks", masks, T=None, N_v=None)
    return masks.any(dim=1).float().mean()

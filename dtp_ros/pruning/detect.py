"""Which image tokens are pruned: detection with its cap (Eq. 5), and the variants that the paper compares."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dtp_ros.errors import require_choice, require_integer, require_range
from dtp_ros.pruning.config import MAX_SEED, VARIANTS
from dtp_ros.pruning.region import highest
from dtp_ros.pruning.shapes import require_mask, require_shape

MAX_INDEX = 2**32 - 1  # of a step or a token: one word of the random seed


def distracting_tokens(pattern: Tensor, region: Tensor, tolerance: float, max_pruned: int) -> Tensor:
    """Distracting tokens D, bool [N_v]: D = {v in U : A[v] > tolerance * max over u in I of A[u]} (Eq. 5), capped.

    pattern: A (Eq. 4), [N_v], any float type; a NaN in it leaves D without that token, or empty if it is in I.
    region: I, bool [N_v], not empty; U is the rest. tolerance: >= 0.
    max_pruned: keep so many of D at most, those with the highest A, ties to the lower index; 0 means no cap.
    Raises ConfigError where shapes do not fit, or tolerance or cap is out of range.
    """
    require_shape("pattern", pattern, N_v=None)
    require_mask("region", region, N_v=pattern.shape[0])
    require_range("tolerance", tolerance, 0.0, math.inf)
    require_integer("max_pruned", max_pruned, 0, pattern.shape[0])
    attention = pattern.float()
    threshold = tolerance * attention.masked_fill(~region, -math.inf).max()
    detected = ~region & (attention > threshold)
    if max_pruned == 0:
        return detected
    return detected & highest(attention.masked_fill(~detected, -math.inf), max_pruned)


def variant_mask(variant: str, detected: Tensor, region: Tensor, seed: int, step: int, token: int) -> Tensor:
    """The tokens that a variant prunes, bool [N_v] (paper, section 4.3).

    `off`: none. `dtp`, `no_gaussian`: D (they differ in I). `random_all`, `random_unimportant`: as many as D has, the
    first ones in a permutation of all tokens, or of U, listed in ascending order; the same ones on every device.

    variant: one of `config.VARIANTS`. detected: D after the cap, bool [N_v]; for the random variants, what `dtp` would
    prune at this token. region: I, bool [N_v], disjoint from D. seed: 0 ... 2**31 - 1. step: steps since reset.
    token: index in the step. Raises ConfigError where shapes do not fit, or a choice or number is out of range.
    """
    require_choice("variant", variant, VARIANTS)
    require_mask("detected", detected, N_v=None)
    require_mask("region", region, N_v=detected.shape[0])
    if variant == "off":
        return torch.zeros_like(detected)
    if variant in ("dtp", "no_gaussian"):
        return detected
    candidates = torch.ones_like(region) if variant == "random_all" else ~region
    # nonzero waits for the device: the CPU generator must know how many candidates there are.
    indices = candidates.nonzero().squeeze(1)
    order = torch.randperm(len(indices), generator=_generator(seed, step, token))
    drawn = indices[order.to(indices.device)]
    kept = torch.arange(len(drawn), device=drawn.device) < detected.sum()
    return torch.zeros_like(detected).scatter(0, drawn, kept)


def _generator(seed: int, step: int, token: int) -> torch.Generator:
    """A CPU generator for one token of one step.

    Torch's CPU generator reads only the low 32 bits of its seed, so numbers packed into 64 bits would be lost. Numpy's
    SeedSequence hashes all three into 32 bits: two triples, neighbours or not, share a generator once in 2**32.
    """
    require_integer("seed", seed, 0, MAX_SEED)
    require_integer("step", step, 0, MAX_INDEX)
    require_integer("token", token, 0, MAX_INDEX)
    mixed = np.random.SeedSequence((seed, step, token)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))

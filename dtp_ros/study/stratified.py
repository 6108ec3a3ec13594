"""Two groups compared within strata: what differs between the strata does not count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dtp_ros.study.statistics import Estimate, MannWhitney, mann_whitney

Groups = tuple[Sequence[float], Sequence[float]]  # of one stratum: the first group, the second


@dataclass(frozen=True)
class Stratified:
    """strata: those with at least two members of each group. first, second: their members.

    p: of the test. superiority: P(first > second) + P(first = second) / 2 of two members of one stratum, 0 ... 1.
    """

    strata: int
    first: int
    second: int
    p: float
    superiority: Estimate


def van_elteren(strata: Sequence[Groups]) -> Stratified | None:
    """Compare two groups by their ranks within strata (van Elteren 1960); None where no stratum has two of each.

    T = sum of U_i / (N_i + 1) over the strata, N_i = m_i + n_i: the weights that are best where the shift is the same
    in all. Under the null its mean is sum of m_i n_i / 2 / (N_i + 1), and its variance sum of v_i / (N_i + 1)^2,
    v_i = m_i n_i / 12 (N_i + 1 - sum of (t^3 - t) / (N_i (N_i - 1))) with t the sizes of ties; p is the normal one.
    The superiority is the mean of those of the strata with the weights of the test, m_i n_i / (N_i + 1). Its interval
    puts theirs together: low = value - sqrt(sum of (w_i (value_i - low_i))^2), likewise high (MOVER: Zou and Donner
    2008, Statistics in Medicine 27, 1693-1702), which takes over that they hold for small groups.
    Raises StatisticsError where a value is not finite.
    """
    kept = [(groups, test) for groups in strata if isinstance(test := mann_whitney(*groups), MannWhitney)]
    if not kept:
        return None
    tests = [test for _, test in kept]
    sizes = np.array([(test.first, test.second) for test in tests], dtype=np.float64)
    pairs, total = sizes.prod(axis=1), sizes.sum(axis=1)
    excess = sum((test.u - m_n / 2) / (n + 1) for test, m_n, n in zip(tests, pairs, total, strict=True))
    variance = sum(_variance(groups) / (n + 1) ** 2 for (groups, _), n in zip(kept, total, strict=True))
    p = float(2 * stats.norm.sf(abs(excess) / math.sqrt(variance))) if variance > 0 else 1.0
    weights = pairs / (total + 1) / (pairs / (total + 1)).sum()
    first, second = (int(n) for n in sizes.sum(axis=0))
    return Stratified(len(tests), first, second, p, _together(tests, weights.tolist()))


def _variance(groups: Groups) -> float:
    """Of U, where the members of a stratum are dealt to its groups at random."""
    m, n = (len(group) for group in groups)
    total = m + n
    _, ties = np.unique(np.concatenate([np.asarray(group, np.float64) for group in groups]), return_counts=True)
    return float(m * n / 12 * (total + 1 - (ties.astype(np.float64) ** 3 - ties).sum() / (total * (total - 1))))


def _together(tests: Sequence[MannWhitney], weights: Sequence[float]) -> Estimate:
    shares = [test.superiority for test in tests]
    value = math.fsum(w * share.value for w, share in zip(weights, shares, strict=True))
    below = math.hypot(*(w * (share.value - share.low) for w, share in zip(weights, shares, strict=True)))
    above = math.hypot(*(w * (share.high - share.value) for w, share in zip(weights, shares, strict=True)))
    return Estimate(value, max(0.0, value - below), min(1.0, value + above))

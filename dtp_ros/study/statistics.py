"""Rates, differences and tests, each with its interval. Intervals are at 95 %, tests two-sided; nothing is random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from dtp_ros.errors import DtpError

LEVEL = 0.95  # of every interval
RESAMPLES = 9999  # of a bootstrap
SEED = 2601  # of a bootstrap


class StatisticsError(DtpError, ValueError):
    """Counts or values from which nothing can be told."""


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its interval, in the figure's own unit."""

    value: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The same figure in another unit; `function` must increase."""
        return Estimate(function(self.value), function(self.low), function(self.high))


@dataclass(frozen=True)
class PairedTest:
    """Two arms over the same episodes.

    pairs: number of episodes. gained: those that only the second arm solved; lost: those that only the first solved.
    difference: rate of the second minus rate of the first, -1 ... 1. p: of the exact McNemar test.
    """

    pairs: int
    gained: int
    lost: int
    difference: Estimate
    p: float


@dataclass(frozen=True)
class MannWhitney:
    """Two independent groups, compared by rank.

    first, second: sizes of the groups. u: pairs in which the member of the first group is larger, ties counting half.
    p: of the test. superiority: P(first > second) + P(first = second) / 2, 0 ... 1; above 0.5 the first is larger.
    """

    first: int
    second: int
    u: float
    p: float
    superiority: Estimate


@dataclass(frozen=True)
class NoTest:
    """Why two groups were not compared; `str()` of it is a sentence."""

    first: int
    second: int

    def __str__(self) -> str:
        return f"No test is made: the groups have {self.first} and {self.second} members, and each must have two."


def wilson(successes: int, trials: int) -> Estimate:
    """A rate, 0 ... 1, with the score interval (Wilson 1927). Raises StatisticsError."""
    _require_counts(trials, successes=successes)
    if trials == 0:
        raise StatisticsError("0 trials have no rate (valid: at least 1)")
    interval = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def mcnemar(gained: int, lost: int) -> float:
    """Exact p that pairs change either way equally often: of Binomial(gained + lost, 1/2), two-sided; McNemar 1947.

    1 where no pair changed. Raises StatisticsError.
    """
    _require_counts(gained + lost, gained=gained, lost=lost)
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def paired_difference(gained: int, lost: int, pairs: int) -> Estimate:
    """(gained - lost) / pairs, -1 ... 1, with the adjusted Wald interval of Bonett and Price (2012).

    a = (gained + 1) / (pairs + 2), b = (lost + 1) / (pairs + 2): a - b -+ z sqrt((a + b - (a - b)^2) / (pairs + 2)).
    Chosen as it needs just what the McNemar test needs, keeps its level with few pairs and few changes, is not of zero
    width where nothing changed, and is one of the two that Fagerland, Lydersen and Laake (2014) recommend. The figure
    is the plain difference; the interval's middle lies a little nearer to zero. Raises StatisticsError.
    """
    _require_counts(pairs, gained=gained, lost=lost, changed=gained + lost)
    if pairs == 0:
        raise StatisticsError("0 pairs have no difference (valid: at least 1)")
    n = pairs + 2
    a, b = (gained + 1) / n, (lost + 1) / n
    half = _z() * math.sqrt((a + b - (a - b) ** 2) / n)
    return Estimate((gained - lost) / pairs, max(-1.0, a - b - half), min(1.0, a - b + half))


def paired_test(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """Compare two arms: whether each episode was a success under the first, and under the second.

    Raises StatisticsError.
    """
    _require_pairs(len(first), len(second))
    gained = sum(new and not old for old, new in zip(first, second, strict=True))
    lost = sum(old and not new for old, new in zip(first, second, strict=True))
    pairs = len(first)
    return PairedTest(pairs, gained, lost, paired_difference(gained, lost, pairs), mcnemar(gained, lost))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of one family, corrected (Holm 1979), in the order in which they came.

    The k-th smallest of m becomes the largest of min(1, (m - j + 1) p_j) over j <= k: to reject where that is below
    5 % makes at most 5 % of families reject anything wrongly, however their tests depend on each other.
    Raises StatisticsError.
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise StatisticsError(f"p = {wrong[0]} is no probability (valid: 0 ... 1)")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> MannWhitney | NoTest:
    """Compare two independent groups by rank (Mann and Whitney 1947); scipy chooses the exact or the normal p.

    The interval of the superiority is method 5 of Newcombe (2006, Statistics in Medicine 25, 559-573): those t with
    (t - superiority)^2 <= z^2 t (1 - t) [1 + N (1 - t)/(2 - t) + N t/(1 + t)] / (m n), N = (m + n)/2 - 1. Unlike a
    bootstrap's, it is no point where the groups do not overlap, and it holds for small groups.
    No test where a group has fewer than two members. Raises StatisticsError where a value is not finite.
    """
    _require_finite(first)
    _require_finite(second)
    m, n = len(first), len(second)
    if min(m, n) < 2:
        return NoTest(m, n)
    result = stats.mannwhitneyu(np.asarray(first, np.float64), np.asarray(second, np.float64), alternative="two-sided")
    u = float(result.statistic)
    share = u / (m * n)
    interval = Estimate(share, 1 - _superiority_limit(1 - share, m, n), _superiority_limit(share, m, n))
    return MannWhitney(m, n, u, float(result.pvalue), interval)


def mean(values: Sequence[float]) -> Estimate:
    """A mean, with the bias-corrected and accelerated bootstrap interval (Efron 1987), of a fixed seed.

    Values that are all the same have an interval of no width. Raises StatisticsError where there are fewer than two,
    which have no interval, or where one is not finite.
    """
    _require_finite(values)
    if len(values) < 2:
        raise StatisticsError(f"{len(values)} values have no interval (valid: at least 2)")
    return _bootstrap(tuple(sorted(values)))  # what is drawn does not depend on their order


def mean_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of second - first over pairs, with the interval of `mean`: the pairs are drawn. Raises StatisticsError."""
    _require_pairs(len(first), len(second))
    return mean([new - old for old, new in zip(first, second, strict=True)])


@lru_cache(maxsize=8192)
def _bootstrap(values: tuple[float, ...]) -> Estimate:
    """Kept, since a report and its figures ask for the same."""
    data = np.asarray(values, dtype=np.float64)
    middle, spread = float(data.mean()), float(np.ptp(data))
    if spread <= 1e-12 * np.abs(data).max():  # the same but for rounding
        return Estimate(middle, middle, middle)
    rng = np.random.default_rng(SEED)
    # On a scale of 1, since BCa's cubes of small differences would vanish. Every scipy since 1.11 knows random_state.
    found = stats.bootstrap(
        ((data - middle) / spread,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=LEVEL,
        method="BCa",
        random_state=rng,
    )
    low, high = (middle + spread * float(end) for end in found.confidence_interval)
    return Estimate(middle, low, high)


def _superiority_limit(share: float, m: int, n: int) -> float:
    """The upper end; the lower one mirrors it, as the variance is the same at t and 1 - t."""
    if share >= 1:
        return 1.0
    extra, z = (m + n) / 2 - 1, _z()

    def excess(t: float) -> float:
        variance = t * (1 - t) * (1 + extra * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)
        return t - share - z * math.sqrt(variance)

    return float(optimize.brentq(excess, max(share, 1e-9), 1.0))


def _z() -> float:
    return float(stats.norm.ppf((1 + LEVEL) / 2))


def _require_counts(total: int, **counts: int) -> None:
    for name, count in counts.items():
        if not 0 <= count <= total:
            raise StatisticsError(f"{name} = {count} is out of range (valid: 0 ... {total})")


def _require_pairs(first: int, second: int) -> None:
    if first != second:
        raise StatisticsError(f"{first} and {second} values are no pairs (valid: as many of each)")


def _require_finite(values: Sequence[float]) -> None:
    if wrong := [value for value in values if not math.isfinite(value)]:
        raise StatisticsError(f"a value is {wrong[0]} (valid: finite numbers)")

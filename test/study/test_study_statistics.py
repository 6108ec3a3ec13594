"""dtp_ros/study/statistics.py against published figures, cases worked out by hand, fractions and enumeration."""

from fractions import Fraction
from itertools import combinations, pairwise
from math import comb, factorial, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtp_ros.study import statistics
from dtp_ros.study.statistics import (
    Estimate,
    MannWhitney,
    NoTest,
    StatisticsError,
    holm,
    mann_whitney,
    mcnemar,
    mean,
    mean_difference,
    paired_difference,
    paired_test,
    wilson,
)

Z = 1.959963984540054
values = st.lists(st.integers(-4, 4), min_size=2, max_size=9)
probabilities = st.lists(st.floats(0, 1), max_size=8)


def ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_newcombes_figures(successes, trials, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson(successes, trials).value == successes / trials
    assert ends(wilson(successes, trials)) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_ends_solve_the_score_equation(case):
    """(k/n - p)^2 = z^2 p (1 - p) / n, as a quadratic of p."""
    k, n = case
    roots = np.roots([n + Z**2, -(2 * k + Z**2), k * k / n])
    assert ends(wilson(k, n)) == pytest.approx((min(roots), max(roots)), abs=1e-7)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_a_sum_of_binomials(gained, lost):
    changed = gained + lost
    tail = sum(Fraction(comb(changed, i), 2**changed) for i in range(min(gained, lost) + 1))
    assert mcnemar(gained, lost) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(7, 1) == pytest.approx(2 * (1 + 8) / 256)


def test_a_paired_difference_by_hand():
    """1 and 7 of 21 pairs changed: a = 2/23, b = 8/23, middle -6/23, variance (10/23 - 36/529) / 23."""
    found = paired_difference(1, 7, 21)
    assert found.value == pytest.approx(-6 / 21)
    half = Z * sqrt((10 / 23 - 36 / 529) / 23)
    assert ends(found) == pytest.approx((-6 / 23 - half, -6 / 23 + half))
    assert ends(found) == pytest.approx((-0.5084, -0.0134), abs=1e-4)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_a_paired_difference_lies_in_its_interval_and_turns_with_the_arms(case):
    pairs, gained, lost = case[0], case[1], min(case[2], case[0] - case[1])
    found, turned = paired_difference(gained, lost, pairs), paired_difference(lost, gained, pairs)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0
    assert (turned.value, *ends(turned)) == pytest.approx((-found.value, -found.high, -found.low))


@pytest.mark.parametrize(("gain", "loss"), [(0.2, 0.1), (0.05, 0.05), (0.3, 0.02), (0.0, 0.1)])
def test_the_interval_of_a_paired_difference_keeps_its_level(gain, loss):
    """The chance of covering the truth, summed over every outcome of 24 pairs."""
    n, covered = 24, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            found = paired_difference(gained, lost, n)
            if found.low <= gain - loss <= found.high:
                same = n - gained - lost
                ways = factorial(n) // (factorial(gained) * factorial(lost) * factorial(same))
                covered += ways * gain**gained * loss**lost * (1 - gain - loss) ** same
    assert covered >= 0.94


def test_arms_are_compared_pair_by_pair():
    before = [True, True, False, False, False, True]
    after = [True, False, True, True, False, True]
    found = paired_test(before, after)
    assert (found.pairs, found.gained, found.lost) == (6, 2, 1)
    assert found.difference == paired_difference(2, 1, 6)
    assert found.p == 1.0  # 2 x (1 + 3) / 8


def test_holm_by_hand():
    """Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not be less than the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.6]) == [1.0, 1.0]


@given(probabilities, st.randoms())
def test_holm_corrects_upwards_keeps_the_order_and_is_no_stricter_than_bonferroni(p_values, random):
    corrected = holm(p_values)
    m = len(p_values)
    assert all(p <= q <= min(1, m * p) + 1e-12 for p, q in zip(p_values, corrected, strict=True))
    order = sorted(range(m), key=lambda i: p_values[i])
    assert all(corrected[i] <= corrected[j] for i, j in pairwise(order))
    shuffled = random.sample(range(m), m)
    assert holm([p_values[i] for i in shuffled]) == [corrected[i] for i in shuffled]


@given(values, values)
def test_u_counts_pairs(first, second):
    found = mann_whitney(first, second)
    assert isinstance(found, MannWhitney)
    larger = sum((a > b) + (a == b) / 2 for a in first for b in second)
    assert found.u == larger
    assert found.superiority.value == pytest.approx(larger / (len(first) * len(second)))
    assert found.superiority.low <= found.superiority.value <= found.superiority.high
    assert 0 < found.p <= 1
    turned = mann_whitney(second, first)
    assert isinstance(turned, MannWhitney)
    assert turned.p == pytest.approx(found.p)
    assert ends(turned.superiority) == pytest.approx((1 - found.superiority.high, 1 - found.superiority.low), abs=1e-9)


def test_its_p_counts_every_way_to_split_the_values():
    pool = [0.1, 0.4, 0.5, 0.9, 1.3, 1.8, 2.2]

    def u_of(first):
        return sum(a > b for a in first for b in pool if b not in first)

    every = [u_of(split) for split in combinations(pool, 3)]
    for first in combinations(pool, 3):
        u = u_of(first)
        tail = min(sum(x <= u for x in every), sum(x >= u for x in every)) / len(every)
        found = mann_whitney(first, [x for x in pool if x not in first])
        assert isinstance(found, MannWhitney)
        assert found.p == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 11), (40, 17)])
def test_the_superiority_s_interval_has_every_value_that_is_not_too_far(m, n):
    """Newcombe's method 5, by trying a million values."""
    t = np.linspace(0, 1, 1_000_001)
    extra = (m + n) / 2 - 1
    variance = t * (1 - t) * (1 + extra * (1 - t) / (2 - t) + extra * t / (1 + t)) / (m * n)
    rng = np.random.default_rng(5)
    for shift in (-9.0, -0.5, 0.0, 0.7, 9.0):
        found = mann_whitney(list(rng.normal(shift, 1, m)), list(rng.normal(0, 1, n)))
        assert isinstance(found, MannWhitney)
        inside = t[(t - found.superiority.value) ** 2 <= Z**2 * variance + 1e-15]
        assert ends(found.superiority) == pytest.approx((inside.min(), inside.max()), abs=3e-6)


def test_groups_that_do_not_overlap_have_an_interval():
    found = mann_whitney([5, 6, 7], [1, 2, 3, 4])
    assert isinstance(found, MannWhitney)
    assert (found.superiority.value, found.superiority.high) == (1.0, 1.0)
    assert 0.4 < found.superiority.low < 0.8


def test_values_that_are_all_the_same_do_not_differ():
    found = mann_whitney([1.0] * 5, [1.0] * 9)
    assert isinstance(found, MannWhitney)
    assert found.p == 1.0
    assert found.superiority.value == 0.5


@pytest.mark.parametrize(("first", "second"), [([], [1, 2]), ([1], [1, 2]), ([1, 2], [3]), ([], [])])
def test_a_group_of_one_is_not_tested_and_that_is_said(first, second):
    found = mann_whitney(first, second)
    assert found == NoTest(len(first), len(second))
    assert str(found).startswith(f"No test is made: the groups have {len(first)} and {len(second)} members")


def test_a_mean_has_nearly_students_interval():
    data = list(np.random.default_rng(3).normal(2.0, 0.5, 300))
    found, half = mean(data), 1.9679 * np.std(data, ddof=1) / sqrt(300)  # t of 299 degrees of freedom
    assert found.value == pytest.approx(np.mean(data))
    assert ends(found) == pytest.approx((found.value - half, found.value + half), abs=0.06 * half)


def test_a_bootstrap_is_the_same_each_time_and_moves_with_its_values():
    data = [0.125, 0.5, 0.25, 0.875, 0.375, 0.375, 1.0, 0.0]  # sums without rounding
    before = mean(data)
    statistics._bootstrap.cache_clear()
    assert mean(data) == before
    assert mean(data[::-1]) == before
    moved = mean([x + 3 for x in data])
    assert (moved.value, *ends(moved)) == pytest.approx((before.value + 3, before.low + 3, before.high + 3))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6))
def test_a_bootstrap_always_has_ends_among_its_values(data):
    found = mean(data)
    assert min(data) - 1e-9 <= found.low <= found.high <= max(data) + 1e-9


def test_what_does_not_vary_has_an_interval_of_no_width():
    assert mean([0.3, 0.1 + 0.2, 0.3]) == Estimate(*[pytest.approx(0.3)] * 3)
    assert mean([0.0, 0.0]) == Estimate(0.0, 0.0, 0.0)


def test_pairs_are_drawn_as_pairs():
    first = [0.0, 100.0, 50.0, 7.0]
    found = mean_difference(first, [x + d for x, d in zip(first, (1.0, 2.0, 1.5, 1.5), strict=True)])
    assert found.value == pytest.approx(1.5)
    assert 1.0 <= found.low < 1.5 < found.high <= 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(0, 0), "0 trials have no rate"),
        (lambda: wilson(5, 4), r"successes = 5 is out of range \(valid: 0 ... 4\)"),
        (lambda: mcnemar(-1, 3), "gained = -1"),
        (lambda: paired_difference(3, 3, 5), "changed = 6"),
        (lambda: paired_difference(0, 0, 0), "0 pairs"),
        (lambda: paired_test([True], []), "1 and 0 values are no pairs"),
        (lambda: holm([0.2, 1.5]), "p = 1.5 is no probability"),
        (lambda: holm([float("nan")]), "p = nan"),
        (lambda: mean([1.0]), r"1 values have no interval \(valid: at least 2\)"),
        (lambda: mean([1.0, float("inf")]), "a value is inf"),
        (lambda: mean_difference([1.0, 2.0], [1.0]), "2 and 1 values"),
        (lambda: mann_whitney([float("nan"), 1.0], [1.0, 2.0]), "a value is nan"),
    ],
)
def test_what_nothing_can_be_told_from_is_refused(call, message):
    with pytest.raises(StatisticsError, match=message):
        call()

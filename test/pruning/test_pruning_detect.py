"""Detection with its cap (Eq. 5): worked cases, the oracle, refused input."""

import math

import pruning_oracle as oracle
import pytest
import torch

from dtp_ros.errors import ConfigError
from dtp_ros.pruning.detect import distracting_tokens

#                         I     I     U     U     U     U
PATTERN = torch.tensor([0.10, 0.40, 0.20, 0.30, 0.50, 0.30])
REGION = torch.tensor([True, True, False, False, False, False])


def indices(mask):
    return mask.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(
    ("tolerance", "max_pruned", "expected"),
    [
        # The most attended important token has 0.4.
        (0.5, 0, [3, 4, 5]),  # above 0.2; token 2 has just 0.2, which is not above
        (0.25, 0, [2, 3, 4, 5]),  # above 0.1
        (1.0, 0, [4]),  # above 0.4
        (1.25, 0, []),  # above 0.5
        (0.0, 0, [2, 3, 4, 5]),  # whatever has any attention
        (0.5, 1, [4]),  # the highest
        (0.5, 2, [3, 4]),  # then the lower index of the two at 0.3
        (0.5, 3, [3, 4, 5]),
        (0.5, 6, [3, 4, 5]),  # a cap above the count changes nothing
        (1.25, 2, []),  # and finds nothing that was not detected
    ],
)
def test_worked_by_hand(tolerance, max_pruned, expected):
    # The figures in binary fractions of the same order, so that 0.5 * 0.4 = 0.2 holds exactly.
    pattern = (PATTERN * 10).round() / 8
    assert indices(distracting_tokens(pattern, REGION, tolerance, max_pruned)) == expected


def test_tokens_without_attention_are_never_pruned():
    # Nothing in I is attended: the limit is 0 and only attended tokens are above it.
    pattern = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.2])
    assert indices(distracting_tokens(pattern, REGION, 0.5, 0)) == [2, 5]
    assert indices(distracting_tokens(torch.zeros(6), REGION, 0.0, 0)) == []


def test_ties_in_the_cap_go_by_index():
    pattern = torch.full((300,), 0.5)
    region = torch.zeros(300, dtype=torch.bool)
    region[10] = True
    assert indices(distracting_tokens(pattern, region, 0.5, 12)) == [*range(10), 11, 12]


def test_nothing_is_left_to_prune_where_all_is_important():
    assert not distracting_tokens(PATTERN, torch.ones(6, dtype=torch.bool), 0.0, 0).any()


@pytest.mark.parametrize("max_pruned", [0, 2])
def test_nan_prunes_nothing_it_touches(max_pruned):
    in_unimportant, in_important = PATTERN.clone(), PATTERN.clone()
    in_unimportant[4], in_important[0] = math.nan, math.nan
    assert indices(distracting_tokens(in_unimportant, REGION, 0.5, max_pruned)) == [3, 5]
    assert indices(distracting_tokens(in_important, REGION, 0.5, max_pruned)) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_limit_is_not_rounded_to_half_precision(dtype):
    # Both types round 0.3 up (0.30005, 0.30078). Rounded likewise, the limit 0.3 * 1 would equal the second token's.
    pattern = torch.tensor([1.0, 0.3], dtype=dtype)
    assert indices(distracting_tokens(pattern, torch.tensor([True, False]), 0.3, 0)) == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("max_pruned", [0, 1, 2, 17])
@pytest.mark.parametrize("tolerance", [0.0, 0.25, 0.5, 1.0, 2.0])
def test_equals_oracle(tolerance, max_pruned, dtype):
    found = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        # Powers of two as tolerance times few digits: no comparison hangs on rounding, and there are many ties.
        pattern = (torch.randint(0, 40, (48,), generator=generator) / 256).to(dtype)
        region = torch.zeros(48, dtype=torch.bool)
        region[torch.randperm(48, generator=generator)[: 1 + seed]] = True
        mask = distracting_tokens(pattern, region, tolerance, max_pruned)
        assert mask.dtype is torch.bool
        expected = oracle.distracting_tokens(pattern.double().numpy(), set(indices(region)), tolerance, max_pruned)
        assert indices(mask) == sorted(expected)
        found |= expected
    assert found or tolerance == 2.0


@pytest.mark.parametrize(
    ("pattern", "region", "tolerance", "max_pruned", "says"),
    [
        (torch.zeros(2, 3), REGION, 0.5, 0, r"pattern has the shape \[2, 3\]"),
        (torch.zeros(5), REGION, 0.5, 0, r"region has the shape \[6\] .*N_v = 5"),
        (PATTERN, REGION.to(torch.uint8), 0.5, 0, "region has the type torch.uint8 .*torch.bool"),
        (PATTERN, REGION, -0.1, 0, "tolerance = -0.1"),
        (PATTERN, REGION, math.nan, 0, "tolerance = nan"),
        (PATTERN, REGION, 0.5, -1, r"max_pruned = -1 .*0 \.\.\. 6"),
        (PATTERN, REGION, 0.5, 7, r"max_pruned = 7 .*0 \.\.\. 6"),
    ],
)
def test_refuses(pattern, region, tolerance, max_pruned, says):
    with pytest.raises(ConfigError, match=says):
        distracting_tokens(pattern, region, tolerance, max_pruned)

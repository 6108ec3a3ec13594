"""Unimportant attention, entropy, score (Eq. 6, 7), fire rate: worked cases, the oracle, bounds, refused input."""

import math

import numpy as np
import pruning_oracle as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtp_ros.errors import ConfigError
from dtp_ros.pruning.metrics import action_entropy, fire_rate, maximum_entropy, score, unimportant_attention

INF = math.inf
logit_lists = st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=30)


def test_unimportant_attention_worked_by_hand():
    pattern = torch.tensor([0.125, 0.25, 0.0625, 0.5])
    region = torch.tensor([False, True, False, True])
    assert unimportant_attention(pattern, region) == 0.1875  # 0.125 + 0.0625
    assert unimportant_attention(pattern.half(), ~region) == 0.75
    assert unimportant_attention(pattern, torch.ones(4, dtype=torch.bool)) == 0


@given(st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=1, max_size=40))
def test_important_and_unimportant_attention_sum_to_all(tokens):
    pattern = torch.tensor([a / 256 for a, _ in tokens])
    region = torch.tensor([important for _, important in tokens])
    assert unimportant_attention(pattern, region) == math.fsum(a / 256 for a, important in tokens if not important)
    assert unimportant_attention(pattern, region) + unimportant_attention(pattern, ~region) == pattern.sum()


def test_entropy_worked_by_hand():
    # Support 1, 3, 4 with p = 1/2, 1/4, 1/4: H = ln 2 / 2 + 2 * (ln 4) / 4 = 1.5 ln 2. The others, however likely, do
    # not count.
    logits = torch.tensor([50.0, math.log(2), 90.0, 0.0, 0.0])
    entropy = action_entropy(logits, torch.tensor([1, 3, 4]))
    torch.testing.assert_close(entropy, torch.tensor(1.5 * math.log(2)))
    # S = 1 - 1.5 ln 2 / ln 3.
    torch.testing.assert_close(score(entropy, maximum_entropy(3)), torch.tensor(1 - 1.5 * math.log(2) / math.log(3)))


def test_entropy_of_impossible_choices():
    support = torch.arange(3)
    logits = torch.tensor([[-INF, 2.0, 2.0], [-INF, -INF, -7.0], [0.0, -200.0, 300.0], [-INF, -INF, -INF]])
    entropy = action_entropy(logits, support)
    # Two equals; one choice; one that is certain to float32; none at all.
    torch.testing.assert_close(entropy, torch.tensor([math.log(2), 0.0, 0.0, math.nan]), equal_nan=True)


def test_shapes_of_entropy():
    logits = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    support = torch.tensor([3, 15, 0, 7])
    entropy = action_entropy(logits, support)
    assert entropy.shape == (2, 5)
    torch.testing.assert_close(entropy[1, 2], action_entropy(logits[1, 2], support))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_entropy_equals_oracle(spread, dtype):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(4, 500, generator=generator) * spread).to(dtype)
    logits[1, ::3] = -INF
    support = torch.randperm(500, generator=generator)[:256]
    entropy = action_entropy(logits, support)
    assert entropy.dtype is torch.float32
    expected = [oracle.entropy(row, support.tolist()) for row in logits.double().numpy()]
    np.testing.assert_allclose(entropy.numpy(), expected, rtol=1e-5, atol=1e-6)


@given(logit_lists)
def test_entropy_lies_between_certainty_and_uniform(values):
    entropy = action_entropy(torch.tensor(values), torch.arange(len(values)))
    highest = maximum_entropy(len(values))
    assert 0 <= entropy <= highest + 1e-5
    assert -1e-5 <= score(entropy, highest) <= 1 or highest == 0


@given(logit_lists, st.integers(-50, 50), st.randoms(use_true_random=False))
def test_entropy_ignores_shift_and_order(values, shift, random):
    logits, support = torch.tensor(values), list(range(len(values)))
    entropy = action_entropy(logits, torch.tensor(support))
    random.shuffle(support)
    torch.testing.assert_close(action_entropy(logits + shift, torch.tensor(support)), entropy, rtol=0, atol=2e-4)


@given(size=st.integers(1, 2048), level=st.floats(-1e4, 1e4, width=32))
def test_equal_logits_reach_the_maximum(size, level):
    entropy = action_entropy(torch.full((size,), level), torch.arange(size))
    assert entropy.item() == pytest.approx(maximum_entropy(size), abs=1e-5)
    assert maximum_entropy(size) == pytest.approx(-math.fsum([math.log(1 / size) / size] * size))


def test_score():
    entropy = torch.tensor([0.0, 1.0, 2.0, 3.0])
    # Against a measured H(Y) of 2 nats: certain, half, no information, worse than none.
    assert score(entropy, 2.0).tolist() == [1.0, 0.5, 0.0, -0.5]
    # A single choice is certain, whatever rounding left of H.
    assert score(torch.tensor([0.0, 1e-8]), maximum_entropy(1)).tolist() == [1.0, 1.0]
    assert score(entropy.double(), 2.0).dtype is score(entropy.double(), 0.0).dtype is torch.float32


def test_fire_rate_worked_by_hand():
    masks = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    assert fire_rate(masks) == 0.5  # tokens 1 and 2 of four, however many they prune
    assert fire_rate(masks[:1]) == 0
    assert fire_rate(masks[1:3]) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: unimportant_attention(torch.zeros(3), torch.zeros(4, dtype=torch.bool)), r"region .*N_v = 3"),
        (lambda: unimportant_attention(torch.zeros(3), torch.zeros(3)), "region has the type"),
        (lambda: action_entropy(torch.zeros(3), torch.zeros(0, dtype=torch.int64)), r"support .*K >= 1"),
        (lambda: action_entropy(torch.zeros(3), torch.zeros(2, dtype=torch.int32)), "support has the type"),
        (lambda: action_entropy(torch.tensor(0.0), torch.tensor([0])), "logits has the shape"),
        (lambda: maximum_entropy(0), "support_size = 0"),
        (lambda: score(torch.zeros(1), -0.5), "h_max = -0.5"),
        (lambda: score(torch.zeros(1), math.nan), "h_max = nan"),
        (lambda: fire_rate(torch.zeros(0, 4, dtype=torch.bool)), r"masks .*T >= 1"),
        (lambda: fire_rate(torch.zeros(2, 4)), "masks has the type"),
    ],
)
def test_refuses(call, says):
    with pytest.raises(ConfigError, match=says):
        call()

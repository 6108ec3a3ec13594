"""Visual attention pattern and layer weights (Eq. 4): worked cases, the oracle, properties, refused shapes."""

import numpy as np
import pruning_oracle as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtp_ros.errors import ConfigError
from dtp_ros.pruning.pattern import layer_weights, visual_attention_pattern

# Two layers, two heads, three image tokens.
# Layer 0: mean over heads (0.2, 0.1, 0.0), total 0.3. Layer 1: (0.1, 0.3, 0.5), total 0.9.
ROWS = torch.tensor([[[0.3, 0.2, 0.0], [0.1, 0.0, 0.0]], [[0.1, 0.1, 0.7], [0.1, 0.5, 0.3]]])


def attention_rows(seed, layers=3, heads=2, image=12):
    """Rows of a softmax over the image tokens and some others."""
    logits = torch.randn(layers, heads, image + 4, generator=torch.Generator().manual_seed(seed)) * 2
    return logits.softmax(-1)[..., :image]


def test_weights_of_the_query_worked_by_hand():
    # 0.3 / 1.2 and 0.9 / 1.2.
    torch.testing.assert_close(layer_weights(ROWS), torch.tensor([0.25, 0.75]))
    # 0.25 * (0.2, 0.1, 0.0) + 0.75 * (0.1, 0.3, 0.5), the rows not normalised.
    torch.testing.assert_close(visual_attention_pattern(ROWS), torch.tensor([0.125, 0.25, 0.375]))


def test_weights_of_the_first_token_worked_by_hand():
    # A first token that looked at the image in layer 0 alone: only layer 0 counts.
    first = torch.tensor([[[0.2, 0.0, 0.0]], [[0.0, 0.0, 0.0]]])
    pattern = visual_attention_pattern(ROWS, layer_weights(first))
    torch.testing.assert_close(pattern, torch.tensor([0.2, 0.1, 0.0]))


def test_no_visual_attention_gives_equal_weights_and_no_pattern():
    rows = torch.zeros(4, 2, 5)
    assert layer_weights(rows).tolist() == [0.25] * 4
    assert visual_attention_pattern(rows).tolist() == [0.0] * 5
    # As the first token's weights they still serve: the mean of the layers.
    torch.testing.assert_close(
        visual_attention_pattern(ROWS, layer_weights(torch.zeros(2, 2, 3))), torch.tensor([0.15, 0.2, 0.25])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("layers", "heads", "image"), [(1, 1, 1), (5, 3, 28), (26, 8, 64)])
def test_equals_oracle(layers, heads, image, dtype):
    rows = attention_rows(layers, layers, heads, image).to(dtype)
    seen = rows.double().numpy()
    weights = layer_weights(rows)
    pattern = visual_attention_pattern(rows)
    assert weights.dtype is pattern.dtype is torch.float32
    np.testing.assert_allclose(weights.numpy(), oracle.layer_weights(seen), rtol=2e-6)
    expected = oracle.visual_attention_pattern(seen, oracle.layer_weights(seen))
    np.testing.assert_allclose(pattern.numpy(), expected, rtol=2e-6)
    first = oracle.layer_weights(attention_rows(7, layers, heads, image).double().numpy())
    np.testing.assert_allclose(
        visual_attention_pattern(rows, torch.from_numpy(first)).numpy(),
        oracle.visual_attention_pattern(seen, first),
        rtol=2e-6,
    )


def test_half_precision_sums_do_not_saturate():
    # 4096 tokens of 2**-12: a running sum in bfloat16 would stop at 2**-4, where one more rounds away.
    rows = torch.full((2, 1, 4096), 2.0**-12, dtype=torch.bfloat16)
    rows[1, :, 2048:] = 0  # totals 1 and 1/2
    torch.testing.assert_close(layer_weights(rows), torch.tensor([2 / 3, 1 / 3]))


@given(seed=st.integers(0, 2**16), power=st.integers(-12, 12))
def test_weights_ignore_scale_and_the_pattern_follows_it(seed, power):
    rows = attention_rows(seed)
    scaled = rows * 2.0**power
    assert torch.equal(layer_weights(scaled), layer_weights(rows))
    assert torch.equal(visual_attention_pattern(scaled), visual_attention_pattern(rows) * 2.0**power)


@given(seed=st.integers(0, 2**16))
def test_weights_sum_to_one_and_the_pattern_lies_between_the_layers(seed):
    rows = attention_rows(seed)
    weights, pattern = layer_weights(rows), visual_attention_pattern(rows)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    layers = rows.mean(1)
    assert (pattern >= layers.amin(0) - 1e-6).all()
    assert (pattern <= layers.amax(0) + 1e-6).all()


@given(seed=st.integers(0, 2**16))
def test_order_of_layers_and_heads_does_not_matter_and_that_of_tokens_carries_over(seed):
    rows = attention_rows(seed)
    generator = torch.Generator().manual_seed(seed)
    layers, heads, tokens = (torch.randperm(n, generator=generator) for n in rows.shape)
    shuffled = visual_attention_pattern(rows[layers][:, heads][..., tokens])
    torch.testing.assert_close(shuffled, visual_attention_pattern(rows)[tokens])


@pytest.mark.parametrize("shape", [(3, 4), (0, 2, 4), (2, 0, 4), (2, 2, 0), (1, 2, 3, 4)])
def test_refuses_rows(shape):
    with pytest.raises(ConfigError, match=r"rows has the shape .*L >= 1, H >= 1, N_v >= 1"):
        layer_weights(torch.zeros(shape))
    with pytest.raises(ConfigError, match="rows has the shape"):
        visual_attention_pattern(torch.zeros(shape))


def test_refuses_weights_of_other_layers():
    with pytest.raises(ConfigError, match=r"layer_weights has the shape \[3\] .*L = 2"):
        visual_attention_pattern(ROWS, torch.ones(3))

"""Relevance (Eq. 1 to 3): worked cases, the oracle, half precision, refused shapes."""

import math

import numpy as np
import pruning_oracle as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtp_ros.errors import ConfigError
from dtp_ros.pruning.relevance import attention_relevance, embedding_relevance

HALF_TYPES = [torch.float16, torch.bfloat16]


def test_attention_worked_by_hand():
    # Layer 1: one head, two prompt tokens: column means (0.2, 0.3, 0.1).
    first = torch.tensor([[[0.1, 0.2, 0.0], [0.3, 0.4, 0.2]]])
    # Layer 2: likewise (0.6, 0.0, 0.2).
    second = torch.tensor([[[0.5, 0.0, 0.4], [0.7, 0.0, 0.0]]])
    # Mean of the layers: (0.4, 0.15, 0.15).
    torch.testing.assert_close(attention_relevance([first, second]), torch.tensor([0.4, 0.15, 0.15]))


def test_embedding_worked_by_hand():
    # Unit vectors of P: (1, 0) and (0, 1), whatever their lengths 3 and 0.5.
    prompt = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    # Cosines with them: (2, 0): 1 and 0; (1, 1): both 1/sqrt 2; (-4, 0): -1 and 0; (0, 0): 0 by definition.
    image = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-4.0, 0.0], [0.0, 0.0]])
    expected = torch.tensor([0.5, 1 / math.sqrt(2), -0.5, 0.0])
    torch.testing.assert_close(embedding_relevance([prompt], [image]), expected)
    # A second layer in which P and V are at right angles adds zeros: the mean halves.
    prompts, images = [prompt, torch.tensor([[1.0, 0.0]] * 2)], [image, torch.tensor([[0.0, 1.0]] * 4)]
    torch.testing.assert_close(embedding_relevance(prompts, images), expected / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF_TYPES])
@pytest.mark.parametrize(("layers", "heads", "prompt", "image"), [(1, 1, 1, 1), (3, 4, 7, 15), (2, 16, 11, 64)])
def test_attention_equals_oracle(layers, heads, prompt, image, dtype):
    generator = torch.Generator().manual_seed(layers)
    rows = [
        (torch.randn(heads, prompt, image + 5, generator=generator) * 3).softmax(-1)[..., :image].to(dtype)
        for _ in range(layers)
    ]
    relevance = attention_relevance(rows)
    assert relevance.dtype is torch.float32
    # float32 arithmetic on the very numbers the oracle sees, half precision ones included.
    expected = oracle.attention_relevance([r.double().numpy() for r in rows])
    np.testing.assert_allclose(relevance.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF_TYPES])
@pytest.mark.parametrize(("layers", "prompt", "image", "width"), [(1, 1, 1, 1), (2, 5, 15, 64), (3, 9, 64, 256)])
def test_embedding_equals_oracle(layers, prompt, image, width, dtype):
    generator = torch.Generator().manual_seed(width)
    # Large entries, as in a residual stream: their squares do not fit float16.
    prompts = [(torch.randn(prompt, width, generator=generator) * 300).to(dtype) for _ in range(layers)]
    images = [(torch.randn(image, width, generator=generator) * 2000).to(dtype) for _ in range(layers)]
    relevance = embedding_relevance(prompts, images)
    assert relevance.dtype is torch.float32
    expected = oracle.embedding_relevance([p.double().numpy() for p in prompts], [i.double().numpy() for i in images])
    np.testing.assert_allclose(relevance.numpy(), expected, atol=1e-6)


@given(seed=st.integers(0, 2**16), power=st.integers(-10, 10))
def test_attention_scales_with_its_rows(seed, power):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.rand(2, 3, 12, generator=generator) for _ in range(2)]
    scaled = attention_relevance([r * 2.0**power for r in rows])
    assert torch.equal(scaled, attention_relevance(rows) * 2.0**power)


@given(seed=st.integers(0, 2**16), prompt_scale=st.floats(0.01, 100), image_scale=st.floats(0.01, 100))
def test_cosine_ignores_lengths_and_stays_in_bounds(seed, prompt_scale, image_scale):
    generator = torch.Generator().manual_seed(seed)
    prompts, images = [torch.randn(3, 8, generator=generator)], [torch.randn(12, 8, generator=generator)]
    relevance = embedding_relevance(prompts, images)
    scaled = embedding_relevance([prompts[0] * prompt_scale], [images[0] * image_scale])
    torch.testing.assert_close(scaled, relevance, rtol=0, atol=1e-6)
    assert relevance.abs().max() <= 1 + 1e-6


@given(seed=st.integers(0, 2**16))
def test_relevance_does_not_depend_on_the_order_of_heads_and_prompt_tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(4, 5, 6, generator=generator)
    shuffled = rows[torch.randperm(4, generator=generator)][:, torch.randperm(5, generator=generator)]
    torch.testing.assert_close(attention_relevance([shuffled]), attention_relevance([rows]))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ([], "rows is empty"),
        ([(2, 3)], r"rows has the shape \[2, 3\] .*H >= 1, N_p >= 1, N_v >= 1"),
        ([(2, 0, 4)], r"\[2, 0, 4\]"),
        ([(2, 3, 4), (2, 3, 5)], r"\[2, 3, 5\] .*N_v = 4"),
    ],
)
def test_attention_refuses(shapes, says):
    with pytest.raises(ConfigError, match=says):
        attention_relevance([torch.zeros(shape) for shape in shapes])


@pytest.mark.parametrize(
    ("prompts", "images", "says"),
    [
        ([], [], "prompt_states is empty"),
        ([(2, 8)], [], "image_states is empty"),
        ([(2, 8)], [(4, 7)], r"image_states has the shape \[4, 7\] .*d = 8"),
        ([(0, 8)], [(4, 8)], r"\[0, 8\] .*N_p >= 1"),
        ([(2, 8)], [(4, 8), (4, 8)], "image_states has 2 layers .*valid: 1"),
    ],
)
def test_embedding_refuses(prompts, images, says):
    with pytest.raises(ConfigError, match=says):
        embedding_relevance([torch.zeros(s) for s in prompts], [torch.zeros(s) for s in images])

"""Nothing leaves the device: tensors of the `meta` device have no values, so that reading one raises."""

import pytest
import torch

from dtp_ros.pruning import detect, metrics, pattern, region, relevance

ROWS, COLS = 5, 9
N_V = ROWS * COLS
SHAPES = {
    "prompt_rows": (2, 3, N_V),
    "prompt": (3, 16),
    "image": (N_V, 16),
    "query_rows": (4, 2, N_V),
    "logits": (2, 30),
}


def make_inputs(device):
    """Random inputs of every function, the same on each device."""
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    inputs["support"] = torch.arange(3, 25, 2)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def run_method(inputs):
    """Every function of the method, but for the random variants, on `inputs`; returns what each gives."""
    prompt_rows, query_rows = inputs["prompt_rows"].softmax(-1), inputs["query_rows"].softmax(-1)
    attention = relevance.attention_relevance([prompt_rows, prompt_rows**2])
    embedding = relevance.embedding_relevance([inputs["prompt"]], [inputs["image"]])
    important, smoothed = region.important_region(attention, ROWS, COLS, 19, 0.65, spatial_bias=True)
    raw_region, _ = region.important_region(embedding, ROWS, COLS, 19, 0.65, spatial_bias=False)
    visual = pattern.visual_attention_pattern(query_rows)
    first = pattern.visual_attention_pattern(query_rows, pattern.layer_weights(query_rows.flip(0)))
    detected = detect.distracting_tokens(visual, important, 0.5, 0)
    capped = detect.distracting_tokens(first, raw_region, 0.5, 3)
    entropy = metrics.action_entropy(inputs["logits"], inputs["support"])
    figures = [
        metrics.score(entropy, metrics.maximum_entropy(11)),
        metrics.score(entropy, 0.0),
        metrics.unimportant_attention(visual, important),
        metrics.fire_rate(torch.stack([detected, capped])),
    ]
    variants = [detect.variant_mask(v, detected, important, 0, 0, 0) for v in ("off", "dtp", "no_gaussian")]
    masks = [important, raw_region, detected, capped, *variants]
    return [attention, embedding, smoothed, visual, first, entropy, *figures, *masks]


def test_no_value_is_read():
    results = run_method(make_inputs("meta"))
    assert {r.device.type for r in results} == {"meta"}
    assert {r.dtype for r in results} == {torch.float32, torch.bool}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu_without_synchronisation():
    expected = run_method(make_inputs("cpu"))
    inputs = make_inputs("cuda")
    run_method(inputs)  # fills the cache of smoothing matrices, the one copy there is
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = run_method(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu(), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("variant", ["random_all", "random_unimportant"])
def test_random_variants_are_the_same_on_cuda(variant):
    detected, important = torch.arange(N_V) < 7, torch.arange(N_V) > 20
    for token in range(20):
        expected = detect.variant_mask(variant, detected, important, 1, 2, token)
        drawn = detect.variant_mask(variant, detected.cuda(), important.cuda(), 1, 2, token)
        assert torch.equal(drawn.cpu(), expected)

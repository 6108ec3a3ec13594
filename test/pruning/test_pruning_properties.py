"""What any implementation of the method must show (end of the design's method page), on grids of any shape."""

import pruning_oracle as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtp_ros.pruning.detect import distracting_tokens, variant_mask
from dtp_ros.pruning.pattern import visual_attention_pattern
from dtp_ros.pruning.region import important_region, smooth_relevance
from dtp_ros.pruning.relevance import attention_relevance

SIGMAS = [0.0, 0.65, 1.7, 8.0]
TOLERANCES = st.floats(0, 2.5, width=32)


@st.composite
def maps(draw):
    """A grid, any shape, with a map on it that has negative values and ties: (values, rows, cols)."""
    rows, cols = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    size = rows * cols
    values = draw(st.lists(st.integers(-6, 6), min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float32), rows, cols


@st.composite
def regions(draw):
    """A map and a size of I: (values, rows, cols, top_k, sigma)."""
    values, rows, cols = draw(maps())
    return values, rows, cols, draw(st.integers(1, rows * cols)), draw(st.sampled_from(SIGMAS))


@st.composite
def patterns(draw):
    """A pattern with ties and an important region in it: (pattern, region)."""
    tokens = draw(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40))
    region = torch.tensor([important for _, important in tokens])
    region[draw(st.integers(0, len(tokens) - 1))] = True  # I is never empty
    return torch.tensor([a / 64 for a, _ in tokens]), region


@given(regions(), st.booleans())
def test_region_has_k_tokens(case, spatial_bias):
    values, rows, cols, top_k, sigma = case
    region, smoothed = important_region(values, rows, cols, top_k, sigma, spatial_bias=spatial_bias)
    assert region.shape == smoothed.shape == values.shape
    assert region.sum() == top_k


@given(regions())
def test_corners_are_in_the_region_only_where_k_forces_them(case):
    values, rows, cols, top_k, sigma = case
    region, _ = important_region(values, rows, cols, top_k, sigma, spatial_bias=True)
    corners = oracle.corners(rows, cols)
    forced = max(0, top_k - (rows * cols - len(corners)))
    assert [v for v in corners if region[v]] == corners[:forced]


@given(regions())
def test_no_token_outside_the_region_is_more_relevant_than_one_inside(case):
    values, rows, cols, top_k, sigma = case
    region, smoothed = important_region(values, rows, cols, top_k, sigma, spatial_bias=True)
    free = torch.ones(rows * cols, dtype=torch.bool)
    free[oracle.corners(rows, cols)] = False
    for inside in (region & free).nonzero().flatten().tolist():
        for outside in (~region & free).nonzero().flatten().tolist():
            higher = smoothed[inside] > smoothed[outside]
            assert higher or (smoothed[inside] == smoothed[outside] and inside < outside)


@given(regions(), st.booleans())
def test_a_larger_k_only_adds(case, spatial_bias):
    values, rows, cols, top_k, sigma = case
    region, _ = important_region(values, rows, cols, top_k, sigma, spatial_bias=spatial_bias)
    whole, _ = important_region(values, rows, cols, rows * cols, sigma, spatial_bias=spatial_bias)
    assert whole.all()
    if top_k > 1:
        smaller, _ = important_region(values, rows, cols, top_k - 1, sigma, spatial_bias=spatial_bias)
        assert not (smaller & ~region).any()


@given(regions(), st.integers(-8, 8), st.integers(-100, 100))
def test_region_ignores_scale_and_offset_of_relevance(case, power, offset):
    values, rows, cols, top_k, sigma = case
    region, smoothed = important_region(values, rows, cols, top_k, sigma, spatial_bias=True)
    # Exact in binary: the scale is a power of two and the values are small integers.
    moved, scaled = important_region((values + offset) * 2.0**power, rows, cols, top_k, sigma, spatial_bias=True)
    assert torch.equal(moved, region)
    assert torch.equal(scaled, smoothed * 2.0**power)


@given(maps(), st.sampled_from(SIGMAS), st.booleans())
def test_smoothing_keeps_mass_bounds_and_mirrors(case, sigma, suppress):
    values, rows, cols = case
    smoothed = smooth_relevance(values, rows, cols, sigma, suppress_corners=suppress)
    lifted = values - values.min()
    assert smoothed.min() >= 0
    assert smoothed.max() <= lifted.max() + 1e-4
    if suppress:
        assert (smoothed[oracle.corners(rows, cols)] == 0).all()
    else:  # reflection at the border loses nothing
        torch.testing.assert_close(smoothed.sum(), lifted.sum())
    mirrored = smooth_relevance(
        values.view(rows, cols).flip(0, 1).T.flatten(), cols, rows, sigma, suppress_corners=suppress
    )
    torch.testing.assert_close(mirrored, smoothed.view(rows, cols).flip(0, 1).T.flatten())


@given(patterns(), TOLERANCES, st.integers(0, 40))
def test_distracting_and_important_tokens_are_disjoint(case, tolerance, cap):
    pattern, region = case
    mask = distracting_tokens(pattern, region, tolerance, min(cap, len(pattern)))
    assert not (mask & region).any()


@given(patterns(), TOLERANCES, TOLERANCES)
def test_a_larger_tolerance_only_removes(case, one, other):
    pattern, region = case
    small, large = (distracting_tokens(pattern, region, t, 0) for t in sorted((one, other)))
    assert not (large & ~small).any()


@given(patterns(), TOLERANCES, st.integers(1, 40))
def test_the_cap_keeps_the_highest(case, tolerance, cap):
    pattern, region = case
    cap = min(cap, len(pattern))
    everything = distracting_tokens(pattern, region, tolerance, 0)
    capped = distracting_tokens(pattern, region, tolerance, cap)
    assert capped.sum() == min(cap, int(everything.sum()))
    assert not (capped & ~everything).any()
    for kept in capped.nonzero().flatten().tolist():
        for dropped in (everything & ~capped).nonzero().flatten().tolist():
            assert (-pattern[kept], kept) < (-pattern[dropped], dropped)


@given(patterns(), TOLERANCES, st.integers(0, 3), st.integers(-20, 20))
def test_detection_ignores_the_scale_of_attention(case, tolerance, cap, power):
    pattern, region = case
    cap = min(cap, len(pattern))
    mask = distracting_tokens(pattern, region, tolerance, cap)
    assert torch.equal(distracting_tokens(pattern * 2.0**power, region, tolerance, cap), mask)


@given(patterns(), TOLERANCES)
def test_detected_tokens_are_exactly_those_above_the_limit(case, tolerance):
    pattern, region = case
    mask = distracting_tokens(pattern, region, tolerance, 0)
    limit = torch.tensor(tolerance) * max(pattern[v] for v in region.nonzero().flatten())
    assert mask.tolist() == [not i and bool(a > limit) for a, i in zip(pattern, region, strict=True)]


@pytest.mark.parametrize("variant", ["off", "dtp", "no_gaussian", "random_all", "random_unimportant"])
def test_an_empty_detection_prunes_nothing_in_any_variant(variant):
    nothing, region = torch.zeros(12, dtype=torch.bool), torch.arange(12) < 5
    assert not variant_mask(variant, nothing, region, 1, 2, 3).any()


@pytest.mark.parametrize("spatial_bias", [True, False])
@pytest.mark.parametrize(("rows", "cols", "top_k", "cap"), [(8, 8, 27, 2), (16, 16, 109, 0), (5, 9, 19, 3)])
def test_whole_chain_equals_oracle(rows, cols, top_k, cap, spatial_bias):
    fired = 0
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, 4, 6, rows * cols + 9, generator=generator) * 1.5
        prompt_rows = list(logits.softmax(-1)[..., : rows * cols])
        logits = torch.randn(5, 4, rows * cols + 9, generator=generator) * 1.5
        query_rows = logits.softmax(-1)[..., : rows * cols]

        relevance = attention_relevance(prompt_rows)
        region, _ = important_region(relevance, rows, cols, top_k, 0.65, spatial_bias=spatial_bias)
        mask = distracting_tokens(visual_attention_pattern(query_rows), region, 0.75, cap)

        expected = oracle.attention_relevance([r.double().numpy() for r in prompt_rows])
        order, _ = oracle.region_order(expected, rows, cols, 0.65, spatial_bias)
        seen = query_rows.double().numpy()
        pattern = oracle.visual_attention_pattern(seen, oracle.layer_weights(seen))
        distracting = oracle.distracting_tokens(pattern, set(order[:top_k]), 0.75, cap)
        assert region.nonzero().flatten().tolist() == sorted(order[:top_k])
        assert mask.nonzero().flatten().tolist() == sorted(distracting)
        fired += len(distracting)
    assert fired > 0

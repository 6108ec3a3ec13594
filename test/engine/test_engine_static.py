"""Passes of fixed shapes against a full recomputation, and, where there is a GPU, captured as graphs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_models import CONFIG, MODELS, emu, forced, gemma, observation, qwen
from test_engine_refine import GRID, SCHEDULES, SCOPES, figures, require_equal, run

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.passes import Passes
from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.refine import generate
from dtp_ros.engine.static import MOST_ROOMS, StaticCache, StaticPasses
from dtp_ros.engine.types import GenerationConfig

pytestmark = pytest.mark.own_path


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("speculative", [True, False], ids=["speculative", "sequential"])
def test_loop_equals_recomputation(make, scope, schedule, speculative):
    """Several steps over the same buffers: what one leaves in them changes nothing in the next."""
    adapter = make()
    passes = StaticPasses(adapter)
    for seed in range(3):
        config = replace(CONFIG, mask_scope=scope, mask_schedule=schedule, tolerance=(0.55, 0.3, 0.8)[seed])
        require_equal(adapter, config, seed, speculative=speculative, passes=passes)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_options_equal_recomputation(make, scope, schedule):
    adapter = make()
    passes = StaticPasses(adapter)
    for changes in (
        {"tolerance_mode": "min_entropy", "tolerance_grid": GRID},
        {"weights": "first_token", "max_pruned": 2},
        {"variant": "random_all", "seed": 4},
        {"variant": "off"},
        {"tolerance": 0.0},
    ):
        config = replace(CONFIG, mask_scope=scope, mask_schedule=schedule, **changes)
        require_equal(adapter, config, seed=1, step=3, passes=passes)


def test_forced_prefix_equals_recomputation():
    for scope in SCOPES:
        adapter = forced(gemma())
        require_equal(adapter, replace(CONFIG, mask_scope=scope), passes=StaticPasses(adapter))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_off_and_empty_masks_are_bit_identical(make):
    adapter = make()
    passes = StaticPasses(adapter)
    everything = replace(CONFIG, top_k=adapter.grid[0] * adapter.grid[1])  # U is empty, and so is D
    off = run(adapter, replace(everything, variant="off"), passes=passes)
    for scope in SCOPES:
        for schedule in SCHEDULES:
            found = run(adapter, replace(everything, mask_scope=scope, mask_schedule=schedule), passes=passes)
            assert found[1] == off[1]
            assert figures(found[2]) == figures(off[2])


def test_every_pass_has_one_of_few_shapes():
    """Whatever the instruction's length within a bucket, and however many tokens are pruned."""
    shapes = set()
    adapter = qwen()
    adapter.text_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.add(
            (tuple(kwargs["inputs_embeds"].shape), tuple(kwargs["attention_mask"].shape))
        ),
        with_kwargs=True,
    )
    passes = StaticPasses(adapter)
    for seed in range(6):
        for tolerance in (0.2, 0.55, 0.8):
            for scope in SCOPES:
                run(adapter, replace(CONFIG, tolerance=tolerance, mask_scope=scope), seed, passes=passes)
    assert {(rows[1], mask[2]) for rows, mask in shapes} == {(n, n) for n in (64, 1, 2)}
    assert len({mask[3] for _, mask in shapes}) == 1


def test_prompts_of_different_length_share_what_they_can():
    """An instruction that needs another bucket gets buffers of its own; the first ones still serve."""
    adapter = emu()
    passes = StaticPasses(adapter)
    for before in (7, 8, 40, 70, 100, 7):  # the last one needs what was let go of
        adapter.before = before
        require_equal(
            adapter, replace(CONFIG, mask_scope="all" if before % 2 else "action"), seed=before, passes=passes
        )
        assert len({room for room, _ in passes._caches}) <= MOST_ROOMS
    assert {key[0] for key in passes._plans} == {room for room, _ in passes._caches}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("path", [Passes, StaticPasses])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_that_was_not_finite_leaves_nothing_to_the_next(make, path, scope):
    """Its rows stay in buffers that no mask shows, where zero times NaN is NaN; its text may have caught it."""
    adapter = make()
    passes = path(adapter)
    config = replace(CONFIG, mask_scope=scope)
    vision = adapter.vision.clone()
    adapter.vision.fill_(torch.nan)
    broken = run(adapter, config, passes=passes)[2]
    assert np.isnan(broken.tokens[0].entropy_clean)
    adapter.vision.copy_(vision)
    require_equal(adapter, config, passes=passes)


def test_a_static_cache_says_where_it_ends():
    with pytest.raises(ValueError, match="64 rows cannot hold 65"):
        StaticCache(2, 64, 0).reserve(65)


def test_a_policy_of_fixed_shapes_acts_as_the_other():
    policies = [DtpPolicy(gemma(), static=static) for static in (True, False)]
    for i in range(3):
        steps = [policy.step(observation(i, stamp=0.2 * i), CONFIG, GenerationConfig()) for policy in policies]
        np.testing.assert_array_equal(steps[0].chunk.actions, steps[1].chunk.actions)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_captured_graphs_give_what_uncaptured_passes_give(make, scope, schedule):
    """On the GPU, step after step: the same tokens, and figures as near as float32 allows."""
    adapter = make().to("cuda")
    captured, plain = StaticPasses(adapter), StaticPasses(adapter, graphs=False)
    for seed in range(4):
        config = replace(CONFIG, mask_scope=scope, mask_schedule=schedule, tolerance=(0.55, 0.3, 0.8, 0.0)[seed])
        prompt = adapter.prepare(observation(seed))
        with torch.inference_mode(), captured_attention(adapter.text_model):
            found = [generate(adapter, prompt, config, passes=passes) for passes in (captured, plain)]
        assert found[0][0] == found[1][0]
        for token, other in zip(found[0][1].tokens, found[1][1].tokens, strict=True):
            assert np.array_equal(token.mask, other.mask)
            np.testing.assert_allclose(token.pattern, other.pattern, atol=1e-5)
            np.testing.assert_allclose(token.entropy_refined, other.entropy_refined, atol=1e-4)
    assert captured.graphs

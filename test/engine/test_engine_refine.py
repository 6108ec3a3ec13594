"""The loop of a step against a full recomputation of every token, without cache (engine_oracle.Reference)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_models import CONFIG, MODELS, emu, forced, gemma, observation, qwen
from engine_oracle import Reference

from dtp_ros.engine import scopes
from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.refine import generate
from dtp_ros.engine.static import StaticPasses
from dtp_ros.models.base import ActionVocabulary

SCOPES = ("all", "action")
SCHEDULES = ("per_step", "per_token")
GRID = (0.25, 0.5, 0.6, 0.7, 0.8, 1.0)


def run(adapter, config, seed=0, step=0, **path):
    """path: `speculative` and `passes` of generate."""
    prompt = adapter.prepare(observation(seed))
    with torch.inference_mode(), captured_attention(adapter.text_model):
        ids, trace = generate(adapter, prompt, config, step=step, **path)
    return prompt, ids, trace


def require_equal(adapter, config, seed=0, step=0, **path):
    """Tokens, masks and figures are those of the reference; the trace."""
    prompt, ids, trace = run(adapter, config, seed, step, **path)
    reference = Reference(adapter, prompt, config, step).run()
    assert ids == reference.ids
    assert [token.token_id for token in trace.tokens] == reference.token_ids
    assert [token.clean_id for token in trace.tokens] == reference.clean_ids
    assert np.array_equal(trace.region.ravel(), reference.region)
    np.testing.assert_allclose(trace.relevance_raw.ravel(), reference.relevance, atol=1e-5)
    h_max = np.log(len(adapter.vocabulary.action_ids) + len(adapter.vocabulary.end_ids))
    for i, token in enumerate(trace.tokens):
        assert np.array_equal(token.mask.ravel(), reference.masks[i])
        np.testing.assert_allclose(token.pattern.ravel(), reference.patterns[i], atol=1e-5)
        entropies = np.array([token.entropy_clean, token.entropy_refined])
        np.testing.assert_allclose(entropies, reference.entropies[i], atol=1e-4)
        np.testing.assert_allclose([token.score_clean, token.score_refined], 1 - entropies / h_max, atol=1e-5)
        unimportant = reference.patterns[i][~reference.region].sum()
        assert token.unimportant_attention == pytest.approx(unimportant, abs=1e-5)
    assert trace.tolerance == reference.tolerance
    assert trace.step == step
    return trace


def figures(trace):
    return [
        (t.token_id, t.clean_id, t.entropy_clean, t.entropy_refined, t.unimportant_attention, t.pattern.tobytes())
        for t in trace.tokens
    ]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("tolerance", [0.55, 0.8])
def test_loop_equals_recomputation(make, scope, schedule, tolerance):
    config = replace(CONFIG, mask_scope=scope, mask_schedule=schedule, tolerance=tolerance)
    for seed in range(3):
        require_equal(make(), config, seed)


def test_the_cases_above_are_not_trivial():
    """Some masks are empty and some not, they differ from token to token, and pruning changes tokens."""
    traces = [
        run(make(), replace(CONFIG, mask_scope=scope, tolerance=tolerance), seed)[2]
        for make in MODELS.values()
        for scope in SCOPES
        for tolerance in (0.55, 0.8)
        for seed in range(3)
    ]
    tokens = [token for trace in traces for token in trace.tokens]
    pruned = [token.pruned for token in tokens]
    assert 0.1 < np.mean([n > 0 for n in pruned]) < 0.95
    assert len(set(pruned)) > 5
    assert any(token.token_id != token.clean_id for token in tokens)
    assert any(0 < trace.fire_rate < 1 for trace in traces)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "first_token"},
        {"max_pruned": 2},
        {"variant": "no_gaussian"},
        {"variant": "random_all", "seed": 4},
        {"variant": "random_unimportant", "seed": 4},
        {"tolerance_mode": "min_entropy", "tolerance_grid": GRID},
        {"tolerance_mode": "min_entropy", "tolerance_grid": GRID, "max_pruned": 3},
        {"tolerance_mode": "min_entropy", "tolerance_grid": GRID, "variant": "random_all", "weights": "first_token"},
    ],
    ids=lambda changes: "-".join(str(v) for v in changes.values() if not isinstance(v, tuple)),
)
def test_options_equal_recomputation(make, scope, schedule, changes):
    require_equal(make(), replace(CONFIG, mask_scope=scope, mask_schedule=schedule, **changes), seed=1, step=3)


@pytest.mark.parametrize("make", [gemma, qwen])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_forced_prefix_equals_recomputation(make, scope, schedule):
    require_equal(forced(make()), replace(CONFIG, mask_scope=scope, mask_schedule=schedule))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fixed", [False, True])
def test_a_grid_that_does_not_fit_into_one_pass_equals_recomputation(schedule, fixed, monkeypatch):
    """Several passes of two masks each; the one that is kept may be of any of them."""
    monkeypatch.setattr(scopes, "SPARE", 2)
    config = replace(CONFIG, mask_scope="action", mask_schedule=schedule, tolerance_mode="min_entropy")
    for make in MODELS.values():
        adapter = make()
        for seed in range(3):
            passes = StaticPasses(adapter) if fixed else None
            require_equal(adapter, replace(config, tolerance_grid=GRID), seed=seed, step=3, passes=passes)


def test_min_entropy_chooses_among_the_grid():
    """Several tolerances win, the empty mask among the losers and the winners, and no fixed one is more certain."""
    chosen, pruned = set(), set()
    for make in MODELS.values():
        for seed in range(3):
            config = replace(CONFIG, tolerance_mode="min_entropy", tolerance_grid=GRID)
            first = run(make(), config, seed)[2]
            chosen.add(first.tolerance)
            pruned.update(token.pruned > 0 for token in first.tokens)
            for tolerance in GRID:
                fixed = run(make(), replace(CONFIG, tolerance=tolerance), seed)[2]
                assert first.tokens[0].entropy_refined <= fixed.tokens[0].entropy_refined + 1e-6
    assert len(chosen) > 2
    assert pruned == {True, False}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ties_go_to_the_larger_tolerance(schedule):
    """Between equal masks, and between different masks of the same entropy."""
    config = replace(CONFIG, tolerance_mode="min_entropy", mask_schedule=schedule, tolerance_grid=(0.5, 2.0, 1.0))
    assert run(qwen(), replace(config, top_k=24))[2].tolerance == 2.0  # U is empty, and so is every mask
    indifferent = qwen()
    indifferent.head.zero_()  # every token is as likely as any other, whatever is masked
    trace = run(indifferent, replace(config, tolerance_grid=(0.25, 0.1, 0.3)))[2]
    assert trace.pruned > 0
    assert trace.tolerance == 0.3
    assert trace.mean("entropy_refined") == pytest.approx(np.log(21), abs=1e-6)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_off_and_empty_masks_are_bit_identical(make):
    everything = replace(CONFIG, top_k=make().grid[0] * make().grid[1])  # U is empty, and so is D
    off = run(make(), replace(everything, variant="off"))
    assert all(token.clean_id == token.token_id for token in off[2].tokens)
    for scope in SCOPES:
        for schedule in SCHEDULES:
            for changes in ({}, {"variant": "off"}, {"tolerance_mode": "min_entropy"}, {"variant": "random_all"}):
                config = replace(everything, mask_scope=scope, mask_schedule=schedule, **changes)
                _, ids, trace = run(make(), config)
                assert trace.pruned == 0
                assert ids == off[1]
                assert figures(trace) == figures(off[2])


def test_off_still_measures():
    trace = run(qwen(), replace(CONFIG, variant="off"))[2]
    assert trace.fire_rate == 0
    assert trace.region.sum() == CONFIG.top_k
    assert trace.mean("unimportant_attention") > 0
    assert trace.mean("entropy_clean") == trace.mean("entropy_refined") > 0


@pytest.mark.parametrize("variant", ["random_all", "random_unimportant"])
def test_random_variants_match_the_count_and_repeat(variant):
    config = replace(CONFIG, variant=variant)
    dtp = run(qwen(), CONFIG)[2].tokens[0]
    first, again, later = (run(qwen(), config, step=step)[2].tokens[0] for step in (0, 0, 1))
    assert first.pruned == dtp.pruned == later.pruned > 0
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.mask, later.mask)
    if variant == "random_unimportant":
        assert not (first.mask & run(qwen(), config)[2].region).any()


def test_an_end_token_is_traced_but_is_no_action():
    adapter = emu()
    _, ids, trace = run(adapter, replace(CONFIG, mask_schedule="per_step"))
    assert trace.tokens[-1].token_id in adapter.vocabulary.end_ids
    assert ids == [token.token_id for token in trace.tokens[:-1]]
    assert adapter.vocabulary.min_tokens <= len(ids) < adapter.vocabulary.max_tokens


def test_one_token_only():
    """`per_step` with nothing to follow: no clean pass is left to make up for."""
    for scope in SCOPES:
        adapter = gemma()
        adapter.vocabulary = ActionVocabulary(torch.arange(44, 64), min_tokens=1, max_tokens=1)
        trace = require_equal(adapter, replace(CONFIG, mask_schedule="per_step", mask_scope=scope))
        assert trace.pruned > 0
        assert len(trace.tokens) == 1


class DistinctGrammar:
    """Allows no action token twice, and the end from three tokens on."""

    def allowed(self, ids):
        free = torch.tensor([i for i in range(44, 64) if i not in ids])
        return torch.cat([torch.tensor([70]), free]) if len(ids) >= 3 else free


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_grammar_restricts_and_its_interventions_are_counted(schedule):
    adapter = qwen()
    prompt = adapter.prepare(observation())
    config = replace(CONFIG, mask_schedule=schedule)
    with torch.inference_mode(), captured_attention(adapter.text_model):
        ids, trace = generate(adapter, prompt, config, grammar=DistinctGrammar())
        free_ids, free = generate(adapter, prompt, config)
        for scope in SCOPES:
            for tolerance in (0.5, 0.7):
                both = [
                    generate(
                        adapter,
                        prompt,
                        replace(config, mask_scope=scope, tolerance=tolerance),
                        grammar=DistinctGrammar(),
                        speculative=speculative,
                    )
                    for speculative in (True, False)
                ]
                assert both[0][0] == both[1][0]
                assert len(set(both[0][0])) == len(both[0][0])
    assert len(ids) == len(set(ids))
    assert len(free_ids) > len(set(free_ids))
    assert not any(token.grammar_intervened for token in free.tokens)
    # Until its first intervention the two are the same; from there on they part.
    first = next(i for i, token in enumerate(trace.tokens) if token.grammar_intervened)
    assert ids[:first] == free_ids[:first]
    assert trace.tokens[first].token_id != free.tokens[first].token_id


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("scope", SCOPES)
def test_half_precision(make, scope):
    """The same tokens with nothing pruned bit for bit, and figures near those of float32."""
    adapter = make()
    whole = run(adapter, replace(CONFIG, mask_scope=scope))[2].tokens[0]
    adapter.text_model.to(torch.bfloat16)
    half = run(adapter, replace(CONFIG, mask_scope=scope))[2].tokens[0]
    np.testing.assert_allclose(half.pattern, whole.pattern, atol=0.01)
    assert half.entropy_clean == pytest.approx(whole.entropy_clean, abs=0.1)
    everything = replace(CONFIG, mask_scope=scope, top_k=adapter.grid[0] * adapter.grid[1])
    off = run(adapter, replace(everything, variant="off"))[2]
    assert figures(run(adapter, everything)[2]) == figures(off)

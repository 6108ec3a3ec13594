"""Which passes a step takes: nothing twice, nothing without need."""

from dataclasses import replace

import numpy as np
import pytest
from engine_models import CONFIG, MODELS, emu, gemma, observation, qwen
from test_engine_refine import GRID, SCHEDULES, SCOPES, run

pytestmark = pytest.mark.own_path


def forwards(adapter, config, seed=0, speculative=True):
    """Rows of every forward pass of a step, positions, and its trace."""
    passes = []

    def note(_module, _args, kwargs):
        passes.append(kwargs["position_ids"][..., 0, :].reshape(-1, kwargs["inputs_embeds"].shape[1])[0].tolist())

    handle = adapter.text_model.register_forward_pre_hook(note, with_kwargs=True)
    trace = run(adapter, config, seed, speculative=speculative)[2]
    handle.remove()
    return passes, trace


def test_nothing_is_generated_twice_without_need():
    """Number of rows in each forward pass: gemma has 27 prompt tokens and 5 action tokens.

    In scope `all` the pruned tokens are taken out of the repeated prefill.
    """
    lengths, pruned = {}, {}
    for scope in SCOPES:
        for schedule in SCHEDULES:
            config = replace(CONFIG, mask_scope=scope, mask_schedule=schedule)
            passes, trace = forwards(gemma(), config, speculative=False)
            assert trace.fire_rate == 1
            lengths[scope, schedule] = [len(p) for p in passes]
            pruned[scope, schedule] = [token.pruned for token in trace.tokens]
    assert lengths["all", "per_step"] == [27, 27 - pruned["all", "per_step"][0], 1, 1, 1, 1, 4]
    assert lengths["action", "per_step"] == [27, 1, 2, 2, 2, 2]
    assert lengths["action", "per_token"] == [27, 1] + [1, 1] * 4
    repeated = [27 + i - n for i, n in enumerate(pruned["all", "per_token"])]
    assert lengths["all", "per_token"] == [27, repeated[0], *(n for more in repeated[1:] for n in (1, more))]
    assert [len(p) for p in forwards(gemma(), replace(CONFIG, variant="off"))[0]] == [27, 1, 1, 1, 1]


def test_rows_before_the_first_pruned_token_serve_again():
    """In a causal model; emu's 25 image tokens come after 7 others, and 3 come behind them."""
    passes, trace = forwards(emu(), replace(CONFIG, mask_schedule="per_step"))
    mask = trace.tokens[0].mask.ravel()
    assert mask.any()
    assert len(passes[0]) == 35
    assert len(passes[1]) == 35 - (7 + np.flatnonzero(mask)[0]) - mask.sum()


def test_min_entropy_tries_its_masks_in_one_pass():
    config = replace(CONFIG, tolerance_mode="min_entropy", tolerance_grid=GRID, mask_schedule="per_step")
    counts = []
    for scope in SCOPES:
        shapes = []
        adapter = gemma()
        adapter.text_model.register_forward_pre_hook(
            lambda _module, _args, kwargs, shapes=shapes: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])),
            with_kwargs=True,
        )
        run(adapter, replace(config, mask_scope=scope))
        counts.append(shapes[1])
    (batch, length), (one, rows) = counts
    assert length == 27
    assert one == 1
    assert batch == rows > 2


def test_a_speculation_costs_no_pass_of_its_own():
    """Accepted, a masked row comes with the next clean one; rejected, the next clean one runs once more."""
    accepted, rejected = 0, 0
    for make in MODELS.values():
        for schedule in SCHEDULES:
            for seed in range(4):
                config = replace(CONFIG, mask_scope="action", mask_schedule=schedule)
                passes, trace = forwards(make(), config, seed)
                speculated = [token.accepted for token in trace.tokens]
                fired = [token.pruned > 0 for token in trace.tokens]
                if schedule == "per_step":
                    expected = len(fired) + fired[0] - (speculated[0] is True)
                else:
                    expected = len(fired) + sum(fired) - speculated.count(True)
                assert len(passes) == expected
                accepted += speculated.count(True)
                rejected += speculated.count(False)
                shares = [value for value in speculated if value is not None]
                assert trace.accepted == (np.mean(shares) if shares else None)
    assert accepted > 20
    assert rejected > 5


def test_a_masked_cache_serves_again_while_the_mask_stays():
    config = replace(CONFIG, tolerance=0.0)  # prunes all of U at every token
    passes, trace = forwards(gemma(), config)
    assert {token.pruned for token in trace.tokens} == {12}
    assert [len(p) for p in passes] == [27, 15] + [1, 1] * 4


def test_masks_never_move_positions():
    for make in MODELS.values():
        for scope in SCOPES:
            adapter = make()
            prompt = adapter.prepare(observation())
            first = prompt.position_ids[..., 0, :].reshape(-1, prompt.embeddings.shape[1])[0].tolist()
            passes, trace = forwards(adapter, replace(CONFIG, mask_scope=scope))
            assert trace.pruned > 0
            expected = [*first, *range(prompt.next_position, prompt.next_position + len(trace.tokens))]
            # Every pass has rows of the same sequence, in its order; only rows that are not kept stand twice.
            for positions in passes:
                assert set(positions) <= set(expected)
                assert positions == sorted(positions, key=expected.index)


def test_the_vision_tower_runs_once():
    adapter = qwen()
    trace = run(adapter, CONFIG)[2]
    assert trace.pruned > 0
    assert adapter.prepared == 1

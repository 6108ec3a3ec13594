"""Speculative refinement against the sequential loop, over random inputs and tolerances."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_models import CONFIG, MODELS, observation

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.refine import generate

pytestmark = pytest.mark.own_path


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("schedule", ["per_step", "per_token"])
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.long)])
def test_speculation_gives_the_tokens_of_the_sequential_loop(make, schedule, count):
    """Random pictures, instructions and tolerances; masks change tokens in some and not in others."""
    rng = np.random.default_rng(5)
    adapter = make()
    accepted: list[bool] = []
    for seed in range(count):
        tolerance = round(float(rng.uniform(0.2, 1.2)), 3)
        config = replace(CONFIG, mask_scope="action", mask_schedule=schedule, tolerance=tolerance)
        words = "".join(rng.choice(list("abcdefgh "), 12))
        prompt = adapter.prepare(observation(seed, instruction=words))
        with torch.inference_mode(), captured_attention(adapter.text_model):
            ids, trace = generate(adapter, prompt, config)
            same_ids, same = generate(adapter, prompt, config, speculative=False)
        assert ids == same_ids
        for token, other in zip(trace.tokens, same.tokens, strict=True):
            assert (token.token_id, token.clean_id) == (other.token_id, other.clean_id)
            assert np.array_equal(token.mask, other.mask)
            np.testing.assert_allclose(token.pattern, other.pattern, atol=1e-5)
            np.testing.assert_allclose(token.entropy_refined, other.entropy_refined, atol=1e-4)
            np.testing.assert_allclose(token.entropy_clean, other.entropy_clean, atol=1e-4)
            assert other.accepted is None
            # What was run ahead was right just where pruning left the token as it was.
            assert token.accepted in (None, token.token_id == token.clean_id)
        accepted += [token.accepted for token in trace.tokens if token.accepted is not None]
    assert 0.2 < np.mean(accepted) < 0.98
    assert len(accepted) > count / 2

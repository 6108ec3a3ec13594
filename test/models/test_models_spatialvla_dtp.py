"""Distracting Token Pruning on SpatialVLA's tiny checkpoint, through the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import model_defaults
from dtp_ros.pruning.config import PruningConfig

DEFAULTS = model_defaults("spatialvla", "tiny")
CONFIG = PruningConfig(**{key: DEFAULTS[key] for key in PruningConfig.__dataclass_fields__})
GENERATION = GenerationConfig(fast_grammar=True)
INSTRUCTION = "put the spoon on the towel"


@pytest.fixture
def observation(photo) -> Observation:
    return Observation((photo,), INSTRUCTION)


def figures(result) -> list:
    """All that a step says and does, to the last bit."""
    tokens = [
        (t.token_id, t.clean_id, t.entropy_clean, t.entropy_refined, t.pattern.tobytes()) for t in result.trace.tokens
    ]
    return [result.hold_reason, result.chunk.actions.tobytes(), tokens]


def step(adapter, observation, **changes):
    return DtpPolicy(adapter).step(observation, replace(CONFIG, **changes), GENERATION)


def test_relevance_and_pattern_are_those_of_eager_attention(spatialvla, observation):
    """One eager forward pass over the prompt: all probabilities, softcap and bidirectional prefix included."""
    prompt = spatialvla.prepare(observation)
    length = prompt.embeddings.shape[1]
    assert spatialvla.text_model.config._attn_implementation == "eager"
    with torch.no_grad():
        output = spatialvla.text_model(
            inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids,
            attention_mask=torch.zeros(1, 1, length, length), output_attentions=True, use_cache=False,
        )  # fmt: skip
    attention = torch.stack(output.attentions)[:, 0].double().numpy()  # [layers, heads, N, N]
    relevance = attention[[4, 6]][:, :, prompt.layout.prompt.numpy(), :256].mean(axis=(0, 1, 2))
    rows = attention[:, :, -1, :256].mean(axis=1)
    pattern = (rows.sum(axis=1) / rows.sum()) @ rows
    trace = step(spatialvla, observation).trace
    np.testing.assert_allclose(trace.relevance_raw.ravel(), relevance, atol=1e-6)
    np.testing.assert_allclose(trace.tokens[0].pattern.ravel(), pattern, atol=1e-6)
    assert relevance.max() > 3 * np.median(relevance)  # far from uniform, or this shows nothing


def test_one_mask_is_pruned_for_the_whole_step(spatialvla, observation):
    trace = step(spatialvla, observation).trace
    assert trace.fire_rate == 1.0
    assert 0 < trace.pruned < 147
    assert len(trace.tokens) == 12
    assert all(np.array_equal(token.mask, trace.tokens[0].mask) for token in trace.tokens)
    assert not (trace.mask & trace.region).any()
    assert trace.region.sum() == 109
    assert any(token.entropy_clean != token.entropy_refined for token in trace.tokens)


def test_masking_equals_removing_the_tokens(spatialvla, observation):
    """The first refined token: a prefill of the other tokens only, at their own positions."""
    token = step(spatialvla, observation, tolerance=0.25).trace.tokens[0]
    prompt = spatialvla.prepare(observation)
    kept = torch.cat([torch.from_numpy(~token.mask.ravel()), torch.ones(prompt.embeddings.shape[1] - 256, dtype=bool)])
    length = int(kept.sum())
    with torch.no_grad():
        output = spatialvla.text_model(
            inputs_embeds=prompt.embeddings[:, kept], position_ids=prompt.position_ids[:, kept],
            attention_mask=torch.zeros(1, 1, length, length), use_cache=False,
        )  # fmt: skip
    logits = spatialvla.logits(output.last_hidden_state[0, -1])[spatialvla.vocabulary.action_ids]
    entropy = float(torch.distributions.Categorical(logits=logits.double()).entropy())
    assert token.pruned > 5
    assert token.entropy_refined == pytest.approx(entropy, abs=1e-5)
    assert abs(token.entropy_refined - token.entropy_clean) > 1e-3


@pytest.mark.parametrize("scope", ["all", "action"])
@pytest.mark.parametrize("variant", ["off", "dtp", "no_gaussian", "random_all", "random_unimportant"])
def test_all_variants_act_in_both_scopes(spatialvla, observation, variant, scope):
    result = step(spatialvla, observation, variant=variant, mask_scope=scope, tolerance=0.25)
    assert result.hold_reason == ""
    assert result.chunk.actions.shape == (4, 7)
    assert np.isfinite(result.chunk.actions).all()
    assert set(result.chunk.actions[:, 6]) <= {0.0, 1.0}
    assert (result.trace.pruned > 0) == (variant != "off")


@pytest.mark.parametrize("scope", ["all", "action"])
def test_an_empty_mask_is_the_clean_model_to_the_last_bit(spatialvla, observation, scope):
    empty = step(spatialvla, observation, mask_scope=scope, tolerance=2.0)
    assert empty.trace.fire_rate == 0.0
    assert figures(empty) == figures(step(spatialvla, observation, mask_scope=scope, variant="off"))


def test_each_token_of_its_own_and_the_least_entropy_run_too(spatialvla, observation):
    """Not the paper's schedule for this model, but the user's to choose."""
    result = step(spatialvla, observation, mask_schedule="per_token", mask_scope="action", tolerance=0.25)
    assert len({token.mask.tobytes() for token in result.trace.tokens}) > 1
    result = step(spatialvla, observation, tolerance_mode="min_entropy", tolerance_grid=(0.25, 0.5, 2.0))
    assert result.trace.tolerance in (0.25, 0.5, 2.0)


def test_the_model_is_left_as_it_was(spatialvla, observation):
    def state():
        model = spatialvla.network
        modes = [module.training for module in model.modules()]
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        kinds = (spatialvla.text_model, model.vision_tower, model.vision_zoe_model.backbone)
        return modes, hooks, [kind.config._attn_implementation for kind in kinds], kept

    before = state()
    first = figures(step(spatialvla, observation))
    after = state()
    assert before[:3] == after[:3]
    assert all(after[3][name].equal(value) for name, value in before[3].items())
    assert figures(step(spatialvla, observation)) == first


def test_overlapping_chunks_are_averaged_as_published(spatialvla, photo):
    """Two steps at 5 Hz: the second chunk's first action, by hand: weights 1 and exp(0.8), gripper included."""
    policy = DtpPolicy(spatialvla)
    views = [
        Observation((image,), INSTRUCTION, stamp=0.2 * i) for i, image in enumerate((photo, photo[:, ::-1].copy()))
    ]
    alone = [step(spatialvla, view).chunk.actions for view in views]
    both = replace(GENERATION, ensemble=DEFAULTS["ensemble"], ensemble_weight=DEFAULTS["ensemble_weight"])
    found = [policy.step(view, CONFIG, both).chunk.actions for view in views]
    np.testing.assert_array_equal(found[0], alone[0])
    expected = (alone[0][1] + np.exp(0.8) * alone[1][0]) / (1 + np.exp(0.8))
    np.testing.assert_allclose(found[1][0], expected, atol=1e-12)
    assert not np.allclose(alone[0], alone[1])


def test_tokens_out_of_turn_hold(spatialvla, observation):
    """Without the order of kinds a random model's tokens do not decode: the arm holds, and is told why."""
    result = DtpPolicy(spatialvla).step(observation, CONFIG, GenerationConfig(fast_grammar=False))
    assert result.chunk is None
    assert " is " in result.hold_reason
    assert len(result.trace.tokens) == 12

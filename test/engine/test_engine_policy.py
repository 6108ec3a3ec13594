import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_models import CONFIG, MODELS, gemma, observation, qwen

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.refine import generate
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.errors import ConfigError

GENERATION = GenerationConfig()


def state_of(model):
    """Everything of a model that a step could leave changed."""
    return (
        [(type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        model.config.to_dict(),
        model.config._attn_implementation,
        {name: (p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()},
        {name: id(buffer) for name, buffer in model.named_buffers()},
        sorted(vars(model)),
    )


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_step_gives_the_decoded_chunk_and_its_trace(make):
    adapter = make()
    result = DtpPolicy(adapter).step(observation(), CONFIG, GENERATION)
    with torch.inference_mode(), captured_attention(adapter.text_model):
        ids, trace = generate(adapter, adapter.prepare(observation()), CONFIG)
    assert adapter.decoded == [tuple(ids)]
    assert result.chunk is not None
    assert np.array_equal(result.chunk.actions, adapter.decode(ids))
    assert result.hold_reason == ""
    assert np.array_equal(result.trace.attention, trace.attention)
    for figure in (result.trace.relevance, result.trace.relevance_raw, result.trace.region, result.trace.mask):
        assert figure.shape == adapter.grid
    assert result.trace.region.dtype == result.trace.mask.dtype == bool
    assert result.trace.relevance.dtype == result.trace.attention.dtype == np.float32


def test_time_of_each_stage():
    seconds = DtpPolicy(qwen()).step(observation(), CONFIG, GENERATION).trace.seconds
    assert set(seconds) == {"prepare", "prefill", "analyse", "refine", "decode", "total"}
    stages = [value for name, value in seconds.items() if name != "total"]
    assert min(stages) > 0
    assert sum(stages) <= seconds["total"]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_model_is_the_same_after_a_step(make):
    adapter = make()
    adapter.text_model.train()  # Emu has dropout: a step must not draw from it
    DtpPolicy(adapter).step(observation(), CONFIG, GENERATION)  # transformers caches on the class at the first use
    before, generator = state_of(adapter.text_model), torch.get_rng_state()
    first = DtpPolicy(adapter).step(observation(), CONFIG, GENERATION)
    second = DtpPolicy(adapter).step(observation(), CONFIG, GENERATION)
    assert state_of(adapter.text_model) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert [t.entropy_refined for t in first.trace.tokens] == [t.entropy_refined for t in second.trace.tokens]


@pytest.mark.parametrize("failing_pass", [1, 2, 4])
def test_the_model_is_restored_where_a_pass_raises(failing_pass):
    adapter = qwen()
    before = copy.deepcopy(state_of(adapter.text_model))
    passes = 0

    def fail(*_):
        nonlocal passes
        passes += 1
        if passes == failing_pass:
            raise RuntimeError("out of memory")

    handle = adapter.text_model.layers[2].register_forward_hook(fail)
    policy = DtpPolicy(adapter)
    with pytest.raises(RuntimeError, match="out of memory"):
        policy.step(observation(), CONFIG, GENERATION)
    handle.remove()
    assert state_of(adapter.text_model) == before
    assert policy.steps == 0
    after = policy.step(observation(), CONFIG, GENERATION)
    fresh = DtpPolicy(qwen()).step(observation(), CONFIG, GENERATION)
    assert np.array_equal(after.chunk.actions, fresh.chunk.actions)
    assert [t.entropy_refined for t in after.trace.tokens] == [t.entropy_refined for t in fresh.trace.tokens]


def test_tokens_that_do_not_decode_hold():
    adapter = qwen()
    adapter.vocabulary = replace(adapter.vocabulary, min_tokens=1, max_tokens=1)
    result = DtpPolicy(adapter).step(observation(), CONFIG, GENERATION)
    assert result.chunk is None
    assert result.hold_reason == "1 tokens are too few (valid: 2 or more)"
    assert len(result.trace.tokens) == 1


def test_actions_that_are_not_finite_hold():
    adapter = qwen()
    adapter.decode = lambda ids: np.full((2, 7), np.inf)
    result = DtpPolicy(adapter).step(observation(), CONFIG, GENERATION)
    assert result.chunk is None
    assert "not finite" in result.hold_reason


def test_logits_that_are_not_finite_hold():
    adapter = qwen()
    adapter.head[50] = float("nan")
    result = DtpPolicy(adapter).step(observation(), CONFIG, GENERATION)
    assert result.chunk is None
    assert "logits" in result.hold_reason
    assert adapter.decoded == []


def test_a_held_step_leaves_the_ensemble_alone():
    adapter = gemma()
    policy = DtpPolicy(adapter)
    generation = GenerationConfig(ensemble="published")
    policy.step(observation(0, 0.0), CONFIG, generation)
    real, adapter.decode = adapter.decode, lambda ids: np.full((2, 7), np.nan)
    assert policy.step(observation(1, 0.1), CONFIG, generation).chunk is None
    adapter.decode = real
    found = policy.step(observation(2, 0.2), CONFIG, generation).chunk.actions
    first, last = (real(ids) for ids in adapter.decoded[-2:])
    weight = np.exp(0.8)
    np.testing.assert_allclose(found[0], (first[1] + weight * last[0]) / (1 + weight))
    np.testing.assert_allclose(found[1], last[1])


def test_constants_that_do_not_fit_are_refused():
    policy = DtpPolicy(qwen())
    with pytest.raises(ConfigError, match="relevance_layers"):
        policy.step(observation(), replace(CONFIG, relevance_layers=(4,)), GENERATION)
    with pytest.raises(ConfigError, match="top_k"):
        policy.step(observation(), replace(CONFIG, top_k=25), GENERATION)
    assert policy.adapter.prepared == 0


def test_reset_begins_anew():
    """Steps, ensemble and random variants start over; the adapter forgets its history."""
    adapter = gemma()
    policy = DtpPolicy(adapter)
    config = replace(CONFIG, variant="random_all")
    generation = GenerationConfig(ensemble="published")
    episodes = []
    for _ in range(2):
        results = [policy.step(observation(0, 0.2 * i), config, generation) for i in range(3)]
        episodes.append(
            ([r.trace.tokens[0].mask.tobytes() for r in results], [r.chunk.actions.tobytes() for r in results])
        )
        assert [r.trace.step for r in results] == [0, 1, 2]
        assert policy.steps == 3
        policy.reset()
        assert policy.steps == 0
        assert adapter.prepared == 0
    assert episodes[0] == episodes[1]
    assert len(set(episodes[0][0])) == 3


class Even:
    def allowed(self, ids):
        return torch.arange(44, 64, 2)


def test_fast_grammar_is_an_option():
    adapter = gemma()
    adapter.grammar_object = Even()
    policy = DtpPolicy(adapter)
    free = policy.step(observation(), CONFIG, GENERATION).trace
    bound = policy.step(observation(), CONFIG, GenerationConfig(fast_grammar=True)).trace
    assert any(token.token_id % 2 for token in free.tokens)
    assert not any(token.token_id % 2 for token in bound.tokens)
    assert any(token.grammar_intervened for token in bound.tokens)
    assert not any(token.grammar_intervened for token in free.tokens)
    adapter.grammar_object = None  # a model that has none
    same = policy.step(observation(), CONFIG, GenerationConfig(fast_grammar=True)).trace
    assert [t.token_id for t in same.tokens] == [t.token_id for t in free.tokens]


@pytest.mark.own_path
def test_warming_up_runs_every_kind_of_pass_and_leaves_nothing():
    adapter = gemma()
    policy, other = DtpPolicy(adapter), DtpPolicy(gemma())
    passes = []
    adapter.text_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: passes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    policy.warm_up("", CONFIG, GenerationConfig())
    assert len(passes) == 2 * adapter.vocabulary.max_tokens  # every token was refined
    assert policy.steps == 0
    found = [p.step(observation(), CONFIG, GenerationConfig(ensemble="published")) for p in (policy, other)]
    assert found[0].trace.step == 0
    np.testing.assert_array_equal(found[0].chunk.actions, found[1].chunk.actions)

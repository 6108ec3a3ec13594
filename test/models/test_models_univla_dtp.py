"""Distracting Token Pruning on the tiny UniVLA, through the engine; few tokens a step, for each is a pass of a film."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.refine import generate
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.pruning.config import PruningConfig

INSTRUCTION = "put the spoon on the towel"
DEFAULTS = model_defaults("univla", "tiny")
CONFIG = PruningConfig(**{key: DEFAULTS[key] for key in PruningConfig.__dataclass_fields__})


def observation(seed: int) -> Observation:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return Observation(
        (np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)),), INSTRUCTION, stamp=0.2 * seed
    )


@pytest.fixture(scope="module")
def univla(cache):
    return load_adapter("univla", "tiny", device="cpu")


@pytest.fixture(scope="module")
def prompt(univla):
    """Two frames, and the action between them: as from the second step on."""
    univla.reset()
    univla.prepare(observation(0))
    univla.decode(zeros(univla))
    return univla.prepare(observation(1))


def zeros(adapter) -> list[int]:
    """Tokens of 35 coefficients 0: each the one byte 112."""
    return [150619 + adapter._assets.codec.token_bytes.index(b"\x70")] * 35


def run(adapter, prompt, config, tokens: int = 3):
    whole = adapter.vocabulary
    adapter.vocabulary = replace(whole, max_tokens=tokens)
    try:
        with torch.inference_mode(), captured_attention(adapter.text_model):
            return generate(adapter, prompt, config)
    finally:
        adapter.vocabulary = whole


def state_of(adapter):
    model = adapter.text_model
    return (
        [(type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        model.config.to_dict(),
        model.config._attn_implementation,
        {name: (p.data_ptr(), float(p.sum())) for name, p in model.named_parameters()},
    )


def test_univla_has_the_papers_constants():
    defaults = model_defaults("univla")
    assert (defaults["relevance_layers"], defaults["top_k"]) == ((11, 12), 436)
    assert (defaults["sigma"], defaults["tolerance"], defaults["max_pruned"]) == (0.65, 0.5, 0)
    assert (defaults["mask_schedule"], defaults["mask_scope"]) == ("per_token", "all")
    assert (defaults["ensemble"], defaults["execute_horizon"], defaults["fast_grammar"]) == ("off", 5, False)
    pruning = PruningConfig(**{key: defaults[key] for key in PruningConfig.__dataclass_fields__})
    pruning.require_fits(32, 1024)


@pytest.mark.parametrize("scope", [pytest.param("all", marks=pytest.mark.long), "action"])
def test_dtp_fires_and_its_variants_prune_as_many(univla, prompt, scope):
    config = replace(CONFIG, mask_scope=scope)
    before = state_of(univla)
    traces = {}
    for variant in ("off", "dtp", "no_gaussian", "random_all", "random_unimportant"):
        _, traces[variant] = run(univla, prompt, replace(config, variant=variant))
    first = {variant: trace.tokens[0] for variant, trace in traces.items()}
    dtp = first["dtp"].mask
    assert traces["off"].fire_rate == 0
    assert traces["dtp"].fire_rate > 0
    assert 0 < dtp.sum() < 1024 - 436
    assert first["random_all"].pruned == first["random_unimportant"].pruned == dtp.sum()
    region = traces["dtp"].region
    assert region.shape == (32, 32)
    assert region.sum() == 436
    assert not region[np.ix_([0, -1], [0, -1])].any()
    assert not (dtp & region).any()
    assert not (first["random_unimportant"].mask & region).any()
    masks = [first[variant].mask.tobytes() for variant in first]
    assert len(set(masks)) == len(masks)
    assert first["dtp"].entropy_refined != first["off"].entropy_refined
    assert state_of(univla) == before


@pytest.mark.parametrize("scope", ["all", "action"])
def test_an_empty_mask_is_the_clean_model_bit_for_bit(univla, prompt, scope):
    """With every token important none is distracting."""
    config = replace(CONFIG, mask_scope=scope)
    off, clean = run(univla, prompt, replace(config, variant="off"))
    ids, trace = run(univla, prompt, replace(config, top_k=1024))
    assert trace.fire_rate == 0
    assert ids == off
    for token, expected in zip(trace.tokens, clean.tokens, strict=True):
        assert (token.token_id, token.entropy_refined) == (expected.token_id, expected.entropy_clean)


def test_relevance_and_pattern_are_those_of_an_eager_pass(univla, prompt):
    """Eq. 2 and 4 from the stock outputs, in float64, at the newest frame."""
    _, trace = run(univla, prompt, CONFIG, tokens=1)
    univla.text_model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = univla.text_model(
                inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids, output_attentions=True,
                output_hidden_states=True,
            )  # fmt: skip
    finally:
        univla.text_model.set_attn_implementation("sdpa")
    image, words = prompt.layout.image, prompt.layout.prompt
    assert image[-1] == prompt.embeddings.shape[1] - 4  # before eof, eoi and boa: the last frame
    cosines = []
    for layer in (11, 12):
        states = out.hidden_states[layer + 1][0].double()  # 0 is the embedding
        states = states / states.norm(dim=-1, keepdim=True)
        cosines.append((states[words] @ states[image].T).mean(dim=0))
    relevance = torch.stack(cosines).mean(dim=0).reshape(32, 32).numpy()
    np.testing.assert_allclose(trace.relevance_raw, relevance, atol=1e-5)
    rows = torch.stack([a[0, :, -1, image].double().mean(dim=0) for a in out.attentions])
    pattern = ((rows.sum(dim=1, keepdim=True) / rows.sum()) * rows).sum(dim=0).reshape(32, 32).numpy()
    np.testing.assert_allclose(trace.tokens[0].pattern, pattern, atol=1e-6)


def test_episodes_act_and_begin_anew(univla):
    """Whole steps under the grammar; after a reset the same pictures give the same actions, with history and all."""
    policy = DtpPolicy(univla)
    config = replace(CONFIG, mask_scope="action")
    episodes = []
    for _ in range(2):
        policy.reset()
        results = [policy.step(observation(seed), config, GenerationConfig(fast_grammar=True)) for seed in (0, 1)]
        assert all(result.hold_reason == "" for result in results)
        assert all(result.trace.fire_rate > 0 for result in results)
        episodes.append([result.chunk.actions for result in results])
    for first, second in zip(*episodes, strict=True):
        assert first.shape == (5, 7)
        assert np.isfinite(first).all()
        assert ((first[:, 6] >= 0) & (first[:, 6] <= 1)).all()
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(*episodes[0])

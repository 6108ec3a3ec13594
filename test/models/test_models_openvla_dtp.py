"""Distracting Token Pruning on OpenVLA's tiny checkpoint, through the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import model_defaults
from dtp_ros.pruning.config import VARIANTS, PruningConfig

INSTRUCTION = "put the spoon on the towel"
FAST = GenerationConfig()


def constants(**changes) -> PruningConfig:
    defaults = model_defaults("openvla")
    return PruningConfig(**{key: defaults[key] for key in PruningConfig.__dataclass_fields__} | changes)


def figures(result) -> list[tuple]:
    return [
        (t.token_id, t.clean_id, t.entropy_clean, t.entropy_refined, t.pattern.tobytes()) for t in result.trace.tokens
    ]


def state_of(adapter):
    return (
        [(type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in adapter.network.modules()],
        adapter.text_model.config.to_dict(),
        adapter.text_model.config._attn_implementation,
        {name: (p.data_ptr(), float(p.double().sum())) for name, p in adapter.network.named_parameters()},
    )


def test_shipped_constants_fit_the_real_model():
    constants().require_fits(32, 256)
    defaults = model_defaults("openvla")
    assert (defaults["checkpoint"], defaults["preprocess"]) == ("openvla/openvla-7b", "widowx")
    assert (defaults["execute_horizon"], defaults["ensemble"]) == (1, "off")
    assert defaults["options"]["statistics_key"] == "bridge_orig"


@pytest.mark.parametrize("schedule", ["per_step", "per_token"])
@pytest.mark.parametrize("scope", ["all", "action"])
def test_pruning_fires_in_every_variant_and_leaves_the_model_alone(openvla, photo, scope, schedule):
    observation, before = Observation((photo,), INSTRUCTION), state_of(openvla)
    results = {}
    for variant in VARIANTS:
        config = constants(variant=variant, mask_scope=scope, mask_schedule=schedule)
        results[variant] = DtpPolicy(openvla).step(observation, config, FAST)
        assert results[variant].chunk.actions.shape == (1, 7)
    assert results["off"].trace.fire_rate == 0
    for variant in VARIANTS[1:]:
        trace = results[variant].trace
        assert trace.fire_rate > 0
        assert trace.mask.any()
        assert not trace.mask.all()
        assert any(t.entropy_refined != t.entropy_clean for t in trace.tokens)
    for variant in ("dtp", "random_unimportant"):
        assert not (results[variant].trace.mask & results[variant].trace.region).any()
    assert state_of(openvla) == before


@pytest.mark.parametrize("schedule", ["per_step", "per_token"])
@pytest.mark.parametrize("scope", ["all", "action"])
def test_an_empty_mask_is_bit_for_bit_the_clean_model(openvla, photo, scope, schedule):
    """All 256 tokens important: nothing is left to prune."""
    observation = Observation((photo,), INSTRUCTION)
    config = constants(top_k=256, tolerance=0.0, mask_scope=scope, mask_schedule=schedule)
    empty = DtpPolicy(openvla).step(observation, config, FAST)
    clean = DtpPolicy(openvla).step(observation, replace(config, variant="off"), FAST)
    assert empty.trace.fire_rate == 0
    assert figures(empty) == figures(clean)
    assert empty.chunk.actions.tobytes() == clean.chunk.actions.tobytes()

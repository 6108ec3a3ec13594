"""Distracting Token Pruning on pi0-FAST's tiny checkpoint, through the engine."""

from __future__ import annotations

import pytest
import torch
from pi0_fast_harness import constants, observation

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.models.registry import model_defaults
from dtp_ros.pruning.config import VARIANTS


def act(adapter, photo, **changes: object):
    return DtpPolicy(adapter).step(observation(photo), constants(**changes), GenerationConfig(fast_grammar=True))


def test_the_shipped_constants_fit_the_model(pi0_fast):
    constants().require_fits(pi0_fast.num_layers, pi0_fast.grid[0] * pi0_fast.grid[1])
    defaults = model_defaults("pi0_fast")
    assert (defaults["top_k"], defaults["relevance_layers"], defaults["mask_schedule"]) == (109, (3, 4), "per_token")
    assert defaults["execute_horizon"] == pi0_fast.horizon == 10


@pytest.mark.parametrize("scope", ["all", "action"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_acts_in_both_scopes(pi0_fast_short, photo, variant, scope):
    result = act(pi0_fast_short, photo, variant=variant, mask_scope=scope)
    assert result.chunk is not None
    assert result.chunk.actions.shape == (2, 7)
    assert (result.trace.fire_rate > 0) == (variant != "off")
    changed = [t for t in result.trace.tokens if t.entropy_clean != t.entropy_refined]
    assert bool(changed) == (variant != "off")


@pytest.mark.parametrize("schedule", ["per_step", "per_token"])
@pytest.mark.parametrize("scope", ["all", "action"])
def test_an_empty_mask_is_the_clean_model_bit_for_bit(pi0_fast_short, photo, scope, schedule):
    """A region of all tokens leaves none to prune."""
    off = act(pi0_fast_short, photo, variant="off", mask_scope=scope, mask_schedule=schedule)
    empty = act(pi0_fast_short, photo, top_k=256, mask_scope=scope, mask_schedule=schedule)
    assert empty.trace.fire_rate == 0
    assert empty.chunk.actions.tolist() == off.chunk.actions.tolist()
    figures = [[(t.token_id, t.entropy_clean, t.entropy_refined) for t in r.trace.tokens] for r in (off, empty)]
    assert figures[0] == figures[1]


def test_the_model_is_left_as_it_was(pi0_fast_short, photo):
    before = {name: value.clone() for name, value in pi0_fast_short.text_model.state_dict().items()}
    implementation = pi0_fast_short.text_model.config._attn_implementation
    first = act(pi0_fast_short, photo, variant="off")
    act(pi0_fast_short, photo)
    again = act(pi0_fast_short, photo, variant="off")
    assert pi0_fast_short.text_model.config._attn_implementation == implementation
    assert all(value.equal(before[name]) for name, value in pi0_fast_short.text_model.state_dict().items())
    assert again.chunk.actions.tolist() == first.chunk.actions.tolist()


def test_masking_equals_removing_the_tokens(pi0_fast_short, photo):
    """Scope `all`, one mask: the refined first token's entropy is that of the prompt without the masked tokens."""
    result = act(pi0_fast_short, photo, mask_schedule="per_step")
    first = result.trace.tokens[0]
    kept = torch.from_numpy(~first.mask.ravel())
    assert 0 < (~kept).sum() < 147
    prompt = pi0_fast_short.prepare(observation(photo))
    forced = pi0_fast_short.embed(torch.tensor([pi0_fast_short.vocabulary.forced_prefix_ids]))
    embeddings, length = torch.cat([prompt.embeddings, forced], dim=1), prompt.embeddings.shape[1]
    keep = torch.cat([kept, torch.ones(embeddings.shape[1] - 256, dtype=torch.bool)]).nonzero().flatten()
    index = torch.arange(embeddings.shape[1])
    mask = (index[None] <= index[:, None]) | ((index[None] < length) & (index[:, None] < length))
    with torch.no_grad():
        hidden = pi0_fast_short.text_model(
            inputs_embeds=embeddings[:, keep],
            position_ids=index[None, keep],
            attention_mask=mask[keep][:, keep][None, None],
            use_cache=False,
        ).last_hidden_state
    support = (
        torch.cat([pi0_fast_short.vocabulary.action_ids, torch.tensor(pi0_fast_short.vocabulary.end_ids)]).sort().values
    )
    logits = pi0_fast_short.logits(hidden[0, -1])[support].double()
    entropy = float(torch.distributions.Categorical(logits=logits).entropy())
    assert first.entropy_refined == pytest.approx(entropy, abs=1e-4)
    assert abs(first.entropy_refined - first.entropy_clean) > 1e-4


def test_without_a_grammar_a_chunk_that_does_not_decode_is_a_hold(pi0_fast_short, photo):
    result = DtpPolicy(pi0_fast_short).step(observation(photo), constants(variant="off"), GenerationConfig())
    assert result.chunk is None
    assert result.hold_reason

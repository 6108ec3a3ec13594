"""Rows of the text before the image, kept from step to step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_models import CONFIG, emu, gemma, observation, qwen
from test_engine_refine import require_equal

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.passes import Passes
from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.refine import generate
from dtp_ros.engine.static import StaticPasses
from dtp_ros.engine.types import GenerationConfig

pytestmark = pytest.mark.own_path


def longer(make):
    """With enough text before the image: of emu's 12 tokens the instruction is all but the first."""
    adapter = make()
    adapter.before = 12
    return adapter


@pytest.mark.parametrize("make", [qwen, emu])
@pytest.mark.parametrize("path", [Passes, StaticPasses])
@pytest.mark.parametrize("scope", ["all", "action"])
def test_steps_that_begin_alike_equal_recomputation(make, path, scope):
    adapter = longer(make)
    passes = path(adapter)
    for seed in range(3):
        require_equal(adapter, replace(CONFIG, mask_scope=scope), seed, passes=passes)
        assert len(passes.prefix.embeddings) == 12


def rows_of_prefills(adapter, instructions, reset_before=()):
    rows = []
    policy = DtpPolicy(adapter)
    handle = adapter.text_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    config = replace(CONFIG, variant="off")
    for i, words in enumerate(instructions):
        if i in reset_before:
            policy.reset()
        policy.step(observation(i, instruction=words), config, GenerationConfig())
    handle.remove()
    return [n for n in rows if n > 3]


def test_the_same_text_is_run_once():
    """Of emu's 40 tokens 12 come before the image: the instruction, so that another one is another text."""
    assert rows_of_prefills(longer(emu), ["put it here", "put it here", "go away", "go away"]) == [40, 28, 40, 28]
    assert rows_of_prefills(longer(emu), ["put it here"] * 3, reset_before=(2,)) == [40, 28, 40]
    assert rows_of_prefills(gemma(), ["put it here"] * 2) == [27, 27]  # its text sees the image
    assert rows_of_prefills(qwen(), ["put it here"] * 2) == [33, 33]  # three tokens are not worth it


def test_other_relevance_layers_need_states_of_their_own():
    adapter = longer(emu)
    passes = Passes(adapter)
    for layers in ((1, 2), (0, 3), (0, 3)):
        require_equal(adapter, replace(CONFIG, relevance_layers=layers), passes=passes)
    assert set(passes.prefix.states) == {0, 3}


def test_a_kept_prefix_changes_no_figure_beyond_rounding():
    adapter = longer(qwen)
    passes = Passes(adapter)
    with torch.inference_mode(), captured_attention(adapter.text_model):
        prompt = adapter.prepare(observation())
        traces = [generate(adapter, prompt, CONFIG, passes=passes)[1] for _ in range(2)]
    for first, second in zip(traces[0].tokens, traces[1].tokens, strict=True):
        assert first.token_id == second.token_id
        np.testing.assert_allclose(first.pattern, second.pattern, atol=1e-6)

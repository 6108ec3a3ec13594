"""The baselines of `make bench` are fair: they do the same as the engine, by another way."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_models import CONFIG, MODELS, VOCABULARY, observation

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.refine import generate
from dtp_ros.models.base import ActionVocabulary

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is no part of the package

from benchmarks.paper_recipe import attention_implementation, paper_step, stock_generate
from benchmarks.steps import clean_step

PER_TOKEN = replace(CONFIG, mask_schedule="per_token", mask_scope="action")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_pruned", [0, 2])
def test_the_papers_recipe_gives_the_engines_tokens(name, max_pruned):
    config, fired = replace(PER_TOKEN, max_pruned=max_pruned), 0
    for seed in range(4):
        adapter = MODELS[name](seed)
        with torch.inference_mode():
            prompt = adapter.prepare(observation(seed))
            with captured_attention(adapter.text_model):
                ids, trace = generate(adapter, prompt, config)
            assert paper_step(adapter, prompt, config) == ids
        fired += sum(token.token_id != token.clean_id for token in trace.tokens)
    assert fired, "no token was changed: nothing was tested"


@pytest.mark.parametrize("name", MODELS)
def test_the_clean_step_gives_the_tokens_of_off(name):
    adapter = MODELS[name](1)
    with torch.inference_mode(), captured_attention(adapter.text_model):
        prompt = adapter.prepare(observation(1))
        ids, _ = generate(adapter, prompt, replace(PER_TOKEN, variant="off"))
        assert clean_step(adapter, prompt) == ids


def test_stock_generate_gives_the_tokens_of_the_clean_step():
    """Where it can: causal, ordinary positions, and every token allowed."""
    from transformers import Emu3ForCausalLM

    adapter = MODELS["emu"](2)
    whole = Emu3ForCausalLM(adapter.text_model.config).eval()
    whole.model = adapter.text_model
    whole.lm_head.weight.data = adapter.head
    adapter.vocabulary = ActionVocabulary(torch.arange(VOCABULARY), min_tokens=9, max_tokens=9)
    with torch.inference_mode():
        prompt = adapter.prepare(observation(2))
        stock = stock_generate(whole, prompt, 9)
        with captured_attention(adapter.text_model):
            assert clean_step(adapter, prompt) == stock
    assert len(stock) == 9


def test_attention_is_as_it_was_after_an_error():
    adapter = MODELS["gemma"]()
    before = adapter.text_model.config._attn_implementation

    def fail():
        with attention_implementation(adapter.text_model, "eager"):
            assert adapter.text_model.config._attn_implementation == "eager"
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert adapter.text_model.config._attn_implementation == before

"""The baselines of `make bench` are fair: they do the same as the engine, by another way."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_models import CONFIG, MODELS, VOCABULARY, observation

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.passes import Passes
from dtp_ros.engine.refine import generate
from dtp_ros.models.base import ActionVocabulary
from dtp_ros.study.roofline import passes

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is no part of the package

from benchmarks.paper_recipe import attention_implementation, paper_step, stock_generate
from benchmarks.steps import clean_step

PER_TOKEN = replace(CONFIG, mask_schedule="per_token", mask_scope="action")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_pruned", [0, 2])
@pytest.mark.parametrize("scope", ["all", "action"])
def test_the_papers_recipe_gives_the_engines_tokens(name, max_pruned, scope):
    config, fired = replace(PER_TOKEN, max_pruned=max_pruned, mask_scope=scope), 0
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


class LoggedPasses(Passes):
    """Passes that say how many rows they had, and how many were cached."""

    def __init__(self, adapter):
        super().__init__(adapter)
        self.log = []

    def run(self, request, cache):
        self.log.append((request.embeddings.shape[1], cache.length))
        return super().run(request, cache)


@pytest.mark.own_path
@pytest.mark.parametrize("mode", ["off", "per_step", "per_token action"])
@pytest.mark.parametrize("seed", range(4))
def test_the_step_model_counts_the_passes_that_the_engine_runs(mode, seed):
    adapter = MODELS["gemma"](seed)
    adapter.vocabulary = replace(adapter.vocabulary, min_tokens=6, max_tokens=6)
    schedule = "per_step" if mode == "per_step" else "per_token"
    variant = "off" if mode == "off" else "dtp"
    config = replace(CONFIG, tolerance=0.2, mask_schedule=schedule, mask_scope="action", variant=variant)
    with torch.inference_mode(), captured_attention(adapter.text_model):
        prompt = adapter.prepare(observation(seed))
        logged = LoggedPasses(adapter)
        _, trace = generate(adapter, prompt, config, passes=logged)
    length = prompt.embeddings.shape[1]
    expected = [(rows, cached) for rows, cached, times in passes(mode, length, 6, accepted=1.0) if times]
    failed = [i for i, token in enumerate(trace.tokens) if token.accepted is False]
    assert trace.fire_rate == (mode != "off")
    if mode == "per_token action":
        expected += [(1, length + i) for i in failed]
    elif failed:
        pytest.skip("the first speculation of a step failed: the model counts none")
    assert sorted(logged.log) == sorted(expected)


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

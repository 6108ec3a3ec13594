import copy

import numpy as np
import pytest
import torch
from engine_models import CONFIG, LAYERS, MODELS, observation, qwen
from engine_oracle import EagerModel, base_visible, hide
from torch import nn
from transformers import DynamicCache, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from dtp_ros.engine.capture import (
    IMPLEMENTATION,
    RowRecorder,
    RowRequest,
    attention_rows,
    captured_attention,
    captured_states,
)
from dtp_ros.engine.decoder import Chain
from dtp_ros.engine.refine import generate
from dtp_ros.engine.sequence import TokenSequence
from dtp_ros.errors import CaptureError


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("masked", [False, True])
def test_rows_and_logits_equal_an_eager_forward_pass(make, masked):
    adapter = make()
    prompt = adapter.prepare(observation())
    length, image = prompt.embeddings.shape[1], prompt.layout.image
    visible = base_visible(length, length if prompt.bidirectional else 0)
    if masked:
        visible = hide(visible, image[::3], torch.arange(length))
    eager = EagerModel(adapter)(prompt.embeddings, prompt.position_ids, visible)
    # Other rows in every layer, several in one pass.
    rows = {layer: torch.tensor([layer, length - 2, length - 1]) for layer in range(LAYERS)}
    recorder = RowRecorder(RowRequest(image, rows))
    with torch.inference_mode(), captured_attention(adapter.text_model):
        output = adapter.text_model(
            inputs_embeds=prompt.embeddings,
            position_ids=prompt.position_ids,
            attention_mask=visible[None, None],
            past_key_values=DynamicCache(),
            use_cache=True,
            row_recorder=recorder,
        )
    recorded = recorder.recorded(IMPLEMENTATION)
    for layer in range(LAYERS):
        expected = eager.attention[layer][:, rows[layer]][:, :, image]
        assert recorded[layer].dtype == torch.float32
        torch.testing.assert_close(recorded[layer], expected, atol=1e-6, rtol=0)
    assert eager.attention[:, :, -1, image].std() > 1e-3  # far from uniform, or this shows nothing
    torch.testing.assert_close(adapter.logits(output.last_hidden_state[0]), eager.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_rows_are_float32_whatever_the_dtype(dtype, softcap):
    """Against float64 numpy, head by head; in bfloat16 only the inputs are rounded, not the arithmetic."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, 6, 5, 8, generator=generator).to(dtype)
    key = torch.randn(1, 2, 9, 8, generator=generator).to(dtype)
    mask = torch.rand(1, 1, 5, 9, generator=generator) > 0.3
    mask[..., 0] = True
    rows = torch.tensor([4, 1])
    found = attention_rows(query, key, mask, rows, 0.4, softcap)
    additive = attention_rows(query, key, torch.zeros(mask.shape).masked_fill(~mask, -1e30), rows, 0.4, softcap)
    for head in range(6):
        for i, row in enumerate(rows.tolist()):
            scores = key[0, head // 3].double().numpy() @ query[0, head, row].double().numpy() * 0.4
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            p = np.where(mask[0, 0, row].numpy(), np.exp(scores), 0)
            np.testing.assert_allclose(found[head, i].numpy(), p / p.sum(), atol=2e-7)
    torch.testing.assert_close(found, additive)


def test_states_are_those_after_the_layer_and_hooks_go():
    adapter = qwen()
    prompt = adapter.prepare(observation())
    length = prompt.embeddings.shape[1]
    eager = EagerModel(adapter)(prompt.embeddings, prompt.position_ids, base_visible(length, 0))
    with torch.inference_mode(), captured_states(adapter.layers(), (0, 2)) as states:
        adapter.text_model(inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids, use_cache=True)
    assert set(states) == {0, 2}
    for layer, state in states.items():
        torch.testing.assert_close(state[0], eager.states[layer + 1], atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError, match="inside"), captured_states(adapter.layers(), (1,)):
        raise RuntimeError("inside")
    assert all(not layer._forward_hooks for layer in adapter.layers())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_model_is_restored(implementation):
    model = qwen().text_model
    model.set_attn_implementation(implementation)
    model.train()
    model.norm.eval()  # a mixture, to be restored as it was
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    with captured_attention(model):
        assert model.config._attn_implementation == IMPLEMENTATION
        assert not any(module.training for module in model.modules())
        with captured_attention(model):
            pass
        assert model.config._attn_implementation == IMPLEMENTATION
        with pytest.raises(RuntimeError, match="inner"), captured_attention(model):
            raise RuntimeError("inner")
        assert model.config._attn_implementation == IMPLEMENTATION
    with pytest.raises(RuntimeError, match="outer"), captured_attention(model):
        raise RuntimeError("outer")
    assert model.config._attn_implementation == implementation
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_sub_configs_get_their_own_implementation_back():
    text = qwen().text_model.config.to_dict()
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    model = Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    model.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    before = [c._attn_implementation for c in (model.config, model.config.text_config, model.config.vision_config)]
    assert before == ["sdpa", "eager", "sdpa"]
    with captured_attention(model):
        assert model.config.text_config._attn_implementation == IMPLEMENTATION
    after = [c._attn_implementation for c in (model.config, model.config.text_config, model.config.vision_config)]
    assert after == before
    with captured_attention(model.language_model):
        assert model.config.vision_config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "eager"


def test_attention_that_was_not_captured_is_an_error():
    adapter = qwen()
    prompt = adapter.prepare(observation())
    with torch.inference_mode(), pytest.raises(CaptureError, match=r"layers \[0, 1, 2, 3\].*'sdpa'"):
        generate(adapter, prompt, CONFIG)  # outside captured_attention


def test_one_layer_that_goes_its_own_way_is_named():
    adapter = qwen()
    attention = adapter.text_model.layers[2].self_attn
    attention.config = copy.deepcopy(attention.config)  # no longer the model's
    prompt = adapter.prepare(observation())
    with (
        torch.inference_mode(),
        captured_attention(adapter.text_model),
        pytest.raises(CaptureError, match=rf"layers \[2\].*'{IMPLEMENTATION}'"),
    ):
        generate(adapter, prompt, CONFIG)


def test_states_that_were_not_captured_are_an_error():
    adapter = MODELS["emu"]()
    real = adapter.layers()
    stranger = nn.Identity()
    adapter.layers = lambda: [*real[:2], stranger, *real[3:]]  # a layer that the model never runs
    sequence = TokenSequence(adapter, adapter.prepare(observation()))
    with (
        torch.inference_mode(),
        captured_attention(adapter.text_model),
        pytest.raises(CaptureError, match=r"layers \[2\]"),
    ):
        Chain(sequence).prefill((1, 2))


def test_a_lost_mask_is_an_error():
    recorder = RowRecorder(RowRequest(torch.arange(2), {3: torch.arange(1)}))
    query = torch.zeros(1, 1, 1, 4)
    recorder.record(2, query, query, None, 1.0, None)  # not asked for
    with pytest.raises(CaptureError, match="layer 3 got no attention mask"):
        recorder.record(3, query, query, None, 1.0, None)


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(CaptureError, match="Linear"), captured_attention(nn.Linear(2, 2)):
        pass

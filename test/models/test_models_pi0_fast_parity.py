"""pi0-FAST beside LeRobot's own code (tools/dump_reference) and the stock PaliGemma, on the same tiny weights."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pi0_fast_harness import LAST, PREFIX, STATE, WEIGHTS, constants, observation
from safetensors.torch import load_file
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.models import lerobot
from dtp_ros.models import pi0_fast as ours
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("dump_pi0_fast", ROOT / "tools/dump_reference/pi0_fast.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dump() -> dict[str, np.ndarray]:
    with np.load(ROOT / "test/models/dumps/pi0_fast.npz") as arrays:
        return dict(arrays)


@torch.no_grad()
def hidden_states(adapter, embeddings: torch.Tensor, prefix: int) -> torch.Tensor:
    """Last hidden states [L, hidden] under a prefix mask: everything before `prefix` sees everything before it."""
    index = torch.arange(embeddings.shape[1])
    mask = (index[None] <= index[:, None]) | ((index[None] < prefix) & (index[:, None] < prefix))
    out = adapter.text_model(
        inputs_embeds=embeddings, position_ids=index[None], attention_mask=mask[None, None], use_cache=False
    )
    return out.last_hidden_state[0]


# --- LeRobot's own code ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["one", "two"])
def case(request, recipe, dump, monkeypatch):
    """A case of the dump: the observation (its state as LIBERO wrote it), and what LeRobot gave."""
    name, sizes, instruction, state = next(case for case in recipe.CASES if case[0] == request.param)
    monkeypatch.setattr(lerobot, "state_as_data", lambda *_: np.array(state))
    seen = Observation(tuple(recipe.images(name, sizes)), instruction, state=STATE)
    return seen, {key.removeprefix(f"{name}_"): value for key, value in dump.items() if key.startswith(f"{name}_")}


def test_the_dump_is_of_these_weights(pi0_fast_folder, dump):
    assert hashlib.sha256((pi0_fast_folder / WEIGHTS).read_bytes()).hexdigest() == str(dump["weights"])
    assert int(dump["last"]) == LAST


def test_the_full_sizes_names_and_shapes_are_lerobots(recipe, dump):
    """On the meta device; LeRobot's names under transformers 5.5 have the vision tower's middle name."""
    config = ours._model_config(Path(), {"paligemma_variant": "gemma_2b"}, torch.bfloat16)
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    shapes = {
        PREFIX + name.replace("vision_tower.", "vision_tower.vision_model."): list(weight.shape)
        for name, weight in model.named_parameters()
    }
    assert len(shapes) == 604
    assert recipe.names_digest(shapes) == str(dump["full_size"])


def test_prompt_and_pixels_are_lerobots(pi0_fast, case):
    seen, expected = case
    ids, _ = pi0_fast.prompt_ids(seen)
    assert ids == [*expected["prompt"].tolist(), 2]  # LeRobot's model appends one more BOS
    np.testing.assert_allclose(pi0_fast.pixels(seen)[:, :, 3::8, 3::8], expected["pixels"], atol=1e-6)


def test_logits_and_greedy_tokens_are_lerobots(pi0_fast, case):
    """Teacher-forced on LeRobot's own tokens, in one pass without the padding and the absent cameras that it masks."""
    seen, expected = case
    prompt, tokens = pi0_fast.prepare(seen), expected["tokens"].tolist()
    length, forced = prompt.embeddings.shape[1], len(pi0_fast.vocabulary.forced_prefix_ids)
    assert tuple(tokens[:forced]) == pi0_fast.vocabulary.forced_prefix_ids
    embeddings = torch.cat([prompt.embeddings, pi0_fast.embed(torch.tensor([tokens[:-1]]))], dim=1)
    logits = pi0_fast.logits(hidden_states(pi0_fast, embeddings, length)[length - 1 :])
    assert np.abs(logits[[0, forced, -1]].numpy() - expected["logits"]).max() < 1e-4
    allowed = torch.cat([pi0_fast.vocabulary.action_ids, torch.tensor(pi0_fast.vocabulary.end_ids)])
    chosen = allowed[logits[forced:, allowed].argmax(dim=-1)].tolist()
    assert chosen == tokens[forced:]


def test_the_engine_generates_lerobots_tokens(pi0_fast, case, monkeypatch):
    seen, expected = case
    tokens = expected["tokens"].tolist()[len(pi0_fast.vocabulary.forced_prefix_ids) :]
    monkeypatch.setattr(pi0_fast, "vocabulary", replace(pi0_fast.vocabulary, max_tokens=len(tokens)))
    result = DtpPolicy(pi0_fast).step(seen, constants(variant="off"), GenerationConfig())
    assert [token.token_id for token in result.trace.tokens] == tokens


def test_actions_are_lerobots(pi0_fast, dump, monkeypatch):
    monkeypatch.setattr(lerobot, "actions_from_data", lambda actions, _: actions)
    ids = [LAST - code for code in dump["decode_codes"].tolist()]
    np.testing.assert_allclose(pi0_fast.decode(ids), dump["decode_actions"], atol=1e-6)


# --- the language model ----------------------------------------------------------------------------------------------


def test_logits_equal_the_stock_model(pi0_fast, pi0_fast_folder, photo):
    """transformers' PaliGemma on image placeholders and pixels, eager, its weights renamed here by hand."""
    text = {"model_type": "gemma", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 18,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 3072}  # fmt: skip
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "patch_size": 14, "image_size": 224, "vision_use_head": False}  # fmt: skip
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=64, hidden_size=64, image_token_index=3072
    )
    stock = PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    weights = {
        key[len(PREFIX) :].replace("vision_model.", ""): w for key, w in load_file(pi0_fast_folder / WEIGHTS).items()
    }
    assert not stock.load_state_dict({key: w.float() for key, w in weights.items()}, strict=False).unexpected_keys
    stock.tie_weights()
    seen = observation(photo)
    ids, _ = pi0_fast.prompt_ids(seen)
    with torch.no_grad():
        expected = stock(
            input_ids=torch.tensor([[3072] * 256 + ids]),
            token_type_ids=torch.zeros(1, 256 + len(ids), dtype=torch.int64),
            pixel_values=torch.from_numpy(pi0_fast.pixels(seen)),
            position_ids=torch.arange(256 + len(ids))[None],
        ).logits[0]
    prompt = pi0_fast.prepare(seen)
    logits = pi0_fast.logits(hidden_states(pi0_fast, prompt.embeddings, prompt.embeddings.shape[1]))
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 1e-4
    assert prompt.bidirectional
    causal = pi0_fast.logits(hidden_states(pi0_fast, prompt.embeddings, 0))
    assert (causal - expected).abs().max() > 0.1  # the prefix is not causal


def test_half_precision_keeps_vision_and_norms_in_float32(pi0_fast_folder, pi0_fast, photo):
    half = load_adapter("pi0_fast", "tiny", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    kinds = {name: p.dtype for name, p in half._core.named_parameters()}
    assert {kind for name, kind in kinds.items() if "vision" in name or "norm" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "proj.weight" in name and "language" in name} == {torch.bfloat16}
    rows = []
    for model in (pi0_fast, half):
        prompt = model.prepare(observation(photo))
        rows.append(model.logits(hidden_states(model, prompt.embeddings, prompt.embeddings.shape[1])[-1]))
    assert torch.corrcoef(torch.stack(rows))[0, 1] > 0.9

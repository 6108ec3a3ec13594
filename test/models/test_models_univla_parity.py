"""UniVLA beside the original, run on the same tiny weights in an environment of its own (tools/dump_reference)."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.refine import generate
from dtp_ros.models.action_tokens import ActionStatistics
from dtp_ros.models.base import Observation, Prompt
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.models.tiny import tiny_checkpoint
from dtp_ros.models.tiny_univla import write_tiny_univla
from dtp_ros.models.univla import UniVlaAdapter
from dtp_ros.pruning.config import PruningConfig

ROOT = Path(__file__).resolve().parents[2]


def recipe() -> ModuleType:
    """The tool that made the dump, for the pictures and texts it was made of."""
    spec = importlib.util.spec_from_file_location("dump_univla", ROOT / "tools/dump_reference/univla.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = recipe()


@pytest.fixture(scope="module")
def dump():
    with np.load(ROOT / "test/models/dumps/univla.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def univla(cache) -> UniVlaAdapter:
    return load_adapter("univla", "tiny", device="cpu")


@pytest.fixture(scope="module")
def prompts(univla, dump) -> list[Prompt]:
    """The prompts of two steps, the second after the dumped action of the first."""
    univla.reset()
    first = univla.prepare(Observation((TOOL.picture(0),), TOOL.INSTRUCTION))
    univla.decode(dump["tokens 0"][:-1].tolist())
    return [first, univla.prepare(Observation((TOOL.picture(1),), TOOL.INSTRUCTION))]


@torch.no_grad()
def logits_of(adapter: UniVlaAdapter, prompt: Prompt, tokens: np.ndarray) -> torch.Tensor:
    """Logits [len(tokens), vocabulary] that predict each of the tokens after the prompt."""
    follow = adapter.embed(torch.tensor([tokens[:-1].tolist()]))
    embeddings = torch.cat([prompt.embeddings, follow], dim=1)
    length = embeddings.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    out = adapter.text_model(
        inputs_embeds=embeddings, position_ids=torch.arange(length)[None], attention_mask=mask, use_cache=True
    )
    return adapter.logits(out.last_hidden_state[0, -len(tokens) :])


def test_the_weights_are_those_of_the_dump(cache, dump):
    folder = tiny_checkpoint("univla", write_tiny_univla)
    for key in (key for key in dump if key.startswith("sha256 ")):
        file = folder / key.removeprefix("sha256 ")
        assert hashlib.sha256(file.read_bytes()).hexdigest() == str(dump[key]), file.name


@pytest.mark.parametrize("i", range(len(TOOL.TEXTS)))
def test_text_tokens_are_tiktokens(univla, dump, i):
    assert univla._assets.text.encode(TOOL.TEXTS[i]) == dump[f"text {i}"].tolist()


def test_pixels_are_the_original_image_processors(univla, dump):
    image = univla.image(Observation((TOOL.picture(0),), ""))
    pixels = univla._assets.vision.pixels(image)[:, 5::16, 3::16]
    np.testing.assert_allclose(pixels, dump["pixels"], atol=2e-7)


@pytest.mark.parametrize("step", [0, 1])
def test_the_sequence_of_text_frames_and_action_is_the_originals(univla, dump, prompts, step):
    """Image codes included. Rows of the embedding table differ from each other: equal embeddings are equal ids."""
    ids = torch.from_numpy(dump[f"prompt {step}"])
    assert len(np.unique(ids[-1030:])) > 100  # the picture is of many codes
    assert prompts[step].embeddings.equal(univla.embed(ids[None]))


def test_the_mask_of_allowed_tokens_is_the_originals(univla, dump):
    allowed = sorted([*univla.vocabulary.action_ids.tolist(), *univla.vocabulary.end_ids])
    assert allowed == sorted(dump["allowed"].tolist())


@pytest.mark.parametrize("step", [0, 1])
def test_logits_are_the_originals(univla, dump, prompts, step):
    expected = torch.from_numpy(dump[f"logits {step}"])
    tokens = dump[f"tokens {step}"][: len(expected)]
    logits = logits_of(univla, prompts[step], tokens)[:, dump["allowed"]]
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() < 1e-4


def test_greedy_tokens_are_the_originals(univla, dump, prompts):
    """Through the engine. The original goes on to 100 tokens; no chunk takes more than 70, where the engine stops."""
    defaults = model_defaults("univla")
    config = PruningConfig(**{key: defaults[key] for key in PruningConfig.__dataclass_fields__})
    with torch.inference_mode(), captured_attention(univla.text_model):
        ids, _ = generate(univla, prompts[1], replace(config, variant="off", mask_scope="action"))
    assert ids == dump["tokens 1"][:70].tolist()
    assert len(set(ids)) > 3


def test_actions_are_the_originals(univla, dump):
    """With the original's quantiles, which it holds in its code: those of the tiny checkpoint are round numbers."""
    normalised = univla._assets.codec.decode([i - 150619 for i in dump["tokens 0"][:-1]])
    np.testing.assert_allclose(normalised, TOOL.chunk(), atol=0.5 / 50 * 2.3)
    actions = ActionStatistics(dump["q01"], dump["q99"], np.ones(7, bool)).unnormalise(normalised)
    np.testing.assert_allclose(actions, dump["actions 0"], atol=1e-9)

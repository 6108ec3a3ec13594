"""NORA beside the original, run on the same tiny weights in an environment of its own (tools/dump_reference)."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.refine import generate
from dtp_ros.models import images
from dtp_ros.models.base import Observation
from dtp_ros.models.nora import NoraAdapter
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.pruning.config import PruningConfig

ROOT = Path(__file__).resolve().parents[2]
PENALTY = 1.05
"""repetition_penalty of the tiny checkpoint's generation_config.json, as of Qwen2.5-VL's."""


def recipe() -> ModuleType:
    """The tool that made the dump, for the pictures and texts it was made of."""
    spec = importlib.util.spec_from_file_location("dump_nora", ROOT / "tools/dump_reference/nora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = recipe()
ALL, ACTIONS_AND_ENDS = range(TOOL.VOCABULARY), (*TOOL.END_IDS, *range(TOOL.FIRST_ACTION_ID, TOOL.VOCABULARY))


@dataclass(frozen=True)
class Case:
    """A case of the dump: what both sides saw, the adapter set as the original is, and what the original gave."""

    number: int
    adapter: NoraAdapter
    observation: Observation
    found: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def dump():
    with np.load(ROOT / "test/models/dumps/nora.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def published(cache) -> NoraAdapter:
    options = {"lower_case_instruction": False}
    return load_adapter("nora", "tiny", device="cpu", preprocess="reference", options=options)


@pytest.fixture(scope="module", params=range(len(TOOL.INSTRUCTIONS)))
def case(request, published, dump) -> Case:
    i = request.param
    found = {key.removeprefix(f"{i}_"): value for key, value in dump.items() if key.startswith(f"{i}_")}
    return Case(i, published, Observation((TOOL.picture(*TOOL.SIZES[i]),), TOOL.INSTRUCTIONS[i]), found)


def input_ids(adapter: NoraAdapter, instruction: str) -> list[int]:
    template = adapter._assets.template
    return [*template.before, *template.instruction(instruction), *template.after]


@torch.no_grad()
def logits_of(case: Case, tokens: np.ndarray) -> torch.Tensor:
    """Logits [len(tokens), vocabulary] that predict each of the tokens after the prompt, all in one pass."""
    adapter, prompt = case.adapter, case.adapter.prepare(case.observation)
    embeddings = torch.cat([prompt.embeddings, adapter.embed(torch.tensor([tokens[:-1].tolist()]))], dim=1)
    later = torch.arange(len(tokens) - 1) + prompt.next_position
    position_ids = torch.cat([prompt.position_ids, later.expand(3, 1, -1)], dim=-1)
    length = embeddings.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    out = adapter.text_model(inputs_embeds=embeddings, position_ids=position_ids, attention_mask=mask, use_cache=True)
    return adapter.logits(out.last_hidden_state[0, -len(tokens) :])


def greedy(logits: torch.Tensor, allowed) -> list[int]:
    ids = torch.tensor(allowed)
    return ids[logits[:, ids].argmax(dim=-1)].tolist()


def test_the_dump_is_of_these_weights(nora_folder, dump):
    """Where the writer of the tiny checkpoint changes, tools/dump_reference/nora.py must run again."""
    digest = hashlib.sha256()
    for path in sorted(nora_folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == str(dump["weights"])


def test_input_ids_and_pixels_are_the_originals(case):
    assert input_ids(case.adapter, case.observation.instruction) == case.found["input_ids"].tolist()
    pixels = case.adapter.pixels(case.observation)[::9, ::11]
    np.testing.assert_allclose(pixels, case.found["pixels"], rtol=0, atol=1e-6)


def test_the_prefill_is_the_originals(case):
    """Features of the vision tower among the text's embeddings, and the positions of all."""
    prompt = case.adapter.prepare(case.observation)
    assert prompt.position_ids[:, 0].tolist() == case.found["positions"].tolist()
    assert prompt.layout.image.tolist() == np.flatnonzero(case.found["input_ids"] == 151655).tolist()
    expected = case.found["embeddings"]
    assert np.abs(prompt.embeddings[0, ::5].numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_by_default_we_do_as_the_widowx_client_and_lower_case(nora, case):
    """The published client's own picture, in TensorFlow, and the original on it and on the instruction in lower case.

    With libjpeg's accurate DCT on both sides one pixel in a thousand is one level away; TensorFlow's own decoder has
    the fast one, up to 12 levels away on these hard pictures.
    """
    image = case.observation.images[0]
    own = images.lanczos3(images.jpeg_round_trip(image), 224)[::9, ::11].astype(int)
    difference = np.abs(own - case.found["accurate"])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001
    assert np.abs(own - case.found["widowx"]).max() <= 12
    pixels = np.abs(nora.pixels(case.observation)[::9, ::11] - case.found["client_pixels"])
    assert pixels.max() <= 1 / 255 / 0.261 + 1e-5
    assert (pixels > 1e-5).mean() <= 0.002
    text = torch.from_numpy(case.found["client_ids"])
    prompt = nora.prepare(case.observation)
    seen = text != 151655
    assert prompt.embeddings[0, seen].equal(nora.embed(text[seen][None])[0])


@pytest.mark.parametrize(("name", "allowed"), [("free", ALL), ("restricted", ACTIONS_AND_ENDS)])
def test_logits_and_greedy_tokens_are_the_originals(case, name, allowed):
    """On the original's own tokens: where each is the best of its row, ours are the same."""
    tokens = case.found[f"{name}_ids"]
    logits = logits_of(case, tokens)
    actions = logits[:, TOOL.FIRST_ACTION_ID :]
    pairs = (
        (actions[:, :: TOOL.ACTION_STRIDE], f"{name}_logits"), (logits[:, :: TOOL.OTHER_STRIDE], f"{name}_others"),
        (actions[0], "first_logits"), (logits[0, ::50], "first_others"),
    )  # fmt: skip
    for ours, key in pairs:
        assert case.found[key].std() > 0.1
        assert np.abs(ours.numpy() - case.found[key]).max() < 1e-4, key
    assert greedy(logits, allowed) == tokens.tolist()
    assert len(set(tokens.tolist())) > 10


@pytest.mark.parametrize(("name", "allowed"), [("published", ALL), ("penalised", ACTIONS_AND_ENDS)])
def test_with_its_repetition_penalty_too_tokens_are_the_originals(case, name, allowed):
    """The original's `generate` takes it from generation_config.json; the engine has none, so it is applied here."""
    tokens = case.found[f"{name}_ids"]
    logits = logits_of(case, tokens)
    for i, row in enumerate(logits):
        seen = torch.from_numpy(np.unique([*case.found["input_ids"], *tokens[:i]]))
        row[seen] = torch.where(row[seen] < 0, row[seen] * PENALTY, row[seen] / PENALTY)
    assert greedy(logits, allowed) == tokens.tolist()


def test_the_engine_without_pruning_gives_the_originals_tokens(case):
    """The original goes on to 20 tokens; no single action takes more than 14, where the engine stops."""
    defaults = model_defaults("nora")
    constants = {key: defaults[key] for key in PruningConfig.__dataclass_fields__}
    config = PruningConfig(**constants | {"variant": "off", "mask_scope": "action"})
    prompt = case.adapter.prepare(case.observation)
    with torch.inference_mode(), captured_attention(case.adapter.text_model):
        ids, _ = generate(case.adapter, prompt, config)
    assert ids == case.found["restricted_ids"][:14].tolist()


def test_actions_are_the_originals_but_for_the_gripper(case):
    """It un-normalises the gripper too (q01 = 0, q99 = 1), which training leaves as it is, outside the mask."""
    adapter = load_adapter(
        "nora", "tiny", device="cpu",
        options={"statistics_key": TOOL.STATISTICS[case.number], "horizon": TOOL.HORIZONS[case.number]},
    )  # fmt: skip
    ids = case.found["chunk_ids"][:-1].tolist()
    normalised, action = case.found["normalised"], case.found["action"]
    rounding = 0.05 * TOOL.HORIZONS[case.number] ** 0.5  # of coefficients in tenths; the transform is orthonormal
    assert np.abs(normalised - TOOL.chunk(case.number)).max() <= rounding + 1e-12
    np.testing.assert_allclose(adapter._assets.codec.decode(ids, TOOL.FIRST_ACTION_ID), normalised, atol=1e-12)
    own = adapter.decode(ids)
    assert own.shape == (TOOL.HORIZONS[case.number], 7)
    np.testing.assert_allclose(own[:, :6], action[:, :6], atol=1e-12)
    np.testing.assert_allclose(own[:, 6], np.clip(2 * action[:, 6] - 1, 0, 1), atol=1e-12)

"""SpatialVLA beside the original, run on the same tiny weights in an environment of its own (tools/dump_reference)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.decoder import Chain
from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.sequence import TokenSequence
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.spatialvla_network import back_project, estimate_depth
from dtp_ros.pruning.config import PruningConfig

FIRST = 1793  # the tiny checkpoint's first action id; 257153 in the published ones
ROOT = Path(__file__).parents[2]


def load_tool():
    """tools/dump_reference/spatialvla.py: what was given to the original, and under which masks of tokens."""
    spec = importlib.util.spec_from_file_location("dump_spatialvla", ROOT / "tools/dump_reference/spatialvla.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = load_tool()


@pytest.fixture(scope="module")
def dump():
    return np.load(Path(__file__).parent / "dumps/spatialvla.npz")


@pytest.fixture(scope="module", params=range(len(TOOL.CASES)))
def parity(request, dump, cache):
    """Our adapter and observation for a case of the dump, and what the original gave."""
    case = request.param
    text, key, resize, camera = TOOL.CASES[case]
    question = "What action should the robot take to "
    adapter = load_adapter(
        "spatialvla", "tiny", preprocess="simpler" if resize else "reference",
        options={"statistics_key": key, "prompt": "question" if text.startswith(question) else "bare"},
    )  # fmt: skip
    matrix = None if camera is None else np.array(camera)
    instruction = text.removeprefix(question).removesuffix("?")
    observation = Observation((TOOL.picture(case),), instruction, intrinsics=matrix)
    expected = {name.removesuffix(f"_{case}"): dump[name] for name in dump.files if name.endswith(f"_{case}")}
    return adapter, observation, expected


def test_the_image_goes_the_originals_way(parity):
    adapter, observation, expected = parity
    pixels = adapter.pixels(observation)
    np.testing.assert_allclose(pixels[0, :, ::8, ::8], expected["pixels"], atol=0.5 / 255)  # a cv2 may round otherwise
    with torch.no_grad():
        depth = estimate_depth(adapter.network.vision_zoe_model, torch.from_numpy(pixels))
    assert 1.0 < expected["depth"].min() < expected["depth"].max() < 4.0
    np.testing.assert_allclose(depth[0, 0, ::8, ::8], expected["depth"], atol=1e-5)
    points = back_project(depth, torch.from_numpy(adapter.intrinsics(observation)).float(), patch=14, points=2)
    np.testing.assert_allclose(points.flatten(1), expected["points"], atol=1e-5)
    prompt = adapter.prepare(observation)
    # The original divides by sqrt(hidden), and its language model multiplies by it again.
    np.testing.assert_allclose(prompt.embeddings[0, :256], expected["tokens"] * 8.0, atol=1e-4)


def test_the_prompt_is_the_originals(parity, spatialvla_folder):
    adapter, observation, expected = parity
    assert expected["ids"][:256].tolist() == [FIRST - 1] * 256
    prompt = adapter.prepare(observation)
    assert prompt.embeddings[:, 256:].equal(adapter.embed(torch.from_numpy(expected["ids"][None, 256:])))
    tokenizer = Tokenizer.from_file(str(spatialvla_folder / "tokenizer.json"))
    assert tokenizer.decode(expected["ids"][prompt.layout.prompt].tolist()) == observation.instruction


@pytest.mark.parametrize("order", ["any", "ordered"])
def test_logits_and_greedy_tokens_are_the_originals(parity, order):
    adapter, observation, expected = parity
    may = TOOL.allowed(FIRST, order == "ordered")
    sequence = TokenSequence(adapter, adapter.prepare(observation))
    chain, ids, worst = Chain(sequence), [], 0.0
    with torch.inference_mode(), captured_attention(adapter.text_model):
        for i in range(TOOL.TOKENS):
            logits = chain.extend().logits[0].numpy()
            if i == 0:
                np.testing.assert_allclose(logits, expected["first_logits"], atol=1e-4)
            worst = max(worst, float(np.abs(logits[FIRST :: TOOL.KEPT] - expected[f"{order}_logits"][i]).max()))
            permitted = may(i)
            ids.append(permitted.start + int(logits[permitted.start : permitted.stop].argmax()))
            sequence.append(ids[-1])
    assert worst < 1e-4
    assert ids == expected[f"{order}_ids"].tolist()


def test_actions_are_the_originals(parity):
    """The whole policy without pruning, its own masks of tokens and its own decoding."""
    adapter, observation, expected = parity
    clean = PruningConfig(variant="off", relevance_layers=(4, 6), top_k=109)
    result = DtpPolicy(adapter).step(observation, clean, GenerationConfig(fast_grammar=True))
    np.testing.assert_allclose(result.chunk.actions, expected["actions"], atol=1e-9)

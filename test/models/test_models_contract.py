"""What holds for every model in the registry, also the next one: each on its tiny weights, by its own loader."""

import dataclasses
import json
import re
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.errors import CheckpointError, ObservationError
from dtp_ros.models import checkpoint as ckpt
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter, model_defaults, model_names
from dtp_ros.models.tiny import cache_folder
from dtp_ros.pruning.config import MASK_SCHEDULES, MASK_SCOPES, VARIANTS, PruningConfig
from dtp_ros.resources import share_file

NAMES = model_names()
STATE = np.array([0.3, 0.0, 0.15, 0.0, 0.0, 0.0, 1.0])
LEAST = 0.05  # tolerance
STANDINGS = ("paper", "second-hand", "ours")
MARKED = (
    "tolerance", "tolerance_mode", "tolerance_grid", "top_k", "sigma", "max_pruned", "mask_scope", "mask_schedule",
    "weights", "relevance_layers",
)  # fmt: skip


@cache
def adapter(name):
    return load_adapter(name, "tiny", device="cpu")


def observation(name, height=480, width=640, instruction="put the carrot on the plate", seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (adapter(name).num_cameras, height, width, 3), np.uint8)
    return Observation(tuple(images), instruction, STATE)


def pruning(name, **changes):
    defaults = model_defaults(name, "tiny")
    fields = {field.name: defaults[field.name] for field in dataclasses.fields(PruningConfig)}
    return PruningConfig(**{**fields, "tolerance": 0.3, **changes})


def step(name, seed=0, **changes):
    """One step under the grammar; what it was."""
    adapter(name).reset()
    seen = observation(name, seed=seed)
    return DtpPolicy(adapter(name)).step(seen, pruning(name, **changes), GenerationConfig(fast_grammar=True))


@cache
def clean(name):
    return step(name, variant="off")


def ids(result):
    return [token.token_id for token in result.trace.tokens]


def pruned(result):
    return sum(token.pruned for token in result.trace.tokens)


def weights(name):
    return {key: value.clone() for key, value in adapter(name).text_model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_describes_the_sequence(name):
    model = adapter(name)
    model.reset()
    prompt = model.prepare(observation(name))
    layout, length = prompt.layout, prompt.embeddings.shape[1]
    assert (layout.rows, layout.cols) == model.grid
    assert len(layout.image) == layout.rows * layout.cols
    assert len(layout.prompt) >= 1
    places = torch.cat([layout.image, layout.prompt])
    assert len(set(places.tolist())) == len(places)
    assert 0 <= int(places.min()) <= int(places.max()) < length
    assert prompt.position_ids.shape[-1] == length
    assert prompt.next_position > int(prompt.position_ids.max())
    before = int(layout.image.max()) < int(layout.prompt.min())
    assert layout.relevance == ("attention" if before or prompt.bidirectional else "embedding")


@pytest.mark.parametrize("name", NAMES)
def test_the_image_is_where_the_layout_says(name):
    """Another image changes rows of the image, and no others."""
    model = adapter(name)
    model.reset()
    first = model.prepare(observation(name))
    model.reset()
    other = model.prepare(observation(name, seed=1))
    differ = (first.embeddings != other.embeddings).any(dim=2)[0]
    image = torch.zeros_like(differ)
    image[first.layout.image] = True
    assert differ[image].any()
    assert not differ[~image].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_instruction_is_where_the_layout_says(name):
    """Another instruction changes its own first row, and nothing before that."""
    model = adapter(name)
    model.reset()
    first = model.prepare(observation(name))
    model.reset()
    other = model.prepare(observation(name, instruction="stack the green block on the yellow block"))
    start = int(first.layout.prompt.min())
    assert int(other.layout.prompt.min()) == start
    assert torch.equal(first.embeddings[:, :start], other.embeddings[:, :start])
    assert not torch.equal(first.embeddings[:, start], other.embeddings[:, start])
    assert first.embeddings.shape != other.embeddings.shape  # seven words, and eight


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 211), (720, 405)])
def test_an_image_of_any_size_is_taken_or_named(name, height, width):
    model = adapter(name)
    model.reset()
    prompt = model.prepare(observation(name, height, width))
    assert torch.isfinite(prompt.embeddings).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("instruction", ["", " \n\t"])
def test_an_instruction_without_tokens_is_refused(name, instruction):
    with pytest.raises(ObservationError, match=r"instruction"):
        adapter(name).prepare(observation(name, instruction=instruction))


@pytest.mark.parametrize("name", NAMES)
def test_no_image_is_refused(name):
    with pytest.raises(ObservationError, match="no image"):
        adapter(name).prepare(Observation((), "put the carrot on the plate", STATE))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_mask_is_the_clean_model_bit_for_bit(name):
    rows, cols = adapter(name).grid
    for scope in MASK_SCOPES:
        same = step(name, top_k=rows * cols, mask_scope=scope)  # everything is important
        assert pruned(same) == 0
        assert ids(same) == ids(clean(name))
        assert np.array_equal(same.chunk.actions, clean(name).chunk.actions)


@pytest.mark.parametrize("name", NAMES)
def test_dtp_fires_and_is_reversible(name):
    before, first = weights(name), clean(name)
    for scope, schedule in product(MASK_SCOPES, MASK_SCHEDULES):
        assert pruned(step(name, mask_scope=scope, mask_schedule=schedule, tolerance=LEAST)) > 0
    again = step(name, variant="off")
    assert ids(again) == ids(first)
    assert np.array_equal(again.chunk.actions, first.chunk.actions)
    assert all(torch.equal(value, before[key]) for key, value in weights(name).items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("scope", "schedule"), [("all", "per_step"), pytest.param("action", "per_token", marks=pytest.mark.long)]
)
def test_every_path_gives_the_same_tokens(name, scope, schedule):
    """Sequential, speculative, and of fixed shapes; over two steps where there is a history, and in the long one.

    `make test-all` runs all other tests that are not long over each path too.
    """
    runs = {
        "sequential": (DtpPolicy(adapter(name), static=False), GenerationConfig(fast_grammar=True, speculative=False)),
        "speculative": (DtpPolicy(adapter(name), static=False), GenerationConfig(fast_grammar=True)),
        "static": (DtpPolicy(adapter(name), static=True), GenerationConfig(fast_grammar=True)),
    }
    config = pruning(name, mask_scope=scope, mask_schedule=schedule)
    seeds = (0, 1) if name == "univla" or scope == "action" else (0,)
    found = {}
    for path, (policy, generation) in runs.items():
        policy.reset()
        steps = [policy.step(observation(name, seed=seed), config, generation) for seed in seeds]
        found[path] = [(ids(result), pruned(result)) for result in steps]
    assert found["speculative"] == found["static"] == found["sequential"]


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_of_actions_are_those_of_the_whole_head(name):
    model = adapter(name)
    width = model.embed(torch.tensor([[0]])).shape[-1]
    hidden = torch.randn(3, width, generator=torch.Generator().manual_seed(0), dtype=model.dtype)
    support = sorted([*model.vocabulary.action_ids.tolist(), *model.vocabulary.end_ids])
    with torch.no_grad():
        torch.testing.assert_close(model.action_logits(hidden), model.logits(hidden)[:, support], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n if n != "univla" else pytest.param(n, marks=pytest.mark.long) for n in NAMES])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_a_chunk(name, variant):
    result = step(name, variant=variant, mask_schedule="per_step")
    assert result.chunk.actions.shape == (adapter(name).horizon, 7)
    assert np.isfinite(result.chunk.actions).all()
    assert ((result.chunk.actions[:, 6] >= 0) & (result.chunk.actions[:, 6] <= 1)).all()


def tiny_folder(name) -> Path:
    adapter(name)
    return next((cache_folder() / "tiny").glob(f"{name}-*"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_a_checkpoint_of_another_model_is_named(name, other):
    if name == other:
        config = json.loads((tiny_folder(name) / "config.json").read_text())
        assert ckpt.MODELS[config.get("model_type") or config["type"]] == name
        return
    with pytest.raises(CheckpointError, match=rf"it looks like {other}"):
        load_adapter(name, str(tiny_folder(other)), device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_the_constants_of_dtp_say_where_they_are_from(name):
    text = share_file(f"config/models/{name}.yaml").read_text()
    assert set(yaml.safe_load(text)) == set(yaml.safe_load(share_file("config/models/nora.yaml").read_text()))
    for key in MARKED:
        line = re.search(rf"^{key}:.*$", text, flags=re.MULTILINE).group()
        assert any(standing in line for standing in STANDINGS), line

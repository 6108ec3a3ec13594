from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.errors import ActionDecodeError, CheckpointError, ConfigError, ObservationError
from dtp_ros.models.action_tokens import ActionStatistics, UniformBins
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.models.tabletop import ACT_ID, TabletopAdapter, word_tokenizer
from dtp_ros.pruning.config import PruningConfig

INSTRUCTION = "put the carrot on the plate"
FILES = ["config.json", "model.safetensors", "norm_stats.json", "tokenizer.json"]


@pytest.fixture(scope="module")
def tiny(cache):
    return load_adapter("tabletop", "tiny", device="cpu")


@pytest.fixture
def folder(tiny, cache, tmp_path):
    (source,) = (cache / "dtp_ros" / "tiny").glob("tabletop-*")
    assert sorted(path.name for path in source.iterdir()) == FILES
    return shutil.copytree(source, tmp_path / "checkpoint")


def stock_logits(folder, prompt, ids) -> torch.Tensor:
    """Logits [7, vocabulary] before each token, from a stock Llama in its eager form with an additive mask."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    model = LlamaModel(
        LlamaConfig(
            vocab_size=config["vocabulary"] + 256, hidden_size=config["hidden"], num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"], num_key_value_heads=config["heads"],
            intermediate_size=config["mlp"], attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    own = {name.removeprefix("language_model."): v for name, v in weights.items() if name.startswith("language_model")}
    model.load_state_dict(own, strict=True)
    later = model.embed_tokens(torch.tensor([ids[:-1]]))
    embeddings = torch.cat([prompt.embeddings, later], dim=1)
    length, start = embeddings.shape[1], prompt.embeddings.shape[1]
    visible = torch.ones(length, length).tril()
    visible[:start, :start] = 1
    mask = torch.where(visible == 1, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        hidden = model(inputs_embeds=embeddings, attention_mask=mask, position_ids=torch.arange(length)[None])[0]
        return hidden[0, start - 1 :] @ weights["lm_head.weight"].T


def test_the_engine_takes_the_tokens_of_a_stock_eager_llama(tiny, folder, photo):
    observation = Observation((photo,), INSTRUCTION)
    config = PruningConfig(variant="off", relevance_layers=(2, 3, 4), top_k=27, mask_schedule="per_step")
    result = DtpPolicy(tiny).step(observation, config, GenerationConfig())
    ids = [token.token_id for token in result.trace.tokens]
    logits = stock_logits(folder, tiny.prepare(observation), ids)
    first = tiny.vocabulary.action_ids[0]
    assert ids == (logits[:, first:].argmax(-1) + first).tolist()
    np.testing.assert_allclose(result.chunk.actions, tiny.decode(ids))


def test_the_image_is_stretched_by_averaging(tiny, photo):
    """640 x 480 is 5 x 3.75 of the model's pixels: averages over these areas, written out in float64."""

    def shares(source: int) -> np.ndarray:
        edges = np.arange(source + 1) * 128 / source
        low, high = edges[:-1], edges[1:]
        cells = np.arange(128)[:, None]
        overlap = np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0, None)
        return overlap / overlap.sum(1, keepdims=True)

    expected = np.einsum("yh,xw,hwc->yxc", shares(480), shares(640), photo.astype(np.float64), optimize=True)
    seen = []
    handle = tiny.network.tower.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tiny.prepare(Observation((photo,), INSTRUCTION))
    handle.remove()
    pixels = seen[0][0].permute(1, 2, 0).numpy() * 64 + 127.5
    assert np.abs(pixels - expected).max() <= 1.0  # OpenCV rounds to integers


def test_layout_and_positions(tiny, photo):
    prompt = tiny.prepare(Observation((photo,), INSTRUCTION))
    assert prompt.layout.image.tolist() == list(range(64))
    assert prompt.layout.prompt.tolist() == list(range(64, 70))
    assert prompt.embeddings.shape == (1, 71, 32)
    assert prompt.position_ids.tolist() == [list(range(71))]
    assert (prompt.next_position, prompt.bidirectional, prompt.layout.relevance) == (71, True, "attention")


def test_image_tokens_are_row_major(tiny):
    plain = np.full((128, 128, 3), 90, np.uint8)
    spot = plain.copy()
    spot[2 * 16 : 3 * 16, 6 * 16 : 7 * 16] = 255
    a, b = (tiny.prepare(Observation((image,), INSTRUCTION)).embeddings[0, :64] for image in (plain, spot))
    row, column = divmod(int((a - b).norm(dim=-1).argmax()), 8)
    assert abs(row - 2) <= 1  # the tower's convolutions look one token further
    assert abs(column - 6) <= 1


@pytest.mark.parametrize("shape", [(480, 640), (1, 1), (37, 2000), (128, 128), (64, 900)])
def test_an_image_of_any_size_is_taken(tiny, shape):
    image = np.full((*shape, 3), 77, np.uint8)
    assert torch.isfinite(tiny.prepare(Observation((image,), "put")).embeddings).all()


@pytest.mark.parametrize(
    ("said", "count"), [(INSTRUCTION, 6), ("Put THE carrot,on the plate.", 6), ("[ACT] put", 2), ("x-y z", 3)]
)
def test_words(tiny, said, count):
    ids = tiny.words(said)
    assert len(ids) == count
    assert ACT_ID not in ids  # a user cannot type the token that ends the prompt


@pytest.mark.parametrize(("said", "message"), [("", "0 words"), ("123 !?", "0 words"), ("put " * 33, "33 words")])
def test_an_instruction_of_no_or_too_many_words_is_refused(tiny, photo, said, message):
    with pytest.raises(ObservationError, match=message):
        tiny.prepare(Observation((photo,), said))


def test_decode_worked_out_by_hand(tiny):
    """The ends are half a bin inside the limits of the tiny checkpoint: 4 cm, .1, .1, .15 rad; the gripper 0 ... 1.

    Along the table that is 5.6 cm of a way, of which the arm goes 4 cm at once.
    """
    first = int(tiny.vocabulary.action_ids[0])
    ends = np.array([0.04, 0.04, 0.04, 0.1, 0.1, 0.15]) * 255 / 256
    ends[:2] = 0.04 / np.sqrt(2)
    np.testing.assert_allclose(tiny.decode([first] * 7), [[*-ends, 1 / 512]])
    np.testing.assert_allclose(tiny.decode([first + 255] * 7), [[*ends, 511 / 512]])


@given(st.lists(st.integers(0, 255), min_size=7, max_size=7))
def test_a_long_way_is_cut_to_a_step_as_the_expert_cuts_it(tiny, bins):
    """The tiny network, its actions ten times as wide: the direction along the table stays, the rest is clipped."""
    first, wide = int(tiny.vocabulary.action_ids[0]), np.array([0.4, 0.4, 0.4, 1.0, 1.0, 1.5, 1.0])
    statistics = ActionStatistics(-wide, wide, np.array([True] * 6 + [False]))
    step = TabletopAdapter(tiny.network, word_tokenizer([]), statistics).decode([first + b for b in bins])[0]
    way = ((np.array(bins) + 0.5) / 128 - 1)[:6] * wide[:6]
    length = np.hypot(*way[:2])
    assert np.hypot(*step[:2]) == pytest.approx(min(length, 0.04))
    np.testing.assert_allclose(step[:2] * length, way[:2] * np.hypot(*step[:2]), atol=1e-12)
    np.testing.assert_allclose(step[2:6], np.clip(way[2:6], [-0.04] + [-0.15] * 3, [0.04] + [0.15] * 3))


@pytest.mark.parametrize("bins", [[], [0] * 6, [0] * 8, [-1] + [0] * 6, [0] * 6 + [256]])
def test_decode_refuses_what_is_no_action(tiny, bins):
    first = int(tiny.vocabulary.action_ids[0])
    with pytest.raises(ActionDecodeError):
        tiny.decode([first + b for b in bins])


@given(st.integers(2, 400), st.lists(st.floats(-1, 1), min_size=1, max_size=9))
def test_bins_are_at_most_half_a_bin_away(count, values):
    bins = UniformBins(count)
    back = bins.decode(bins.encode(np.array(values)).tolist())
    assert np.abs(back - values).max() <= 1 / count + 1e-12


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_adapter("tabletop", str(folder))


def test_a_checkpoint_of_another_model_is_named(nora_folder):
    with pytest.raises(CheckpointError, match="model_type 'qwen2_5_vl'"):
        load_adapter("tabletop", str(nora_folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"heads": 3}, "make no network"), ({"image_size": 100}, "make no network"), ({"hidden": 64}, "has shape"),
     ({"widths": [16, 20, 32]}, "make no network"),
     ({"max_rotation": 0}, "make no network"), ({"max_translation": "far"}, "make no network"),
     ({"layers": 0}, "make no network"), ({"bins": True}, "make no network"),
     ({"vocabulary": 12}, "9 words, not 12"), ({"widths": None}, "incomplete")],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_adapter("tabletop", str(folder))


def test_weights_that_are_not_finite_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][3, 3] = torch.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds values that are not finite"):
        load_adapter("tabletop", str(folder))


def test_a_tokenizer_that_is_none_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        load_adapter("tabletop", str(folder))


def test_options_and_preprocessing_that_there_are_not():
    with pytest.raises(ConfigError, match="horizon not known"):
        load_adapter("tabletop", "tiny", options={"horizon": 2})
    with pytest.raises(ConfigError, match="lanczos"):
        load_adapter("tabletop", "tiny", preprocess="lanczos")


def test_the_shipped_weights_load_by_default(photo):
    defaults = model_defaults("tabletop")
    adapter = load_adapter("tabletop", str(defaults["checkpoint"]))
    assert adapter.words(INSTRUCTION + " please")[-1] == 0  # a word that it never saw is [UNK]
    assert torch.isfinite(adapter.prepare(Observation((photo,), INSTRUCTION)).embeddings).all()
    PruningConfig(**{key: defaults[key] for key in PruningConfig.__dataclass_fields__}).require_fits(
        adapter.num_layers, 64
    )

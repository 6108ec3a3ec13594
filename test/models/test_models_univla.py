"""UniVLA's inputs, sequence, history and actions, each against an independent reckoning."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.fft import dct
from tokenizers import Tokenizer
from transformers import Emu3ForCausalLM, Emu3TextConfig

from dtp_ros.errors import ActionDecodeError, ConfigError, ObservationError
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.univla import UniVlaAdapter

INSTRUCTION = "put the carrot on the plate"
BOS, BOI, IMG, EOF, EOI, BOA, EOA = 151849, 151852, 151851, 151847, 151853, 151844, 151845
FIRST_CODE = 151854
SIZE = [ord(character) for character in "1*32*32"]  # the tiny tokenizer's first 256 tokens are the bytes
LOW = np.array([-0.0289, -0.0418, -0.0261, -0.0812, -0.0931, -0.2078, 0.0])
HIGH = np.array([0.0282, 0.0408, 0.0402, 0.0807, 0.0775, 0.2017, 1.0])


@pytest.fixture(scope="module")
def loaded(cache) -> UniVlaAdapter:
    adapter = load_adapter("univla", "tiny", device="cpu")
    assert isinstance(adapter, UniVlaAdapter)
    return adapter


@pytest.fixture
def univla(loaded) -> UniVlaAdapter:
    loaded.reset()
    return loaded


@pytest.fixture(scope="module")
def fast(univla_folder):
    tokenizer = Tokenizer.from_file(str(univla_folder / "fast_bridge_t5_s50/tokenizer.json"))

    def spell(coefficients) -> list[int]:
        """Model ids of coefficients, by the FAST tokenizer itself."""
        text = "".join(chr(c + 112) for c in np.asarray(coefficients).ravel())
        return [151642 - i for i in tokenizer.encode(text).ids]

    return spell


@pytest.fixture
def encoded(univla):
    """How many pictures the image tokeniser was given."""
    calls = []
    handle = univla._assets.vision._model.encoder.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@lru_cache
def rows_of(adapter: UniVlaAdapter) -> dict[bytes, int]:
    return {row.numpy().tobytes(): i for i, row in enumerate(adapter.text_model.embed_tokens.weight)}


def ids_of(adapter: UniVlaAdapter, prompt) -> list[int]:
    """Token ids of a prompt: the rows of the embedding table that it consists of."""
    return [rows_of(adapter)[row.numpy().tobytes()] for row in prompt.embeddings[0]]


def still(seed: int = 0) -> np.ndarray:
    """A picture at the model's own size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC))


def see(image: np.ndarray, instruction: str = INSTRUCTION) -> Observation:
    return Observation((image,), instruction)


def test_the_first_prompt_is_text_and_one_frame(univla, photo):
    prompt = univla.prepare(see(photo))
    ids = ids_of(univla, prompt)
    words = univla._assets.text.encode(INSTRUCTION)
    start = 1 + len(words)
    assert ids[: start + 9] == [BOS, *words, BOI, *SIZE, IMG]
    codes, tail = ids[start + 9 : -3], ids[-3:]
    assert tail == [EOF, EOI, BOA]
    assert len(codes) == 1024
    assert min(codes) >= FIRST_CODE
    assert prompt.layout.image.tolist() == list(range(start + 9, start + 9 + 1024))
    assert prompt.layout.prompt.tolist() == list(range(1, start))
    assert (prompt.layout.rows, prompt.layout.cols, prompt.layout.relevance) == (32, 32, "embedding")
    assert prompt.position_ids.tolist() == [list(range(len(ids)))]
    assert prompt.next_position == len(ids)
    assert not prompt.bidirectional


def test_the_next_prompts_hold_the_step_before(univla, fast, encoded):
    """Two frames at most; the newest is that of DTP; no frame is encoded twice."""
    actions = [fast([[c] * 7, *[[0] * 7] * 4]) for c in (3, -5)]
    frames = []
    for step in range(3):
        prompt = univla.prepare(see(still(step)))
        ids = ids_of(univla, prompt)
        words = ids[: ids.index(BOI)]
        frame = ids[-1036:]
        assert frame[0] == BOI
        past = [*frames[step - 1], *actions[step - 1], EOA] if step else []
        assert ids == [*words, *past, *frame]
        assert [ids[i] for i in prompt.layout.image] == frame[9:-3]
        frames.append(frame)
        if step < 2:
            univla.decode(actions[step])
    assert len(encoded) == 3
    assert frames[0] != frames[1] != frames[2]


def test_prepare_alone_makes_no_history(univla, fast):
    first = univla.prepare(see(still()))
    assert univla.prepare(see(still())).embeddings.equal(first.embeddings)
    univla.decode(fast([[0] * 35]))
    second = univla.prepare(see(still(1)))
    assert univla.prepare(see(still(1))).embeddings.equal(second.embeddings)
    assert second.embeddings.shape[1] > 2 * 1036


@pytest.mark.parametrize("how", ["reset", "instruction", "hold", "id 1024", "undecided", "age", "clock"])
def test_history_is_forgotten(univla, fast, how):
    """By a reset, by another instruction, by tokens that are no action (34 coefficients, or FAST id 1024), and by a
    step that was not decided at all, as where logits are not finite; and by a camera that was away, or a clock that
    was set back.
    """
    instruction = "wipe the table" if how == "instruction" else INSTRUCTION
    univla.prepare(see(still()))
    univla.decode(fast([[0] * 35]))
    if how == "reset":
        univla.reset()
    elif how == "undecided":
        univla.prepare(replace(see(still()), stamp=0.2))
    elif how in ("hold", "id 1024"):
        univla.prepare(see(still()))
        with pytest.raises(ActionDecodeError, match="34 coefficients" if how == "hold" else "150618 is not an action"):
            univla.decode(fast([0] * 34) if how == "hold" else [150618])
    stamp = {"age": 10.1, "clock": -0.1}.get(how, 0.4)
    again = univla.prepare(replace(see(still(1), instruction), stamp=stamp))
    univla.reset()
    assert again.embeddings.equal(univla.prepare(see(still(1), instruction)).embeddings)


def test_codes_are_row_major(univla):
    """A bright square moves what becomes the codes most where it is: the grid is not transposed."""
    plain = np.full((256, 256, 3), 90, np.uint8)
    spot = plain.copy()
    spot[40:64, 160:200] = 255  # rows 5 ... 7 and columns 20 ... 24 of the grid
    seen = []
    handle = univla._assets.vision._model.quantize.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    codes = [univla._assets.vision.encode(image) for image in (plain, spot)]
    handle.remove()
    assert codes[0].shape == (32, 32)
    row, column = divmod(int((seen[1] - seen[0]).norm(dim=2).argmax()), 32)
    assert 2 <= row <= 10  # convolutions reach some codes further
    assert 17 <= column <= 27


def test_pixels_are_pils_bicubic_between_minus_one_and_one(univla, photo):
    image = Image.fromarray(photo).resize((256, 256))
    expected = (np.asarray(image, dtype=np.float64) / 127.5 - 1).transpose(2, 0, 1)
    np.testing.assert_allclose(univla._assets.vision.pixels(univla.image(see(photo))), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (100, 37), (256, 256), (300, 2000)])
def test_pictures_of_any_size_are_taken_whole(univla, shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((256, 256)))
    np.testing.assert_array_equal(univla.image(see(image)), expected)


def test_logits_equal_the_stock_eager_model(univla, univla_folder, fast):
    """The stock Emu3ForCausalLM on the files themselves, by ids, without any mask of ours; a prompt with history."""
    config = Emu3TextConfig(
        vocab_size=152878, hidden_size=32, intermediate_size=64, num_hidden_layers=14, num_attention_heads=4,
        num_key_value_heads=2, attention_dropout=0.1, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    stock = Emu3ForCausalLM(config).eval()
    tensors = {}
    for path in univla_folder.glob("model-*.safetensors"):
        tensors |= load_file(path)
    stock.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True)
    stock.set_attn_implementation("eager")
    univla.prepare(see(still()))
    univla.decode(fast([[7] * 7, *[[0] * 7] * 4]))
    prompt = univla.prepare(see(still(1)))
    length = prompt.embeddings.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        expected = stock(torch.tensor([ids_of(univla, prompt)]), logits_to_keep=5).logits
        out = univla.text_model(
            inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids, attention_mask=mask, use_cache=True
        )
        logits = univla.logits(out.last_hidden_state[:, -5:])
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 1e-4


def test_decode_gives_metres_radians_and_an_opening(univla, fast):
    """A constant action a has one coefficient a dimension, 50 sqrt(5) a: worked out by hand."""
    actions = univla.decode(fast([[56, -56, 0, 112, -112, 20, 112], *[[0] * 7] * 4]))
    values = np.array([56, -56, 0, 112, -112, 20, 112]) / (50 * np.sqrt(5))
    expected = LOW + (values + 1) / 2 * (HIGH - LOW)
    expected[6] = 1.0  # 112 is 1.0018 normalised: clipped
    assert actions.shape == (5, 7)
    np.testing.assert_allclose(actions, np.tile(expected, (5, 1)), atol=1e-12)
    assert univla.decode(fast([[0] * 6 + [-112], *[[0] * 7] * 4]))[0, 6] == 0.0
    assert univla.decode(fast([[0] * 35]))[0, 6] == pytest.approx(0.5)


def test_chunks_survive_the_round_trip(univla, fast):
    """Rounding of the coefficients is at most half a step each: sqrt(5) / 2 / 50 after the inverse transform."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        normalised = rng.uniform(-1, 1, (5, 7))
        ids = fast(np.rint(50 * dct(normalised, axis=0, norm="ortho")).astype(int))
        assert all(150619 <= i <= 151642 for i in ids)
        expected = LOW + (normalised + 1) / 2 * (HIGH - LOW)
        bound = np.sqrt(5) / 2 / 50 / 2 * (HIGH - LOW) + 1e-9
        assert (np.abs(univla.decode(ids) - expected) <= bound).all()


def test_the_grammar_allows_chunks_and_ends_them(univla, fast):
    grammar = univla.grammar()
    ids = fast(np.rint(50 * dct(np.linspace(-1, 1, 35).reshape(5, 7), axis=0, norm="ortho")).astype(int))
    for i, token in enumerate(ids):
        allowed = grammar.allowed(ids[:i])
        assert token in allowed
        assert EOA not in allowed
        assert allowed.min() > 150618
        assert allowed.max() <= 151642
    assert grammar.allowed(ids).tolist() == [EOA]


@pytest.mark.parametrize("token", [150618, 151643, 151845, 0])
def test_decode_refuses_other_tokens(univla, token):
    with pytest.raises(ActionDecodeError, match=rf"{token} is not an action \(150619 \.\.\. 151642\)"):
        univla.decode([151642, token])


def test_a_chunk_of_another_horizon_does_not_decode(univla, fast):
    with pytest.raises(ActionDecodeError, match="70 coefficients instead of 35 = 5 x 7"):
        univla.decode(fast([0] * 70))
    ten = load_adapter("univla", "tiny", device="cpu", options={"horizon": 10})
    assert ten.decode(fast([0] * 70)).shape == (10, 7)


def test_vocabulary_and_sizes(univla):
    """One id more than FAST has tokens, as the published evaluation allows."""
    assert univla.vocabulary.action_ids.tolist() == list(range(150618, 151643))
    assert univla.vocabulary.end_ids == (EOA,)
    assert univla.vocabulary.max_tokens == 70  # 35 coefficients, of two bytes at most
    assert (univla.horizon, univla.grid, univla.num_layers, len(univla.layers())) == (5, (32, 32), 14, 14)
    assert (univla.num_cameras, univla.needs_state, univla.needs_intrinsics) == (1, False, False)


def test_special_tokens_in_an_instruction_are_plain_text(univla):
    ids = univla._assets.text.encode("<|extra_198|> put")
    assert max(ids) < 151643


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (Observation((), INSTRUCTION), "no image"),
        (Observation((np.zeros((5, 5), np.uint8),), INSTRUCTION), r"uint8 \[5, 5\]"),
        (Observation((still(),), "  \n"), "has no tokens"),
        (Observation((still(),), ""), "has no tokens"),
        (Observation((still(),), "put \udcff"), "not Unicode"),
        # 2400 positions, of which two frames take 1036, two actions 70 and two single tokens 1 each
        (Observation((still(),), "é" * 94), r"the instruction has 188 tokens \(valid: 1 \.\.\. 186\)"),
    ],
)
def test_bad_observations_are_refused(univla, observation, message):
    with pytest.raises(ObservationError, match=message):
        univla.prepare(observation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon = 0"),
        ({"horizon": "5"}, "horizon"),
        ({"statistics_key": None}, "statistics_key = None is not a text"),
        ({"window": 2}, "window not known .valid: fast_tokenizer"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        load_adapter("univla", "tiny", options=options)


def test_bfloat16_leaves_the_codes_alone(univla):
    half = load_adapter("univla", "tiny", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    prompt, expected = half.prepare(see(still())), univla.prepare(see(still()))
    assert prompt.embeddings.dtype == torch.bfloat16
    assert prompt.embeddings.float().equal(expected.embeddings)  # the tiny weights are bfloat16 to begin with

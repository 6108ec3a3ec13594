"""pi0-FAST's pixels, prompt, action tokens and decoding, each against an independent reckoning."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pi0_fast_harness import INSTRUCTION, LAST, STATE, observation
from PIL import Image, ImageOps
from scipy.fft import dct
from tokenizers import Tokenizer

from dtp_ros.errors import ActionDecodeError, ObservationError
from dtp_ros.models import lerobot
from dtp_ros.models import pi0_fast as model
from dtp_ros.models.action_tokens import FastCodec
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter


@pytest.fixture(scope="module")
def tokenizer(pi0_fast_folder):
    return Tokenizer.from_file(str(pi0_fast_folder / "tokenizer" / "tokenizer.json"))


@pytest.fixture(scope="module")
def spell(pi0_fast_folder):
    vocabulary = json.loads((pi0_fast_folder / "action_tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)}

    def spell(coefficients) -> list[int]:
        """Ids of coefficients, byte by byte: FAST's alphabet begins with its own characters, in order."""
        data = "".join(chr(c + 203) for c in np.ravel(coefficients)).encode()
        return [LAST - vocabulary[letter[byte]] for byte in data]

    return spell


def text_of(tokenizer, ids) -> str:
    return "".join(tokenizer.id_to_token(i) for i in ids).replace("\u2581", " ")


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_image_tokens_are_row_major_and_the_main_cameras(pi0_fast, photo):
    """A bright square in one patch of the main camera moves the feature of that patch most."""
    plain = np.full((224, 224, 3), 90, np.uint8)
    spot = plain.copy()
    spot[3 * 14 : 4 * 14, 10 * 14 : 11 * 14] = 255
    with torch.no_grad():
        blocks = list(pi0_fast._core.vision_tower.encoder.layers)
        pi0_fast._core.vision_tower.encoder.layers = torch.nn.ModuleList()  # no mixing of patches
        try:
            prompts = [
                pi0_fast.prepare(Observation((image, photo), INSTRUCTION, state=STATE)) for image in (plain, spot)
            ]
        finally:
            pi0_fast._core.vision_tower.encoder.layers = torch.nn.ModuleList(blocks)
    layout = prompts[0].layout
    change = (prompts[1].embeddings - prompts[0].embeddings)[0].norm(dim=-1)
    assert divmod(int(change[layout.image].argmax()), 16) == (3, 10)
    assert (layout.rows, layout.cols, layout.relevance) == (16, 16, "attention")
    change[layout.image] = 0
    assert change.max() == 0


def test_a_second_camera_comes_between_and_may_be_missing(pi0_fast, photo):
    one, two = (
        pi0_fast.prepare(observation(photo)),
        pi0_fast.prepare(Observation((photo, photo[:, ::-1]), INSTRUCTION, STATE)),
    )
    assert two.embeddings.shape[1] == one.embeddings.shape[1] + 256
    assert two.layout.image.equal(one.layout.image)
    assert two.layout.prompt.equal(one.layout.prompt + 256)
    torch.testing.assert_close(two.embeddings[:, :256], one.embeddings[:, :256])
    assert two.embeddings[:, 512:].equal(one.embeddings[:, 256:])
    assert load_adapter("pi0_fast", "tiny", device="cpu").num_cameras == 1


def resized_by_hand(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear at half-pixel centres, two neighbours a side, no antialiasing; float64 0 ... 1."""

    def weights(source: int, target: int) -> np.ndarray:
        matrix = np.zeros((target, source))
        for i in range(target):
            place = max((i + 0.5) * source / target - 0.5, 0.0)
            low = int(place)
            high = min(low + 1, source - 1)
            matrix[i, low] += 1 - (place - low)
            matrix[i, high] += place - low
        return matrix

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum(
        "ikc,lk->ilc", np.einsum("ij,jkc->ikc", rows, image / 255.0, optimize=True), columns, optimize=True
    )


@pytest.mark.parametrize(
    ("shape", "fitted", "corner"), [((480, 640), (168, 224), (28, 0)), ((100, 37), (224, 82), (0, 71))]
)
def test_pixels_are_resized_and_padded_by_hand(pi0_fast, photo, shape, fitted, corner):
    image = np.ascontiguousarray(photo[: shape[0], : shape[1]])
    expected = np.full((224, 224, 3), -1.0)
    inner = 2 * resized_by_hand(image, *fitted) - 1
    expected[corner[0] : corner[0] + fitted[0], corner[1] : corner[1] + fitted[1]] = inner
    pixels = pi0_fast.pixels(observation(image))
    assert pixels.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(pixels[0].transpose(1, 2, 0), expected, atol=2e-5)


def test_an_image_of_the_models_size_is_kept(pi0_fast, photo):
    image = np.ascontiguousarray(photo[:224, :224])
    np.testing.assert_allclose(pi0_fast.pixels(observation(image))[0], image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_state_bins_by_hand(pi0_fast, monkeypatch):
    """Bins of width 2/256 from -1; what is below is -1, what is above 255; never clipped before."""
    values = np.array([-1.2, -1.0, -0.9999, -1e-6, 0.0, 0.9922, 0.9999, 3.0])
    raw = pi0_fast._assets.state.statistics
    physical = values * (raw["std"] + 1e-8) + raw["mean"]
    monkeypatch.setattr(lerobot, "state_as_data", lambda *_: physical)
    expected = [-1 if v < -1 else min(int((v + 1) * 128), 255) for v in values]
    bins = pi0_fast.state_bins(STATE)
    assert (
        [bins[i] for i in (0, 2, 3, 5, 6, 7)]
        == [expected[i] for i in (0, 2, 3, 5, 6, 7)]
        == [-1, 0, 127, 255, 255, 255]
    )
    # At the edges float32 decides, as in LeRobot.
    assert bins[1] in (-1, 0)
    assert bins[4] in (127, 128)


def test_the_prompt_and_its_instruction_by_hand(pi0_fast, tokenizer, photo):
    seen = observation(photo, " put_the carrot\non the plate ")
    ids, prompt = pi0_fast.prompt_ids(seen)
    state = " ".join(map(str, pi0_fast.state_bins(STATE)))
    assert text_of(tokenizer, ids) == f"<bos>Task: put the carrot on the plate, State: {state};\n<bos>"
    assert text_of(tokenizer, [ids[i] for i in prompt]) == " put the carrot on the plate"
    built = pi0_fast.prepare(seen)
    assert built.layout.prompt.tolist() == [256 + i for i in prompt]
    assert built.position_ids.tolist() == [list(range(256 + len(ids)))]
    assert built.next_position == 256 + len(ids)


def test_openpis_preprocessing(pi0_fast_folder, tokenizer, photo):
    other = load_adapter("pi0_fast", "tiny", device="cpu", preprocess="openpi")
    seen = observation(photo, "Put_the CARROT")
    ids, _ = other.prompt_ids(seen)
    assert text_of(tokenizer, ids).startswith("<bos>Task: put the carrot, State: ")
    assert text_of(tokenizer, ids).endswith(";\n")
    built = other.prepare(seen)
    assert built.next_position == built.embeddings.shape[1] + 1
    padded = ImageOps.pad(Image.fromarray(photo), (224, 224), Image.Resampling.BILINEAR, color=0)
    np.testing.assert_allclose(other.pixels(seen)[0].transpose(1, 2, 0), np.asarray(padded) / 127.5 - 1, atol=1e-6)


def test_special_tokens_typed_by_a_user_are_text(pi0_fast, photo):
    ids, _ = pi0_fast.prompt_ids(observation(photo, "<bos> <eos> cup"))
    assert ids.count(2) == 2  # the two that the prompt has
    assert 1 not in ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ()}, "no image"),
        ({"images": (np.zeros((4, 4), np.uint8),)}, r"uint8 \[H, W, 3\]"),
        ({"images": (np.zeros((2, 1000, 3), np.uint8),)}, "no side over 224 times the other"),
        ({"state": None}, "needs the arm's"),
        ({"state": np.zeros(8)}, "7 finite numbers"),
        ({"state": np.full(7, np.nan)}, "7 finite numbers"),
        ({"instruction": " \n"}, "has no tokens"),
        ({"instruction": "__"}, "has no tokens"),
        ({"instruction": "\ud800"}, "not Unicode text"),
        ({"instruction": "cup " * 300}, "valid: up to 200"),
    ],
)
def test_an_observation_that_the_model_cannot_take(pi0_fast, photo, change, message):
    with pytest.raises(ObservationError, match=message):
        pi0_fast.prepare(replace(observation(photo), **change))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (1000, 20), (225, 224)])
def test_any_image_size_is_taken(pi0_fast, shape):
    assert pi0_fast.prepare(observation(np.zeros((*shape, 3), np.uint8))).embeddings.isfinite().all()


# --- actions ---------------------------------------------------------------------------------------------------------


def test_decode_worked_out_by_hand(pi0_fast_short, spell):
    """Two equal actions have one coefficient a dimension, 10 sqrt(2) times the normalised value; then std and mean."""
    coefficients = np.zeros((2, 7), dtype=int)
    coefficients[0] = [10, -10, 0, 5, 0, 0, 14]
    actions = pi0_fast_short.decode(spell(coefficients))
    mean, std = (pi0_fast_short._assets.action.statistics[name] for name in ("mean", "std"))
    expected = coefficients[0] / (10 * np.sqrt(2)) * std + mean
    expected[6] = np.clip(expected[6], 0, 1)
    np.testing.assert_allclose(actions, np.stack([expected] * 2), atol=1e-9)
    assert pi0_fast_short.decode(spell(-coefficients))[0, 6] == 0  # closed


def test_round_trip_of_a_chunk(pi0_fast, monkeypatch, spell):
    monkeypatch.setattr(lerobot, "actions_from_data", lambda actions, _: actions)
    rng = np.random.default_rng(1)
    actions = pi0_fast._assets.action.unnormalise(np.cumsum(rng.normal(0, 0.3, (10, 7)), axis=0))
    normalised = pi0_fast._assets.action.normalise(actions)
    ids = spell(np.around(dct(normalised, axis=0, norm="ortho") * 10).astype(int))
    scaled = np.abs(pi0_fast.decode(ids) - actions) / pi0_fast._assets.action.statistics["std"]
    assert scaled.max() < 0.5 * np.abs(dct(np.eye(10), axis=0, norm="ortho")).sum(axis=0).max() / 10


@pytest.mark.parametrize("token", [LAST - 1024, LAST + 1])
def test_decode_refuses_other_tokens(pi0_fast, token):
    with pytest.raises(ActionDecodeError, match=f"{LAST - 1023} ... {LAST}"):
        pi0_fast.decode([token])


def test_decode_refuses_a_wrong_length_and_what_the_data_never_had(pi0_fast_short, spell):
    with pytest.raises(ActionDecodeError, match="13 coefficients instead of 14"):
        pi0_fast_short.decode(spell([0] * 13))
    bound = max(
        abs(end - m) / s
        for m, s, *ends in zip(
            *(pi0_fast_short._assets.action.statistics[n] for n in ("mean", "std", "min", "max")), strict=True
        )
        for end in ends
    )
    limit = int(10 * np.sqrt(2) * bound + 0.5)
    assert pi0_fast_short.decode(spell([limit] + [0] * 13)).shape == (2, 7)
    with pytest.raises(ActionDecodeError, match="beyond"):
        pi0_fast_short.decode(spell([limit + 1] + [0] * 13))


def test_vocabulary_is_that_of_the_checkpoint(pi0_fast, tokenizer):
    assert pi0_fast.vocabulary.action_ids.tolist() == list(range(LAST - 1023, LAST + 1))
    assert [tokenizer.id_to_token(i) for i in pi0_fast.vocabulary.forced_prefix_ids] == ["Action", ":", "\u2581"]
    assert [tokenizer.id_to_token(i) for i in pi0_fast.vocabulary.end_ids] == ["|"]
    assert pi0_fast.vocabulary.max_tokens == 2 * 70  # no code needs more than two bytes
    assert (pi0_fast.num_layers, len(pi0_fast.layers()), pi0_fast.horizon) == (18, 18, 10)


def test_the_grammar_completes_chunks(pi0_fast_short):
    """Random walks under the grammar always decode; it ends exactly when the chunk is whole."""
    rng, grammar, end = np.random.default_rng(2), pi0_fast_short.grammar(), pi0_fast_short.vocabulary.end_ids[0]
    allowed = set(pi0_fast_short.vocabulary.action_ids.tolist())
    for _ in range(5):
        ids: list[int] = []
        while end not in (choices := grammar.allowed(ids).tolist()):
            assert choices == sorted(choices)
            assert set(choices) <= allowed
            ids.append(int(rng.choice(choices)))
        assert choices == [end]
        assert pi0_fast_short.decode(ids).shape == (2, 7)


def test_a_bound_of_the_data_scales_the_codecs_limits():
    """One action, scale 10: coefficients up to 10 times the bound, values up to the bound and half a step."""
    codec = FastCodec([bytes([b]) for b in range(256)], 10, -100, 1, bound=2.5)
    assert codec.coefficient_limits.tolist() == [25]
    assert codec.value_limit == pytest.approx(2.55)


def test_a_fast_vocabulary_without_some_bytes_runs_without_grammar(caplog):
    codec = FastCodec([bytes([b]) for b in range(128)], 10, -203, 1)
    assert model._grammar(codec, 0, 999) is None
    assert "without fast_grammar" in caplog.text

"""OpenVLA's pixels, prompt and actions, each against an independent reckoning."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from dtp_ros.errors import ActionDecodeError, ConfigError, ObservationError
from dtp_ros.models.base import Observation
from dtp_ros.models.openvla import OpenVlaAdapter
from dtp_ros.models.registry import load_adapter

INSTRUCTION = "put the spoon on the towel"
Q01 = np.array([-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072])
Q99 = np.array([0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038])


# --- image and prompt ------------------------------------------------------------------------------------------------


def normalised(image: np.ndarray) -> np.ndarray:
    mean = np.array([[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]])
    std = np.array([[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]])
    planes = [(image / 255.0 - m) / s for m, s in zip(mean, std, strict=True)]
    return np.concatenate(planes, axis=-1).transpose(2, 0, 1)


def test_widowx_pixels_are_a_jpeg_and_a_lanczos_resize(openvla, photo, tmp_path):
    """PIL's LANCZOS of a JPEG file: within one level of 255, in units of the smallest deviation."""
    Image.fromarray(photo).save(tmp_path / "x.jpg", quality=95, subsampling=2)
    image = Image.open(tmp_path / "x.jpg").resize((224, 224), Image.Resampling.LANCZOS)
    difference = np.abs(openvla.pixels(Observation((photo,), INSTRUCTION)) - normalised(np.asarray(image)))
    assert difference.max() <= 1 / 255 / 0.224 + 1e-5
    assert (difference < 1e-5).mean() > 0.8


def test_simpler_pixels_are_an_area_resize(photo):
    adapter = load_adapter("openvla", "tiny", device="cpu", preprocess="simpler")
    image = cv2.resize(photo, (224, 224), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(adapter.pixels(Observation((photo,), INSTRUCTION)), normalised(image), atol=2e-6)


def test_center_crop_is_the_middle_nine_tenths(photo):
    """scipy's bilinear samples between the corners of a crop of sqrt(0.9) of each side."""
    adapter = load_adapter("openvla", "tiny", device="cpu", preprocess="reference", options={"center_crop": True})
    ends = (1 + np.array([-1, 1]) * np.sqrt(0.9)) / 2
    at = np.meshgrid(*(np.linspace(*(ends * (n - 1)), 224) for n in photo.shape[:2]), indexing="ij")
    planes = [map_coordinates(photo[..., c].astype(float), at, order=1) for c in range(3)]
    expected = normalised(np.floor(np.stack(planes, axis=-1) / 255 * 255.5))
    difference = np.abs(adapter.pixels(Observation((photo,), INSTRUCTION)) - expected)
    assert difference.max() <= 1 / 255 / 0.224 + 1e-5
    assert (difference < 1e-5).mean() > 0.99


@pytest.mark.parametrize("preprocess", ["widowx", "reference", "simpler"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (224, 224), (1200, 90)])
def test_any_size_of_image_is_taken(openvla, preprocess, shape):
    image = np.full((*shape, 3), 77, np.uint8)
    for crop in (False, True):
        options = replace(openvla._options, center_crop=crop)
        adapter = OpenVlaAdapter(openvla.network, openvla._assets, preprocess, options)
        pixels = adapter.pixels(Observation((image,), INSTRUCTION))
        np.testing.assert_allclose(pixels, normalised(np.full((224, 224, 3), 77)), atol=1 / 255 / 0.224 + 1e-5)


def test_an_observation_without_a_usable_image_is_refused(openvla):
    with pytest.raises(ObservationError, match="no image"):
        openvla.prepare(Observation((), INSTRUCTION))
    with pytest.raises(ObservationError, match="valid: uint8"):
        openvla.prepare(Observation((np.zeros((4, 4, 3), np.float32),), INSTRUCTION))


def test_image_tokens_are_row_major(openvla):
    """A spot in one patch moves the features of that patch most: the grid is not transposed."""
    plain = np.full((224, 224, 3), 90, np.uint8)
    spot = plain.copy()
    spot[4 * 14 : 5 * 14, 11 * 14 : 12 * 14] = 255
    features = [openvla.prepare(Observation((image,), INSTRUCTION)).embeddings[0, 1:257] for image in (plain, spot)]
    change = (features[1] - features[0]).norm(dim=-1)
    assert divmod(int(change.argmax()), 16) == (4, 11)


def spans(text: str, pieces: list[str]) -> list[tuple[int, int]]:
    """Characters of `text` under each piece, by hand: a space is written before it and for every blank in it."""
    written = "▁" + text.replace(" ", "▁")
    owner = [i for i, character in enumerate(written) for _ in character.encode()]
    data, found, position = written.encode(), [], 0
    for piece in pieces:
        size = 1 if piece.startswith("<0x") else len(piece.encode())
        spelled = bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.encode()
        assert data[position : position + size] == spelled
        found.append((owner[position] - 1, owner[position + size - 1]))
        position += size
    assert position == len(data)
    return found


@pytest.mark.parametrize(
    "instruction",
    [
        INSTRUCTION,
        "What action should the robot take to",
        "Out:",
        "put  the CARROT, now?",
        "naïve café ☕",
        " in ",
        "</s>",
    ],
)
def test_prompt_tokens_are_those_over_the_instructions_characters(openvla, openvla_folder, instruction):
    pieces = {
        i: piece for piece, i in json.loads((openvla_folder / "tokenizer.json").read_text())["model"]["vocab"].items()
    }
    text = f"In: What action should the robot take to {instruction.lower()}?\nOut:"
    ids, _ = openvla.prompt_ids(instruction)
    assert (ids[0], ids[-1]) == (1, 29871)
    low = len("In: What action should the robot take to ")
    high = low + len(instruction)
    found = spans(text, [pieces[i] for i in ids[1:-1]])
    expected = [257 + i for i, (start, stop) in enumerate(found) if start < high and stop > low]
    layout = openvla.prepare(Observation((np.zeros((8, 8, 3), np.uint8),), instruction)).layout
    assert layout.prompt.tolist() == expected
    assert layout.image.tolist() == list(range(1, 257))
    assert (layout.rows, layout.cols, layout.relevance) == (16, 16, "attention")


def test_positions_count_up_from_zero(openvla, photo):
    prompt = openvla.prepare(Observation((photo,), INSTRUCTION))
    assert prompt.position_ids.tolist() == [list(range(277))]
    assert (prompt.next_position, prompt.bidirectional) == (277, False)


def test_bare_prompt_is_the_instruction_as_it_stands(openvla_folder):
    bare = load_adapter("openvla", "tiny", device="cpu", options={"prompt": "bare"})
    vocabulary = json.loads((openvla_folder / "tokenizer.json").read_text())["model"]["vocab"]
    ids, words = bare.prompt_ids("put Spoon")
    expected = [vocabulary[piece] for piece in ("▁put", "▁", "S", "p", "o", "o", "n")]
    assert ids == [1, *expected, 29871]
    assert words == [1, 2, 3, 4, 5, 6, 7]
    assert bare.prompt_ids("put ")[0] == [1, vocabulary["▁put"], 29871]  # the lone space is there already


@pytest.mark.parametrize("instruction", ["", " ", "\n\t", "\ud800"])
def test_an_instruction_without_tokens_is_refused(openvla, instruction):
    with pytest.raises(ObservationError, match="instruction"):
        openvla.prompt_ids(instruction)


def test_a_prompt_beyond_the_models_positions_is_refused(openvla):
    """256 image tokens, the prompt and 7 actions fit into 2048 positions exactly once."""
    fixed = len(openvla.prompt_ids("put")[0]) - 1
    longest = 2048 - 256 - 7 - fixed
    assert len(openvla.prompt_ids(" ".join(["put"] * longest))[0]) == 2048 - 256 - 7
    with pytest.raises(ObservationError, match=r"1786 tokens \(valid: at most 1785"):
        openvla.prompt_ids(" ".join(["put"] * (longest + 1)))


# --- actions ---------------------------------------------------------------------------------------------------------


def test_decode_gives_metres_radians_and_an_opening(openvla):
    """31999 is the lowest of 255 bins, 31872 the middle one, 31745 and 31744 the highest; bins are 2 / 255 wide."""
    ids = [31999, 31745, 31872, 31744, 31999, 31998, 31744]
    edge = 254 / 255
    expected = [-edge, edge, 0, edge, -edge, -252 / 255]
    middle, half = (Q01 + Q99) / 2, (Q99 - Q01) / 2
    action = openvla.decode(ids)
    assert action.shape == (1, 7)
    np.testing.assert_allclose(action[0, :6], middle + half * np.array(expected), atol=1e-12)
    assert action[0, 6] == pytest.approx(edge)  # open
    assert openvla.decode([*ids[:6], 31872])[0, 6] == 0  # closed
    assert openvla.decode([*ids[:6], 31999])[0, 6] == 0


def test_decode_inverts_the_training_tokens(openvla):
    """Training wrote 32000 - digitize(action, 256 edges in -1 ... 1): decoding is within half a bin."""
    rng = np.random.default_rng(0)
    for values in [*rng.uniform(-1, 1, (50, 7)), np.ones(7), -np.ones(7)]:
        values[6] = float(values[6] > 0)  # the gripper is 0 or 1, and not normalised
        ids = 32000 - np.digitize(values, np.linspace(-1, 1, 256))
        action = openvla.decode(ids.tolist())[0]
        back = 2 * (action[:6] - Q01) / (Q99 - Q01) - 1
        assert np.abs(back - values[:6]).max() <= 1 / 255 + 1e-9
        assert abs(action[6] - values[6]) <= 1 / 255 + 1e-9


@pytest.mark.parametrize("token", [31743, 32000, 29871, 2])
def test_decode_refuses_other_tokens(openvla, token):
    with pytest.raises(ActionDecodeError, match=rf"token {token} is not an action .31744 \.\.\. 31999"):
        openvla.decode([31872] * 6 + [token])
    with pytest.raises(ActionDecodeError, match="6 action tokens"):
        openvla.decode([31872] * 6)


def test_vocabulary_is_the_end_of_llamas(openvla):
    vocabulary = openvla.vocabulary
    assert vocabulary.action_ids.tolist() == list(range(31744, 32000))
    assert (vocabulary.end_ids, vocabulary.min_tokens, vocabulary.max_tokens) == ((), 7, 7)
    assert (openvla.horizon, openvla.grid, openvla.num_layers) == (1, (16, 16), 16)
    assert openvla.grammar() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "chat"}, "valid: question, bare"),
        ({"center_crop": "yes"}, "center_crop = 'yes'"),
        ({"horizon": 4}, "horizon not known .valid: center_crop, prompt, statistics_key"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        load_adapter("openvla", "tiny", options=options)


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(ConfigError, match="valid: widowx, reference, simpler"):
        load_adapter("openvla", "tiny", preprocess="letterbox")

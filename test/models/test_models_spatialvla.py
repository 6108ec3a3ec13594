"""SpatialVLA's pixels, prompt, camera and actions, each against an independent reckoning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from dtp_ros.errors import ActionDecodeError, ConfigError, ObservationError
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.spatialvla_network import PointEncoding, back_project

INSTRUCTION = "put the carrot on the plate"
FIRST = 1793  # the tiny checkpoint's first action id; 257153 in the published ones


# ------------------------------------------------------------------------------------------------ inputs
def test_simpler_pixels_average_what_they_cover(spatialvla, photo):
    """Float64 shares of every source pixel, by hand; OpenCV rounds to a level of 255."""

    def shares(source: int) -> np.ndarray:
        low, high = np.arange(224) * source / 224, (np.arange(224) + 1) * source / 224
        starts = np.arange(source)
        covered = np.minimum(high[:, None], starts + 1) - np.maximum(low[:, None], starts)
        return covered.clip(0) / (source / 224)

    expected = shares(480) @ photo.transpose(2, 0, 1).astype(np.float64) @ shares(640).T / 255
    pixels = spatialvla.pixels(Observation((photo,), INSTRUCTION))
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, 3, 224, 224))
    assert np.abs(pixels[0] - expected).max() < 0.6 / 255


def test_reference_pixels_are_pils_bicubic(spatialvla, photo):
    reference = load_adapter("spatialvla", "tiny", preprocess="reference")
    expected = np.asarray(Image.fromarray(photo).resize((224, 224), Image.Resampling.BICUBIC)) / 255
    pixels = reference.pixels(Observation((photo,), INSTRUCTION))
    np.testing.assert_allclose(pixels[0], expected.transpose(2, 0, 1), atol=1e-7)
    assert not np.array_equal(pixels, spatialvla.pixels(Observation((photo,), INSTRUCTION)))


@pytest.mark.parametrize("shape", [(1, 1, 3), (30, 2000, 3), (1080, 1920, 3)])
def test_an_image_of_any_size_gives_256_tokens(spatialvla, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    prompt = spatialvla.prepare(Observation((image,), INSTRUCTION))
    assert prompt.layout.image.tolist() == list(range(256))
    assert prompt.embeddings.isfinite().all()


def test_layout_is_image_bos_instruction_newline(spatialvla, photo):
    prompt = spatialvla.prepare(Observation((photo,), INSTRUCTION))
    length = prompt.embeddings.shape[1]
    assert prompt.layout.prompt.tolist() == list(range(257, length - 1))
    assert (prompt.layout.rows, prompt.layout.cols, prompt.layout.relevance) == (16, 16, "attention")
    assert prompt.position_ids.tolist() == [list(range(1, length + 1))]
    assert prompt.next_position == length + 1
    assert prompt.bidirectional


def test_special_tokens_in_an_instruction_are_plain_text(spatialvla, photo):
    ids, inside = spatialvla._assets.prompt.encode("", "<image> put <ACTION00007> on <bos><eos>", "\n")
    assert max(ids) < FIRST - 1
    assert not {0, 1, 2, 3} & set(ids)
    assert inside == list(range(len(ids) - 1))
    prompt = spatialvla.prepare(Observation((photo,), "<image>" * 3))
    assert len(prompt.layout.image) == 256


def test_the_instruction_is_lower_cased_unless_it_is_not(spatialvla, photo):
    shouted = Observation((photo,), INSTRUCTION.upper())
    quiet = spatialvla.prepare(Observation((photo,), INSTRUCTION)).embeddings
    assert spatialvla.prepare(shouted).embeddings.equal(quiet)
    kept = load_adapter("spatialvla", "tiny", options={"lower_case_instruction": False})
    assert not kept.prepare(shouted).embeddings[0, -2].equal(quiet[0, -2])


@pytest.mark.parametrize("instruction", ["", " ", "\n\t ", "\ud800"])
def test_an_instruction_without_tokens_is_refused(spatialvla, photo, instruction):
    with pytest.raises(ObservationError, match="instruction"):
        spatialvla.prepare(Observation((photo,), instruction))


def test_an_observation_without_image_is_refused(spatialvla):
    with pytest.raises(ObservationError, match="no image"):
        spatialvla.prepare(Observation((), INSTRUCTION))


# ------------------------------------------------------------------------------------------------ camera
def test_the_published_camera_serves_where_there_is_none(spatialvla, photo):
    """Worked out by hand: 640 x 480 to 224 x 224 is 0.35 along x and 7 / 15 along y."""
    matrix = spatialvla.intrinsics(Observation((photo,), INSTRUCTION))
    hand = [[623.588 * 0.35, 0, 319.501 * 0.35], [0, 623.588 * 7 / 15, 239.545 * 7 / 15], [0, 0, 1]]
    np.testing.assert_allclose(matrix, hand, rtol=1e-12)
    same = np.array([[623.588, 0, 319.501], [0, 623.588, 239.545], [0, 0, 1]])
    prompts = [spatialvla.prepare(Observation((photo,), INSTRUCTION, intrinsics=k)) for k in (None, same)]
    assert prompts[0].embeddings.equal(prompts[1].embeddings)


def test_the_robots_own_camera_is_scaled_from_its_image(spatialvla, photo):
    small = photo[::2, ::2]
    camera = np.array([[600.0, 0, 310], [0, 610, 230], [0, 0, 1]])
    half = np.diag([0.5, 0.5, 1]) @ camera
    matrices = [
        spatialvla.intrinsics(Observation((image,), "x", intrinsics=k)) for image, k in ((photo, camera), (small, half))
    ]
    np.testing.assert_allclose(matrices[0], matrices[1], rtol=1e-12)
    own = spatialvla.prepare(Observation((photo,), INSTRUCTION, intrinsics=camera)).embeddings
    other = spatialvla.prepare(Observation((photo,), INSTRUCTION)).embeddings
    assert not own[:, :256].equal(other[:, :256])
    assert own[:, 256:].equal(other[:, 256:])


@pytest.mark.parametrize(
    "matrix", [np.eye(4), np.zeros((3, 3)), np.full((3, 3), np.nan), np.diag([-5.0, 5, 1]), np.diag([5.0, 5, 0])]
)
def test_what_is_no_camera_matrix_is_refused(spatialvla, photo, matrix):
    with pytest.raises(ObservationError, match=r"camera matrix .* \(valid: finite \[3, 3\], fx and fy > 0"):
        spatialvla.prepare(Observation((photo,), INSTRUCTION, intrinsics=matrix))


def test_points_lie_where_a_pinhole_camera_sees_them():
    """A step in depth at the middle column; each point by the pinhole's formula, rows and columns by hand."""
    camera = torch.tensor([[100.0, 0.0, 110.0], [0.0, 200.0, 90.0], [0.0, 0.0, 1.0]])
    depth = torch.full((1, 1, 224, 224), 1.5)
    depth[..., 112:] = 3.0
    points = back_project(depth, camera, patch=14, points=2).reshape(16, 16, 2, 2, 3)
    for row, column, i, j in ((0, 0, 0, 0), (3, 12, 1, 0), (15, 7, 0, 1), (8, 8, 1, 1)):
        u, v = 14 * column + 7 * j + 3.5, 14 * row + 7 * i + 3.5
        z = 1.5 if column < 8 else 3.0
        expected = [(u - 110) / 100 * z, (v - 90) / 200 * z, z]
        np.testing.assert_allclose(points[row, column, i, j], expected, rtol=1e-5, atol=1e-6)


def test_points_are_encoded_as_waves():
    """One point, two waves: the value itself, its sines, its cosines, coordinate by coordinate, in float64."""
    encoding = PointEncoding(points=1, frequencies=2, width=4)
    seen = []
    encoding.position_embedding_head[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        encoding(torch.tensor([[[0.3, -1.1, 2.9]]]))
    hand = []
    for value in (0.3 / 2, -1.1 / 2, (2.9 - 2) / 2):
        hand += [value, math.sin(value), math.sin(2 * value), math.cos(value), math.cos(2 * value)]
    np.testing.assert_allclose(seen[0][0], hand, atol=1e-6)


# ------------------------------------------------------------------------------------------------ actions
def edges(adapter, kind: str) -> list[np.ndarray]:
    return list(getattr(adapter._assets, kind).edges)


def cells_of(adapter, action: np.ndarray) -> list[int]:
    """Ids of a normalised action, by the rule of the original's encoder."""
    x, y, z = action[:3]
    spherical = math.atan2(math.hypot(x, y), z), math.atan2(y, x), math.sqrt(x * x + y * y + z * z)
    theta, phi, r = (np.digitize(v, e[1:-1]) for v, e in zip(spherical, edges(adapter, "translation"), strict=True))
    roll, pitch, yaw = (
        np.clip(np.digitize(v, e) - 1, 0, 15) for v, e in zip(action[3:6], edges(adapter, "rotation"), strict=True)
    )
    translation, rotation = (theta * 32 + phi) * 8 + r, (roll * 16 + pitch) * 16 + yaw
    return [FIRST + translation, FIRST + 4096 + rotation, FIRST + 8192 + int(action[6] >= 0.5)]


def test_decode_gives_metres_radians_and_an_opening(spatialvla):
    """Two kinds of step by hand from the bins in processor_config.json."""
    theta, phi, r = edges(spatialvla, "translation")
    roll, pitch, yaw = edges(spatialvla, "rotation")
    step = [FIRST + 5 * 256 + 20 * 8 + 3, FIRST + 4096 + 2 * 256 + 9 * 16 + 15, FIRST + 8193]
    up = [FIRST + 7, FIRST + 4096, FIRST + 8192]  # the first cone around z, its outermost shell: beyond 1 along z
    actions = spatialvla.decode([*step, *up, *step, *up])
    assert actions.shape == (4, 7)
    t, p, radius = (theta[5] + theta[6]) / 2, (phi[20] + phi[21]) / 2, (r[3] + r[4]) / 2
    normal = [
        radius * math.sin(t) * math.cos(p), radius * math.sin(t) * math.sin(p), radius * math.cos(t),
        (roll[2] + roll[3]) / 2, (pitch[9] + pitch[10]) / 2, (yaw[15] + yaw[16]) / 2,
    ]  # fmt: skip
    q01 = [-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072]
    q99 = [0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038]
    hand = [low + (value + 1) / 2 * (high - low) for value, low, high in zip(normal, q01, q99, strict=True)]
    np.testing.assert_allclose(actions[0], [*hand, 1.0], atol=1e-12)  # 1 = open, not un-normalised
    assert actions[1, 2] == pytest.approx(0.0402)
    assert actions[1, 6] == 0.0
    np.testing.assert_array_equal(actions[2:], actions[:2])


def test_cells_and_actions_are_a_round_trip(spatialvla):
    statistics = spatialvla._assets.statistics
    rng = np.random.default_rng(1)
    tokens = np.stack([rng.integers(low, high, 2000) for low, high in ((0, 4096), (4096, 8192), (8192, 8194))], axis=1)
    returned = 0
    for step in np.reshape(tokens + FIRST, (-1, 4, 3)):
        normal = statistics.normalise(spatialvla.decode(step.ravel().tolist()))
        for ids, action in zip(step, normal, strict=True):
            if np.abs(action[:3]).max() < 0.999:  # the sphere's cells beyond the cube of actions come back elsewhere
                assert cells_of(spatialvla, action) == ids.tolist()
                returned += 1
    assert returned > 1500


def test_decode_refuses_what_is_no_chunk(spatialvla):
    """The original would move to the first cells: rotation near q01, gripper closed."""
    step = [FIRST, FIRST + 4096, FIRST + 8192]
    for ids, message in (
        (step * 3, r"9 action tokens \(valid: 12\)"),
        ([*step * 3, step[0], step[0], step[2]], rf"token 10 is {FIRST}, no rotation \({FIRST + 4096} \.\.\. "),
        ([FIRST - 1, *(step * 4)[1:]], rf"token 0 is {FIRST - 1}, no translation"),
        ([*(step * 4)[:-1], FIRST + 8194], "no gripper"),
    ):
        with pytest.raises(ActionDecodeError, match=message):
            spatialvla.decode(ids)


def test_the_vocabulary_is_the_action_tokens_in_turn(spatialvla):
    vocabulary, grammar = spatialvla.vocabulary, spatialvla.grammar()
    assert vocabulary.action_ids.tolist() == list(range(FIRST, FIRST + 8194))
    assert (vocabulary.end_ids, vocabulary.min_tokens, vocabulary.max_tokens) == ((), 12, 12)
    sets = [grammar.allowed([0] * n).tolist() for n in range(6)]
    assert [len(ids) for ids in sets] == [4096, 4096, 2] * 2
    assert [i for ids in sets[:3] for i in ids] == vocabulary.action_ids.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "chat"}, r"prompt = 'chat' is not known \(valid: bare, question\)"),
        ({"lower_case_instruction": 1}, "lower_case_instruction = 1"),
        ({"horizon": 5}, "horizon not known"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        load_adapter("spatialvla", "tiny", options=options)

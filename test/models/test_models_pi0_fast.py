from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from scipy.fft import dct
from scipy.spatial.transform import Rotation
from tokenizers import Tokenizer
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.errors import ActionDecodeError, CheckpointError, ConfigError, ObservationError
from dtp_ros.models import lerobot, pi0_fast
from dtp_ros.models.action_tokens import FastCodec
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.models.tiny import tiny_checkpoint
from dtp_ros.models.tiny_pi0_fast import write_tiny_pi0_fast
from dtp_ros.pruning.config import VARIANTS, PruningConfig

ROOT = Path(__file__).parents[2]
INSTRUCTION = "put the carrot on the plate"
STATE = np.array([0.3, -0.02, 0.2, 0.1, -0.2, 0.3, 0.5])
LAST = 3072 - 1 - 128  # the id of FAST id 0: vocabulary, less one, less the 128 that are skipped
WEIGHTS = "model.safetensors"
PREFIX = "model.paligemma_with_expert.paligemma."


@pytest.fixture(scope="session")
def folder(cache) -> Path:
    return tiny_checkpoint("pi0_fast", write_tiny_pi0_fast)


@pytest.fixture(scope="module")
def adapter(folder):
    return load_adapter("pi0_fast", "tiny", device="cpu", options={"cameras": 2})


@pytest.fixture(scope="module")
def short(folder, tmp_path_factory):
    """The same weights with chunks of two actions, of WidowX data: quick to generate."""
    copy = tmp_path_factory.mktemp("short") / "checkpoint"
    shutil.copytree(folder, copy)
    edit(copy / "config.json", chunk_size=2, n_action_steps=2)
    return load_adapter("pi0_fast", str(copy), device="cpu", options={"convention": "bridge"})


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))


@pytest.fixture
def broken(folder, tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(folder, copy)
    return copy


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


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_step(folder: Path, pipeline: str, name: str, change) -> None:
    """Apply `change` to a step of a pipeline's JSON."""
    path = folder / f"policy_{pipeline}.json"
    raw = json.loads(path.read_text())
    change(next(step for step in raw["steps"] if step["registry_name"] == name))
    path.write_text(json.dumps(raw))


def edit_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def load(folder: Path, **options: object):
    return load_adapter("pi0_fast", str(folder), device="cpu", options=options)


def observation(photo: np.ndarray, instruction: str = INSTRUCTION, state: np.ndarray | None = STATE) -> Observation:
    return Observation((photo,), instruction, state=state)


def spell(coefficients) -> list[int]:
    """Ids of coefficients, byte by byte: FAST's alphabet begins with its own characters, in order."""
    vocabulary = json.loads((SPELLING / "tokenizer.json").read_text())["model"]["vocab"]
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)}
    data = "".join(chr(c + 203) for c in np.ravel(coefficients)).encode()
    return [LAST - vocabulary[letter[byte]] for byte in data]


@pytest.fixture(autouse=True, scope="module")
def _spelling(folder):
    global SPELLING
    SPELLING = folder / "action_tokenizer"


@torch.no_grad()
def hidden_states(adapter, embeddings: torch.Tensor, prefix: int) -> torch.Tensor:
    """Last hidden states [L, hidden] under a prefix mask: everything before `prefix` sees everything before it."""
    index = torch.arange(embeddings.shape[1])
    mask = (index[None] <= index[:, None]) | ((index[None] < prefix) & (index[:, None] < prefix))
    out = adapter.text_model(
        inputs_embeds=embeddings, position_ids=index[None], attention_mask=mask[None, None], use_cache=False
    )
    return out.last_hidden_state[0]


# --- parity with LeRobot's own code ---------------------------------------------------------------------------------


@pytest.fixture(params=["one", "two"])
def case(request, recipe, dump, monkeypatch):
    """A case of the dump: the observation (its state as LIBERO wrote it), and what LeRobot gave."""
    name, sizes, instruction, state = next(case for case in recipe.CASES if case[0] == request.param)
    monkeypatch.setattr(lerobot, "state_as_data", lambda *_: np.array(state))
    seen = Observation(tuple(recipe.images(name, sizes)), instruction, state=STATE)
    return seen, {key.removeprefix(f"{name}_"): value for key, value in dump.items() if key.startswith(f"{name}_")}


def test_the_dump_is_of_these_weights(folder, dump):
    assert hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() == str(dump["weights"])
    assert int(dump["last"]) == LAST


def test_the_full_sizes_names_and_shapes_are_lerobots(recipe, dump):
    """On the meta device; LeRobot's names under transformers 5.5 have the vision tower's middle name."""
    config = pi0_fast._model_config(Path(), {"paligemma_variant": "gemma_2b"}, torch.bfloat16)
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    shapes = {
        PREFIX + name.replace("vision_tower.", "vision_tower.vision_model."): list(weight.shape)
        for name, weight in model.named_parameters()
    }
    assert len(shapes) == 604
    assert recipe.names_digest(shapes) == str(dump["full_size"])


def test_prompt_and_pixels_are_lerobots(adapter, case):
    seen, expected = case
    ids, _ = adapter.prompt_ids(seen)
    assert ids == [*expected["prompt"].tolist(), 2]  # LeRobot's model appends one more BOS
    np.testing.assert_allclose(adapter.pixels(seen)[:, :, 3::8, 3::8], expected["pixels"], atol=1e-6)


def test_logits_and_greedy_tokens_are_lerobots(adapter, case):
    """Teacher-forced on LeRobot's own tokens, in one pass without the padding and the absent cameras that it masks."""
    seen, expected = case
    prompt, tokens = adapter.prepare(seen), expected["tokens"].tolist()
    length, forced = prompt.embeddings.shape[1], len(adapter.vocabulary.forced_prefix_ids)
    assert tuple(tokens[:forced]) == adapter.vocabulary.forced_prefix_ids
    embeddings = torch.cat([prompt.embeddings, adapter.embed(torch.tensor([tokens[:-1]]))], dim=1)
    logits = adapter.logits(hidden_states(adapter, embeddings, length)[length - 1 :])
    assert np.abs(logits[[0, forced, -1]].numpy() - expected["logits"]).max() < 1e-4
    allowed = torch.cat([adapter.vocabulary.action_ids, torch.tensor(adapter.vocabulary.end_ids)])
    chosen = allowed[logits[forced:, allowed].argmax(dim=-1)].tolist()
    assert chosen == tokens[forced:]


def test_the_engine_generates_lerobots_tokens(adapter, case, monkeypatch):
    seen, expected = case
    tokens = expected["tokens"].tolist()[len(adapter.vocabulary.forced_prefix_ids) :]
    monkeypatch.setattr(adapter, "vocabulary", replace(adapter.vocabulary, max_tokens=len(tokens)))
    result = DtpPolicy(adapter).step(seen, constants(variant="off"), GenerationConfig())
    assert [token.token_id for token in result.trace.tokens] == tokens


def test_actions_are_lerobots(adapter, dump, monkeypatch):
    monkeypatch.setattr(lerobot, "actions_from_data", lambda actions, _: actions)
    ids = [LAST - code for code in dump["decode_codes"].tolist()]
    np.testing.assert_allclose(adapter.decode(ids), dump["decode_actions"], atol=1e-6)


# --- the language model ---------------------------------------------------------------------------------------------


def test_logits_equal_the_stock_model(adapter, folder, photo):
    """transformers' PaliGemma on image placeholders and pixels, eager, its weights renamed here by hand."""
    text = {"model_type": "gemma", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 18,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 3072}  # fmt: skip
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "patch_size": 14, "image_size": 224, "vision_use_head": False}  # fmt: skip
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=64, hidden_size=64, image_token_index=3072
    )
    stock = PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    weights = {key[len(PREFIX) :].replace("vision_model.", ""): w for key, w in load_file(folder / WEIGHTS).items()}
    assert not stock.load_state_dict({key: w.float() for key, w in weights.items()}, strict=False).unexpected_keys
    stock.tie_weights()
    seen = observation(photo)
    ids, _ = adapter.prompt_ids(seen)
    with torch.no_grad():
        expected = stock(
            input_ids=torch.tensor([[3072] * 256 + ids]),
            token_type_ids=torch.zeros(1, 256 + len(ids), dtype=torch.int64),
            pixel_values=torch.from_numpy(adapter.pixels(seen)),
            position_ids=torch.arange(256 + len(ids))[None],
        ).logits[0]
    prompt = adapter.prepare(seen)
    logits = adapter.logits(hidden_states(adapter, prompt.embeddings, prompt.embeddings.shape[1]))
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 1e-4
    assert prompt.bidirectional
    causal = adapter.logits(hidden_states(adapter, prompt.embeddings, 0))
    assert (causal - expected).abs().max() > 0.1  # the prefix is not causal


def test_image_tokens_are_row_major_and_the_main_cameras(adapter, photo):
    """A bright square in one patch of the main camera moves the feature of that patch most."""
    plain = np.full((224, 224, 3), 90, np.uint8)
    spot = plain.copy()
    spot[3 * 14 : 4 * 14, 10 * 14 : 11 * 14] = 255
    with torch.no_grad():
        blocks = list(adapter._core.vision_tower.encoder.layers)
        adapter._core.vision_tower.encoder.layers = torch.nn.ModuleList()  # no mixing of patches
        try:
            prompts = [
                adapter.prepare(Observation((image, photo), INSTRUCTION, state=STATE)) for image in (plain, spot)
            ]
        finally:
            adapter._core.vision_tower.encoder.layers = torch.nn.ModuleList(blocks)
    layout = prompts[0].layout
    change = (prompts[1].embeddings - prompts[0].embeddings)[0].norm(dim=-1)
    assert divmod(int(change[layout.image].argmax()), 16) == (3, 10)
    assert (layout.rows, layout.cols, layout.relevance) == (16, 16, "attention")
    change[layout.image] = 0
    assert change.max() == 0


def test_a_second_camera_comes_between_and_may_be_missing(adapter, photo):
    one, two = (
        adapter.prepare(observation(photo)),
        adapter.prepare(Observation((photo, photo[:, ::-1]), INSTRUCTION, STATE)),
    )
    assert two.embeddings.shape[1] == one.embeddings.shape[1] + 256
    assert two.layout.image.equal(one.layout.image)
    assert two.layout.prompt.equal(one.layout.prompt + 256)
    torch.testing.assert_close(two.embeddings[:, :256], one.embeddings[:, :256])
    assert two.embeddings[:, 512:].equal(one.embeddings[:, 256:])
    assert load_adapter("pi0_fast", "tiny", device="cpu").num_cameras == 1


# --- inputs ---------------------------------------------------------------------------------------------------------


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
def test_pixels_are_resized_and_padded_by_hand(adapter, photo, shape, fitted, corner):
    image = np.ascontiguousarray(photo[: shape[0], : shape[1]])
    expected = np.full((224, 224, 3), -1.0)
    inner = 2 * resized_by_hand(image, *fitted) - 1
    expected[corner[0] : corner[0] + fitted[0], corner[1] : corner[1] + fitted[1]] = inner
    pixels = adapter.pixels(observation(image))
    assert pixels.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(pixels[0].transpose(1, 2, 0), expected, atol=2e-5)


def test_an_image_of_the_models_size_is_kept(adapter, photo):
    image = np.ascontiguousarray(photo[:224, :224])
    np.testing.assert_allclose(adapter.pixels(observation(image))[0], image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_state_bins_by_hand(adapter, monkeypatch):
    """Bins of width 2/256 from -1; what is below is -1, what is above 255; never clipped before."""
    values = np.array([-1.2, -1.0, -0.9999, -1e-6, 0.0, 0.9922, 0.9999, 3.0])
    raw = adapter._assets.state.statistics
    physical = values * (raw["std"] + 1e-8) + raw["mean"]
    monkeypatch.setattr(lerobot, "state_as_data", lambda *_: physical)
    expected = [-1 if v < -1 else min(int((v + 1) * 128), 255) for v in values]
    bins = adapter.state_bins(STATE)
    assert (
        [bins[i] for i in (0, 2, 3, 5, 6, 7)]
        == [expected[i] for i in (0, 2, 3, 5, 6, 7)]
        == [-1, 0, 127, 255, 255, 255]
    )
    # At the edges float32 decides, as in LeRobot.
    assert bins[1] in (-1, 0)
    assert bins[4] in (127, 128)


def text_of(tokenizer, ids) -> str:
    return "".join(tokenizer.id_to_token(i) for i in ids).replace("\u2581", " ")


def test_the_prompt_and_its_instruction_by_hand(adapter, tokenizer, photo):
    seen = observation(photo, " put_the carrot\non the plate ")
    ids, prompt = adapter.prompt_ids(seen)
    state = " ".join(map(str, adapter.state_bins(STATE)))
    assert text_of(tokenizer, ids) == f"<bos>Task: put the carrot on the plate, State: {state};\n<bos>"
    assert text_of(tokenizer, [ids[i] for i in prompt]) == " put the carrot on the plate"
    built = adapter.prepare(seen)
    assert built.layout.prompt.tolist() == [256 + i for i in prompt]
    assert built.position_ids.tolist() == [list(range(256 + len(ids)))]
    assert built.next_position == 256 + len(ids)


def test_openpis_preprocessing(folder, tokenizer, photo):
    other = load_adapter("pi0_fast", "tiny", device="cpu", preprocess="openpi")
    seen = observation(photo, "Put_the CARROT")
    ids, _ = other.prompt_ids(seen)
    assert text_of(tokenizer, ids).startswith("<bos>Task: put the carrot, State: ")
    assert text_of(tokenizer, ids).endswith(";\n")
    built = other.prepare(seen)
    assert built.next_position == built.embeddings.shape[1] + 1
    padded = ImageOps.pad(Image.fromarray(photo), (224, 224), Image.Resampling.BILINEAR, color=0)
    np.testing.assert_allclose(other.pixels(seen)[0].transpose(1, 2, 0), np.asarray(padded) / 127.5 - 1, atol=1e-6)


def test_special_tokens_typed_by_a_user_are_text(adapter, photo):
    ids, _ = adapter.prompt_ids(observation(photo, "<bos> <eos> cup"))
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
def test_an_observation_that_the_model_cannot_take(adapter, photo, change, message):
    with pytest.raises(ObservationError, match=message):
        adapter.prepare(replace(observation(photo), **change))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (1000, 20), (225, 224)])
def test_any_image_size_is_taken(adapter, shape):
    assert adapter.prepare(observation(np.zeros((*shape, 3), np.uint8))).embeddings.isfinite().all()


# --- states and actions of data sets --------------------------------------------------------------------------------


def test_bridges_state_is_the_observations():
    assert lerobot.state_as_data(STATE, "bridge", 7).tolist() == STATE.tolist()
    assert lerobot.state_as_data(STATE, "bridge", 8).tolist() == [*STATE[:6], 0.0, 0.5]


def test_liberos_state_has_a_rotation_vector_and_two_fingers():
    """Gripper down is half a turn about x; turned by 90 degrees about z as well, it is (pi, pi, 0) / sqrt(2)."""
    state = lerobot.state_as_data(np.array([0.1, 0.2, 0.3, 0, 0, 0, 1.0]), "libero", 8)
    np.testing.assert_allclose(state, [0.1, 0.2, 0.3, np.pi, 0, 0, 0.04, -0.04], atol=1e-9)
    turned = lerobot.state_as_data(np.array([0, 0, 0, 0, 0, np.pi / 2, 0.0]), "libero", 8)
    np.testing.assert_allclose(np.abs(turned[3:6]), [np.pi / np.sqrt(2)] * 2 + [0], atol=1e-6)


def test_liberos_actions_become_metres_radians_and_an_opening():
    """1 is 5 cm and half a radian; beyond 1 the controller clips; -1 is open."""
    actions = np.array([[1.0, -0.5, 3.0, 0.4, 0, 0, -1.0], [0, 0, 0, 0, 0, -9.0, 1.0], [0, 0, 0, 0.6, 0.8, 0, 0.0]])
    result = lerobot.actions_from_data(actions, "libero")
    np.testing.assert_allclose(result[0], [0.05, -0.025, 0.05, 0.2, 0, 0, 1.0], atol=1e-9)
    np.testing.assert_allclose(result[1], [0, 0, 0, 0, 0, -0.5, 0.0], atol=1e-9)
    roll, pitch, yaw = result[2, 3:6]
    matrix = Rotation.from_rotvec([0.3, 0.4, 0.0]).as_matrix()
    x, y, z = (Rotation.from_rotvec(v) for v in ([roll, 0, 0], [0, pitch, 0], [0, 0, yaw]))
    np.testing.assert_allclose(z.as_matrix() @ y.as_matrix() @ x.as_matrix(), matrix, atol=1e-9)
    assert result[2, 6] == pytest.approx(0.5)


def test_decode_worked_out_by_hand(short):
    """Two equal actions have one coefficient a dimension, 10 sqrt(2) times the normalised value; then std and mean."""
    coefficients = np.zeros((2, 7), dtype=int)
    coefficients[0] = [10, -10, 0, 5, 0, 0, 14]
    actions = short.decode(spell(coefficients))
    mean, std = (short._assets.action.statistics[name] for name in ("mean", "std"))
    expected = coefficients[0] / (10 * np.sqrt(2)) * std + mean
    expected[6] = np.clip(expected[6], 0, 1)
    np.testing.assert_allclose(actions, np.stack([expected] * 2), atol=1e-9)
    assert short.decode(spell(-coefficients))[0, 6] == 0  # closed


def test_round_trip_of_a_chunk(adapter, monkeypatch):
    monkeypatch.setattr(lerobot, "actions_from_data", lambda actions, _: actions)
    rng = np.random.default_rng(1)
    actions = adapter._assets.action.unnormalise(np.cumsum(rng.normal(0, 0.3, (10, 7)), axis=0))
    normalised = adapter._assets.action.normalise(actions)
    ids = spell(np.around(dct(normalised, axis=0, norm="ortho") * 10).astype(int))
    scaled = np.abs(adapter.decode(ids) - actions) / adapter._assets.action.statistics["std"]
    assert scaled.max() < 0.5 * np.abs(dct(np.eye(10), axis=0, norm="ortho")).sum(axis=0).max() / 10


@pytest.mark.parametrize("token", [LAST - 1024, LAST + 1])
def test_decode_refuses_other_tokens(adapter, token):
    with pytest.raises(ActionDecodeError, match=f"{LAST - 1023} ... {LAST}"):
        adapter.decode([token])


def test_decode_refuses_a_wrong_length_and_what_the_data_never_had(short):
    with pytest.raises(ActionDecodeError, match="13 coefficients instead of 14"):
        short.decode(spell([0] * 13))
    bound = max(
        abs(end - m) / s
        for m, s, *ends in zip(
            *(short._assets.action.statistics[n] for n in ("mean", "std", "min", "max")), strict=True
        )
        for end in ends
    )
    limit = int(10 * np.sqrt(2) * bound + 0.5)
    assert short.decode(spell([limit] + [0] * 13)).shape == (2, 7)
    with pytest.raises(ActionDecodeError, match="beyond"):
        short.decode(spell([limit + 1] + [0] * 13))


def test_vocabulary_is_that_of_the_checkpoint(adapter, tokenizer):
    assert adapter.vocabulary.action_ids.tolist() == list(range(LAST - 1023, LAST + 1))
    assert [tokenizer.id_to_token(i) for i in adapter.vocabulary.forced_prefix_ids] == ["Action", ":", "\u2581"]
    assert [tokenizer.id_to_token(i) for i in adapter.vocabulary.end_ids] == ["|"]
    assert adapter.vocabulary.max_tokens == 2 * 70  # no code needs more than two bytes
    assert (adapter.num_layers, len(adapter.layers()), adapter.horizon) == (18, 18, 10)


def test_the_grammar_completes_chunks(short):
    """Random walks under the grammar always decode; it ends exactly when the chunk is whole."""
    rng, grammar, end = np.random.default_rng(2), short.grammar(), short.vocabulary.end_ids[0]
    allowed = set(short.vocabulary.action_ids.tolist())
    for _ in range(5):
        ids: list[int] = []
        while end not in (choices := grammar.allowed(ids).tolist()):
            assert choices == sorted(choices)
            assert set(choices) <= allowed
            ids.append(int(rng.choice(choices)))
        assert choices == [end]
        assert short.decode(ids).shape == (2, 7)


def test_a_bound_of_the_data_scales_the_codecs_limits():
    """One action, scale 10: coefficients up to 10 times the bound, values up to the bound and half a step."""
    codec = FastCodec([bytes([b]) for b in range(256)], 10, -100, 1, bound=2.5)
    assert codec.coefficient_limits.tolist() == [25]
    assert codec.value_limit == pytest.approx(2.55)


# --- normalisation --------------------------------------------------------------------------------------------------

NUMBERS = {"mean": 1.0, "std": 2.0, "min": -3.0, "max": 7.0, "q01": -1.0, "q99": 3.0, "q10": 0.0, "q90": 2.0}


@pytest.mark.parametrize(
    ("mode", "zero", "one"),
    [
        ("IDENTITY", 0.0, 1.0),
        ("MEAN_STD", 1.0, 3.0),
        ("MIN_MAX", 2.0, 7.0),
        ("QUANTILES", 1.0, 3.0),
        ("QUANTILE10", 1.0, 2.0),
    ],
)
def test_what_each_mode_calls_zero_and_one(mode, zero, one):
    normaliser = lerobot.Normaliser(mode, {name: np.array([value]) for name, value in NUMBERS.items()}, 1)
    np.testing.assert_allclose(normaliser.unnormalise(np.array([[0.0], [1.0]])), [[zero], [one]])
    np.testing.assert_allclose(normaliser.normalise(np.array([[zero], [one]])), [[0.0], [1.0]], atol=1e-6)
    assert normaliser.bound() == pytest.approx(max(abs(end - zero) / (one - zero) for end in (-3.0, 7.0)))


def test_statistics_of_a_data_set_serve_a_checkpoint_without(broken, tmp_path):
    """As pi0fast-base: the steps have neither features nor a state file."""
    for pipeline, step in (("preprocessor", "normalizer_processor"), ("postprocessor", "unnormalizer_processor")):
        edit_step(broken, pipeline, step, lambda found: found.pop("state_file"))
    with pytest.raises(CheckpointError, match=r"no statistics of 'observation.state'.*meta/stats.json"):
        load(broken)
    spread = {"mean": [0.0], "std": [0.5], "min": [-1.0], "max": [1.0], "count": [9]}
    stats = {
        key: {name: v * size for name, v in spread.items()} for key, size in (("observation.state", 7), ("action", 7))
    }
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "stats.json").write_text(json.dumps(stats))
    adapter = load(broken, statistics=str(tmp_path), convention="bridge")
    assert adapter.state_bins(np.array([0, 0.25, -0.25, 0, 0, 0, 0.6])) == [128, 192, 64, 128, 128, 128, 255]
    assert adapter._assets.action.bound() == pytest.approx(2.0)
    with pytest.raises(CheckpointError, match=r"neither a stats\.json"):
        load(broken, statistics=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t.pop(key) for key in list(t) if key.startswith("action.")], "has: observation.state"),
        (lambda t: t.pop("action.std"), "action lacks std, which MEAN_STD needs"),
        (lambda t: t.update({"action.std": torch.full((7,), torch.nan)}), "not finite"),
        (lambda t: t.update({"action.std": torch.ones(6)}), "of one size"),
        (lambda t: t.update({key: value[:6] for key, value in t.items() if "action" in key}), "actions of 6 numbers"),
        (lambda t: [t.pop(f"action.{name}") for name in ("min", "max")], "set the option action_bound"),
    ],
)
def test_wrong_statistics_are_named(broken, change, message):
    edit_tensors(broken / "policy_postprocessor_step_0_unnormalizer_processor.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load(broken)


def test_a_bound_may_be_given(broken):
    path = broken / "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    edit_tensors(path, lambda t: [t.pop(f"action.{name}") for name in ("min", "max")])
    assert load(broken, action_bound=2.0)._assets.codec.coefficient_limits[0] == int(10 * 2 * np.sqrt(10) + 0.5)


# --- broken and foreign checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["config.json", "policy_preprocessor_step_3_normalizer_processor.safetensors", "tokenizer/tokenizer.json",
     "action_tokenizer/tokenizer.json", "action_tokenizer/processor_config.json", WEIGHTS],
)  # fmt: skip
def test_a_missing_file_is_named(broken, name):
    (broken / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks the file .*{Path(name).name}"):
        load(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "smolvla"}, r"LeRobot policy 'smolvla' \(valid here: LeRobot policy 'pi0_fast'\)"),
        ({"type": None, "model_type": "qwen2_5_vl"}, "model_type 'qwen2_5_vl'"),
        ({"paligemma_variant": "gemma_300m"}, "'gemma_300m' .valid: gemma_2b"),
        ({"image_resolution": [448, 448]}, "image_resolution"),
        ({"use_relative_actions": True}, "use_relative_actions"),
        ({"chunk_size": 0}, r"chunk_size = 0 \(valid: 1 \.\.\. 64\)"),
        ({"chunk_size": "10"}, "chunk_size = '10'"),
        ({"fast_skip_tokens": 3000}, "do not fit 3072 embeddings"),
    ],
)
def test_a_config_that_is_not_this_models(broken, changes, message):
    edit(broken / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(broken)


NORM = f"{PREFIX}model.language_model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({NORM: torch.full((64,), torch.nan)}), "norm.weight holds values that are not finite"),
        (lambda t: t.pop(NORM), r"lacks the weights model\.language_model\.norm\.weight"),
        (lambda t: t.pop(f"{PREFIX}lm_head.weight"), "lacks the weights .*embed_tokens.weight"),
        (
            lambda t: t.update({"model.action_in_proj.weight": torch.ones(2)}),
            "this model has not: model.action_in_proj",
        ),
        (lambda t: t.update({NORM: torch.ones(32)}), r"shape \[32\], the model needs \[64\]"),
    ],
)
def test_wrong_weights_are_named(broken, change, message):
    edit_tensors(broken / WEIGHTS, change)
    with pytest.raises(CheckpointError, match=message):
        load(broken)


def test_a_truncated_file_is_refused(broken):
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load(broken)


def test_normalisation_that_is_not_known_is_refused(broken):
    edit_step(broken, "preprocessor", "normalizer_processor", lambda s: s["config"]["norm_map"].update(STATE="LOG"))
    with pytest.raises(CheckpointError, match=r"'LOG' of observation\.state is not known \(valid: IDENTITY"):
        load(broken)


def test_images_that_were_normalised_by_statistics_are_refused(broken):
    edit_step(
        broken, "preprocessor", "normalizer_processor", lambda s: s["config"]["norm_map"].update(VISUAL="MEAN_STD")
    )
    with pytest.raises(CheckpointError, match=r"images by 'MEAN_STD' \(valid: IDENTITY\)"):
        load(broken)


def test_a_tokenizer_of_another_model_is_refused(broken):
    shutil.copy(broken / "action_tokenizer" / "tokenizer.json", broken / "tokenizer" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="lacks the token <bos>"):
        load(broken)


def test_todays_names_load_too(broken, adapter, photo):
    """The embedding instead of the head, the vision tower without its middle name, the FAST tokenizer in a folder."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{PREFIX}model.language_model.embed_tokens.weight"] = tensors.pop(f"{PREFIX}lm_head.weight")
        for key in [key for key in tensors if "vision_model" in key]:
            tensors[key.replace("vision_model.", "").removeprefix("model.")] = tensors.pop(key)

    edit_tensors(broken / WEIGHTS, change)
    (broken / "action_tokenizer" / "bpe_tokenizer").mkdir()
    shutil.move(broken / "action_tokenizer" / "tokenizer.json", broken / "action_tokenizer" / "bpe_tokenizer")
    other = load(broken)
    mine, theirs = (a.prepare(observation(photo)).embeddings for a in (adapter, other))
    assert mine.equal(theirs)
    assert other.logits(mine).equal(adapter.logits(mine))


def test_half_precision_keeps_vision_and_norms_in_float32(folder, adapter, photo):
    half = load_adapter("pi0_fast", "tiny", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    kinds = {name: p.dtype for name, p in half._core.named_parameters()}
    assert {kind for name, kind in kinds.items() if "vision" in name or "norm" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "proj.weight" in name and "language" in name} == {torch.bfloat16}
    rows = []
    for model in (adapter, half):
        prompt = model.prepare(observation(photo))
        rows.append(model.logits(hidden_states(model, prompt.embeddings, prompt.embeddings.shape[1])[-1]))
    assert torch.corrcoef(torch.stack(rows))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": "droid"}, r"convention = 'droid' is not known \(valid: bridge, libero\)"),
        ({"cameras": 0}, "cameras = 0"),
        ({"cameras": 3}, r"cameras = 3 is out of range \(valid: 1 ... 2\)"),
        ({"action_bound": -1.0}, "action_bound = -1.0"),
        ({"action_bound": float("nan")}, "action_bound = nan"),
        ({"camera": 1}, "camera not known"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        load_adapter("pi0_fast", "tiny", device="cpu", options=options)


# --- Distracting Token Pruning --------------------------------------------------------------------------------------


def constants(**changes: object) -> PruningConfig:
    defaults = model_defaults("pi0_fast")
    return PruningConfig(**{**{name: defaults[name] for name in PruningConfig.__dataclass_fields__}, **changes})


def act(adapter, photo, **changes: object):
    return DtpPolicy(adapter).step(observation(photo), constants(**changes), GenerationConfig(fast_grammar=True))


def test_the_shipped_constants_fit_the_model(adapter):
    constants().require_fits(adapter.num_layers, adapter.grid[0] * adapter.grid[1])
    defaults = model_defaults("pi0_fast")
    assert (defaults["top_k"], defaults["relevance_layers"], defaults["mask_schedule"]) == (109, (3, 4), "per_token")
    assert defaults["execute_horizon"] == adapter.horizon == 10


@pytest.mark.parametrize("scope", ["all", "action"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_acts_in_both_scopes(short, photo, variant, scope):
    result = act(short, photo, variant=variant, mask_scope=scope)
    assert result.chunk is not None
    assert result.chunk.actions.shape == (2, 7)
    assert (result.trace.fire_rate > 0) == (variant != "off")
    changed = [t for t in result.trace.tokens if t.entropy_clean != t.entropy_refined]
    assert bool(changed) == (variant != "off")


@pytest.mark.parametrize("schedule", ["per_step", "per_token"])
@pytest.mark.parametrize("scope", ["all", "action"])
def test_an_empty_mask_is_the_clean_model_bit_for_bit(short, photo, scope, schedule):
    """A region of all tokens leaves none to prune."""
    off = act(short, photo, variant="off", mask_scope=scope, mask_schedule=schedule)
    empty = act(short, photo, top_k=256, mask_scope=scope, mask_schedule=schedule)
    assert empty.trace.fire_rate == 0
    assert empty.chunk.actions.tolist() == off.chunk.actions.tolist()
    figures = [[(t.token_id, t.entropy_clean, t.entropy_refined) for t in r.trace.tokens] for r in (off, empty)]
    assert figures[0] == figures[1]


def test_the_model_is_left_as_it_was(short, photo):
    before = {name: value.clone() for name, value in short.text_model.state_dict().items()}
    implementation = short.text_model.config._attn_implementation
    first = act(short, photo, variant="off")
    act(short, photo)
    again = act(short, photo, variant="off")
    assert short.text_model.config._attn_implementation == implementation
    assert all(value.equal(before[name]) for name, value in short.text_model.state_dict().items())
    assert again.chunk.actions.tolist() == first.chunk.actions.tolist()


def test_masking_equals_removing_the_tokens(short, photo):
    """Scope `all`, one mask: the refined first token's entropy is that of the prompt without the masked tokens."""
    result = act(short, photo, mask_schedule="per_step")
    first = result.trace.tokens[0]
    kept = torch.from_numpy(~first.mask.ravel())
    assert 0 < (~kept).sum() < 147
    prompt = short.prepare(observation(photo))
    forced = short.embed(torch.tensor([short.vocabulary.forced_prefix_ids]))
    embeddings, length = torch.cat([prompt.embeddings, forced], dim=1), prompt.embeddings.shape[1]
    keep = torch.cat([kept, torch.ones(embeddings.shape[1] - 256, dtype=torch.bool)]).nonzero().flatten()
    index = torch.arange(embeddings.shape[1])
    mask = (index[None] <= index[:, None]) | ((index[None] < length) & (index[:, None] < length))
    with torch.no_grad():
        hidden = short.text_model(
            inputs_embeds=embeddings[:, keep],
            position_ids=index[None, keep],
            attention_mask=mask[keep][:, keep][None, None],
            use_cache=False,
        ).last_hidden_state
    support = torch.cat([short.vocabulary.action_ids, torch.tensor(short.vocabulary.end_ids)]).sort().values
    logits = short.logits(hidden[0, -1])[support].double()
    entropy = float(torch.distributions.Categorical(logits=logits).entropy())
    assert first.entropy_refined == pytest.approx(entropy, abs=1e-4)
    assert abs(first.entropy_refined - first.entropy_clean) > 1e-4


def test_without_a_grammar_a_chunk_that_does_not_decode_is_a_hold(short, photo):
    result = DtpPolicy(short).step(observation(photo), constants(variant="off"), GenerationConfig())
    assert result.chunk is None
    assert result.hold_reason


def test_a_fast_vocabulary_without_some_bytes_runs_without_grammar(caplog):
    codec = FastCodec([bytes([b]) for b in range(128)], 10, -203, 1)
    assert pi0_fast._grammar(codec, 0, 999) is None
    assert "without fast_grammar" in caplog.text

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import map_coordinates
from torch.nn import functional
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.errors import ActionDecodeError, ConfigError, ObservationError
from dtp_ros.models import images
from dtp_ros.models.base import Observation
from dtp_ros.models.openvla import OpenVlaAdapter
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.models.tiny import tiny_checkpoint
from dtp_ros.models.tiny_openvla import write_tiny_openvla
from dtp_ros.pruning.config import VARIANTS, PruningConfig

HERE = Path(__file__).resolve().parent
TOOL = HERE.parents[1] / "tools/dump_reference/openvla.py"
INSTRUCTION = "put the spoon on the towel"
Q01 = np.array([-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072])
Q99 = np.array([0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038])
FAST = GenerationConfig()


@pytest.fixture(scope="module")
def folder(cache) -> Path:
    return tiny_checkpoint("openvla", write_tiny_openvla)


@pytest.fixture(scope="module")
def openvla(folder) -> OpenVlaAdapter:
    return load_adapter("openvla", "tiny", device="cpu")


@pytest.fixture(scope="module")
def dump() -> dict[str, np.ndarray]:
    with np.load(HERE / "dumps/openvla.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("dump_reference_openvla", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(folder) -> dict[str, torch.Tensor]:
    return {name: value.float() for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def published(tool, case):
    """The adapter as the dump's case was run, and its observation."""
    adapter = load_adapter(
        "openvla", "tiny", device="cpu", preprocess="reference", options={"statistics_key": tool.STATISTICS[case]}
    )
    return adapter, Observation((tool.picture(*tool.SIZES[case]),), tool.INSTRUCTIONS[case])


# --- the original, run on the same weights ---------------------------------------------------------------------------


def test_the_dump_is_of_these_weights(folder, dump):
    """Where the writer of the tiny checkpoint changes, tools/dump_reference/openvla.py must run again."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == str(dump["weights"])


@pytest.mark.parametrize("case", range(3))
def test_inputs_equal_the_originals(tool, dump, case):
    adapter, observation = published(tool, case)
    assert adapter.prompt_ids(observation.instruction)[0] == dump[f"{case}_input_ids"].tolist()
    assert np.array_equal(adapter.pixels(observation)[:, ::9, ::11], dump[f"{case}_pixels"])
    embeddings = adapter.prepare(observation).embeddings[0, ::5].numpy()
    scale = np.abs(dump[f"{case}_embeddings"]).max()
    assert np.abs(embeddings - dump[f"{case}_embeddings"]).max() < 1e-6 * scale


@pytest.mark.parametrize("case", range(3))
def test_the_evaluations_images_and_prompt_are_ours(tool, dump, case):
    """The published WidowX evaluation itself, in TensorFlow.

    With libjpeg's accurate DCT on both sides one pixel in a thousand is one level away; TensorFlow's own decoder has
    the fast one, up to 12 levels away on these hard pictures. The crop is the same to the bit.
    """
    image = tool.picture(*tool.SIZES[case])
    own = images.lanczos3(images.jpeg_round_trip(image), 224)[::9, ::11].astype(int)
    difference = np.abs(own - dump[f"{case}_accurate"])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001
    assert np.abs(own - dump[f"{case}_widowx"]).max() <= 12
    assert np.abs(own - dump[f"{case}_widowx"]).mean() < 1.5
    assert np.array_equal(images.centre_crop(image, 0.9, 224)[::9, ::11], dump[f"{case}_cropped"])
    prompt = f"In: What action should the robot take to {tool.INSTRUCTIONS[case].lower()}?\nOut:"
    assert str(dump[f"{case}_prompt"]) == prompt


@pytest.mark.parametrize("name", ["free", "restricted"])
@pytest.mark.parametrize("case", range(3))
def test_logits_tokens_and_actions_equal_the_originals(tool, dump, case, name):
    """Greedy over all ids, as published, and over the action ids: the same seven tokens, logits within 1e-4."""
    adapter, observation = published(tool, case)
    prompt, ids = adapter.prepare(observation), []
    embeddings = prompt.embeddings
    for t in range(7):
        with torch.no_grad():
            states = adapter.text_model(inputs_embeds=embeddings).last_hidden_state
        logits = adapter.logits(states)[0, -1]
        assert np.abs(logits[31744:32000].numpy() - dump[f"{case}_{name}_logits"][t]).max() < 1e-4
        assert np.abs(logits[::50].numpy() - dump[f"{case}_{name}_others"][t]).max() < 1e-4
        allowed = adapter.vocabulary.action_ids if name == "restricted" else torch.arange(32064)
        ids.append(int(allowed[logits[allowed].argmax()]))
        embeddings = torch.cat([embeddings, adapter.embed(torch.tensor([ids[-1:]]))], dim=1)
    assert ids == dump[f"{case}_{name}_ids"].tolist()
    if name == "restricted":
        action = dump[f"{case}_restricted_action"]
        np.testing.assert_allclose(adapter.decode(ids)[0, :6], action[:6], atol=1e-12)
        assert adapter.decode(ids)[0, 6] == min(max(action[6], 0), 1)


@pytest.mark.parametrize("case", range(3))
def test_the_engine_without_pruning_gives_the_originals_tokens(tool, dump, case):
    adapter, observation = published(tool, case)
    result = DtpPolicy(adapter).step(observation, constants(variant="off"), FAST)
    assert [token.token_id for token in result.trace.tokens] == dump[f"{case}_restricted_ids"].tolist()


# --- the stock models of transformers --------------------------------------------------------------------------------


def separate(weights, prefix, block, names):
    """Query, key and value of a fused projection under a stock model's names."""
    for kind in ("weight", "bias"):
        parts = weights[f"{prefix}.attn.qkv.{kind}"].chunk(3)
        yield from ((f"{block}.{name}.{kind}", part) for name, part in zip(names, parts, strict=True))


def copied(weights, prefix, block, pairs):
    for theirs, ours in pairs:
        for kind in ("weight", "bias"):
            yield f"{block}.{theirs}.{kind}", weights[f"{prefix}.{ours}.{kind}"]


def stock_dino(weights, pixels):
    config = Dinov2WithRegistersConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, mlp_ratio=4, image_size=224, patch_size=14,
        num_register_tokens=4, hidden_act="gelu", attn_implementation="eager",
    )  # fmt: skip
    model = Dinov2WithRegistersModel(config).eval()
    new = any(".q_proj." in name for name in model.state_dict())  # the names of transformers from 5.2x on
    query, out = ("", "o_proj") if new else ("attention.", "output.dense")
    heads = ("q_proj", "k_proj", "v_proj") if new else ("query", "key", "value")
    root, state = "vision_backbone.featurizer", {}
    for i in range(4):
        block, prefix = f"encoder.layer.{i}", f"{root}.blocks.{i}"
        state |= separate(weights, prefix, f"{block}.attention", [f"{query}{name}" for name in heads])
        pairs = [("norm1", "norm1"), ("norm2", "norm2"), (f"attention.{out}", "attn.proj"),
                 ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]  # fmt: skip
        state |= copied(weights, prefix, block, pairs)
        for j in (1, 2):
            state[f"{block}.layer_scale{j}.lambda1"] = weights[f"{prefix}.ls{j}.scale_factor"]
    positions = weights[f"{root}.pos_embed"]
    state |= copied(weights, f"{root}", "embeddings.patch_embeddings", [("projection", "patch_embed.proj")])
    state |= {
        "embeddings.cls_token": weights[f"{root}.cls_token"],
        "embeddings.register_tokens": weights[f"{root}.reg_token"],
        "embeddings.mask_token": torch.zeros(1, 48),
        "embeddings.position_embeddings": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1),
    }
    state |= {f"layernorm.{kind}": weights[f"{root}.norm.{kind}"] for kind in ("weight", "bias")}
    model.load_state_dict(state)
    return model(pixels, output_hidden_states=True).hidden_states[-2][:, 5:]


def stock_siglip(weights, pixels):
    config = SiglipVisionConfig(
        hidden_size=36, intermediate_size=134, num_hidden_layers=3, num_attention_heads=2, image_size=224,
        patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6, vision_use_head=False, attn_implementation="eager",
    )  # fmt: skip
    root = "vision_backbone.fused_featurizer"
    state = {"embeddings.position_embedding.weight": weights[f"{root}.pos_embed"][0]}
    state |= copied(weights, root, "embeddings", [("patch_embedding", "patch_embed.proj")])
    state |= {f"post_layernorm.{kind}": weights[f"{root}.norm.{kind}"] for kind in ("weight", "bias")}
    for i in range(3):
        block, prefix = f"encoder.layers.{i}", f"{root}.blocks.{i}"
        state |= separate(weights, prefix, f"{block}.self_attn", ("q_proj", "k_proj", "v_proj"))
        pairs = [("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("self_attn.out_proj", "attn.proj"),
                 ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]  # fmt: skip
        state |= copied(weights, prefix, block, pairs)
    model = SiglipVisionModel(config).eval()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in model.state_dict()) else ""
    model.load_state_dict({f"{prefix}{name}": value for name, value in state.items()})
    return model(pixels, output_hidden_states=True).hidden_states[-2]


def test_logits_equal_the_stock_models_eager_forward(openvla, weights, folder, photo):
    """DINOv2 with registers, SigLIP (exact GELU) and Llama of transformers, given the weights under their names."""
    observation = Observation((photo,), INSTRUCTION)
    pixels = torch.from_numpy(openvla.pixels(observation))[None]
    with torch.no_grad():
        x = torch.cat([stock_dino(weights, pixels[:, :3]), stock_siglip(weights, pixels[:, 3:])], dim=-1)
        for i in (1, 2, 3):
            x = functional.linear(x, weights[f"projector.fc{i}.weight"], weights[f"projector.fc{i}.bias"])
            x = functional.gelu(x) if i < 3 else x
        ids = torch.tensor([openvla.prompt_ids(INSTRUCTION)[0]])
        text_config = json.loads((folder / "config.json").read_text())["text_config"]
        llama = LlamaForCausalLM(LlamaConfig.from_dict({**text_config, "torch_dtype": "float32"})).eval()
        llama.set_attn_implementation("eager")
        prefix = "language_model."
        llama.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        text = llama.get_input_embeddings()(ids)
        expected = llama(inputs_embeds=torch.cat([text[:, :1], x, text[:, 1:]], dim=1)).logits
        prompt = openvla.prepare(observation)
        states = openvla.text_model(inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids)
    logits = openvla.logits(states.last_hidden_state)
    assert logits.dtype == torch.float32
    assert logits.shape == expected.shape == (1, 277, 32064)
    assert (logits - expected).abs().max() < 1e-4


def test_bfloat16_on_the_cpu_is_close(openvla, photo):
    half = load_adapter("openvla", "tiny", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    rows = []
    for adapter in (openvla, half):
        with torch.no_grad():
            states = adapter.text_model(inputs_embeds=adapter.prepare(Observation((photo,), INSTRUCTION)).embeddings)
            rows.append(adapter.logits(states.last_hidden_state)[0, -1])
    assert rows[1].dtype == torch.float32
    assert torch.corrcoef(torch.stack(rows))[0, 1] > 0.95


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
def test_prompt_tokens_are_those_over_the_instructions_characters(openvla, folder, instruction):
    pieces = {i: piece for piece, i in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"].items()}
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


def test_bare_prompt_is_the_instruction_as_it_stands(folder):
    bare = load_adapter("openvla", "tiny", device="cpu", options={"prompt": "bare"})
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
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


# --- pruning ---------------------------------------------------------------------------------------------------------


def constants(**changes) -> PruningConfig:
    defaults = model_defaults("openvla")
    return PruningConfig(**{key: defaults[key] for key in PruningConfig.__dataclass_fields__} | changes)


def test_shipped_constants_fit_the_real_model():
    constants().require_fits(32, 256)
    defaults = model_defaults("openvla")
    assert (defaults["checkpoint"], defaults["preprocess"]) == ("openvla/openvla-7b", "widowx")
    assert (defaults["execute_horizon"], defaults["ensemble"]) == (1, "off")
    assert defaults["options"]["statistics_key"] == "bridge_orig"


def figures(result) -> list[tuple]:
    return [
        (t.token_id, t.clean_id, t.entropy_clean, t.entropy_refined, t.pattern.tobytes()) for t in result.trace.tokens
    ]


@pytest.mark.parametrize("schedule", ["per_step", "per_token"])
@pytest.mark.parametrize("scope", ["all", "action"])
def test_pruning_fires_in_every_variant_and_leaves_the_model_alone(openvla, photo, scope, schedule):
    observation, before = Observation((photo,), INSTRUCTION), state_of(openvla)
    results = {}
    for variant in VARIANTS:
        config = constants(variant=variant, mask_scope=scope, mask_schedule=schedule)
        results[variant] = DtpPolicy(openvla).step(observation, config, FAST)
        assert results[variant].chunk.actions.shape == (1, 7)
    assert results["off"].trace.fire_rate == 0
    for variant in VARIANTS[1:]:
        trace = results[variant].trace
        assert trace.fire_rate > 0
        assert trace.mask.any()
        assert not trace.mask.all()
        assert any(t.entropy_refined != t.entropy_clean for t in trace.tokens)
    for variant in ("dtp", "random_unimportant"):
        assert not (results[variant].trace.mask & results[variant].trace.region).any()
    assert state_of(openvla) == before


@pytest.mark.parametrize("schedule", ["per_step", "per_token"])
@pytest.mark.parametrize("scope", ["all", "action"])
def test_an_empty_mask_is_bit_for_bit_the_clean_model(openvla, photo, scope, schedule):
    """All 256 tokens important: nothing is left to prune."""
    observation = Observation((photo,), INSTRUCTION)
    config = constants(top_k=256, tolerance=0.0, mask_scope=scope, mask_schedule=schedule)
    empty = DtpPolicy(openvla).step(observation, config, FAST)
    clean = DtpPolicy(openvla).step(observation, replace(config, variant="off"), FAST)
    assert empty.trace.fire_rate == 0
    assert figures(empty) == figures(clean)
    assert empty.chunk.actions.tobytes() == clean.chunk.actions.tobytes()


def state_of(adapter):
    return (
        [(type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in adapter.network.modules()],
        adapter.text_model.config.to_dict(),
        adapter.text_model.config._attn_implementation,
        {name: (p.data_ptr(), float(p.double().sum())) for name, p in adapter.network.named_parameters()},
    )

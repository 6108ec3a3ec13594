from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dtp_ros.errors import ActionDecodeError, CheckpointError, ConfigError, ObservationError
from dtp_ros.models.base import Observation, VlaAdapter
from dtp_ros.models.registry import load_adapter

INSTRUCTION = "put the carrot on the plate"
RENDERED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    + "<|image_pad|>" * 64
    + "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def reference(nora):
    return load_adapter("nora", "tiny", preprocess="reference")


@pytest.fixture(scope="module")
def stock(nora_folder):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(nora_folder, dtype=torch.float32)
    return model.eval()


def stock_inputs(folder, image: Image.Image, instruction: str) -> dict[str, torch.Tensor]:
    """What the stock processor gives, from its parts (the whole one needs torchvision for its video half)."""
    text = AutoTokenizer.from_pretrained(folder)(RENDERED.format(instruction), return_tensors="pt")
    pixels = Qwen2VLImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")
    return {
        "input_ids": text["input_ids"],
        "pixel_values": pixels["pixel_values"],
        "image_grid_thw": pixels["image_grid_thw"],
        "mm_token_type_ids": (text["input_ids"] == 151655).int(),
    }


@torch.no_grad()
def run(adapter: VlaAdapter, observation: Observation) -> torch.Tensor:
    prompt = adapter.prepare(observation)
    length = prompt.embeddings.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    out = adapter.text_model(
        inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids, attention_mask=mask, use_cache=True
    )
    return adapter.logits(out.last_hidden_state)


def test_logits_equal_the_stock_model_on_the_stock_processor(reference, stock, nora_folder, photo):
    """The whole path of the published inference class: resize to 224, processor, forward."""
    image = Image.fromarray(photo).resize((224, 224))
    with torch.no_grad():
        expected = stock(**stock_inputs(nora_folder, image, INSTRUCTION)).logits
    logits = run(reference, Observation((photo,), INSTRUCTION))
    assert logits.shape == expected.shape
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 1e-4


def test_every_weight_equals_the_stock_models(reference, stock):
    own = dict(reference.text_model.named_parameters())
    for name, value in stock.model.language_model.named_parameters():
        assert own[name].equal(value), name
    assert reference.embed(torch.tensor([[5, 153712]])).equal(stock.get_input_embeddings()(torch.tensor([[5, 153712]])))


def test_reference_pixels_equal_the_stock_processor(reference, nora_folder, photo):
    image = Image.fromarray(photo).resize((224, 224))
    expected = stock_inputs(nora_folder, image, INSTRUCTION)["pixel_values"].numpy()
    np.testing.assert_allclose(reference.pixels(Observation((photo,), INSTRUCTION)), expected, atol=2e-6)


def test_widowx_pixels_are_a_jpeg_and_a_lanczos_resize(nora, nora_folder, photo, tmp_path):
    """PIL's LANCZOS of a JPEG file, then the stock processor: within one level of 255, in units of the deviation."""
    Image.fromarray(photo).save(tmp_path / "x.jpg", quality=95, subsampling=2)
    image = Image.open(tmp_path / "x.jpg").resize((224, 224), Image.Resampling.LANCZOS)
    expected = stock_inputs(nora_folder, image, INSTRUCTION)["pixel_values"].numpy()
    difference = np.abs(nora.pixels(Observation((photo,), INSTRUCTION)) - expected)
    assert difference.max() <= 1 / 255 / 0.261 + 1e-5
    assert (difference < 1e-5).mean() > 0.8


def test_the_two_preprocessings_differ(nora, reference, photo):
    observation = Observation((photo,), INSTRUCTION)
    assert not nora.prepare(observation).embeddings.equal(reference.prepare(observation).embeddings)


def test_positions_are_those_worked_out_by_hand(nora, photo):
    """Text counts 0, 1, ...; the 8 x 8 image starting at s has time s, rows s ... s+7, columns s ... s+7; then s+8."""
    prompt = nora.prepare(Observation((photo,), INSTRUCTION))
    start, tail = int(prompt.layout.image[0]), prompt.embeddings.shape[1] - int(prompt.layout.image[-1]) - 1
    text = [[i] * 3 for i in range(start)]
    image = [[start, start + row, start + column] for row in range(8) for column in range(8)]
    after = [[start + 8 + i] * 3 for i in range(tail)]
    expected = torch.tensor([*text, *image, *after]).T[:, None]
    assert prompt.position_ids.equal(expected)
    assert prompt.next_position == start + 8 + tail
    assert (prompt.layout.rows, prompt.layout.cols, prompt.layout.relevance) == (8, 8, "attention")


def test_prepare_leaves_the_model_as_it_was(nora, photo):
    nora._core.rope_deltas = torch.tensor([[-3]])
    try:
        nora.prepare(Observation((photo,), INSTRUCTION))
        assert nora._core.rope_deltas.tolist() == [[-3]]
    finally:
        nora._core.rope_deltas = None


def test_image_tokens_are_row_major(nora, photo):
    """A change in one corner of the picture moves the features of that corner most: the grid is not transposed."""
    with torch.no_grad():
        tower = nora._core.visual
        kept, tower.fullatt_block_indexes = tower.fullatt_block_indexes, []
        try:
            plain = np.full((224, 224, 3), 90, np.uint8)
            spot = plain.copy()
            spot[2 * 28 : 3 * 28, 6 * 28 : 7 * 28] = 255
            prompts = [nora.prepare(Observation((image,), INSTRUCTION)) for image in (plain, spot)]
        finally:
            tower.fullatt_block_indexes = kept
    change = (prompts[1].embeddings - prompts[0].embeddings)[0].norm(dim=-1)[prompts[0].layout.image].reshape(8, 8)
    assert divmod(int(change.argmax()), 8) == (2, 6)


def spell(adapter, coefficients) -> list[int]:
    single = {token: i for i, token in enumerate(adapter._assets.codec.token_bytes) if len(token) == 1}
    return [151665 + single[bytes([b])] for c in coefficients for b in chr(c + 354).encode()]


def test_decode_gives_metres_radians_and_an_opening(nora):
    """-10, 0 and 10 are q01, the middle and q99; the gripper is the coefficient itself, clipped, 1 = open."""
    actions = nora.decode(spell(nora, [-10, 10, 0, -10, 10, 0, 10]))
    assert actions.shape == (1, 7)
    np.testing.assert_allclose(actions[0], [-0.0287, 0.0409, 0.00705, -0.0809, 0.0779, -0.0017, 1.0], atol=1e-9)
    assert nora.decode(spell(nora, [0] * 7))[0, 6] == 0
    assert nora.decode(spell(nora, [0] * 6 + [-8]))[0, 6] == 0
    assert nora.decode(spell(nora, [0] * 6 + [4]))[0, 6] == pytest.approx(0.4)


@pytest.mark.parametrize("token", [151664, 153713])
def test_decode_refuses_other_tokens(nora, token):
    with pytest.raises(ActionDecodeError, match=r"151665 \.\.\. 153712"):
        nora.decode([token])


def test_vocabulary_is_that_of_the_checkpoint(nora):
    assert nora.vocabulary.action_ids.tolist() == list(range(151665, 153713))
    assert nora.vocabulary.end_ids == (151645, 151643)
    assert nora.vocabulary.max_tokens == 14
    assert nora.num_layers == len(nora.layers()) == 24


def test_horizon_comes_from_option_fast_folder_or_name(damaged):
    adapter = load_adapter("nora", "tiny", options={"horizon": 5})
    assert adapter.horizon == 5
    assert adapter.decode(spell(adapter, [0] * 35)).shape == (5, 7)
    folder = damaged()
    long = folder.rename(folder.with_name("nora-long"))
    assert load_adapter("nora", str(long)).horizon == 5
    path = long / "fast" / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time_horizon": 3}))
    assert load_adapter("nora", str(long)).horizon == 3


def test_statistics_key_is_an_option(nora):
    fractal = load_adapter("nora", "tiny", options={"statistics_key": "fractal20220817_data"})
    assert fractal.decode(spell(nora, [10] * 7))[0, 0] == pytest.approx(0.1782)
    with pytest.raises(CheckpointError, match="bridge_orig, fractal20220817_data"):
        load_adapter("nora", "tiny", options={"statistics_key": "kuka"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon = 0"),
        ({"horizon": "5"}, "horizon"),
        ({"lower_case_instruction": "no"}, "lower_case_instruction"),
        ({"horizont": 5}, "horizont not known .valid: fast_revision"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        load_adapter("nora", "tiny", options=options)


def test_an_observation_without_image_is_refused(nora):
    with pytest.raises(ObservationError, match="no image"):
        nora.prepare(Observation((), INSTRUCTION))


def test_todays_layout_loads_too(damaged, reference, photo):
    """One file, today's names, an untied head: as transformers 5 saves a fine-tuned model."""
    folder = damaged("model.safetensors.index.json")
    tensors = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        for name, value in load_file(path).items():
            core = name.removeprefix("model.")
            tensors[f"model.{name}" if name.startswith("visual.") else f"model.language_model.{core}"] = value
        path.unlink()
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"] * 2
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    observation = Observation((photo,), INSTRUCTION)
    other = load_adapter("nora", str(folder), preprocess="reference")
    torch.testing.assert_close(run(other, observation), 2 * run(reference, observation), atol=1e-5, rtol=1e-5)


def test_a_head_that_is_not_tied_must_be_there(damaged):
    folder = damaged()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"lacks the weights lm_head\.weight"):
        load_adapter("nora", str(folder))


def test_bfloat16_on_the_cpu_is_close(reference, photo):
    half = load_adapter("nora", "tiny", preprocess="reference", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    observation = Observation((photo,), INSTRUCTION)
    full, other = run(reference, observation)[0, -1], run(half, observation)[0, -1]
    assert other.dtype == torch.float32
    assert torch.corrcoef(torch.stack([full, other]))[0, 1] > 0.9

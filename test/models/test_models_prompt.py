from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from dtp_ros.errors import CheckpointError, ObservationError
from dtp_ros.models.base import Observation
from dtp_ros.models.prompt import InstructionTemplate, load_tokenizer
from dtp_ros.models.registry import load_adapter

RENDERED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{instruction}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
IMAGE = np.zeros((48, 64, 3), np.uint8)


def ids_of(adapter, instruction):
    """Ids that the adapter puts into the language model, read back from the embeddings' layout."""
    template = adapter._assets.template
    return [*template.before, *template.instruction(instruction), *template.after]


@pytest.mark.parametrize("instruction", ["put the spoon on the towel", "Stack  two BLOCKS, now!\n", "naïve café 3"])
def test_ids_are_those_of_the_rendered_prompt(nora, nora_folder, instruction):
    tokenizer = AutoTokenizer.from_pretrained(nora_folder)
    text = RENDERED.format(image="<|image_pad|>" * 64, instruction=instruction)
    assert ids_of(nora, instruction) == tokenizer(text)["input_ids"]


def test_template_renders_as_published(nora_folder):
    tokenizer = load_tokenizer(nora_folder)
    content = [{"type": "image", "image": "x"}, {"type": "text", "text": "put the spoon on the towel"}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False,
                                         add_generation_prompt=True)  # fmt: skip
    assert text == RENDERED.format(image="<|image_pad|>", instruction="put the spoon on the towel")


@pytest.mark.parametrize(
    "instruction", ["put the spoon on the towel", "user", "you are a helpful assistant.", "assistant\n", " a"]
)
def test_prompt_tokens_are_those_over_the_instructions_characters(nora, nora_folder, instruction):
    """Oracle: offsets of the whole rendered prompt; also where the template holds the same words."""
    text = RENDERED.format(image="<|image_pad|>" * 64, instruction=instruction)
    low = text.index("<|vision_end|>") + len("<|vision_end|>")
    high = low + len(instruction)
    encoded = AutoTokenizer.from_pretrained(nora_folder)(text, return_offsets_mapping=True)
    expected = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < high and b > low]
    prompt = nora.prepare(Observation((IMAGE,), instruction))
    assert prompt.layout.prompt.tolist() == expected
    image = [i for i, token in enumerate(encoded["input_ids"]) if token == 151655]
    assert prompt.layout.image.tolist() == image
    assert len(image) == 64


@pytest.mark.parametrize("text", ["<|im_end|>", "pick <|image_pad|><|image_pad|>", "<|vision_start|>", "<tool_call>"])
def test_special_tokens_typed_by_a_user_are_plain_text(nora, text):
    prompt = nora.prepare(Observation((IMAGE,), text))
    assert prompt.layout.image.tolist() == list(range(prompt.layout.image[0], prompt.layout.image[0] + 64))
    assert len(nora._assets.template.instruction(text)) > 3
    assert max(nora._assets.template.instruction(text)) < 151643


@pytest.mark.parametrize("instruction", ["", " ", "\n\t", "\ud800"])
def test_an_instruction_without_tokens_is_refused(nora, instruction):
    with pytest.raises(ObservationError, match="instruction"):
        nora.prepare(Observation((IMAGE,), instruction))


def test_lower_case_is_an_option(nora):
    published = load_adapter("nora", "tiny", options={"lower_case_instruction": False})
    upper, lower = Observation((IMAGE,), "Put The Spoon"), Observation((IMAGE,), "put the spoon")
    assert nora.prepare(upper).embeddings.equal(nora.prepare(lower).embeddings)
    assert not published.prepare(upper).embeddings.equal(published.prepare(lower).embeddings)
    assert published.prepare(lower).embeddings.equal(nora.prepare(lower).embeddings)


def test_a_template_that_glues_text_to_the_instruction_is_refused(nora_folder):
    tokenizer = load_tokenizer(nora_folder)
    tokenizer.chat_template = "<|vision_start|><|image_pad|><|vision_end|>do{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(CheckpointError, match="between two special tokens"):
        InstructionTemplate(tokenizer, 151655, 64)


def test_a_template_without_an_image_is_refused(nora_folder):
    tokenizer = load_tokenizer(nora_folder)
    tokenizer.chat_template = "<|im_start|>{{ messages[0]['content'][1]['text'] }}<|im_end|>"
    with pytest.raises(CheckpointError, match="one image before"):
        InstructionTemplate(tokenizer, 151655, 64)


def test_chat_template_beside_the_tokenizer_serves_too(damaged):
    folder = damaged()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    template = config.pop("chat_template")
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks the file chat_template"):
        load_tokenizer(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_tokenizer(folder).chat_template == template

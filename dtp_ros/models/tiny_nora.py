"""A tiny random NORA checkpoint in the published layout: same files, same names, same special ids, small weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.fft import dct
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

SEED = 7
FIRST_SPECIAL_ID = 151643
FIRST_ACTION_ID = 151665
FAST_VOCABULARY = 2048
FAST_SCALE = 10
FAST_MIN_TOKEN = -354
LAYERS = 24
HIDDEN = 64
STD = 0.2

# Qwen2.5's own, in order from id 151643 on; the last eight are not "special" there either.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_SENTENCES = (
    "You are a helpful assistant.", "system", "user", "assistant",
    "put the spoon on the towel", "put the carrot on the plate", "put the eggplant in the yellow basket",
    "stack the green block on the yellow block", "pick up the red cup and move it to the left of the pot",
    "take the knife out of the sink", "open the drawer", "close the microwave", "wipe the table with the cloth",
)  # fmt: skip


def write_tiny_nora(folder: Path) -> None:
    """Write the whole checkpoint into `folder`, an existing empty one: about 22 MB, the same on every call."""
    config = _config()
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _GENERATION)
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    _write_json(folder / "norm_stats.json", _STATISTICS)
    _write_text_tokenizer(folder)
    (folder / "fast").mkdir()
    _write_fast_tokenizer(folder / "fast")
    _write_weights(folder, config)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _config() -> dict[str, Any]:
    """Qwen2.5-VL 3B's config.json, flat as it was published, with small sizes."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "bfloat16",
        "vocab_size": FIRST_ACTION_ID + FAST_VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": LAYERS,
        "attention_dropout": 0.0,
        "initializer_range": STD,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_config": _VISION,
    }


_VISION = {
    "model_type": "qwen2_5_vl",
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "hidden_act": "silu",
}
_GENERATION = {
    "bos_token_id": 151643,
    "do_sample": False,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "repetition_penalty": 1.05,
}
_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "resample": 3,
    "rescale_factor": 1.0 / 255.0,
}
_ACTION_MASK = [True] * 6 + [False]
# Orders of magnitude of the public statistics, so that a random arm moves as far as a trained one.
_STATISTICS = {
    "bridge_orig": {
        "action": {
            "q01": [-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072, 0.0],
            "q99": [0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038, 1.0],
            "mask": _ACTION_MASK,
        }
    },
    "fractal20220817_data": {
        "action": {
            "q01": [-0.2245, -0.1482, -0.2316, -0.3517, -0.4193, -0.4364, 0.0],
            "q99": [0.1782, 0.1494, 0.2184, 0.5893, 0.3527, 0.4479, 1.0],
            "mask": _ACTION_MASK,
        }
    },
}


def _write_text_tokenizer(folder: Path) -> None:
    """A small byte-level BPE with Qwen2's splitting; special and action tokens at their real ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    # The trained vocabulary ends far below Qwen's: the named ids make the special tokens keep their places.
    raw = json.loads(tokenizer.to_str())
    actions = [f"<robot_action_{i}>" for i in range(FAST_VOCABULARY)]
    placed = {token: FIRST_SPECIAL_ID + i for i, token in enumerate((*SPECIAL_TOKENS, *actions))}
    raw["model"]["vocab"] |= placed
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    plain = SPECIAL_TOKENS[14:]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in placed if t not in plain])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 131072,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _write_fast_tokenizer(folder: Path) -> None:
    """A FAST tokenizer of the published size, trained on the spellings of smooth random chunks of 1 and 5 actions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # FAST's alphabet is the range of codes, byte characters or not: most of them never occur in a spelling.
    alphabet = [chr(code) for code in range(32 - FAST_MIN_TOKEN)]
    trainer = trainers.BpeTrainer(
        vocab_size=FAST_VOCABULARY, min_frequency=2, initial_alphabet=alphabet, max_token_length=10000,
        show_progress=False,
    )  # fmt: skip
    rng = np.random.default_rng(SEED)
    tokenizer.train_from_iterator([_spell(_chunk(rng, 5 if i % 5 == 0 else 1)) for i in range(4000)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "UniversalActionProcessor",
            "scale": FAST_SCALE,
            "vocab_size": FAST_VOCABULARY,
            "min_token": FAST_MIN_TOKEN,
            "action_dim": None,
            "time_horizon": None,
        },
    )


def _chunk(rng: np.random.Generator, horizon: int) -> NDArray[np.float64]:
    """Normalised actions [horizon, 7]: small, smooth steps and a gripper of 0 or 1."""
    motion = np.clip(rng.normal(0, 0.4, 6) + np.cumsum(rng.normal(0, 0.1, (horizon, 6)), axis=0), -1, 1)
    return np.concatenate([motion, np.full((horizon, 1), float(rng.integers(2)))], axis=1)


def _spell(actions: NDArray[np.float64]) -> str:
    coefficients = np.around(dct(actions, axis=0, norm="ortho") * FAST_SCALE).astype(int)
    return "".join(chr(c - FAST_MIN_TOKEN) for c in coefficients.ravel())


def _write_weights(folder: Path, config: dict[str, Any]) -> None:
    """Two shards and their index, bfloat16, under the names of 2025 (`visual.*`, `model.*`; the head is tied)."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config))
    tensors = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): _random(name, value)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    shards: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, tensor in tensors.items():
        shards[0 if name.startswith(("visual.", "model.embed_tokens.")) else 1][name] = tensor
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in sorted(shard)}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _random(name: str, like: Tensor) -> Tensor:
    """Norms 1, the rest normal: with the usual deviation of 0.02 attention is uniform and DTP prunes all or none."""
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight")):
        return torch.ones(like.shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEED)
    return (torch.randn(like.shape, generator=generator) * STD).to(torch.bfloat16)

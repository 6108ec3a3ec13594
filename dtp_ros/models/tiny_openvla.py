"""A tiny random OpenVLA checkpoint in the published layout: same files, same names, same special ids, small weights."""

from __future__ import annotations

import json
import string
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

SEED = 7
STD = 0.2
HIDDEN = 64
LAYERS = 16
PAD_ID = 32000
FIRST_CHARACTER_ID = 29871  # Llama-2's: pieces of one character stand at the end of the vocabulary, the space first
FIRST_ACTION_ID = 31744
TOKENS = 256
PATCH = 14
# In timm's words, and what timm gives the two published towers by their ids; DINOv2 has registers and LayerScale.
TOWERS: tuple[dict[str, Any], dict[str, Any]] = (
    {"embed_dim": 48, "depth": 4, "num_heads": 3, "mlp_ratio": 4.0},
    {"embed_dim": 36, "depth": 3, "num_heads": 2, "mlp_ratio": 3.7362},
)
REGISTERS = 4

_WORDS = (
    "▁In", "▁What", "▁action", "▁should", "▁the", "▁robot", "▁take", "▁to", "Out", "▁put", "▁pick", "▁up", "▁move",
    "▁stack", "▁spoon", "▁carrot", "▁eggplant", "▁block", "▁on", "▁in", "▁towel", "▁plate", "▁basket", "▁green",
    "▁yellow", "▁left", "▁of",
)  # fmt: skip
_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def write_tiny_openvla(folder: Path) -> None:
    """Write the whole checkpoint into `folder`, an existing empty one: about 12 MB, the same on every call."""
    _write_json(folder / "config.json", _config())
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD_ID})
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    _write_json(folder / "dataset_statistics.json", STATISTICS)
    _write_tokenizer(folder)
    _write_weights(folder)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _config() -> dict[str, Any]:
    """openvla-7b's config.json; `timm_model_args` is ours, as the published one names its towers by timm's id alone."""
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "torch_dtype": "bfloat16",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "use_fused_vision_backbone": True,
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "timm_model_args": list(TOWERS),
        "image_sizes": [224, 224],
        "image_resize_strategy": "resize-naive",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "pad_token_id": PAD_ID,
        "pad_to_multiple_of": 64,
        "output_projector_states": False,
        "norm_stats": STATISTICS,
        "text_config": {
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": PAD_ID + 64,
            "pad_token_id": PAD_ID,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
    }


_MEANS = [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]]
_STDS = [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]]
_PREPROCESSOR = {
    "image_processor_type": "PrismaticImageProcessor",
    "processor_class": "PrismaticProcessor",
    "use_fused_vision_backbone": True,
    "image_resize_strategy": "resize-naive",
    "input_sizes": [[3, 224, 224], [3, 224, 224]],
    "interpolations": ["bicubic", "bicubic"],
    "means": _MEANS,
    "stds": _STDS,
}
_MASK = [True] * 6 + [False]
# Orders of magnitude of the public statistics, so that a random arm moves as far as a trained one.
STATISTICS = {
    "bridge_orig": {
        "action": {
            "q01": [-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072, 0.0],
            "q99": [0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038, 1.0],
            "mask": _MASK,
        }
    },
    "fractal20220817_data": {
        "action": {
            "q01": [-0.2245, -0.1482, -0.2316, -0.3517, -0.4193, -0.4364, 0.0],
            "q99": [0.1782, 0.1494, 0.2184, 0.5893, 0.3527, 0.4479, 1.0],
            "mask": _MASK,
        }
    },
}


def _write_tokenizer(folder: Path) -> None:
    """Llama-2's kind of tokenizer: bytes at 3 ... 258, then words, and single characters from 29871 on."""
    special = {0: "<unk>", 1: "<s>", 2: "</s>"}
    vocabulary = {token: i for i, token in special.items()} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    # A word grows from its first character: each longer beginning is a piece, and a merge of its own.
    grown = dict.fromkeys(word[:n] for word in _WORDS for n in range(2, len(word) + 1))
    vocabulary |= {piece: 259 + i for i, piece in enumerate(grown)}
    characters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    vocabulary |= {character: FIRST_CHARACTER_ID + i for i, character in enumerate(characters)}
    vocabulary |= {chr(0x4E00 + i): FIRST_ACTION_ID + i for i in range(PAD_ID - FIRST_ACTION_ID)}
    added = [{"id": i, "content": token} for i, token in (special | {PAD_ID: "<PAD>"}).items()]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start = [{"SpecialToken": {"id": "<s>", "type_id": 0}}]
    raw = {
        "version": "1.0",
        "added_tokens": [token | flags for token in added],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [*start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
            "vocab": vocabulary, "merges": [f"{piece[:-1]} {piece[-1]}" for piece in grown],
        },
    }  # fmt: skip
    Tokenizer.from_str(json.dumps(raw))  # what is written can be read
    _write_json(folder / "tokenizer.json", raw)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<PAD>"}
    _write_json(folder / "special_tokens_map.json", names)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer", "processor_class": "PrismaticProcessor", "model_max_length": 2048,
            "padding_side": "right", "add_bos_token": True, "add_eos_token": False, "legacy": False,
            "clean_up_tokenization_spaces": False, **names,
        },
    )  # fmt: skip


def _shapes() -> _Shapes:
    """Names and shapes of all the weights that the published checkpoint holds, also those that no action needs."""
    dino, siglip = TOWERS
    featurizer, fused = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
    yield f"{featurizer}.cls_token", (1, 1, dino["embed_dim"])
    yield f"{featurizer}.reg_token", (1, REGISTERS, dino["embed_dim"])
    yield from _tower(featurizer, **dino, layer_scale=True)
    yield from _tower(fused, **siglip, layer_scale=False)
    yield from _attention_pool(f"{fused}.attn_pool", siglip["embed_dim"], siglip["mlp_ratio"])
    vision = dino["embed_dim"] + siglip["embed_dim"]
    for name, width, out in (("fc1", vision, 4 * vision), ("fc2", 4 * vision, HIDDEN), ("fc3", HIDDEN, HIDDEN)):
        yield from _linear(f"projector.{name}", width, out)
    yield "language_model.model.embed_tokens.weight", (PAD_ID + 64, HIDDEN)
    for i in range(LAYERS):
        layer = f"language_model.model.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{layer}.self_attn.{name}.weight", (HIDDEN, HIDDEN)
        yield f"{layer}.mlp.gate_proj.weight", (2 * HIDDEN, HIDDEN)
        yield f"{layer}.mlp.up_proj.weight", (2 * HIDDEN, HIDDEN)
        yield f"{layer}.mlp.down_proj.weight", (HIDDEN, 2 * HIDDEN)
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
    yield "language_model.model.norm.weight", (HIDDEN,)
    yield "language_model.lm_head.weight", (PAD_ID + 64, HIDDEN)


def _tower(prefix: str, *, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, layer_scale: bool) -> _Shapes:
    del num_heads  # shapes do not depend on it
    yield f"{prefix}.pos_embed", (1, TOKENS, embed_dim)
    yield f"{prefix}.patch_embed.proj.weight", (embed_dim, 3, PATCH, PATCH)
    yield f"{prefix}.patch_embed.proj.bias", (embed_dim,)
    for i in range(depth):
        block = f"{prefix}.blocks.{i}"
        yield from _norm(f"{block}.norm1", embed_dim)
        yield from _linear(f"{block}.attn.qkv", embed_dim, 3 * embed_dim)
        yield from _linear(f"{block}.attn.proj", embed_dim, embed_dim)
        yield from _norm(f"{block}.norm2", embed_dim)
        yield from _mlp(f"{block}.mlp", embed_dim, mlp_ratio)
        if layer_scale:
            yield f"{block}.ls1.scale_factor", (embed_dim,)
            yield f"{block}.ls2.scale_factor", (embed_dim,)
    yield from _norm(f"{prefix}.norm", embed_dim)


def _attention_pool(prefix: str, width: int, mlp_ratio: float) -> _Shapes:
    yield f"{prefix}.latent", (1, 1, width)
    yield from _linear(f"{prefix}.q", width, width)
    yield from _linear(f"{prefix}.kv", width, 2 * width)
    yield from _linear(f"{prefix}.proj", width, width)
    yield from _norm(f"{prefix}.norm", width)
    yield from _mlp(f"{prefix}.mlp", width, mlp_ratio)


def _mlp(prefix: str, width: int, ratio: float) -> _Shapes:
    yield from _linear(f"{prefix}.fc1", width, int(width * ratio))
    yield from _linear(f"{prefix}.fc2", int(width * ratio), width)


def _norm(prefix: str, width: int) -> _Shapes:
    yield f"{prefix}.weight", (width,)
    yield f"{prefix}.bias", (width,)


def _linear(prefix: str, width: int, out: int) -> _Shapes:
    yield f"{prefix}.weight", (out, width)
    yield f"{prefix}.bias", (out,)


def _write_weights(folder: Path) -> None:
    """Three shards and their index, bfloat16."""
    shards: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    for name, shape in _shapes():
        place = 0 if name.startswith("vision_backbone.") else 2 if name.endswith("lm_head.weight") else 1
        shards[place][name] = _random(name, shape)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for shard in shards for tensor in shard.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in sorted(shard)}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    """Scales about 1, the rest about 0: with the usual deviation of 0.02 attention is uniform and DTP prunes all."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEED)
    values = torch.randn(shape, generator=generator) * STD
    centre = 1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "scale_factor")) else 0.0
    centre = 1.0 if name.endswith("layernorm.weight") else centre
    return (values + centre).to(torch.bfloat16)

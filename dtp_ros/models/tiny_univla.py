"""A tiny random UniVLA checkpoint in the published layouts: of the policy, of Emu3's tokenizers, and of FAST."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.fft import dct
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from dtp_ros.models.tiktoken_bpe import QWEN_SPLIT

SEED = 11
TEXT_TOKENS = 151643
SPECIAL_TOKENS = 208
CODES = 1024
VISION_TOKENS = ("<|image token|>", "<|image start|>", "<|image end|>")
FAST_VOCABULARY = 1024
FAST_SCALE = 50
FAST_MIN_TOKEN = -112
HORIZON = 5
LAYERS = 14
HIDDEN = 32
CHANNELS = 32
STD = 0.2

_SENTENCES = (
    "put the spoon on the towel", "put the carrot on the plate", "put the eggplant in the yellow basket",
    "stack the green block on the yellow block", "pick up the red cup and move it to the left of the pot",
    "take the knife out of the sink", "open the drawer", "close the microwave", "wipe the table with the cloth",
)  # fmt: skip

_VISION = {
    "architectures": ["Emu3VisionVQModel"],
    "attn_resolutions": [3],
    "ch": CHANNELS,
    "ch_mult": [1, 1, 1, 1],
    "codebook_size": CODES,
    "double_z": False,
    "dropout": 0.0,
    "embed_dim": 4,
    "in_channels": 3,
    "model_type": "Emu3VisionVQ",
    "num_res_blocks": 1,
    "out_channels": 3,
    "temporal_downsample_factor": 4,
    "torch_dtype": "float32",
    "z_channels": 4,
}
_PREPROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Emu3VisionVQImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_pixels": 1048576,
    "min_pixels": 262144,
    "resample": 3,
    "rescale_factor": 1.0 / 255.0,
    "spatial_factor": 8,
}
# Orders of magnitude of the public statistics, so that a random arm moves as far as a trained one.
_STATISTICS = {
    "norm_stats": {
        "bridge_robot": {
            "mean": [0.0] * 6 + [0.6],
            "std": [0.01, 0.014, 0.013, 0.03, 0.03, 0.08, 0.5],
            "q01": [-0.0289, -0.0418, -0.0261, -0.0812, -0.0931, -0.2078, 0.0],
            "q99": [0.0282, 0.0408, 0.0402, 0.0807, 0.0775, 0.2017, 1.0],
        }
    }
}


def write_tiny_univla(folder: Path) -> None:
    """Write the whole checkpoint into `folder`, an existing empty one: about 24 MB, the same on every call."""
    _write_json(folder / "config.json", _config())
    _write_json(folder / "norm_stats.json", _STATISTICS)
    _write_text_tokenizer(folder)
    _write_policy(folder)
    vision, fast = folder / "vision_tokenizer", folder / "fast_bridge_t5_s50"
    vision.mkdir()
    _write_json(vision / "config.json", _VISION)
    _write_json(vision / "preprocessor_config.json", _PREPROCESSOR)
    _write_vision(vision)
    fast.mkdir()
    _write_fast_tokenizer(fast)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _config() -> dict[str, Any]:
    """UniVLA's config.json with small sizes."""
    return {
        "architectures": ["Emu3MoE"],
        "action_experts": False,
        "attention_dropout": 0.1,
        "boa_token_id": 151844,
        "boi_token_id": 151852,
        "bos_token_id": 151849,
        "bov_token_id": 151854,
        "eof_token_id": 151847,
        "eoi_token_id": 151853,
        "eol_token_id": 151846,
        "eos_token_id": 151850,
        "eov_token_id": 151854 + CODES - 1,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "image_area": 262144,
        "img_token_id": 151851,
        "initializer_range": STD,
        "intermediate_size": 2 * HIDDEN,
        "max_position_embeddings": 2400,
        "model_type": "Emu3",
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2,
        "pad_token_id": 151643,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vision_loss_weight": 0.5,
        "vocab_size": TEXT_TOKENS + SPECIAL_TOKENS + len(VISION_TOKENS) + CODES,
    }


def _write_text_tokenizer(folder: Path) -> None:
    """All bytes, some merges, and byte strings of no text, so that every id after them has its real place."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += list(_merges(200))
    tokens += [b"\xff" + i.to_bytes(3, "big") for i in range(TEXT_TOKENS - len(tokens))]
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    (folder / "emu3.tiktoken").write_text("\n".join(lines) + "\n", encoding="ascii")
    vision = (*VISION_TOKENS, *(f"<|visual token {code:06}|>" for code in range(CODES)))
    (folder / "emu3_vision_tokens.txt").write_text("\n".join(vision) + "\n", encoding="ascii")


def _merges(count: int) -> Iterator[bytes]:
    """Byte-pair encoding of the sentences: the most frequent pair of neighbours, again and again."""
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
    pieces = [piece.encode() for text in _SENTENCES for piece, _ in split.pre_tokenize_str(text)]
    words = Counter(tuple(piece[i : i + 1] for i in range(len(piece))) for piece in pieces)
    for _ in range(count):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        if not pairs:
            return
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        yield best[0] + best[1]
        words = Counter({_join(word, best): times for word, times in words.items()})


def _join(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    parts = list(word)
    for i in range(len(parts) - 1, 0, -1):
        if i < len(parts) and (parts[i - 1], parts[i]) == pair:
            parts[i - 1 : i + 1] = [pair[0] + pair[1]]
    return tuple(parts)


def _write_fast_tokenizer(folder: Path) -> None:
    """A FAST tokenizer of the published size, trained on the spellings of smooth random chunks and of every code."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    codes = [chr(code) for code in range(1 - 2 * FAST_MIN_TOKEN)]
    trainer = trainers.BpeTrainer(
        vocab_size=FAST_VOCABULARY, min_frequency=2, initial_alphabet=codes, max_token_length=10000,
        show_progress=False,
    )  # fmt: skip
    rng = np.random.default_rng(SEED)
    tokenizer.train_from_iterator([*codes, *(_spell(_chunk(rng)) for _ in range(4000))], trainer)
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


def _chunk(rng: np.random.Generator) -> NDArray[np.float64]:
    """Normalised actions [5, 7]: small, smooth steps and a gripper that is shut or open."""
    motion = np.clip(rng.normal(0, 0.4, 6) + np.cumsum(rng.normal(0, 0.1, (HORIZON, 6)), axis=0), -1, 1)
    return np.concatenate([motion, np.full((HORIZON, 1), rng.choice((-1.0, 1.0)))], axis=1)


def _spell(actions: NDArray[np.float64]) -> str:
    coefficients = np.around(dct(actions, axis=0, norm="ortho") * FAST_SCALE).astype(int)
    return "".join(chr(c - FAST_MIN_TOKEN) for c in coefficients.ravel())


def _write_policy(folder: Path) -> None:
    """Two shards and their index, bfloat16; embedding and head are not tied."""
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config = {name: value for name, value in _config().items() if name in names}
    with torch.device("meta"):
        model = Emu3ForCausalLM(Emu3TextConfig(**config, num_hidden_layers=LAYERS))
    tensors = {name: _random(name, value, STD).to(torch.bfloat16) for name, value in model.state_dict().items()}
    shards: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, tensor in tensors.items():
        shards[0 if name.startswith("model.embed_tokens.") else 1][name] = tensor
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in sorted(shard)}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _write_vision(folder: Path) -> None:
    """One file, float32, under the published names; attention projects by 1x1 convolutions there."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    with torch.device("meta"):
        model = Emu3VQVAE(
            Emu3VQVAEConfig(
                codebook_size=CODES, base_channels=CHANNELS, channel_multiplier=[1, 1, 1, 1], num_res_blocks=1,
                hidden_size=CHANNELS,
            )
        )  # fmt: skip
    tensors = {published(name): _vision_weight(name, value) for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def published(name: str) -> str:
    """Published name of a weight of the stock Emu3VQVAE."""
    for stock, original in _PUBLISHED.items():
        name = name.replace(stock, original)
    head, _, tail = name.partition(".attn_norms.")
    index, _, rest = tail.partition(".")
    return f"{head}.attn.{index}.norm.{rest}" if tail else name


_PUBLISHED: Mapping[str, str] = {
    "down_block.down": "down", "up_block.up": "up", "middle_block.attn_norm": "mid.attn_1.norm",
    "middle_block": "mid", "q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "proj_out",
}  # fmt: skip


def _vision_weight(name: str, like: Tensor) -> Tensor:
    """Norms as new; a layer's weights as large as keep its numbers of the order of 1; codes of that order too."""
    if like.dtype == torch.int64:
        return torch.zeros(like.shape, dtype=torch.int64)
    if name.endswith(("running_mean", "bias")):
        return torch.zeros(like.shape)
    if like.dim() < 2:  # scales and variances of norms
        return torch.ones(like.shape)
    spread = 1.0 if "quantize" in name else like[0].numel() ** -0.5
    if name.startswith("quant_conv"):
        spread *= 16.0  # what the convolutions along time have left is far below the codes' distances
    weight = _random(name, like, spread)
    return weight[..., None, None] if "_proj" in name else weight


def _random(name: str, like: Tensor, deviation: float) -> Tensor:
    """Norms 1, the rest normal: with the usual deviation of 0.02 attention is uniform and DTP prunes all or none."""
    if name.endswith("norm.weight"):
        return torch.ones(like.shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEED)
    return torch.randn(like.shape, generator=generator) * deviation

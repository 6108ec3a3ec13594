"""A tiny random SpatialVLA checkpoint in the published layout: same files, same names, small weights and vocabulary."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import norm
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from dtp_ros.models.checkpoint import blank_model
from dtp_ros.models.spatialvla_network import SpatialVlaConfig, SpatialVlaNetwork

SEED = 7
TEXT_TOKENS = 640  # PaliGemma: 256000
LOCATIONS, SEGMENTS = 1024, 128  # PaliGemma's own extra tokens, unused here
IMAGE_ID = TEXT_TOKENS + LOCATIONS + SEGMENTS
FIRST_ACTION_ID = IMAGE_ID + 1
BINS = {"theta": 16, "phi": 32, "r": 8, "roll": 16, "pitch": 16, "yaw": 16}
ACTIONS = 16 * 32 * 8 + 16**3 + 2
LAYERS = 8
HIDDEN = 64
STD = 0.2

_SENTENCES = (
    "What action should the robot take to", "put the spoon on the towel", "put the carrot on the plate",
    "put the eggplant in the yellow basket", "stack the green block on the yellow block",
    "pick up the red cup and move it to the left of the pot", "take the knife out of the sink", "open the drawer",
    "close the microwave", "wipe the table with the cloth",
)  # fmt: skip


def write_tiny_spatialvla(folder: Path) -> None:
    """Write the whole checkpoint into `folder`, an existing empty one: about 6 MB, the same on every call."""
    _write_json(folder / "config.json", _CONFIG)
    _write_json(folder / "generation_config.json", _GENERATION)
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    _write_json(folder / "processor_config.json", _processor())
    _write_tokenizer(folder)
    _write_weights(folder)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


_CONFIG = {
    "architectures": ["SpatialVLAForConditionalGeneration"],
    "model_type": "spatialvla",
    "torch_dtype": "bfloat16",
    "_vocab_size": FIRST_ACTION_ID + ACTIONS,
    "action_token_begin_idx": FIRST_ACTION_ID,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "ego3d_patch_reso": 2,
    "n_freqs": 8,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "image_token_index": IMAGE_ID,
    "projection_dim": HIDDEN,
    "spatial_token_num": ACTIONS,
    "use_spatial_token": True,
    "use_vision_zoe": True,
    "text_config": {
        "_attn_implementation_autoset": True,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 107],
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "num_image_tokens": 256,
        "tie_word_embeddings": False,
        "vocab_size": FIRST_ACTION_ID + ACTIONS,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "torch_dtype": "bfloat16",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_image_tokens": 256,
        "num_positions": 256,
        "patch_size": 14,
        "projection_dim": HIDDEN,
        "vision_use_head": False,
    },
    "vision_zoe_config": {
        "model_type": "zoedepth",
        "architectures": ["ZoeDepthForDepthEstimation"],
        "torch_dtype": "bfloat16",
        "backbone": None,
        "backbone_config": {
            "model_type": "beit",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "image_size": 384,
            "patch_size": 16,
            "drop_path_rate": 0.1,
            "layer_scale_init_value": 0.1,
            "use_relative_position_bias": True,
            "reshape_hidden_states": False,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "out_indices": [1, 2, 3, 4],
        },
        "backbone_hidden_size": 32,
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "bottleneck_features": 8,
        "bin_embedding_dim": 8,
        "num_relative_features": 4,
        "num_patch_transformer_layers": 4,  # this and the hidden size are fixed in transformers
        "patch_transformer_hidden_size": 128,
        "patch_transformer_intermediate_size": 16,
        "patch_transformer_num_attention_heads": 2,
        "bin_configurations": [
            {"max_depth": 10.0, "min_depth": 0.001, "n_bins": 64, "name": "nyu"},
            {"max_depth": 80.0, "min_depth": 0.001, "n_bins": 64, "name": "kitti"},
        ],
    },
}
_GENERATION = {"bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1, "pad_token_id": 0}
_PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "processor_class": "SpatialVLAProcessor",
    "do_convert_rgb": None,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_seq_length": 256,
    "resample": 3,
    "rescale_factor": 1.0 / 255.0,
    "size": {"height": 224, "width": 224},
}
_ACTION_MASK = [True] * 6 + [False]
# Orders of magnitude of the public statistics, so that a random arm moves as far as a trained one.
_STATISTICS = {
    "bridge_orig/1.0.0": {
        "action": {
            "q01": [-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072, 0.0],
            "q99": [0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038, 1.0],
            "mask": _ACTION_MASK,
        }
    },
    "fractal20220817_data/0.1.0": {
        "action": {
            "q01": [-0.2245, -0.1482, -0.2316, -0.3517, -0.4193, -0.4364, 0.0],
            "q99": [0.1782, 0.1494, 0.2184, 0.5893, 0.3527, 0.4479, 1.0],
            "mask": _ACTION_MASK,
        }
    },
}
# Low end, high end, mean and deviation of the Gaussians whose quantiles are the cells' borders.
_GAUSSIANS = {
    "theta": (0.0, np.pi, 1.8, 0.8), "phi": (-np.pi, np.pi, 0.15, 1.6), "r": (0.0, 3**0.5, 0.6, 0.5),
    "roll": (-1.0, 1.0, 0.0, 0.5), "pitch": (-1.0, 1.0, 0.05, 0.5), "yaw": (-1.0, 1.0, 0.01, 0.5),
}  # fmt: skip


def _processor() -> dict[str, Any]:
    camera = {"height": 480, "width": 640, "intrinsic": [[623.588, 0, 319.501], [0, 623.588, 239.545], [0, 0, 1]]}
    kinds = {"translation": ("theta", "phi", "r"), "rotation": ("roll", "pitch", "yaw")}
    bins = {kind: {f"{axis}_bins": BINS[axis] for axis in axes} for kind, axes in kinds.items()}
    return {
        "processor_class": "SpatialVLAProcessor",
        "action_chunk_size": 4,
        "num_obs_steps": 1,
        "obs_delta": 1,
        "min_sigma": 0.0,
        "action_config": {
            "distribution": "gaussian",
            "num_bins": {**bins, "gripper": 2, "total": ACTIONS},
            "use_spherical": True,
        },
        "bin_policy": {kind: {f"{axis}_bins": _borders(axis) for axis in axes} for kind, axes in kinds.items()},
        "intrinsic_config": {"bridge_orig/1.0.0": camera, "default": camera},
        "statistics": _STATISTICS,
    }


def _borders(axis: str) -> list[float]:
    low, high, mean, deviation = _GAUSSIANS[axis]
    gaussian = norm(mean, deviation)
    borders = gaussian.ppf(np.linspace(gaussian.cdf(low), gaussian.cdf(high), BINS[axis] + 1))
    return [float(border) for border in np.clip(borders, low, high)]


def _write_tokenizer(folder: Path) -> None:
    """A small BPE with Gemma's spaces, bytes and added tokens; PaliGemma's extra tokens and the actions after it."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    plain = ["<mask>", "\n", "\n\n", "▁▁"]
    pieces = [*special, *plain, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # of SentencePiece, for training alone
    trainer = trainers.BpeTrainer(vocab_size=TEXT_TOKENS, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = []
    missing = TEXT_TOKENS - len(raw["model"]["vocab"])
    raw["model"]["vocab"] |= {f"<unused{i}>": TEXT_TOKENS - missing + i for i in range(missing)}
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    extra = [*(f"<loc{i:04}>" for i in range(LOCATIONS)), *(f"<seg{i:03}>" for i in range(SEGMENTS))]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=True, special=False) for token in [*plain, *extra]])
    actions = ["<image>", *(f"<ACTION{i:05}>" for i in range(ACTIONS))]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in actions])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", {**names, "additional_special_tokens": ["<image>"]})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "processor_class": "SpatialVLAProcessor",
            "add_bos_token": False,
            "add_eos_token": False,
            "additional_special_tokens": ["<image>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "spaces_between_special_tokens": False,
            **names,
        },
    )


def _published(name: str) -> str:
    """Name that a weight has in the checkpoint, which transformers of early 2025 saved."""
    name = re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)
    if ".backbone." not in name:
        return name
    for today, then in (
        (".beit.embeddings.", ".embeddings."), (".beit.layers.", ".encoder.layer."),
        (".q_proj.", ".attention.query."), (".k_proj.", ".attention.key."), (".v_proj.", ".attention.value."),
        (".o_proj.", ".output.dense."), (".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense."),
        (".relative_position_bias.relative", ".attention.attention.relative_position_bias.relative"),
    ):  # fmt: skip
        name = name.replace(today, then)
    return name


def _write_weights(folder: Path) -> None:
    """Two shards and their index, bfloat16, under the published names: language and vision first, as published."""
    with blank_model(torch.device("meta"), torch.bfloat16):
        network = SpatialVlaNetwork(SpatialVlaConfig.read(folder))
    tensors = {_published(name): _random(name, value) for name, value in network.state_dict().items()}
    shards: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, tensor in tensors.items():
        shards[0 if name.startswith(("language_model.model.", "vision_tower.", "multi_modal_")) else 1][name] = tensor
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in sorted(shard)}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


# Means of vectors: LayerNorms and layer scales leave what passes through as it is; Gemma's norms count from 1, and
# those after a layer make its share small, or rounding would grow from layer to layer; depths begin at 1.5 m.
_CENTRES = (
    (r"post_\w+_layernorm", -0.4),
    (r"(layer_norm\d|post_layernorm|layernorm_(before|after)|norm\d|head\.1)\.weight|lambda_", 1.0),
    (r"seed_bin_regressors.*conv2\.bias", 1.2),
)


def _random(name: str, like: Tensor) -> Tensor:
    """Uniform numbers, which are the same bits on every machine, around 0 (norms: around what leaves as it is).

    The language model's deviate by 0.2: with the usual 0.02 attention is uniform and DTP prunes all or none. The depth
    model's keep the size of what passes through, and its bins begin at 1.5 m: far depths would magnify rounding.
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), SEED])
    unit = (2.0 * rng.random(like.shape) - 1.0) * 3**0.5
    centre, spread = 0.0, STD
    if like.dim() == 1:
        centre, spread = next((value for pattern, value in _CENTRES if re.search(pattern, name)), 0.0), 0.1
    elif not name.startswith("language_model"):
        spread = (1.5 if "seed_bin_regressors" in name else 1.0) * like[0].numel() ** -0.5
    return torch.from_numpy(centre + spread * unit).to(torch.bfloat16)

"""A tiny random pi0-FAST checkpoint in LeRobot's layout: same files, same names, small weights."""

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
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

SEED = 11
STD = 0.2
HORIZON = 10
TEXT_VOCABULARY = 512
PATCH = 14
TOKENS_A_SIDE = 16
# As the FAST tokenizer that pi0fast-libero was trained with: fitted to chunks normalised by mean and deviation.
FAST_VOCABULARY, FAST_SCALE, FAST_MIN_TOKEN = 1024, 10, -203
LOCATIONS, SEGMENTS = 1024, 128  # PaliGemma's last tokens; FAST skips the segments and reuses what is before them
HIDDEN, LAYERS, MLP, HEADS, HEAD_DIM = 64, 18, 128, 4, 16
VISION_HIDDEN, VISION_LAYERS, VISION_MLP = 32, 2, 64
EMBEDDINGS = 3072
CORE = "paligemma_with_expert.paligemma."
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")

_SENTENCES = (
    "Task: put the spoon on the towel, State: 128 0 255 -1 64;\n", "Action: |",
    "put the carrot on the plate", "put the eggplant in the yellow basket",
    "stack the green block on the yellow block", "pick up the red cup and move it to the left of the pot",
    "take the knife out of the sink", "open the drawer", "close the microwave", "wipe the table with the cloth",
)  # fmt: skip

# Orders of magnitude of LIBERO's: states in m, rad and finger positions, actions in units of its controller.
_STATISTICS = {
    "observation.state": {
        "mean": [-0.047, 0.034, 0.765, 2.972, -0.221, -0.126, 0.027, -0.027],
        "std": [0.105, 0.151, 0.378, 0.344, 0.906, 0.325, 0.014, 0.014],
        "min": [-0.483, -0.331, 0.008, 0.353, -3.641, -1.842, -0.001, -0.043],
        "max": [0.210, 0.391, 1.366, 3.673, 3.561, 1.387, 0.042, 0.001],
    },
    "action": {
        "mean": [0.063, 0.087, -0.090, 0.001, 0.006, -0.005, -0.050],
        "std": [0.336, 0.378, 0.445, 0.039, 0.063, 0.078, 0.999],
        "min": [-0.938, -0.938, -0.938, -0.258, -0.375, -0.368, -1.0],
        "max": [0.938, 0.938, 0.938, 0.356, 0.375, 0.375, 1.0],
    },
}
_NORM_MAP = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
_STATE_FILES = (
    "policy_preprocessor_step_3_normalizer_processor.safetensors",
    "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
)


def write_tiny_pi0_fast(folder: Path) -> None:
    """Write the whole checkpoint into `folder`, an existing empty one: about 4 MB, the same on every call."""
    _write_json(folder / "config.json", _config())
    for name, pipeline in _pipelines().items():
        _write_json(folder / f"{name}.json", pipeline)
    tensors = {
        f"{feature}.{name}": torch.tensor(values)
        for feature, statistics in _STATISTICS.items()
        for name, values in statistics.items()
    }
    for file in _STATE_FILES:
        save_file(tensors, folder / file)
    for name in ("tokenizer", "action_tokenizer"):
        (folder / name).mkdir()
    _write_text_tokenizer(folder / "tokenizer")
    _write_fast_tokenizer(folder / "action_tokenizer")
    weights = {name: _random(name, shape) for name, shape in _shapes().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _features() -> dict[str, Any]:
    cameras = ("base_0_rgb", "left_wrist_0_rgb", "empty_camera_0")
    views = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 224, 224]} for name in cameras}
    # As published: the state's size here is the padded one, the statistics have the true one.
    return {**views, "observation.state": {"type": "STATE", "shape": [32]}}


def _config() -> dict[str, Any]:
    """config.json of pi0fast-libero, as far as inference reads it; only the variant is ours."""
    return {
        "type": "pi0_fast",
        "n_obs_steps": 1,
        "input_features": _features(),
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
        "device": "cpu",
        "use_amp": False,
        "paligemma_variant": "tiny",
        "action_expert_variant": "gemma_300m",
        "dtype": "bfloat16",
        "chunk_size": HORIZON,
        "n_action_steps": HORIZON,
        "max_state_dim": 32,
        "max_action_dim": 32,
        "max_action_tokens": 256,
        "image_resolution": [224, 224],
        "empty_cameras": 1,
        "tokenizer_max_length": 200,
        "text_tokenizer_name": "google/paligemma-3b-pt-224",
        "action_tokenizer_name": "lerobot/fast-action-tokenizer",
        "temperature": 0.0,
        "max_decoding_steps": 256,
        "fast_skip_tokens": SEGMENTS,
        "validate_action_token_prefix": True,
        "use_kv_cache": True,
        "normalization_mapping": _NORM_MAP,
    }


def _pipelines() -> dict[str, Any]:
    """The two pipelines in the order of LeRobot's steps; its tokenizers lie in folders of the checkpoint."""
    action = {"action": {"type": "ACTION", "shape": [7]}}
    normalise = {"eps": 1e-08, "features": {**_features(), **action}, "norm_map": _NORM_MAP}
    text = {"max_length": 200, "task_key": "task", "padding_side": "right", "padding": "max_length",
            "truncation": True, "tokenizer_name": "tokenizer"}  # fmt: skip
    actions = {"trust_remote_code": True, "max_action_tokens": 256, "fast_skip_tokens": SEGMENTS,
               "paligemma_tokenizer_name": "tokenizer", "action_tokenizer_name": "action_tokenizer"}  # fmt: skip
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "relative_actions_processor", "config": {"enabled": False}},
        {"registry_name": "normalizer_processor", "config": normalise, "state_file": _STATE_FILES[0]},
        {"registry_name": "pi0_fast_prepare_state_tokenizer_processor_step", "config": {}},
        {"registry_name": "tokenizer_processor", "config": text},
        {"registry_name": "action_tokenizer_processor", "config": actions},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    unnormalise = {"eps": 1e-08, "features": action, "norm_map": _NORM_MAP}
    after = [
        {"registry_name": "unnormalizer_processor", "config": unnormalise, "state_file": _STATE_FILES[1]},
        {"registry_name": "absolute_actions_processor", "config": {"enabled": False}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    return {
        name: {"name": name, "steps": steps}
        for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after))
    }


def _write_text_tokenizer(folder: Path) -> None:
    """A small BPE as PaliGemma's: spaces are U+2581, unknown characters bytes, locations and segments come last."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    taught = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    # As in Gemma's vocabulary "Action" is one token and digits stand alone; words end before the next space.
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\u2581", "merged_with_next"), pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.Punctuation("isolated")]
    )  # fmt: skip
    teacher = Tokenizer(models.BPE())
    teacher.normalizer, teacher.pre_tokenizer = tokenizer.normalizer, words
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCABULARY, special_tokens=taught, initial_alphabet=[*"\u2581\n|0123456789"],
        show_progress=False,
    )  # fmt: skip
    teacher.train_from_iterator([*_SENTENCES, *_SENTENCES[:2] * 8], trainer)
    raw, learned = json.loads(tokenizer.to_str()), json.loads(teacher.to_str())["model"]
    last = [f"<loc{i:04}>" for i in range(LOCATIONS)] + [f"<seg{i:03}>" for i in range(SEGMENTS)]
    vocabulary: dict[str, int] = dict(learned["vocab"])
    vocabulary |= {f"<unused{i}>": i for i in range(len(vocabulary), EMBEDDINGS - len(last))}
    raw["model"]["vocab"] = vocabulary | {token: EMBEDDINGS - len(last) + i for i, token in enumerate(last)}
    raw["model"]["merges"] = learned["merges"]
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in last])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
            "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
            "model_max_length": 1000000000000000019884624838656,
        },
    )  # fmt: skip


def _write_fast_tokenizer(folder: Path) -> None:
    """A FAST tokenizer of the published size, trained on the spellings of smooth random chunks of 10 actions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [chr(code) for code in range(-2 * FAST_MIN_TOKEN + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=FAST_VOCABULARY, min_frequency=2, initial_alphabet=alphabet, max_token_length=10000,
        show_progress=False,
    )  # fmt: skip
    rng = np.random.default_rng(SEED)
    tokenizer.train_from_iterator([_spell(_chunk(rng)) for _ in range(1500)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "UniversalActionProcessor",
            "scale": FAST_SCALE,
            "vocab_size": FAST_VOCABULARY,
            "min_token": FAST_MIN_TOKEN,
            "action_dim": 7,
            "time_horizon": HORIZON,
        },
    )


def _chunk(rng: np.random.Generator) -> NDArray[np.float64]:
    """Normalised actions [HORIZON, 7]: smooth, of deviation about 1, and a gripper that rarely changes."""
    start = rng.normal(0, 0.8, 6)
    motion = start + np.cumsum(rng.normal(0, 0.15, (HORIZON, 6)), axis=0)
    gripper = np.where(np.arange(HORIZON) < rng.integers(HORIZON * 2), 1.0, -1.0) * rng.choice([-1.0, 1.0])
    return np.concatenate([np.clip(motion, -3, 3), gripper[:, None]], axis=1)


def _spell(actions: NDArray[np.float64]) -> str:
    coefficients = np.around(dct(actions, axis=0, norm="ortho") * FAST_SCALE).astype(int)
    return "".join(chr(c - FAST_MIN_TOKEN) for c in coefficients.ravel())


def _shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of LeRobot's weights; it saves the head, which the embedding is tied to."""
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (EMBEDDINGS, HIDDEN)}
    shapes |= _layer("model.multi_modal_projector.linear", HIDDEN, VISION_HIDDEN)
    vision = "model.vision_tower.vision_model."
    shapes[f"{vision}embeddings.patch_embedding.weight"] = (VISION_HIDDEN, 3, PATCH, PATCH)
    shapes[f"{vision}embeddings.patch_embedding.bias"] = (VISION_HIDDEN,)
    shapes[f"{vision}embeddings.position_embedding.weight"] = (TOKENS_A_SIDE**2, VISION_HIDDEN)
    for i in range(VISION_LAYERS):
        block = f"{vision}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{block}self_attn.{name}", VISION_HIDDEN, VISION_HIDDEN)
        shapes |= _layer(f"{block}mlp.fc1", VISION_MLP, VISION_HIDDEN) | _layer(
            f"{block}mlp.fc2", VISION_HIDDEN, VISION_MLP
        )
        shapes |= _layer(f"{block}layer_norm1", VISION_HIDDEN) | _layer(f"{block}layer_norm2", VISION_HIDDEN)
    shapes |= _layer(f"{vision}post_layernorm", VISION_HIDDEN)
    text = "model.language_model."
    for i in range(LAYERS):
        block = f"{text}layers.{i}."
        shapes[f"{block}self_attn.q_proj.weight"] = (HEADS * HEAD_DIM, HIDDEN)
        shapes[f"{block}self_attn.k_proj.weight"] = shapes[f"{block}self_attn.v_proj.weight"] = (HEAD_DIM, HIDDEN)
        shapes[f"{block}self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[f"{block}mlp.gate_proj.weight"] = shapes[f"{block}mlp.up_proj.weight"] = (MLP, HIDDEN)
        shapes[f"{block}mlp.down_proj.weight"] = (HIDDEN, MLP)
        shapes[f"{block}input_layernorm.weight"] = shapes[f"{block}post_attention_layernorm.weight"] = (HIDDEN,)
    shapes[f"{text}norm.weight"] = (HIDDEN,)
    return {f"model.{CORE}{name}": shape for name, shape in shapes.items()}


def _layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    """Norms 1 (Gemma adds 1 to a 0), the rest normal: with a deviation of 0.02 attention is uniform and DTP prunes all.

    The embedding is smaller by sqrt(hidden), by which Gemma multiplies it: text and image tokens are then alike. Vision
    tower and norms are float32, the rest bfloat16, as LeRobot trains and saves them.
    """
    precise = any(part in name for part in ("vision_tower", "multi_modal_projector", "norm"))
    kind = torch.float32 if precise else torch.bfloat16
    if "norm" in name and name.endswith(".weight"):
        return torch.full(shape, 1.0 if "vision_tower" in name else 0.0, dtype=kind)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEED)
    return (torch.randn(shape, generator=generator) * STD).to(kind)

"""What the original SpatialVLA gives on the package's tiny checkpoint: test/models/dumps/spatialvla.npz.

The original is github.com/SpatialVLA/SpatialVLA at commit e48075326a92116adaaf1232cf01471f15f09a73, folder `model`
(the same files as the remote code of the checkpoints). It needs an environment of its own, Python 3.11 with

    torch==2.13.0 torchvision==0.28.0 transformers==4.47.0 tokenizers==0.21.0 numpy==1.26.4 scipy==1.14.1
    pillow==11.0.0 opencv-python-headless==4.10.0.84

(upstream pins torch 2.5.1; a CPU build serves). First, in the package's environment, write the checkpoint; then, in the
other, run the original on it, in float32, eager attention, greedy, under the same masks of allowed tokens:

    python -c "import pathlib, dtp_ros.models.tiny_spatialvla as t; t.write_tiny_spatialvla(pathlib.Path('tiny'))"
    python tools/dump_reference/spatialvla.py <upstream> tiny test/models/dumps/spatialvla.npz
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

COMMIT = "e48075326a92116adaaf1232cf01471f15f09a73"
TOKENS = 12
KEPT = 16  # every 16th action token's logit is kept of each generated token, all tokens' of the first

# instruction as the tokenizer gets it, statistics, resize before the processor, camera matrix of the 640x480 picture
CASES: tuple[tuple[str, str, bool, list[list[float]] | None], ...] = (
    ("put the carrot on the plate", "bridge_orig/1.0.0", True, None),
    (
        "What action should the robot take to pick up the red cup  and open\nthe drawer?",
        "fractal20220817_data/0.1.0",
        False,
        [[912.5, 0.0, 300.25], [0.0, 905.0, 251.5], [0.0, 0.0, 1.0]],
    ),
)


def picture(seed: int) -> NDArray[np.uint8]:
    """Blocks, a ramp and some noise, uint8 [480, 640, 3], by integer arithmetic: the same everywhere."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 180, (6, 8, 3)), np.ones((80, 80, 1), dtype=np.int64))
    ramp = (np.arange(640) // 12)[None, :, None] + rng.integers(0, 20, (480, 640, 1))
    return (blocks + ramp).astype(np.uint8)


def allowed(first: int, ordered: bool) -> Callable[[int], range]:
    """Ids that token i may have: any action, or (ordered) translation, rotation and gripper in turn."""
    kinds = range(first, first + 4096), range(first + 4096, first + 8192), range(first + 8192, first + 8194)
    return lambda i: kinds[i % 3] if ordered else range(first, first + 8194)


def lend_torchvision_its_operators() -> Any:
    """Let torchvision, of which the original uses `normalize` only, import beside a CPU build of torch."""
    make: Any = torch.library.Library
    library = make("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def load_original(upstream: Path, checkpoint: Path) -> tuple[Any, Any]:
    """The original's model and processor; raises SystemExit where a weight is missing or left over."""
    sys.path.insert(0, str(upstream))
    modeling = importlib.import_module("model.modeling_spatialvla")
    processing = importlib.import_module("model.processing_spatialvla")
    model = modeling.SpatialVLAForConditionalGeneration.from_pretrained(checkpoint, torch_dtype=torch.float32)
    names = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"].keys()
    if names != model.state_dict().keys():
        raise SystemExit(f"weights that differ: {sorted(names ^ model.state_dict().keys())}")
    attention = model.language_model.config._attn_implementation
    if attention != "eager":
        raise SystemExit(f"attention is {attention!r}, which leaves out the softcap (needed: eager)")
    return model.eval(), processing.SpatialVLAProcessor.from_pretrained(checkpoint)


def main(upstream: Path, checkpoint: Path, out: Path) -> None:
    """Write the dump."""
    library = lend_torchvision_its_operators()
    model, processor = load_original(upstream, checkpoint)
    first = processor.action_tokenizer.action_token_begin_idx
    arrays: dict[str, Any] = {"commit": COMMIT, "cases": len(CASES)}
    for case in range(len(CASES)):
        found = run_case(model, processor, first, case)
        arrays |= {f"{name}_{case}": value for name, value in found.items()}
    np.savez_compressed(out, **arrays)
    del library


def run_case(model: Any, processor: Any, first: int, case: int) -> dict[str, Any]:
    """Inputs, intermediate results, logits, tokens and actions of one case."""
    from PIL import Image

    text, key, resize, camera = CASES[case]
    image = picture(case)
    if resize:  # as the original's policy for SIMPLER
        image = np.asarray(cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    inputs = processor(
        images=[Image.fromarray(image)], text=text, unnorm_key=key, return_tensors="pt", do_normalize=False
    )
    if camera is not None:
        inputs["intrinsic"] = torch.tensor(camera) * torch.tensor([[224 / 640], [224 / 480], [1.0]])
    seen: dict[str, Any] = {}
    original = type(model).backproject_patch

    def back_project(intrinsic: Any, depth: Any, **sizes: Any) -> Any:
        seen["depth"], seen["points"] = depth, original(model, intrinsic, depth, **sizes)
        return seen["points"]

    model.backproject_patch = back_project
    with torch.no_grad():
        tokens = model.get_image_features(inputs["pixel_values"], inputs["intrinsic"])
    found = {
        "ids": inputs["input_ids"][0].numpy(), "pixels": inputs["pixel_values"][0, :, ::8, ::8].numpy(),
        "depth": seen["depth"][0, 0, ::8, ::8].numpy(), "points": seen["points"][0].numpy(),
        "tokens": tokens[0].numpy(),
    }  # fmt: skip
    for name, ordered in (("any", False), ("ordered", True)):
        ids, logits = generate(model, inputs, allowed(first, ordered))
        found |= {f"{name}_ids": ids, f"{name}_logits": logits[:, first::KEPT], "first_logits": logits[0]}
    actions = processor.decode_actions(torch.from_numpy(found["ordered_ids"])[None], unnorm_key=key)
    return {**found, "actions": actions["actions"]}


def generate(model: Any, inputs: Any, may: Callable[[int], range]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Greedy ids [12] among the allowed ones, and the logits [12, vocabulary] before the mask."""
    length = inputs["input_ids"].shape[1]

    def mask(ids: Any, scores: Any) -> Any:
        masked = torch.full_like(scores, -torch.inf)
        permitted = may(ids.shape[1] - length)
        masked[:, permitted.start : permitted.stop] = scores[:, permitted.start : permitted.stop]
        return masked

    with torch.no_grad():
        output = model.generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, logits_processor=[mask],
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    return output.sequences[0, length:].numpy(), torch.cat(output.logits).float().numpy()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))

"""Run the original NORA on our tiny random checkpoint, and keep what it gave: test/models/dumps/nora.npz.

The original is github.com/declare-lab/nora at 6b18c23d7875052e03fba4f8c2f32bd6a8a5c4a9: the class `Nora` of
inference/nora.py (loading, prompt, processor, generation, decoding, statistics) and the pictures of its WidowX client
(experiments/bridge/bridge_utils.py). It runs in an environment of its own, with the versions that its requirements name
and, where they name none, those of then (Python 3.10, no GPU):

    pip install torch==2.4.0 torchvision==0.19.0 transformers==4.50.0 tokenizers==0.21.4 accelerate==1.5.2 \
        qwen_vl_utils==0.0.11 av==17.1.0 scipy==1.15.3 numpy==1.26.4 pillow==12.3.0 tensorflow-cpu==2.15.0

    python -c "import pathlib, dtp_ros.models.tiny_nora as t; t.write_tiny_nora(pathlib.Path('<checkpoint>'))"
    <its python> tools/dump_reference/nora.py <nora> <fast> <checkpoint> test/models/dumps/nora.npz

<fast>: the files of the hub's physical-intelligence/fast, code included, which NORA downloads. The hub is out of reach
here; github.com/baaivision/UniVLA at fbde41b3eaead4908df5658dca94bdfc624422dd keeps a copy in pretrain/fast. In it
`decode` pads or cuts chunks of a wrong length, where the hub's gives zeros: only chunks of the right length are kept.

What is put in the original's way: the two downloads (FAST folder, norm_stats.json) come from disk; the processor gets
the tokenizer's chat template, since the tiny checkpoint has no chat_template.json; the robot's modules are mocks. Not
run: bfloat16 and CUDA. `Nora` takes device and type as arguments: the CPU and float32.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from numpy.typing import NDArray

INSTRUCTIONS = ("put the spoon on the towel", "Stack the Green block on the yellow block, NOW!", "naïve café ☕ 3")
STATISTICS = ("bridge_orig", "fractal20220817_data", "bridge_orig")
SIZES = ((480, 640), (224, 224), (100, 301))
HORIZONS = (1, 1, 5)
"""1 as `Nora` sets it, 5 as its WidowX client does for nora-long."""
FIRST_ACTION_ID, VOCABULARY, END_IDS = 151665, 153713, (151645, 151643)
ACTION_STRIDE, OTHER_STRIDE = 8, 400
"""Of every token's logits these are kept; of the first token's all actions and every 50th."""


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """A picture without random numbers, uint8 [height, width, 3]: stripes, a slope and squares of different colours."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    planes = [(x * 3 + y) % 256, (y * y // 97 + x // 5) % 256, ((x // 40 + y // 32) % 3 * 90 + (x * y) % 23) % 256]
    return np.stack(planes, axis=-1).astype(np.uint8)


def chunk(case: int) -> NDArray[np.float64]:
    """Normalised actions [horizon, 7] of a case, within [-1, 1]; the gripper beyond 0 ... 1 where there is room."""
    time = np.arange(HORIZONS[case])[:, None] / 5
    start = np.roll([0.5, -0.3, 0.2, -0.1, 0.05, 0.6], case)
    gripper = (1.0, -0.3, 0.4)[case]
    return np.clip(np.append(start, gripper) * (1 - 0.5 * time) + 0.1 * time, -1, 1)


def load_original(source: Path, fast: Path, checkpoint: Path) -> Any:
    """The original's `Nora` on the CPU in float32, from the tiny checkpoint; SystemExit where the weights differ."""
    sys.path.insert(0, str(source / "inference"))
    module: Any = importlib.import_module("nora")
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    auto = module.AutoProcessor

    def from_disk(name: str, **options: Any) -> Any:
        return auto.from_pretrained(fast if name == "physical-intelligence/fast" else name, **options)

    module.AutoProcessor = SimpleNamespace(from_pretrained=from_disk)
    module.hf_hub_download = lambda repo_id, filename: checkpoint / filename
    nora = module.Nora(str(checkpoint), device="cpu", torch_dtype=torch.float32)
    nora.processor.chat_template = nora.processor.tokenizer.chat_template
    names = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"].keys()
    if names ^ nora.model.state_dict().keys() != {"lm_head.weight"}:
        raise SystemExit(f"weights that differ: {sorted(names ^ nora.model.state_dict().keys())}")
    return nora


def tiny_fast(fast: Path, checkpoint: Path, place: Path) -> Path:
    """The hub's FAST folder with the tiny checkpoint's vocabulary; SystemExit where their constants differ."""
    shutil.copytree(fast, place)
    shutil.copy(checkpoint / "fast/tokenizer.json", place)
    theirs, ours = (json.loads((p / "processor_config.json").read_text()) for p in (place, checkpoint / "fast"))
    if any(theirs[key] != value for key, value in ours.items()):
        raise SystemExit(f"FAST constants differ: {theirs} and {ours}")
    return place


class Recorder:
    """Stands in for `model.generate`: the same call with more options, its inputs, raw logits and tokens kept."""

    def __init__(self, model: Any) -> None:
        self._generate = model.generate
        self.options: dict[str, Any] = {}
        self.forced: list[int] = []
        self.inputs: dict[str, Any] = {}
        self.prefill: dict[str, Any] = {}
        self.tokens: NDArray[np.int64] = np.zeros(0, np.int64)
        self.logits: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        model.model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["inputs_embeds"].shape[1] > 1:
            self.prefill = {name: kwargs[name].numpy() for name in ("inputs_embeds", "position_ids")}

    def __call__(self, **inputs: Any) -> Any:
        """Sequences int64 [1, prompt + tokens], as `generate` gives them."""
        length = inputs["input_ids"].shape[1]
        options = dict(self.options)
        if self.forced:
            options |= {
                "prefix_allowed_tokens_fn": lambda _, ids: [self.forced[len(ids) - length]],
                "max_new_tokens": len(self.forced),
            }
        result = self._generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
        self.inputs = inputs
        self.tokens = result.sequences[0, length:].numpy()
        self.logits = np.stack([row[0].float().numpy() for row in result.logits])
        return result.sequences


def run(nora: Any, recorder: Recorder, case: int) -> dict[str, Any]:
    """What the original gives for a case: free and restricted to actions, each with and without repetition penalty.

    The checkpoint's generation_config.json asks for that penalty, so `published` is the original as it stands.
    """
    image, instruction = picture(*SIZES[case]), INSTRUCTIONS[case]
    allowed = [*END_IDS, *range(FIRST_ACTION_ID, VOCABULARY)]
    plain: dict[str, Any] = {"repetition_penalty": 1.0}
    only: dict[str, Any] = {"prefix_allowed_tokens_fn": lambda *_: allowed}
    found: dict[str, Any] = {}
    runs = {"published": {}, "penalised": only, "free": plain, "restricted": plain | only}
    for name, recorder.options in runs.items():
        nora.inference(image, instruction, unnorm_key=STATISTICS[case])
        found[f"{name}_ids"] = recorder.tokens
        if "repetition_penalty" in recorder.options:
            found[f"{name}_logits"] = recorder.logits[:, FIRST_ACTION_ID:VOCABULARY:ACTION_STRIDE]
            found[f"{name}_others"] = recorder.logits[:, ::OTHER_STRIDE]
    recorder.options = {}
    return found | {
        "input_ids": recorder.inputs["input_ids"][0].numpy(),
        "pixels": recorder.inputs["pixel_values"][::9, ::11].numpy(),
        "embeddings": recorder.prefill["inputs_embeds"][0, ::5],
        "positions": recorder.prefill["position_ids"][:, 0],
        "first_logits": recorder.logits[0, FIRST_ACTION_ID:VOCABULARY],
        "first_others": recorder.logits[0, ::50],
    }


def decoded(nora: Any, recorder: Recorder, case: int) -> dict[str, Any]:
    """Actions of a chunk that is forced on the original, since random weights seldom give one that decodes."""
    nora.fast_tokenizer.time_horizon = HORIZONS[case]
    fast_ids = nora.fast_tokenizer(chunk(case))[0]
    recorder.forced = [*(FIRST_ACTION_ID + i for i in fast_ids), END_IDS[0]]
    image, instruction, key = picture(*SIZES[case]), INSTRUCTIONS[case], STATISTICS[case]
    found = {
        "normalised": nora.inference(image, instruction, unnormalizer=lambda actions: actions)[0],
        "action": nora.inference(image, instruction, unnorm_key=key),
        "chunk_ids": recorder.tokens,
    }
    nora.fast_tokenizer.time_horizon = 1
    recorder.forced = []
    return found


def client(source: Path, nora: Any, recorder: Recorder, case: int) -> dict[str, Any]:
    """The WidowX client's picture (some of its pixels, uint8), and what `Nora` makes of it and of lower case.

    `accurate`: that picture with a JPEG decoder that has libjpeg's accurate DCT, as ours has, for TensorFlow's fast
    one; `client_pixels` are of this one.
    """
    for name in ("imageio", "gym", "pyquaternion", "widowx_envs", "widowx_envs.widowx_env_service"):
        sys.modules.setdefault(name, MagicMock(Env=object))
    sys.path.insert(0, str(source / "experiments/bridge"))
    utils: Any = importlib.import_module("bridge_utils")
    widowx = utils.get_preprocessed_image({"full_image": picture(*SIZES[case])}, 224)
    fast = utils.tf.io.decode_image
    utils.tf.io.decode_image = lambda data, **_: utils.tf.io.decode_jpeg(data, dct_method="INTEGER_ACCURATE")
    accurate = utils.get_preprocessed_image({"full_image": picture(*SIZES[case])}, 224)
    utils.tf.io.decode_image = fast
    recorder.options = {"max_new_tokens": 1}
    nora.inference(accurate, INSTRUCTIONS[case].lower(), unnorm_key=STATISTICS[case])
    recorder.options = {}
    return {
        "widowx": widowx[::9, ::11],
        "accurate": accurate[::9, ::11],
        "client_ids": recorder.inputs["input_ids"][0].numpy(),
        "client_pixels": recorder.inputs["pixel_values"][::9, ::11].numpy(),
    }


def main() -> None:
    """Write the dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the original's repository")
    parser.add_argument("fast", type=Path, help="folder of the FAST tokenizer, its code included")
    parser.add_argument("checkpoint", type=Path, help="folder of the tiny checkpoint")
    parser.add_argument("out", type=Path, help="the dump to write, .npz")
    args = parser.parse_args()
    digest = hashlib.sha256()
    for path in sorted(args.checkpoint.glob("*.safetensors")):
        digest.update(path.read_bytes())
    dump: dict[str, Any] = {"weights": np.array(digest.hexdigest())}
    with tempfile.TemporaryDirectory() as place:
        nora = load_original(args.source, tiny_fast(args.fast, args.checkpoint, Path(place) / "fast"), args.checkpoint)
    nora.model.generate = recorder = Recorder(nora.model)
    for case in range(len(INSTRUCTIONS)):
        found = run(nora, recorder, case) | decoded(nora, recorder, case)
        found |= client(args.source, nora, recorder, case)
        dump |= {f"{case}_{key}": value for key, value in found.items()}
        print({key: value.tolist() for key, value in found.items() if key.endswith("_ids") or key == "action"})
    np.savez_compressed(args.out, **dump)
    print(f"wrote {args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

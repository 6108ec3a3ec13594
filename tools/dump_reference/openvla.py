"""Run the original OpenVLA on our tiny random checkpoint, and keep what it gave: test/models/dumps/openvla.npz.

The original is github.com/openvla/openvla at c8f03f48af692657d3060c19588038c7220e9af9, MIT; of it the folders
prismatic/extern and experiments, no more. It runs in an environment of its own, with the versions that it asks for
(Python 3.10, no GPU):

    pip install torch==2.2.0 torchvision==0.17.0 transformers==4.40.1 tokenizers==0.19.1 timm==0.9.10 numpy==1.26.4 \
        safetensors sentencepiece==0.1.99 protobuf tensorflow-cpu==2.15.0

    python -c "import pathlib, dtp_ros.models.tiny_openvla as t; t.write_tiny_openvla(pathlib.Path('<checkpoint>'))"
    <its python> tools/dump_reference/openvla.py <its source> <checkpoint> test/models/dumps/openvla.npz

Its loader reads the folder that our writer writes, so file names, weight names and configuration are checked too. Only
one thing is put in its way: timm's towers get the sizes of the tiny checkpoint, which timm takes as arguments. Of the
WidowX evaluation the image functions and the prompt run; the robot's own modules are not there, and stand as mocks.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np

INSTRUCTIONS = ("put the spoon on the towel", "Stack the Green block on the yellow block, NOW!", "naïve café ☕ 3")
STATISTICS = ("bridge_orig", "fractal20220817_data", "bridge_orig")
SIZES = ((480, 640), (224, 224), (100, 301))
EVALUATION = ("bridge.bridgev2_utils", "openvla_utils")
FIRST_ACTION_ID, VOCABULARY = 31744, 32000


def picture(height: int, width: int) -> Any:
    """A picture without random numbers, uint8 [height, width, 3]: stripes, a slope and squares of different colours."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    planes = [(x * 3 + y) % 256, (y * y // 97 + x // 5) % 256, ((x // 40 + y // 32) % 3 * 90 + (x * y) % 23) % 256]
    return np.stack(planes, axis=-1).astype(np.uint8)


def load_original(source: Path, checkpoint: Path) -> tuple[Any, Any]:
    """The original's model (float32, sdpa) and processor, from the tiny checkpoint."""
    sys.path.insert(0, str(source))
    parts: list[Any] = [importlib.import_module(name) for name in ("timm", "torch", "transformers")]
    timm, torch, transformers = parts
    configuration, modeling, processing = (
        importlib.import_module(f"prismatic.extern.hf.{part}_prismatic")
        for part in ("configuration", "modeling", "processing")
    )
    raw = json.loads((checkpoint / "config.json").read_text())
    sizes = dict(zip(raw["timm_model_ids"], raw["timm_model_args"], strict=True))
    create = timm.create_model
    timm.create_model = lambda name, **kwargs: create(name, **kwargs, **sizes[name])
    model, info = modeling.OpenVLAForActionPrediction.from_pretrained(
        checkpoint,
        config=configuration.OpenVLAConfig.from_pretrained(checkpoint),
        torch_dtype=torch.float32,
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    if any(info.values()):
        raise SystemExit(f"the original does not load the checkpoint: {info}")
    image_processor = processing.PrismaticImageProcessor.from_pretrained(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    return model.eval(), processing.PrismaticProcessor(image_processor, tokenizer)


class Recorder:
    """What passes through the original's language model: logits of the last row of each call, and the prefill."""

    def __init__(self, model: Any) -> None:
        self.logits: list[Any] = []
        self.embeddings: Any = None
        model.language_model.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, _: Any, __: Any, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs["inputs_embeds"] is not None:
            self.embeddings, self.logits = kwargs["inputs_embeds"][0].numpy(), []
        self.logits.append(output.logits[0, -1].float().numpy())


def run(model: Any, processor: Any, recorder: Recorder, case: int) -> dict[str, Any]:
    """One step of the original, free and with its choice restricted to the action ids."""
    torch: Any = importlib.import_module("torch")
    image: Any = importlib.import_module("PIL.Image")
    found: dict[str, Any] = {}
    prompt = f"In: What action should the robot take to {INSTRUCTIONS[case].lower()}?\nOut:"
    inputs = processor(prompt, image.fromarray(picture(*SIZES[case])).convert("RGB"))
    found["pixels"] = inputs["pixel_values"][0, :, ::9, ::11].numpy()
    allowed = list(range(FIRST_ACTION_ID, VOCABULARY))
    for name, options in {"free": {}, "restricted": {"prefix_allowed_tokens_fn": lambda *_: allowed}}.items():
        ids: list[Any] = []
        generate: Any = type(model).generate

        def keep(*args: Any, _ids: list[Any] = ids, _generate: Any = generate, **kwargs: Any) -> Any:
            _ids.append(args[0][0].tolist())
            result = _generate(model, *args, **kwargs)
            _ids.append(result[0, -7:].tolist())
            return result

        model.generate = keep
        with torch.no_grad():
            action = model.predict_action(**inputs, unnorm_key=STATISTICS[case], do_sample=False, **options)
        logits = np.stack(recorder.logits)
        found |= {
            "input_ids": np.array(ids[0]), f"{name}_ids": np.array(ids[1]), f"{name}_action": action,
            f"{name}_logits": logits[:, FIRST_ACTION_ID:VOCABULARY], f"{name}_others": logits[:, ::50],
        }  # fmt: skip
    found["embeddings"] = recorder.embeddings[::5]
    return found


def evaluated_images(case: int) -> dict[str, Any]:
    """What the WidowX evaluation makes of a picture, and what center_crop makes of it: some pixels of each, uint8.

    `accurate`: the first again, with a JPEG decoder that has libjpeg's accurate DCT, as ours has, for TensorFlow's fast
    one.
    """
    for name in ("imageio", "widowx_envs", "widowx_envs.widowx_env_service", "gym", "pyquaternion"):
        sys.modules[name] = MagicMock()
    sys.modules["experiments.robot.bridge.widowx_env"] = MagicMock()
    parts: list[Any] = [importlib.import_module(f"experiments.robot.{name}") for name in EVALUATION]
    bridge, utils = parts
    seen: list[Any] = []

    def processor(prompt: str, image: Any) -> Any:
        seen.extend((prompt, np.asarray(image)))
        return SimpleNamespace(to=lambda *_, **__: {})

    plain = picture(*SIZES[case])
    small = bridge.get_preprocessed_image({"full_image": plain}, 224)
    fast = utils.tf.io.decode_image
    utils.tf.io.decode_image = lambda data, **_: utils.tf.io.decode_jpeg(data, dct_method="INTEGER_ACCURATE")
    accurate = bridge.get_preprocessed_image({"full_image": plain}, 224)
    utils.tf.io.decode_image = fast
    observation = {"full_image": plain}
    utils.get_vla_action(MagicMock(), processor, "openvla", observation, INSTRUCTIONS[case], "", center_crop=True)
    pictures = {"widowx": small, "accurate": accurate, "cropped": seen[1]}
    return {"prompt": np.array(seen[0])} | {name: image[::9, ::11] for name, image in pictures.items()}


def main() -> None:
    """Write the dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder that holds the original's package `prismatic`")
    parser.add_argument("checkpoint", type=Path, help="folder of the tiny checkpoint")
    parser.add_argument("out", type=Path, help="the dump to write, .npz")
    args = parser.parse_args()
    model, processor = load_original(args.source, args.checkpoint)
    recorder = Recorder(model)
    digest = hashlib.sha256()
    for path in sorted(args.checkpoint.glob("*.safetensors")):
        digest.update(path.read_bytes())
    dump: dict[str, Any] = {"weights": np.array(digest.hexdigest())}
    for case in range(len(INSTRUCTIONS)):
        found = run(model, processor, recorder, case) | evaluated_images(case)
        dump |= {f"{case}_{key}": value for key, value in found.items()}
        print({key: value.tolist() for key, value in dump.items() if key.startswith(f"{case}_") and "ids" in key})
    np.savez_compressed(args.out, **dump)
    print(f"wrote {args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

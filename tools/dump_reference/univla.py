"""Dump what the original UniVLA gives on the tiny random checkpoint, for test/models/test_models_univla_parity.py.

The original's own classes run, and its own evaluation: `EmuVLAInference` of the WidowX evaluation (queues of frames and
actions, prompt, mask of allowed tokens, decoding, statistics), `Emu3MoE`, `Emu3VisionVQModel`, their processors, and
the FAST processor. Only what needs SIMPLER, RoboVLMs or CUDA is replaced: imports, the paths, and the move to the GPU.

    git clone https://github.com/baaivision/UniVLA
    git -C UniVLA checkout fbde41b3eaead4908df5658dca94bdfc624422dd
    python3.11 -m venv ref
    ref/bin/pip install torch==2.13.0 transformers==4.44.0 tiktoken==0.6.0 numpy==1.26.4 pillow==11.0.0 \
        scipy==1.14.1 transforms3d==0.4.2
    mkdir tiny
    python -c "import pathlib, dtp_ros.models.tiny_univla as t; t.write_tiny_univla(pathlib.Path('tiny'))"
    ref/bin/python tools/dump_reference/univla.py UniVLA tiny test/models/dumps/univla.npz

Two steps are dumped. In the first the tokens are forced to those of a fixed chunk (random weights emit none that
decode); in the second, which reads the first as its history, the original is greedy under its own mask.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INSTRUCTION = "put the carrot on the plate"
TEXTS = (
    INSTRUCTION, "Put the RED cup's lid, 12 cm left!", " two  spaces\nand a line\n\n",
    "re\u0301sume\u0301 \u65e5\u672c\u8a9e \U0001f600", "<|extra_203|> is no token here", "1*32*32",
)  # fmt: skip
FREE_ROWS = 24
"""Rows of logits kept of the second step; all of its tokens are kept."""


def picture(seed: int) -> NDArray[np.uint8]:
    """A camera picture uint8 [480, 640, 3]: smooth waves, a square and some noise; the same on every machine."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:480, 0:640] / 480.0
    waves = [128 + 90 * np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + c) for c in rng.uniform(0, 6, 3)]
    image = np.stack(waves, axis=-1)
    top, left = rng.integers(80, 300, 2)
    image[top : top + 90, left : left + 120] = rng.uniform(0, 255, 3)
    return np.clip(np.rint(image + rng.normal(0, 6, image.shape)), 0, 255).astype(np.uint8)


def chunk() -> NDArray[np.float64]:
    """Normalised actions [5, 7] of the first step, within [-1, 1]."""
    time = np.arange(5)[:, None] / 4
    return np.clip(np.array([0.5, -0.3, 0.2, -0.1, 0.05, 0.6, 1.0]) * (1 - 0.5 * time), -1, 1)


def original(upstream: Path) -> types.ModuleType:
    """The evaluation's module, with stand-ins for the imports that it uses nothing of here."""
    import transformers.utils  # noqa: F401 (it looks for the real cv2)

    for name, attributes in {
        "robovlms.train.base_trainer": ("BaseTrainer",), "eval.calvin.model_wrapper": ("CustomModel",),
        "matplotlib.pyplot": (), "cv2": (),
    }.items():  # fmt: skip
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        for attribute in attributes:
            setattr(sys.modules[name], attribute, type(attribute, (), {}))
    sys.path[:0] = [str(upstream / "reference/Emu3"), str(upstream)]
    source = upstream / "reference/RoboVLMs/eval/simpler/model_wrapper.py"
    module = types.ModuleType("model_wrapper")
    exec(compile(source.read_text(encoding="utf-8"), str(source), "exec"), vars(module))
    return module


def fast_processor(upstream: Path, folder: Path) -> Any:
    """The original FAST processor on the tokenizer of `folder`, whose merges its older library wants as one string."""
    from transformers import PreTrainedTokenizerFast

    sys.path.insert(0, str(upstream / "pretrain/fast_bridge_t5_s50"))
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    raw["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(raw, file)
        file.flush()
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=file.name, clean_up_tokenization_spaces=False)
    config = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    kept = {name: config[name] for name in ("scale", "vocab_size", "min_token")}
    processor = importlib.import_module("processing_action_tokenizer").UniversalActionProcessor
    return processor(tokenizer, **kept)


def evaluation(upstream: Path, checkpoint: Path) -> Any:
    """An `EmuVLAInference` on the CPU in float32, its paths replaced by those of the tiny checkpoint."""
    from queue import Queue

    import torch

    module = original(upstream)
    mllm, vq = importlib.import_module("emu3.mllm"), importlib.import_module("emu3.tokenizer")
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]

    class OnTheCpu(module.EmuVLAInference):  # type: ignore[misc, name-defined]
        def init_config(self, device: Any) -> None:
            options = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
            self.model, found = mllm.Emu3MoE.from_pretrained(checkpoint, output_loading_info=True, **options)
            assert not any(found.values()), found
            self.model.eval()
            self.tokenizer = mllm.Emu3Tokenizer(
                checkpoint / "emu3.tiktoken", checkpoint / "emu3_vision_tokens.txt", padding_side="right"
            )
            vision = checkpoint / "vision_tokenizer"
            settings = json.loads((vision / "preprocessor_config.json").read_text(encoding="utf-8"))
            settings.pop("image_processor_type")
            self.image_processor = vq.Emu3VisionVQImageProcessor(**settings)
            self.image_tokenizer, found = vq.Emu3VisionVQModel.from_pretrained(vision, output_loading_info=True)
            assert not any(found.values()), found
            self.image_tokenizer.eval()
            self.processor = mllm.Emu3Processor(self.image_processor, self.image_tokenizer, self.tokenizer)
            self.action_tokenizer = fast_processor(upstream, checkpoint / "fast_bridge_t5_s50")
            self.vision_queue: Any = Queue(self.window_size)
            self.vision_gripper_queue: Any = Queue(self.window_size)
            self.action_queue: Any = Queue(self.window_size - 1)

        @staticmethod
        def load_dataset_stat() -> dict[str, Any]:
            return {}

    return OnTheCpu("", "", "", torch.device("cpu"))


class Recorder:
    """Stands in for `model.generate`: the same call, its prompt and raw logits kept, and its tokens forced if asked."""

    def __init__(self, model: Any) -> None:
        self._generate = model.generate
        self.forced: list[int] = []
        self.prompt: NDArray[np.int64] = np.zeros(0, np.int64)
        self.logits: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self.tokens: NDArray[np.int64] = np.zeros(0, np.int64)
        self.allowed: list[int] = []

    def __call__(self, ids: Any, config: Any, *, logits_processor: list[Any], **options: Any) -> Any:
        """Sequences int64 [1, prompt + tokens], as `generate` gives them."""
        import torch

        self.allowed = list(logits_processor[0].allowed_token_ids)

        def force(input_ids: Any, scores: Any) -> Any:
            if self.forced:
                kept = scores[:, self.forced[input_ids.shape[1] - ids.shape[1]]].clone()
                scores = torch.full_like(scores, -torch.inf)
                scores[:, self.forced[input_ids.shape[1] - ids.shape[1]]] = kept
            return scores

        result = self._generate(
            ids, config, logits_processor=[*logits_processor, force], return_dict_in_generate=True,
            output_logits=True, **options,
        )  # fmt: skip
        self.prompt = ids[0].numpy()
        self.tokens = result.sequences[0, ids.shape[1] :].numpy()
        self.logits = torch.stack(result.logits)[:, 0, self.allowed].float().numpy()
        return result.sequences


def main(upstream: Path, checkpoint: Path, out: Path) -> None:
    """Write the dump of two steps to `out`."""
    import torch

    torch.set_num_threads(1)
    policy = evaluation(upstream, checkpoint)
    recorder = Recorder(policy.model)
    policy.model.generate = recorder
    last, end = policy.tokenizer.pad_token_id - 1, policy.eoa_token_id
    dump: dict[str, Any] = {}
    for name in ("model-00002-of-00002.safetensors", "vision_tokenizer/model.safetensors", "emu3.tiktoken"):
        dump[f"sha256 {name}"] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    for i, text in enumerate(TEXTS):
        plain: dict[str, Any] = {"allowed_special": set(), "disallowed_special": ()}
        dump[f"text {i}"] = policy.tokenizer.convert_tokens_to_ids(policy.tokenizer.tokenize(text, **plain))
    sample = policy.image_processor(_resized(picture(0)), return_tensors="pt")["pixel_values"]
    dump["pixels"] = sample[0, :, 5::16, 3::16].numpy()
    recorder.forced = [last - i for i in policy.action_tokenizer(chunk())[0]] + [end]
    raw, _ = policy.step(picture(0), INSTRUCTION)
    dump |= {"prompt 0": recorder.prompt, "tokens 0": recorder.tokens, "logits 0": recorder.logits}
    dump["actions 0"] = np.array([[*a["world_vector"], *a["rotation_delta"], *a["open_gripper"]] for a in raw])
    recorder.forced = []
    policy.step(picture(1), INSTRUCTION)
    dump |= {"prompt 1": recorder.prompt, "tokens 1": recorder.tokens, "logits 1": recorder.logits[:FREE_ROWS]}
    dump["allowed"] = np.array(recorder.allowed)
    dump["q01"], dump["q99"] = (policy.unormalize_action(np.full(7, value)) for value in (-1.0, 1.0))
    np.savez_compressed(out, **dump)
    print({name: getattr(value, "shape", value) for name, value in dump.items()})


def _resized(image: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(image).resize((256, 256))


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:4]))

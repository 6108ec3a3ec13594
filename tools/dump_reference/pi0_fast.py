"""Run LeRobot's own pi0-FAST on the tiny checkpoint and keep what it gives: test/models/dumps/pi0_fast.npz.

How to make the dump again, in an environment of its own: huggingface/lerobot at
7427f31801f944f5ec9ce53cda02862ce7d1638b; Python 3.12, or 3.11 after respelling the generics of 3.12 in
processor/pipeline.py, utils/io_utils.py and motors/motors_bus.py, as was done here. Then

    pip install torch==2.13.0 transformers==5.5.4 'numpy<2.3' scipy 'draccus<0.12' einops gymnasium \
        opencv-python-headless
    PYTHONPATH=<lerobot>/src:<this repository> python tools/dump_reference/pi0_fast.py test/models/dumps/pi0_fast.npz

What is LeRobot's: policy, checkpoint loading, both processor pipelines, the decode loop with its cache, detokenising.
What is not: sizes (its variants are full size); the FAST processor, whose code lies in a hub repository (only its
attributes are needed: BPE, scale, min_token); torchvision, which only training imports and a mock replaces. To hold
both sides to the same tokens the head is wrapped: "Action: " is forced, then only FAST tokens and the end may win.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import transformers

from dtp_ros.models.tiny_pi0_fast import write_tiny_pi0_fast

STEPS = 24
CASES = (
    # name, cameras' sizes (height, width), instruction, state as LIBERO writes it
    ("one", ((480, 640),), "put the carrot on the plate", (0.1, -0.05, 0.9, 3.1, -0.1, 0.2, 0.03, -0.03)),
    ("two", ((224, 224), (300, 100)), "  Stack_the GREEN block\non the blue\u00e9 one ",
     (-0.4, 0.3, 0.1, 1.0, 3.0, -1.5, 0.0, -0.04)),
)  # fmt: skip


class Mocked(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports anything of torchvision as a mock."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Answer for torchvision."""
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("torchvision") else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        """A mock that passes for a package."""
        module = MagicMock()
        module.__path__ = []
        return module

    def exec_module(self, module: object) -> None:
        """A mock has nothing to run."""


class RestrictedHead(torch.nn.Module):
    """A head that notes its logits and lets only some tokens win."""

    def __init__(self, head: torch.nn.Module, forced: list[int], allowed: torch.Tensor) -> None:
        super().__init__()
        self.head, self.forced, self.allowed = head, forced, allowed
        self.seen: list[torch.Tensor] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [1, L, vocabulary], minus infinity where a token may not win."""
        logits = self.head(hidden)
        step = len(self.seen)
        self.seen.append(logits[0, -1].clone())
        choice = self.allowed if step >= len(self.forced) else torch.tensor([self.forced[step]])
        if step == len(self.forced):
            choice = choice[:-1]  # one action at least
        masked = torch.full_like(logits, -torch.inf)
        masked[..., choice] = logits[..., choice]
        return masked


def images(name: str, sizes: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """The pictures of a case, uint8 [H, W, 3]: noise over a slope, from the case's name."""
    rng = np.random.default_rng(list(name.encode()))
    pictures = []
    for height, width in sizes:
        slope = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 40, width)[None, :, None]
        pictures.append(np.clip(slope + rng.integers(-40, 41, (height, width, 3)), 0, 255).astype(np.uint8))
    return pictures


def names_digest(shapes: dict[str, list[int]]) -> str:
    """A digest of the names and shapes of weights."""
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()


def full_size() -> dict[str, list[int]]:
    """Name in LeRobot's checkpoint -> shape of every weight at full size; no memory is taken."""
    code: Any = importlib.import_module("lerobot.policies.pi0_fast.modeling_pi0_fast")
    with torch.device("meta"):
        model = code.PI0FastPaliGemma(code.get_gemma_config("gemma_2b"), use_adarms=[False, True])
    return {f"model.paligemma_with_expert.{name}": list(weight.shape) for name, weight in model.state_dict().items()}


def load_policy(folder: Path) -> tuple[Any, Any, Any]:
    """LeRobot's policy and pipelines on the tiny checkpoint, in float32."""
    code: Any = importlib.import_module("lerobot.policies.pi0_fast.modeling_pi0_fast")
    factory: Any = importlib.import_module("lerobot.policies.factory")
    configs: Any = importlib.import_module("lerobot.configs")
    tokenizer_processor: Any = importlib.import_module("lerobot.processor.tokenizer_processor")
    fast = json.loads((folder / "action_tokenizer" / "processor_config.json").read_text())
    bpe = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "action_tokenizer" / "tokenizer.json"))
    processor = SimpleNamespace(bpe_tokenizer=bpe, scale=fast["scale"], min_token=fast["min_token"])
    stand_in = SimpleNamespace(from_pretrained=lambda *args, **kwargs: processor)
    code.AutoProcessor = tokenizer_processor.AutoProcessor = stand_in
    code.get_gemma_config = lambda variant: code.GemmaConfig(64, 18, 128, 4, 1, 16)
    whole = code.PaliGemmaForConditionalGenerationWithPiGemma

    def small(config: Any) -> Any:
        config.text_config.vocab_size = 3072
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, vision.num_attention_heads = (
            32,
            64,
            2,
            2,
        )
        vision.projection_dim = config.projection_dim = config.hidden_size = 64
        return whole(config)

    code.PaliGemmaForConditionalGenerationWithPiGemma = small
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"paligemma_variant": "gemma_2b", "dtype": "float32", "text_tokenizer_name": str(folder / "tokenizer")}
    (folder / "config.json").write_text(json.dumps(raw))
    for which in ("preprocessor", "postprocessor"):
        path = folder / f"policy_{which}.json"
        path.write_text(path.read_text().replace('"tokenizer"', json.dumps(str(folder / "tokenizer"))))
    config = configs.PreTrainedConfig.from_pretrained(folder)
    policy = code.PI0FastPolicy.from_pretrained(folder, config=config, strict=True)
    before, after = factory.make_pre_post_processors(config, pretrained_path=str(folder))
    return policy.eval(), before, after


@torch.no_grad()
def run(policy: Any, before: Any, case: tuple[Any, ...], allowed: torch.Tensor) -> dict[str, np.ndarray]:
    """What one case gives."""
    name, sizes, instruction, state = case
    keys = ("base_0_rgb", "left_wrist_0_rgb")
    batch: dict[str, Any] = {
        f"observation.images.{key}": torch.from_numpy(image).permute(2, 0, 1).float() / 255
        for key, image in zip(keys, images(name, sizes), strict=False)
    }
    batch |= {"observation.state": torch.tensor(state, dtype=torch.float32), "task": instruction}
    batch = before(batch)
    views, masks = policy._preprocess_images(batch)
    tokens, valid = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    forced = policy._paligemma_tokenizer.encode("Action: ", add_special_tokens=False)
    paligemma = policy.model.paligemma_with_expert.paligemma
    head = paligemma.lm_head
    paligemma.lm_head = restricted = RestrictedHead(head, forced, allowed)
    ids = policy.model.sample_actions_fast_kv_cache(views, masks, tokens, valid, max_decoding_steps=STEPS)[0]
    paligemma.lm_head = head
    return {
        f"{name}_pixels": torch.cat(views[: len(sizes)])[:, :, 3::8, 3::8].numpy(),
        f"{name}_prompt": tokens[0][valid[0]].numpy(),
        f"{name}_tokens": ids[: len(restricted.seen)].numpy(),
        f"{name}_logits": torch.stack(restricted.seen)[[0, len(forced), -1]].numpy(),
    }


@torch.no_grad()
def decode(policy: Any, after: Any, last: int) -> dict[str, np.ndarray]:
    """Actions, in the units of the training data, of coefficients spelt byte by byte."""
    rng = np.random.default_rng(3)
    coefficients = np.zeros((10, 7), dtype=int)
    coefficients[:4] = rng.integers(-6, 7, (4, 7))
    bpe = policy.action_tokenizer.bpe_tokenizer
    text = "".join(chr(c - policy.action_tokenizer.min_token) for c in coefficients.ravel())
    codes = bpe(text, add_special_tokens=False)["input_ids"]
    tokenizer = policy._paligemma_tokenizer
    prefix = tokenizer.encode("Action: ", add_special_tokens=False)
    ids = torch.tensor([*prefix, *(last - code for code in codes), tokenizer.convert_tokens_to_ids("|"), 5])
    actions = policy.detokenize_actions(ids, action_horizon=10, action_dim=7)
    return {"decode_codes": np.array(codes), "decode_actions": after(actions).numpy()}


def main(path: str) -> None:
    """Write the dump."""
    sys.meta_path.insert(0, Mocked())
    full = names_digest(full_size())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tiny_pi0_fast(folder)
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        policy, before, after = load_policy(folder)
        tokenizer = policy._paligemma_tokenizer
        last = tokenizer.vocab_size - 1 - policy.config.fast_skip_tokens
        allowed = torch.tensor([*range(last - 1023, last + 1), tokenizer.convert_tokens_to_ids("|")])
        arrays: dict[str, Any] = {"weights": np.array(digest), "last": np.array(last), "full_size": np.array(full)}
        for case in CASES:
            arrays |= run(policy, before, case, allowed)
        arrays |= decode(policy, after, last)
    np.savez_compressed(path, **arrays)
    print({name: value.shape for name, value in arrays.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])

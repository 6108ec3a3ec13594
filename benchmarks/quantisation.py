"""python -m benchmarks.quantisation: what bfloat16, int8 and int4 do to logits and to the choice of tokens.

Two parts, each against float32 on the same weights. `random`: decoders shaped as those of the models, of fewer layers
(0.4 B weights and more in their matrices), weights N(0, 0.02), random tokens, and a head of 2048 action tokens. Random
weights are not trained weights: near ties are common, so that their share of equal tokens is no forecast. `tabletop`:
the shipped policy, which is trained, on the frames of its own episodes, and in closed loop.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig, StepTrace
from dtp_ros.models import quantise
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.sim.layout import fixed_layout
from dtp_ros.sim.tasks import TASKS
from dtp_ros.study.regions import sights

KINDS = ("float32", "bfloat16", "int8", "int4")
NOTE = "Random weights are not trained weights: only the rows of tabletop are of a trained model."
ACTIONS, LENGTH, BATCH = 2048, 8, 50
SIZES = (
    "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "num_hidden_layers",
)  # fmt: skip
SHAPES = {  # those of the published decoders, but for the number of layers, the last
    "nora": ("Qwen2", 2048, 16, 2, 128, 11008, 6),
    "spatialvla": ("Gemma2", 2304, 8, 4, 256, 9216, 6),
    "univla": ("Emu3Text", 4096, 32, 8, 128, 14336, 2),
}
Row = dict[str, Any]


def main() -> None:
    """Print the tables in Markdown, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=SHAPES, default=list(SHAPES), help="of the random part")
    parser.add_argument("--contexts", type=int, default=200, help="of the random part")
    parser.add_argument("--episodes", type=int, default=6, help="of each task, tabletop; 0: leave that part out")
    parser.add_argument("--group", type=int, default=quantise.GROUP, help="weights that share a scale in int4")
    parser.add_argument("--out", type=Path, default=Path("out/bench/quantisation.json"))
    options = parser.parse_args()
    quantise.GROUP = options.group
    rows = [row for name in options.models for row in random_rows(name, options.contexts)]
    rows += tabletop_rows(options.episodes) if options.episodes else []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for cells in (columns, ["---"] * len(columns), *([row.get(key, "") for key in columns] for row in rows)):
        print(f"| {' | '.join(str(cell) for cell in cells)} |")
    print(f"\n{NOTE}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"note": NOTE, "group": quantise.GROUP, "rows": rows}, indent=2) + "\n")


def matrices(decoder: Any) -> list[nn.Linear]:
    """The linear layers of the decoder's layers."""
    return [m for m in decoder.layers.modules() if isinstance(m, nn.Linear)]


def row_of(model: str, kind: str, decoder: nn.Module, logits: Tensor, exact: Tensor) -> Row:
    """Memory and the difference of logits [N, K]: its largest and its RMS, over the deviation of the exact ones."""
    difference, deviation = logits - exact, float(exact.std())
    return {
        "model": model, "dtype": kind,
        "matrices, MB": round(sum(quantise.weight_bytes(linear.weight) for linear in matrices(decoder)) / 1e6, 1),
        "largest": round(float(difference.abs().max()) / deviation, 4),
        "RMS": round(float(difference.square().mean().sqrt()) / deviation, 4),
    }  # fmt: skip


def random_rows(name: str, contexts: int) -> Iterator[Row]:
    """A row for each dtype of a random decoder shaped as that of a model."""
    torch.manual_seed(0)
    family, *sizes = SHAPES[name]
    pad = 0 if family == "Emu3Text" else None  # which must have one
    fields = {"vocab_size": 4096, "pad_token_id": pad, "attn_implementation": "eager"}
    fields |= zip(SIZES, sizes, strict=True)
    config = getattr(transformers, f"{family}Config")(**fields)
    stored = getattr(transformers, f"{family}Model")(config).bfloat16().requires_grad_(False).eval()
    head = nn.init.normal_(torch.empty(ACTIONS, config.hidden_size), std=0.02)
    tokens = torch.randint(config.vocab_size, (contexts, LENGTH))
    exact = torch.empty(0)
    for kind in tqdm(KINDS, desc=name):
        decoder = copy.deepcopy(stored)
        if kind == "float32":
            decoder.float()
        for linear in matrices(decoder) if kind.startswith("int") else ():
            quantise.quantise_linear(linear, int(kind[3:]), quantise.HOST)
        with torch.inference_mode():
            last = [decoder(part).last_hidden_state[:, -1].float() for part in torch.split(tokens, BATCH)]
        logits = torch.cat(last) @ head.T
        exact = logits if kind == "float32" else exact
        equal = (logits.argmax(1) == exact.argmax(1)).double().mean()
        count = sum(linear.weight.numel() for linear in matrices(stored)) / 1e9
        row = row_of(f"{name} ({count:.2f} B, random)", kind, decoder, logits, exact)
        yield {**row, "equal tokens": f"{float(equal):.1%}"}


def tabletop_rows(episodes: int) -> Iterator[Row]:
    """A row for each dtype of the shipped policy: on the frames that the float32 one sees, and its own success."""
    defaults = model_defaults("tabletop")
    pruning = PruningConfig(**{key: defaults[key] for key in PruningConfig.__dataclass_fields__})  # type: ignore[arg-type]
    layouts = [fixed_layout(task, i) for task in TASKS for i in range(episodes)]
    frames, exact, expected = list[Observation](), torch.empty(0), list[StepTrace]()
    for kind in KINDS:
        policy = DtpPolicy(load_adapter("tabletop", "shipped", device="cpu", dtype=kind))
        played = [list(sights(policy, layout, pruning)) for layout in tqdm(layouts, desc=kind)]
        frames = frames or [sight.observation for episode in played for sight in episode]
        logits = torch.cat([first_logits(policy.adapter, frame) for frame in frames])
        traces = [policy.step(frame, pruning, GenerationConfig()).trace for frame in frames]
        exact, expected = (logits, traces) if kind == "float32" else (exact, expected)
        ids, wanted = (np.array([[t.token_id for t in x.tokens] for x in xs]) for xs in (traces, expected))
        masks = [np.array_equal(x.mask, y.mask) for x, y in zip(traces, expected, strict=True)]
        row = row_of(f"tabletop (trained, {len(frames)} frames)", kind, policy.adapter.text_model, logits, exact)
        row |= {"equal tokens": f"{np.mean(ids == wanted):.1%}", "equal masks": f"{np.mean(masks):.1%}"}
        row["bins apart"] = round(float(np.abs(ids - wanted).mean()), 2)
        yield row | {"success": f"{sum(episode[-1].success for episode in played)}/{len(layouts)}"}


def first_logits(adapter: Any, observation: Observation) -> Tensor:
    """Logits [1, K] of the first action token, float32, by the clean model."""
    with torch.inference_mode():
        prompt = adapter.prepare(observation)
        length = prompt.embeddings.shape[1]
        visible = torch.ones(1, 1, length, length, dtype=torch.bool)
        inputs = {"inputs_embeds": prompt.embeddings, "position_ids": prompt.position_ids, "attention_mask": visible}
        hidden = adapter.text_model(**inputs, use_cache=False).last_hidden_state[:, -1]
        logits: Tensor = adapter.logits(hidden)[:, adapter.vocabulary.action_ids]
    return logits


if __name__ == "__main__":
    main()

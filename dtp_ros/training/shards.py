"""Demonstrations on disk: one file a shard, made by several processes, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dtp_ros.errors import ConfigError
from dtp_ros.training.demonstrations import Frames


def write_shards(folder: Path, seeds: Sequence[int], make: Callable[[int], Frames], workers: int, name: str) -> None:
    """Write what `make` gives for each seed that has no shard in `folder` yet, with a progress bar called `name`.

    make: can be pickled; it runs in processes of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [seed for seed in seeds if not shard_path(folder, seed).is_file()]
    with process_pool(workers) as pool:
        futures = [pool.submit(_write_shard, shard_path(folder, seed), make, seed) for seed in todo]
        try:
            for future in tqdm(as_completed(futures), total=len(todo), desc=name, unit="shard", disable=not todo):
                future.result()
        except BaseException:  # also Ctrl-C, after which a worker would take the next shard
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def require_made(folder: Path, how: Mapping[str, object]) -> None:
    """Note in `folder` how its shards are made; raises ConfigError where those that are there were made otherwise."""
    note = folder / "made.json"
    made = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    if made != how and any(folder.glob("*.npz")):
        raise ConfigError(f"{folder} holds shards made with {made}, not {dict(how)} (valid: another folder, or none)")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(how) + "\n", encoding="utf-8")


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Processes with one thread each; spawned, since one must not inherit another's graphics context."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def read_shards(folder: Path, seeds: Sequence[int]) -> Frames:
    """The frames of the shards of `seeds`, in memory, which at no moment holds more than one shard twice."""
    paths = [shard_path(folder, seed) for seed in seeds]
    counts = []
    for path in paths:
        with np.load(path) as arrays:
            counts.append(len(arrays["tasks"]))
    whole: Frames | None = None
    end = 0
    for path, count in zip(paths, counts, strict=True):
        shard = read_shard(path)
        whole = whole or shard.emptied(sum(counts))
        whole.put(end, shard)
        end += count
    if whole is None:
        raise ConfigError("seeds is empty (valid: at least one shard)")
    return whole


def read_shard(path: Path) -> Frames:
    """The frames of one file."""
    with np.load(path) as arrays:
        return Frames(*(arrays[field.name] for field in fields(Frames)))


def save_shard(path: Path, frames: Frames) -> None:
    """Write one file, whole or not at all."""
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        np.savez(file, **{field.name: getattr(frames, field.name) for field in fields(Frames)})
    draft.replace(path)


def shard_path(folder: Path, seed: int) -> Path:
    """Where the shard of a seed lies."""
    return folder / f"{seed:04d}.npz"


def _write_shard(path: Path, make: Callable[[int], Frames], seed: int) -> None:
    save_shard(path, make(seed))

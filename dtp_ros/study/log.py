"""The study's log: one JSON object an episode, appended as soon as it has ended. All else is made from it alone."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dtp_ros.errors import DtpError

# Figures of every step of the policy, in this order: see StepTrace.
SERIES = (
    "unimportant_attention", "fire_rate", "pruned", "entropy_clean", "entropy_refined", "score_clean", "score_refined",
    "tolerance",
)  # fmt: skip
HALVES = ("both", "tuning", "held_out")  # of the episodes, see `held_out`
DIGITS = 5  # that a figure of a step keeps


class LogError(DtpError):
    """A log that cannot be read, or that does not hold what an analysis needs."""


@dataclass(frozen=True)
class Episode:
    """One episode under one arm of a comparison.

    arm: name of what is compared, e.g. `off` or `dtp 0.5`. benchmark, task, episode: which episode it was; the same
    three stand for the same start under every arm. grasped: whether the right object was ever held, or None where the
    benchmark does not say. steps: control steps. holds: steps of the policy that gave no action.
    setup: model, checkpoint and the constants of the method. series: figures of each step of the policy (`SERIES`),
    nan where the model's logits were not finite. suite: what several benchmarks are parts of, e.g. settings of one
    table; if empty, the benchmark is one of its own.
    """

    arm: str
    benchmark: str
    task: str
    episode: int
    success: bool
    grasped: bool | None
    steps: int
    holds: int
    setup: Mapping[str, Any]
    series: Mapping[str, tuple[float, ...]]
    suite: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Which episode it is, under whatever arm."""
        return self.benchmark, self.task, self.episode

    @property
    def held_out(self) -> bool:
        """Whether it belongs to the half on which a choice is confirmed."""
        return held_out(*self.key)

    def mean(self, figure: str) -> float:
        """Mean of a figure over the policy's steps in which it is finite; nan where it is in none."""
        values = [value for value in self.series[figure] if math.isfinite(value)]
        return sum(values) / len(values) if values else math.nan


def held_out(benchmark: str, task: str, episode: int) -> bool:
    """Whether an episode belongs to the half on which a choice is confirmed: one of every two neighbours, by lot.

    Not the odd ones: SIMPLER turns the object with the parity of an episode's number, and halves would differ in it.
    """
    lot = hashlib.sha256(f"{benchmark}/{task}/{episode // 2}".encode()).digest()[0]
    return (episode + lot) % 2 == 1


def append(path: Path, episode: Episode) -> None:
    """Add a line in one piece, also where several processes write. Raises LogError where it is not whole."""
    series = {name: [_written(v) for v in values] for name, values in episode.series.items()}
    line = json.dumps(asdict(episode) | {"series": series}, separators=(",", ":"), allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.write(file, line.encode()) != len(line.encode()):
            raise LogError(f"{path}: an episode was not written whole (is the disk full?)")
    finally:
        os.close(file)


def mend(path: Path) -> None:
    """Cut off a last line that was not written whole, so that the next one begins on its own."""
    if path.exists():
        raw = path.read_bytes()
        os.truncate(path, raw.rfind(b"\n") + 1)


def read(paths: Iterable[Path]) -> list[Episode]:
    """The episodes of some logs, in a fixed order; of one that a checkpoint ran twice under an arm, the last.

    A last line that was cut off (a run that was killed) is left out. `*.xz` is read too. Raises LogError.
    """
    found: dict[tuple[Any, ...], Episode] = {}
    ways: dict[tuple[str, ...], str] = {}
    for path in paths:
        try:
            raw = path.read_bytes()
            lines = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8").split("\n")
        except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
            raise LogError(f"{path} cannot be read: {error}") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                episode = _parsed(line)
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines):  # no newline after it
                    continue
                raise LogError(f"{path}, line {number}, is no episode of a study: {error}") from None
            who = tuple(str(episode.setup.get(name, "")) for name in ("model", "checkpoint"))
            way = str(episode.setup.get("evaluation", ""))
            if ways.setdefault((*who, episode.benchmark), way) != way:
                raise LogError(
                    f"{path}, line {number}: {episode.benchmark} was run in another way before (its parameters, or the "
                    "model's options): episodes that began otherwise are no pairs; keep them in a log of their own"
                )
            name = (*who, episode.arm, *episode.key)
            found[name] = episode
    return [found[key] for key in sorted(found)]


def arms(episodes: Iterable[Episode]) -> list[str]:
    """The arms, in the order in which `sorted` episodes name them; `off` first where it is there."""
    names = list(dict.fromkeys(episode.arm for episode in episodes))
    return sorted(names, key=lambda name: (name != "off", name))


def paired(episodes: Iterable[Episode], first: str, second: str) -> list[tuple[Episode, Episode]]:
    """The episodes that both arms have, side by side. Raises LogError where there are none."""
    chosen = list(episodes)
    one = {episode.key: episode for episode in chosen if episode.arm == first}
    other = {episode.key: episode for episode in chosen if episode.arm == second}
    keys = sorted(one.keys() & other.keys())
    if not keys:
        raise LogError(f"no episode was run under both {first!r} and {second!r} (there are: {', '.join(arms(chosen))})")
    return [(one[key], other[key]) for key in keys]


def parted_early(one: Episode, pruning: Episode) -> bool | None:
    """Whether the second run of an episode does otherwise than the first, which prunes nothing, before it prunes.

    On one machine none does: another processor adds up in another order, and some do not repeat themselves. None where
    it prunes at once: in that step clean figures of later tokens already follow those that were generated again.
    """
    counts = pruning.series["pruned"]
    steps = next((step for step, count in enumerate(counts) if count > 0), len(counts) + 1)  # without any, to the end
    seen = [[_written(v) for v in e.series["entropy_clean"][:steps]] for e in (one, pruning)]
    return seen[0] != seen[1] if steps else None


def by_task(episodes: Iterable[Episode]) -> dict[tuple[str, str], list[Episode]]:
    """Episodes by (benchmark, task)."""
    groups: dict[tuple[str, str], list[Episode]] = {}
    for episode in episodes:
        groups.setdefault((episode.benchmark, episode.task), []).append(episode)
    return groups


def _written(value: float) -> float | None:
    """What is not finite is null: JSON has no other word for it."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _parsed(line: str) -> Episode:
    raw = json.loads(line)
    names = {field.name for field in fields(Episode)}
    if not isinstance(raw, dict) or raw.keys() | {"suite"} != names:
        raise ValueError(f"its keys are not {', '.join(sorted(names))}")
    series: dict[str, Sequence[float | None]] = raw["series"]
    if set(series) != set(SERIES) or len({len(values) for values in series.values()}) != 1 or not series["pruned"]:
        raise ValueError(f"its series are not {', '.join(SERIES)}, of one length")
    return Episode(**raw | {"series": {name: tuple(_read(v) for v in series[name]) for name in SERIES}})


def _read(value: float | None) -> float:
    return math.nan if value is None else float(value)

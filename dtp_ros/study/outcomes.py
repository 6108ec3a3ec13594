"""How every episode of a study ended, small enough to be published: who repeats it compares episode for episode."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from dtp_ros.study.log import Episode, LogError

Ending = tuple[bool, bool | None, int]  # success, grasped, steps
Key = tuple[str, str, str, str, str, int]  # model, checkpoint, benchmark, task, arm, episode
_NAMES = ("model", "checkpoint", "benchmark", "task", "arm")
_DIGITS = {True: "1", False: "0", None: "-"}
_VALUES = {digit: value for value, digit in _DIGITS.items()}


def endings(episodes: Iterable[Episode]) -> dict[Key, Ending]:
    """How each episode ended, in a fixed order."""
    found = {_key(episode): (episode.success, episode.grasped, episode.steps) for episode in episodes}
    return {key: found[key] for key in sorted(found)}


def write(path: Path, episodes: Iterable[Episode]) -> None:
    """A JSON list, one line for each checkpoint, benchmark, task and arm.

    `success` and `grasped` have a digit an episode.
    """
    rows = []
    for names, group in groupby(endings(episodes).items(), key=lambda item: item[0][:-1]):
        items = list(group)
        row = {
            **dict(zip(_NAMES, names, strict=True)),
            "episodes": [key[-1] for key, _ in items],
            "success": "".join(_DIGITS[ending[0]] for _, ending in items),
            "grasped": "".join(_DIGITS[ending[1]] for _, ending in items),
            "steps": [ending[2] for _, ending in items],
        }
        rows.append(json.dumps(row, separators=(",", ":")))
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def read(path: Path) -> dict[Key, Ending]:
    """What `write` wrote. Raises LogError."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found: dict[Key, Ending] = {}
        for row in rows:
            endings = zip(row["episodes"], row["success"], row["grasped"], row["steps"], strict=True)
            for episode, success, grasped, steps in endings:
                model, checkpoint, benchmark, task, arm = (str(row[name]) for name in _NAMES)
                key = model, checkpoint, benchmark, task, arm, episode
                found[key] = bool(_VALUES[success]), _VALUES[grasped], steps
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LogError(f"{path} holds no outcomes of a study: {error}") from None
    return found


def compare(published: dict[Key, Ending], episodes: Iterable[Episode]) -> tuple[int, list[str]]:
    """How many episodes both have, and in words those that ended otherwise. Raises LogError where none is shared."""
    own = endings(episodes)
    shared = [key for key in own if key in published]
    if not shared:
        raise LogError("none of these episodes is among the published ones (other arms, tasks, benchmarks or models)")
    other = [
        f"{', '.join(key[2:-1])}, episode {key[-1]}: {_words(own[key])}, published {_words(published[key])}"
        for key in shared
        if own[key] != published[key]
    ]
    return len(shared), other


def _key(episode: Episode) -> Key:
    model, checkpoint = (str(episode.setup.get(name, "")) for name in ("model", "checkpoint"))
    return model, checkpoint, *episode.key[:2], episode.arm, episode.episode


def _words(ending: Ending) -> str:
    success, grasped, steps = ending
    held = "" if grasped is None else ", grasped" if grasped else ", not grasped"
    return f"{'success' if success else 'failure'}{held}, {steps} steps"

"""The tasks in words: what a person may say for each, and which task a sentence means."""

from __future__ import annotations

import re
from itertools import product

from dtp_ros.errors import ConfigError
from dtp_ros.sim.tasks import TASKS, Task

_VERBS = ("put", "place", "move", "set")
_ON = ("on", "onto", "on top of")
_NAMES: dict[str, tuple[str, ...]] = {
    "spoon": ("spoon",),
    "towel": ("towel", "cloth"),
    "carrot": ("carrot",),
    "plate": ("plate",),
    "green_block": ("green block", "green cube"),
    "yellow_block": ("yellow block", "yellow cube"),
    "eggplant": ("eggplant",),
    "basket": ("basket",),
}


def phrases(task: Task) -> tuple[str, ...]:
    """Sentences in lower case that ask for `task`; its own instruction is the first."""
    sources, targets = _NAMES[task.source.name], _NAMES[task.target.name]
    relations = ("in", "into", "inside") if task.target.kind == "basket" else _ON
    verbs = (*_VERBS, "stack") if task.source.kind == task.target.kind else _VERBS
    said = [f"{v} the {s} {r} the {t}" for v, s, r, t in product(verbs, sources, relations, targets)]
    said += [f"pick up the {s} and {v} it {r} the {t}" for v, s, r, t in product(_VERBS, sources, relations, targets)]
    return (task.instruction, *(phrase for phrase in said if phrase != task.instruction))


def task_of(instruction: str) -> Task:
    """The task whose source and then target an instruction names; raises ConfigError with the instructions there are.

    Only the names count: what the words between them mean is the policy's to know.
    """
    said = " ".join(re.findall(r"[a-z]+", instruction.lower()))
    meant = [
        task
        for task in TASKS.values()
        for source, target in product(_NAMES[task.source.name], _NAMES[task.target.name])
        if re.search(rf"\b{source}\b.*\b{target}\b", said)
    ]
    if len(meant) != 1:
        valid = ", ".join(repr(task.instruction) for task in TASKS.values())
        raise ConfigError(f"instruction = {instruction!r} is none of the tabletop's tasks (valid: {valid}, or alike)")
    return meant[0]

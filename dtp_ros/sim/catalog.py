"""The kinds of objects there are, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from dtp_ros.errors import require_choice
from dtp_ros.sim import distractors, task_objects
from dtp_ros.sim.objects import COLOURS, RGB, ObjectModel

__all__ = ["COLOURS", "KINDS", "NATURAL", "Item", "ObjectModel"]


@dataclass(frozen=True)
class Item:
    """A kind of object in a colour."""

    kind: str
    colour: str

    @property
    def name(self) -> str:
        """`carrot` in its natural colour, `blue_carrot` otherwise."""
        return self.kind if NATURAL.get(self.kind) == self.colour else f"{self.colour}_{self.kind}"

    def model(self) -> ObjectModel:
        """The object; raises ConfigError for an unknown kind or colour."""
        require_choice("kind", self.kind, KINDS)
        require_choice("colour", self.colour, COLOURS)
        return _model(self.kind, self.colour)


@lru_cache(maxsize=128)
def _model(kind: str, colour: str) -> ObjectModel:
    return KINDS[kind](COLOURS[colour])


NATURAL = {
    "spoon": "lime",
    "carrot": "orange",
    "eggplant": "purple",
    "plate": "white",
    "towel": "sky",
    "basket": "straw",
    "tomato": "red",
    "lemon": "yellow",
    "banana": "yellow",
    "fork": "steel",
}
KINDS: dict[str, Callable[[RGB], ObjectModel]] = {
    "spoon": task_objects.spoon,
    "carrot": task_objects.carrot,
    "block": task_objects.block,
    "eggplant": task_objects.eggplant,
    "towel": task_objects.towel,
    "plate": task_objects.plate,
    "basket": task_objects.basket,
    "fork": distractors.fork,
    "lemon": distractors.lemon,
    "banana": distractors.banana,
    "tomato": distractors.tomato,
    "can": distractors.can,
    "cup": distractors.cup,
    "sponge": distractors.sponge,
}

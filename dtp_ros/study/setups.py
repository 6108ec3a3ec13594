"""Who acted in a study, and with what constants: its arms in order, and which episodes make one study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dtp_ros.pruning.config import VARIANTS, PruningConfig
from dtp_ros.study.log import Episode, LogError

CHECKPOINT = ("model", "checkpoint")
UNKNOWN = "unknown"
_ACTING = (*CHECKPOINT, "dtype", "execute_horizon", "ensemble", "ensemble_weight", "fast_grammar")
_PRUNING = tuple(item.name for item in fields(PruningConfig))
_COMPARED = ("variant", "tolerance", "tolerance_mode", "tolerance_grid", "seed")  # what the arms of a study differ in
_ALIKE = (*_ACTING, *(name for name in _PRUNING if name not in _COMPARED))


def setups(episodes: Iterable[Episode]) -> dict[str, Mapping[str, Any]]:
    """Each arm's constants: no pruning first, then by variant and tolerance.

    Raises LogError where one name stands for two settings.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for episode in episodes:
        first = found.setdefault(episode.arm, episode.setup)
        for name in ("variant", "tolerance", "tolerance_mode"):
            one, other = first.get(name), episode.setup.get(name)
            if one != other:
                raise LogError(f"arm {episode.arm!r} was run with {name} = {one} and with {other} (valid: one of them)")
    return {arm: found[arm] for arm in sorted(found, key=lambda arm: _place(arm, found[arm]))}


def fixed_tolerances(episodes: Iterable[Episode]) -> dict[str, float]:
    """The arms that prune as DTP does with a fixed tolerance, and that tolerance, growing."""
    return {
        arm: float(setup["tolerance"])
        for arm, setup in setups(episodes).items()
        if setup.get("variant") == "dtp" and not _by_entropy(setup)
    }


def entropy_arms(episodes: Iterable[Episode]) -> list[str]:
    """The arms that take the tolerance of least entropy at every step."""
    return [arm for arm, setup in setups(episodes).items() if setup.get("variant") == "dtp" and _by_entropy(setup)]


def families(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes by the study they belong to: of one checkpoint, alike in every constant that a study does not vary.

    Named by what they differ in, e.g. `mask_scope=action`; an only one has no name. Arms without pruning belong to
    each study that acts as they do.
    """
    kinds: list[dict[str, Any]] = []
    for kind in map(_own, sorted(episodes, key=lambda episode: _off(episode.setup))):
        # A checkpoint that was run without pruning only is a study too.
        if kind not in kinds and (not kind.keys() <= set(_ACTING) or not any(kind.items() <= k.items() for k in kinds)):
            kinds.append(kind)
    found = {}
    for kind in kinds:
        # One that was run without pruning only has the constants of none.
        peers = {name: [k for k in kinds if name in _ACTING or not k.keys() <= set(_ACTING)] for name in kind}
        differing = [name for name, value in kind.items() if any(k.get(name) != value for k in peers[name])]
        members = [e for e in episodes if _own(e).items() <= kind.items()]
        found[", ".join(f"{name}={_text(kind[name])}" for name in differing)] = members
    return found


def constants(episodes: Sequence[Episode]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What every arm was run with, and for each arm what not all have alike; (name: value), (arm: (name: value)).

    A constant that means nothing for an arm, such as a tolerance without pruning, is not counted there; one that an
    older log does not have is unknown.
    """
    names = dict.fromkeys(name for episode in episodes for name in episode.setup)
    seen: dict[str, dict[str, list[str]]] = {}  # name, arm: values
    for episode in episodes:
        for name in (name for name in names if _matters(name, episode.setup)):
            values, value = seen.setdefault(name, {}).setdefault(episode.arm, []), UNKNOWN
            if name in episode.setup:
                value = _text(episode.setup[name])
            values += [] if value in values else [value]
    said = {name: {arm: "; ".join(sorted(values)) for arm, values in arms.items()} for name, arms in seen.items()}
    arms = setups(episodes)
    alike = {name: next(iter(own.values())) for name, own in said.items() if len(set(own.values())) == 1}
    rest = sorted(said.keys() - alike.keys())
    return alike, {arm: {name: said[name][arm] for name in rest if arm in said[name]} for arm in arms}


def _place(arm: str, setup: Mapping[str, Any]) -> tuple[int, bool, float, str]:
    variant = setup.get("variant")
    place = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
    return place, _by_entropy(setup), float(setup.get("tolerance", 0.0)), arm


def _off(setup: Mapping[str, Any]) -> bool:
    return setup.get("variant") == "off"


def _by_entropy(setup: Mapping[str, Any]) -> bool:
    return setup.get("tolerance_mode") == "min_entropy"


def _matters(name: str, setup: Mapping[str, Any]) -> bool:
    if name == "evaluation":  # one a benchmark, or the log would not have been read
        return False
    if _off(setup):
        return name == "variant" or name not in _PRUNING
    if name in ("tolerance", "tolerance_grid"):
        return _by_entropy(setup) == (name == "tolerance_grid")
    return name != "seed" or str(setup.get("variant")).startswith("random")


def _own(episode: Episode) -> dict[str, Any]:
    """The constants that make an episode part of one study."""
    names = _ACTING if _off(episode.setup) else _ALIKE
    return {name: episode.setup[name] for name in names if name in episode.setup}


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

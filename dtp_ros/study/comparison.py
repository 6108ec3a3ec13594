"""What reports and figures show: arms side by side over the same episodes, made from the log alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dtp_ros.pruning.config import VARIANTS, PruningConfig
from dtp_ros.study import log, statistics
from dtp_ros.study.log import Episode, LogError
from dtp_ros.study.statistics import Estimate, PairedTest

FIGURES = ("fire_rate", "pruned", "entropy_clean", "entropy_refined", "score_clean", "score_refined")
CHECKPOINT = ("model", "checkpoint")
_PRUNING = tuple(item.name for item in fields(PruningConfig))
_COMPARED = ("variant", "tolerance", "tolerance_mode", "tolerance_grid", "seed")  # what the arms of a study differ in
_ALIKE = (
    *CHECKPOINT, *(name for name in _PRUNING if name not in _COMPARED),
    "execute_horizon", "ensemble", "ensemble_weight", "fast_grammar",
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """An arm over some episodes.

    figures: `success`, `grasp` (rates, 0 ... 1) and the means over episodes of `FIGURES`, in their own units. What has
    no interval is missing: the grasp of a benchmark that does not say it, means of a single episode.
    """

    episodes: int
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Versus:
    """An arm against another one, which is the first of `test`.

    left_out: episodes that only one of the two has. corrected: p after Holm's correction over the family.
    """

    arm: str
    against: str
    test: PairedTest
    left_out: int
    corrected: float


@dataclass(frozen=True)
class Choice:
    """The tolerance that is chosen on the tuning half.

    tuning: success of each candidate arm over the `episodes` of that half that all of them have; left_out: episodes
    of that half that only some of them have. confirmed: the chosen arm against the baseline on the other half, or None
    where the two share no episode there; success: the baseline's and its own, over the same episodes.
    """

    arm: str
    tolerance: float
    tuning: Mapping[str, Estimate]
    episodes: int
    left_out: int
    confirmed: Versus | None
    success: tuple[Estimate, ...]


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


def sections(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes by benchmark; where there are several, all of them come first."""
    return _grouped(episodes, "All benchmarks", [episode.benchmark for episode in episodes])


def groups(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes by task; where there are several tasks, all of them come first."""
    return _grouped(episodes, "All tasks", [episode.task for episode in episodes])


def families(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes by the study they belong to: of one checkpoint, alike in every constant that a study does not vary.

    Named by what they differ in, e.g. `mask_scope=action`; an only one has no name. Arms without pruning belong to
    each study of their checkpoint.
    """
    kinds: list[dict[str, Any]] = []
    for kind in map(_own, sorted(episodes, key=lambda episode: _off(episode.setup))):
        # A checkpoint that was run without pruning only is a study too.
        if kind not in kinds and (len(kind) > len(CHECKPOINT) or not any(kind.items() <= k.items() for k in kinds)):
            kinds.append(kind)
    found = {}
    for kind in kinds:
        # One that was run without pruning only has the constants of none.
        peers = {name: [k for k in kinds if name in CHECKPOINT or len(k) > len(CHECKPOINT)] for name in kind}
        differing = [name for name, value in kind.items() if any(k.get(name) != value for k in peers[name])]
        members = [e for e in episodes if _own(e).items() <= kind.items()]
        found[", ".join(f"{name}={_text(kind[name])}" for name in differing)] = members
    return found


def summaries(episodes: Sequence[Episode]) -> dict[str, Summary]:
    """Each arm, over the episodes that it has."""
    return {arm: _summary([e for e in episodes if e.arm == arm]) for arm in setups(episodes)}


def versus(episodes: Sequence[Episode], against: Sequence[str]) -> list[Versus]:
    """Every arm against each of these: one family of tests, in which no two arms meet twice.

    Arms without a common episode are not compared.
    """
    keys = {arm: {e.key for e in episodes if e.arm == arm} for arm in setups(episodes)}
    pairs = [(other, arm) for place, other in enumerate(against) for arm in keys if arm not in against[: place + 1]]
    found = []
    for other, arm in pairs:
        if keys.get(other, set()) & keys[arm]:
            both = log.paired(episodes, other, arm)
            test = statistics.paired_test([one.success for one, _ in both], [two.success for _, two in both])
            found.append((arm, other, test, len(keys[other] ^ keys[arm])))
    corrected = statistics.holm([test.p for _, _, test, _ in found])
    return [Versus(*item, p) for item, p in zip(found, corrected, strict=True)]


def choice(episodes: Sequence[Episode], baseline: str) -> Choice | None:
    """The fixed tolerance of most successes in the tuning half; of equal ones the larger. None without a candidate.

    The held-out half has no part in it, and is then looked at once.
    """
    tolerances = fixed_tolerances(episodes)
    tuning = {arm: {e.key: e.success for e in episodes if e.arm == arm and not e.held_out} for arm in tolerances}
    every = set[tuple[str, str, int]]().union(*tuning.values())
    common = every.intersection(*tuning.values())
    if not common:
        return None
    successes = {arm: sum(found[key] for key in common) for arm, found in tuning.items()}
    chosen = max(tolerances, key=lambda arm: (successes[arm], tolerances[arm]))
    held_out = [e for e in episodes if e.held_out and e.arm in (baseline, chosen)]
    confirmed = next(iter(versus(held_out, [baseline])), None)
    pairs = log.paired(held_out, baseline, chosen) if confirmed else []
    return Choice(
        arm=chosen,
        tolerance=tolerances[chosen],
        tuning={arm: statistics.wilson(count, len(common)) for arm, count in successes.items()},
        episodes=len(common),
        left_out=len(every) - len(common),
        confirmed=confirmed,
        success=tuple(statistics.wilson(sum(e.success for e in arm), len(arm)) for arm in zip(*pairs, strict=True)),
    )


def constants(episodes: Sequence[Episode]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What every arm was run with, and for each arm what not all have alike; (name: value), (arm: (name: value)).

    A constant that means nothing for an arm, such as a tolerance without pruning, is not counted there.
    """
    seen: dict[str, dict[str, list[str]]] = {}  # name, arm: values
    for episode in episodes:
        for name, value in episode.setup.items():
            if _matters(name, episode.setup):
                values = seen.setdefault(name, {}).setdefault(episode.arm, [])
                values += [] if _text(value) in values else [_text(value)]
    said = {name: {arm: "; ".join(sorted(values)) for arm, values in arms.items()} for name, arms in seen.items()}
    arms = setups(episodes)
    alike = {name: next(iter(own.values())) for name, own in said.items() if len(set(own.values())) == 1}
    rest = sorted(said.keys() - alike.keys())
    return alike, {arm: {name: said[name][arm] for name in rest if arm in said[name]} for arm in arms}


def _grouped(episodes: Sequence[Episode], every: str, names: Sequence[str]) -> dict[str, list[Episode]]:
    found: dict[str, list[Episode]] = {name: [] for name in sorted(set(names))}
    for episode, name in zip(episodes, names, strict=True):
        found[name].append(episode)
    return {every: list(episodes), **found} if len(found) > 1 else found


def _summary(episodes: Sequence[Episode]) -> Summary:
    count = len(episodes)
    found = {}
    if all(e.grasped is not None for e in episodes):
        found["grasp"] = statistics.wilson(sum(bool(e.grasped) for e in episodes), count)
    found["success"] = statistics.wilson(sum(e.success for e in episodes), count)
    if count > 1:
        found |= {figure: statistics.mean([e.mean(figure) for e in episodes]) for figure in FIGURES}
    return Summary(count, found)


def _place(arm: str, setup: Mapping[str, Any]) -> tuple[int, bool, float, str]:
    variant = setup.get("variant")
    place = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
    return place, _by_entropy(setup), float(setup.get("tolerance", 0.0)), arm


def _off(setup: Mapping[str, Any]) -> bool:
    return setup.get("variant") == "off"


def _by_entropy(setup: Mapping[str, Any]) -> bool:
    return setup.get("tolerance_mode") == "min_entropy"


def _matters(name: str, setup: Mapping[str, Any]) -> bool:
    if _off(setup):
        return name == "variant" or name not in _PRUNING
    if name in ("tolerance", "tolerance_grid"):
        return _by_entropy(setup) == (name == "tolerance_grid")
    return name != "seed" or str(setup.get("variant")).startswith("random")


def _own(episode: Episode) -> dict[str, Any]:
    """The constants that make an episode part of one study."""
    names = CHECKPOINT if _off(episode.setup) else _ALIKE
    return {name: episode.setup[name] for name in names if name in episode.setup}


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

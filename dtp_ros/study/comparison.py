"""What reports and figures show: arms side by side over the same episodes, made from the log alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dtp_ros.study import log, statistics
from dtp_ros.study.log import Episode
from dtp_ros.study.setups import fixed_tolerances, setups
from dtp_ros.study.statistics import Estimate, PairedTest

FIGURES = ("fire_rate", "pruned", "entropy_clean", "entropy_refined", "score_clean", "score_refined")
BEGINNING = 10  # steps of an episode, before outcomes part
COVERAGE = 0.9  # of the baseline's episodes: what an arm must have to be compared
FEW = 6  # benchmarks of a suite that are shown one by one
BASELINE = "off"


@dataclass(frozen=True)
class Group:
    """Arms over the same episodes, so that their rows can be read side by side.

    partial: arms that have too few of the baseline's (see COVERAGE), with the number; they are left out. left_out:
    episodes that only some of the others have. whole: episodes of the baseline, or of whoever has most.
    """

    episodes: Sequence[Episode]
    partial: Mapping[str, int] = field(default_factory=dict)
    left_out: int = 0
    whole: int = 0


@dataclass(frozen=True)
class Summary:
    """An arm over some episodes.

    figures: `success`, `grasp`, `pruning`: whether anything was pruned (rates, 0 ... 1), the means over episodes of
    `FIGURES`, in their own units, `steps`: the share of the steps that prune, `change`: of refined minus clean entropy,
    nats, `first_change`: the same of the first step, in which every arm sees the same, `raised`: the share of the steps
    that prune in which it is positive, `attention`: unimportant attention in the first `BEGINNING` steps, and `held`:
    the share of the policy's steps that gave no action. Shares and attention are 0 ... 1.
    What has no interval is missing: the grasp of a benchmark that does not say it, means of a single episode.
    """

    episodes: int
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Versus:
    """An arm against another one, which is the first of `test`. corrected: p after Holm's correction of the family."""

    arm: str
    against: str
    test: PairedTest
    corrected: float


@dataclass(frozen=True)
class Choice:
    """The tolerance that is chosen on the tuning half.

    tuning: success of each candidate arm over the same episodes of that half, which `group` has. confirmed: the chosen
    arm against the baseline on the other half, or None where the two share no episode there; success: the baseline's
    and its own, over the same episodes.
    """

    arm: str
    tolerance: float
    tuning: Mapping[str, Estimate]
    group: Group
    confirmed: Versus | None
    success: tuple[Estimate, ...]


def suites(episodes: Iterable[Episode]) -> dict[str, list[Episode]]:
    """Episodes by suite: what may be pooled, such as the settings of a table."""
    found: dict[str, list[Episode]] = {}
    for episode in episodes:
        found.setdefault(episode.suite or episode.benchmark, []).append(episode)
    return dict(sorted(found.items()))


def sections(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes by suite; after one of a few benchmarks, each of these."""
    found: dict[str, list[Episode]] = {}
    for suite, members in suites(episodes).items():
        benchmarks = sorted({episode.benchmark for episode in members})
        if len(benchmarks) > 1:
            found[f"{suite}, {len(benchmarks)} benchmarks together"] = members
        if len(benchmarks) <= FEW:
            found |= {name: [e for e in members if e.benchmark == name] for name in benchmarks}
    return found


def groups(episodes: Sequence[Episode], baseline: str = BASELINE) -> dict[str, Group]:
    """Episodes by task, every arm's the same; where there are several tasks, all of them come first."""
    found: dict[str, list[Episode]] = {name: [] for name in sorted({episode.task for episode in episodes})}
    for episode in episodes:
        found[episode.task].append(episode)
    found = {"All tasks": list(episodes), **found} if len(found) > 1 else found
    return {name: shared(members, baseline) for name, members in found.items()}


def shared(episodes: Iterable[Episode], baseline: str = BASELINE) -> Group:
    """The episodes that all arms have, without those arms that have too few of the baseline's."""
    chosen = list(episodes)
    keys: dict[str, set[tuple[str, str, int]]] = {}
    for episode in chosen:
        keys.setdefault(episode.arm, set()).add(episode.key)
    whole = keys[baseline] if baseline in keys else max(keys.values(), key=len, default=set())
    counts = {arm: len(own & whole) for arm, own in keys.items()}
    kept = [arm for arm, count in counts.items() if count >= COVERAGE * len(whole)]
    common = whole.intersection(*(keys[arm] for arm in kept))
    return Group(
        episodes=[e for e in chosen if e.arm in kept and e.key in common],
        partial={arm: count for arm, count in counts.items() if arm not in kept},
        left_out=len(set[tuple[str, str, int]]().union(*(keys[arm] for arm in kept)) - common),
        whole=len(whole),
    )


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
            found.append((arm, other, test))
    corrected = statistics.holm([test.p for _, _, test in found])
    return [Versus(*item, p) for item, p in zip(found, corrected, strict=True)]


def parted_early(episodes: Sequence[Episode], baseline: str) -> dict[str, tuple[int, int]]:
    """Of each arm, the pairs with the baseline that part before anything is pruned, and those that could show it."""
    keys = {arm: {e.key for e in episodes if e.arm == arm} for arm in setups(episodes)}
    found = {}
    for arm in (arm for arm in keys if arm != baseline and keys[arm] & keys.get(baseline, set())):
        parted = [log.parted_early(*pair) for pair in log.paired(episodes, baseline, arm)]
        found[arm] = (parted.count(True), len(parted) - parted.count(None))
    return found


def choice(episodes: Sequence[Episode], baseline: str) -> Choice | None:
    """The fixed tolerance of most successes in the tuning half; of equal ones the larger. None without a candidate.

    The held-out half has no part in it.
    """
    tolerances = fixed_tolerances(episodes)
    group = shared([e for e in episodes if not e.held_out and e.arm in (baseline, *tolerances)], baseline)
    tuning = {
        arm: [e.success for e in group.episodes if e.arm == arm] for arm in tolerances if arm not in group.partial
    }
    tuning = {arm: found for arm, found in tuning.items() if found}
    if not tuning:
        return None
    chosen = max(tuning, key=lambda arm: (sum(tuning[arm]), tolerances[arm]))
    held_out = shared([e for e in episodes if e.held_out and e.arm in (baseline, chosen)], baseline).episodes
    confirmed = next(iter(versus(held_out, [baseline])), None)
    pairs = log.paired(held_out, baseline, chosen) if confirmed else []
    return Choice(
        arm=chosen,
        tolerance=tolerances[chosen],
        tuning={arm: statistics.wilson(sum(found), len(found)) for arm, found in tuning.items()},
        group=group,
        confirmed=confirmed,
        success=tuple(statistics.wilson(sum(e.success for e in arm), len(arm)) for arm in zip(*pairs, strict=True)),
    )


def _summary(episodes: Sequence[Episode]) -> Summary:
    count = len(episodes)
    found = {}
    if all(e.grasped is not None for e in episodes):
        found["grasp"] = statistics.wilson(sum(bool(e.grasped) for e in episodes), count)
    found["success"] = statistics.wilson(sum(e.success for e in episodes), count)
    found["pruning"] = statistics.wilson(sum(any(e.series["pruned"]) for e in episodes), count)
    columns = {figure: [e.mean(figure) for e in episodes] for figure in FIGURES}
    columns["change"] = [e.mean("entropy_refined") - e.mean("entropy_clean") for e in episodes]
    columns["first_change"] = [e.series["entropy_refined"][0] - e.series["entropy_clean"][0] for e in episodes]
    columns["steps"] = [_mean([float(count > 0) for count in e.series["pruned"]]) for e in episodes]
    columns["raised"] = [_raised(e) for e in episodes]
    columns["attention"] = [_mean(e.series["unimportant_attention"][:BEGINNING]) for e in episodes]
    columns["held"] = [e.holds / len(e.series["pruned"]) for e in episodes]
    for figure, values in columns.items():
        finite = [value for value in values if math.isfinite(value)]
        found |= {figure: statistics.mean(finite)} if len(finite) > 1 else {}
    return Summary(count, found)


def _raised(episode: Episode) -> float:
    """The share of the steps that prune in which pruning raises the entropy; nan where none prunes."""
    figures = (episode.series[name] for name in ("pruned", "entropy_clean", "entropy_refined"))
    changes = [refined - clean for pruned, clean, refined in zip(*figures, strict=True) if pruned]
    return _mean([float(change > 0) for change in changes if math.isfinite(change)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

"""Episodes from rosbag2 recordings of `~/trace`, as the study's log has them: what reads one reads both.

    ros2 bag record -o run_1 /dtp_policy/trace /sim/success /sim/info

An episode is a run of steps that count up from 0, as the policy does after every reset; its number is that of the run
in its recording, from 0. `~/trace` does not say how an episode ended. That comes from the simulator's topics where they
were recorded, or from labels. What cannot be used is counted and said, never filled in.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dtp_ros.study import labels as labels_file
from dtp_ros.study.log import SERIES, Episode
from dtp_ros.study.recording import Bag, BagError, opened

TRACE_NAME = "dtp_policy: step"  # of the status, as dtp_ros/ros/trace.py writes it
# How topics end, and their types.
_TRACE = "/trace", "diagnostic_msgs/msg/DiagnosticArray"
_SUCCESS = "/sim/success", "std_msgs/msg/Bool"
_INFO = "/sim/info", "std_msgs/msg/String"
_PARAMETER = "parameter_"
# Why an episode is left out.
UNLABELLED = "without a label"
INCOMPLETE = "with steps missing"
CHANGED = "whose settings changed on the way"
CUT = "cut off with their recording"
RESET = "during which the simulator was reset"
UNFINISHED = "that were not over"


@dataclass(frozen=True)
class Recorded:
    """Episodes of recordings. left_out: episodes by reason. foreign: messages on `~/trace` that are not ours.

    unused: names in the labels that no recording has.
    """

    episodes: tuple[Episode, ...]
    left_out: Mapping[str, int]
    foreign: int
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """What was read and what was not, in words."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        said = f"{len(self.episodes)} episodes read from recordings, {sum(self.left_out.values())} left out"
        said += f" ({reasons})" if reasons else ""
        said += f"; {self.foreign} messages were not of dtp_policy" if self.foreign else ""
        return said + (f"; the labels of {', '.join(self.unused)} are of no recording here" if self.unused else "")


@dataclass(frozen=True)
class _Step:
    """One message of `~/trace`. time: when it was recorded, ns. controls: control steps that it decided on."""

    time: int
    number: int
    held: bool
    controls: int
    task: str
    arm: str
    setup: Mapping[str, Any]
    figures: tuple[float, ...]


@dataclass(frozen=True)
class _Moment:
    """What the simulator said. step: control steps since its reset; None where only `~/success` was recorded.

    over: whether the time for its task has passed.
    """

    time: int
    step: int | None
    over: bool
    success: bool
    grasped: bool | None


@dataclass(frozen=True)
class _Ending:
    """As an `Episode` has it.

    success: None where it is not known, for the reason in `unknown`. objection: why the episode is not to be used.
    """

    success: bool | None = None
    grasped: bool | None = None
    unknown: str = UNLABELLED
    objection: str = ""


@dataclass(frozen=True)
class _Run:
    """Steps of one episode. number: from 0. until: when the next begins, ns; None for the last of a recording."""

    number: int
    steps: Sequence[_Step]
    until: int | None


def read_bags(paths: Iterable[Path], labels: Path | None = None, *, topic: str = "", benchmark: str = "") -> Recorded:
    """The episodes of some recordings (see `recording.opened`).

    labels: file of `labels.read`; what it says goes before what the simulator said. topic: of the traces;
    the one that ends in `/trace` if empty. benchmark: one name for all recordings, whose episodes are then numbered on;
    if empty each recording is a benchmark of its own, named after its folder. Raises BagError.
    """
    ended = labels_file.read(labels) if labels else {}
    episodes: list[Episode] = []
    left_out: Counter[str] = Counter()
    names: dict[str, Path] = {}
    foreign = first = 0
    for path in paths:
        name = path.resolve().stem if path.is_file() else path.resolve().name
        if name in names:
            raise BagError(f"{names[name]} and {path} have one name, {name}, but labels tell recordings apart by it")
        names[name] = path
        given = {number: success for (bag, number), success in ended.items() if bag == name}
        with opened(path) as recording:
            steps, strange = _steps(recording, topic)
            moments = _moments(recording)
        runs = list(_runs(steps))
        if wrong := sorted(given.keys() - range(len(runs))):
            raise BagError(f"{labels}: {name} has no episode {wrong[0]} (it has 0 ... {len(runs) - 1})")
        for run in runs:
            ending = _ending(run, moments)
            success = given.get(run.number, ending.success)
            why = _objection(run, cut=recording.cut and run.until is None) or ending.objection
            if why or success is None:
                left_out[why or ending.unknown] += 1
                continue
            episodes.append(_episode(run, benchmark or name, first + run.number, success, ending.grasped))
        foreign += strange
        first += len(runs) if benchmark else 0
    unused = sorted({bag for bag, _ in ended} - names.keys())
    return Recorded(tuple(episodes), dict(left_out), foreign, tuple(unused))


def _steps(bag: Bag, topic: str) -> tuple[list[_Step], int]:
    """Every step of a recording in order, and the number of messages that were something else."""
    topics = [topic] if topic else _topics(bag, *_TRACE)
    if len(topics) != 1 or bag.topics.get(topics[0]) != _TRACE[1]:
        there = ", ".join(sorted(name for name, kind in bag.topics.items() if kind == _TRACE[1])) or "none"
        wanted = f"topic {topic}" if topic else f"one topic */trace, but {len(topics)},"
        raise BagError(f"{bag.path} does not have {wanted} of type {_TRACE[1]} (topics of this type: {there})")
    steps, foreign = [], 0
    for heard in bag.messages(topics):
        where = f"{bag.path}, {heard.topic}"
        ours = [status for status in heard.message.status if status.name == TRACE_NAME]
        foreign += not ours
        steps += [_step({pair.key: pair.value for pair in s.values}, heard.time, where) for s in ours]
    if not steps:
        raise BagError(f"{bag.path}, {topics[0]} has no message of dtp_policy (there are {foreign} others)")
    return steps, foreign


def _topics(bag: Bag, end: str, kind: str) -> list[str]:
    return sorted(name for name, its in bag.topics.items() if its == kind and f"/{name}".endswith(end))


def _step(values: Mapping[str, str], time: int, where: str) -> _Step:
    number = _number(values, "step", where)
    if number < 0 or number != int(number):
        raise BagError(f"{where}: step = {number} does not count from 0")
    actions, horizon = _value(values, "actions", where), _number(values, f"{_PARAMETER}execute_horizon", where)
    setup = {key: _word(values, key, where) for key in ("model", "checkpoint")}
    names = [key.removeprefix(_PARAMETER) for key in values if key.startswith(_PARAMETER)]
    return _Step(
        time=time,
        number=int(number),
        held=bool(_word(values, "hold_reason", where)),
        controls=min(len(actions), int(horizon)) if isinstance(actions, list) else 1,
        task=_word(values, "instruction", where),
        arm=_arm(values, where),
        setup=setup | {name: _parameter(values[_PARAMETER + name]) for name in names},
        figures=tuple(_number(values, name, where, finite=False) for name in SERIES),
    )


def _arm(values: Mapping[str, str], where: str) -> str:
    """The name that arms.py gives to such a setting."""
    variant, mode = (_word(values, _PARAMETER + name, where) for name in ("variant", "tolerance_mode"))
    tolerance = _number(values, f"{_PARAMETER}tolerance", where)
    if variant == "off":
        return variant
    if mode == "min_entropy":
        return mode if variant == "dtp" else f"{variant} {mode}"
    return f"{variant} {tolerance:g}"


def _word(values: Mapping[str, str], key: str, where: str) -> str:
    if key not in values:
        raise BagError(f"{where}: a step has no key {key} (valid: those of dtp_ros/ros/trace.py)")
    return values[key]


def _value(values: Mapping[str, str], key: str, where: str) -> Any:
    text = _word(values, key, where)
    try:
        return json.loads(text)
    except ValueError:
        raise BagError(f"{where}: {key} = {text[:60]!r} is no JSON") from None


def _number(values: Mapping[str, str], key: str, where: str, *, finite: bool = True) -> float:
    """A number; finite: whether it must be: figures of a step with logits that were not are not either."""
    value = _value(values, key, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (finite and not math.isfinite(value)):
        raise BagError(f"{where}: {key} = {values[key][:60]!r} is no {'finite ' * finite}number")
    return float(value) if math.isfinite(value) else math.nan


def _parameter(text: str) -> Any:
    """A parameter's value; those that are words are written as they are."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _runs(steps: Sequence[_Step]) -> Iterator[_Run]:
    starts = [0, *(i for i, (one, next_) in enumerate(pairwise(steps), 1) if next_.number <= one.number)]
    for number, (start, end) in enumerate(pairwise([*starts, len(steps)])):
        yield _Run(number, steps[start:end], steps[end].time if end < len(steps) else None)


def _objection(run: _Run, *, cut: bool) -> str:
    """Why a run of steps is no whole episode under one arm, or nothing. cut: the recording breaks off in it."""
    first = run.steps[0]
    if [step.number for step in run.steps] != list(range(len(run.steps))):
        return INCOMPLETE
    if any((step.task, step.setup) != (first.task, first.setup) for step in run.steps):
        return CHANGED
    return CUT if cut else ""


def _episode(run: _Run, benchmark: str, number: int, success: bool, grasped: bool | None) -> Episode:
    first = run.steps[0]
    return Episode(
        arm=first.arm,
        benchmark=benchmark,
        task=first.task,
        episode=number,
        success=success,
        grasped=grasped,
        steps=sum(step.controls for step in run.steps),
        holds=sum(step.held for step in run.steps),
        setup=first.setup,
        series=dict(zip(SERIES, zip(*(step.figures for step in run.steps), strict=True), strict=True)),
    )


def _moments(bag: Bag) -> list[_Moment]:
    """What the simulator said of success: `~/info` where it was recorded, else `~/success`."""
    if infos := _topics(bag, *_INFO):
        return [_moment(heard.message.data, heard.time, f"{bag.path}, {heard.topic}") for heard in bag.messages(infos)]
    heard = bag.messages(_topics(bag, *_SUCCESS))
    return [_Moment(one.time, None, False, bool(one.message.data), None) for one in heard]


def _moment(text: str, time: int, where: str) -> _Moment:
    try:
        info = json.loads(text)
        grasped = info["grasped"] == info["source"]
        step, steps = int(info["step"]), int(info["steps"])
        return _Moment(time, step, step >= steps - 1, bool(info["success"]), grasped)
    except (ValueError, KeyError, TypeError) as error:
        raise BagError(f"{where}: {text[:60]!r} does not say step, steps, success, grasped, source: {error}") from None


def _ending(run: _Run, moments: Sequence[_Moment]) -> _Ending:
    """How an episode ended, as far as the simulator said so.

    A simulator that is reset says at once that the new scene is no success, before the policy's next episode begins:
    what counts is its last word before its own steps fall back. One that was stopped before its time is no failure:
    how it would have ended is not known. `~/success` alone does not tell a reset from a success that was lost; of what
    it said from the run's last step on, any success counts, and the last run of a recording may have been stopped.
    """
    times = [moment.time for moment in moments]
    end = len(times) if run.until is None else bisect_left(times, run.until)
    if not times[:end]:
        return _Ending()
    begin, last = (max(bisect_right(times, run.steps[i].time) - 1, 0) for i in (0, -1))
    if moments[0].step is None:
        success = any(moment.success for moment in moments[last:end])
        return _Ending(success) if success or run.until is not None else _Ending(unknown=UNFINISHED)
    falls = (i for i in range(begin + 1, end) if (moments[i].step or 0) < (moments[i - 1].step or 0))
    end = next(falls, end)
    if end <= last:
        return _Ending(objection=RESET)
    grasped, word = any(moment.grasped for moment in moments[begin:end]), moments[end - 1]
    if word.success or word.over:
        return _Ending(word.success, grasped)
    return _Ending(None, grasped, UNFINISHED)

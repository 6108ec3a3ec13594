"""What a study is to run: who acts, on which episodes of which benchmark; all is checked before a model loads."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_eval.cli.config_loader import load_config
from vla_eval.config import EvalConfig
from vla_eval.registry import resolve_import_string

from dtp_ros.errors import ConfigError, require_choice, require_integer
from dtp_ros.study import log
from dtp_ros.study.server import DtpModelServer

LOG = "episodes.jsonl"
ANSWER_TIMEOUT = 600.0  # s for one step of the policy: a large model on a CPU, or behind other shards
_SERVER_KEYS = ("host", "port", "log", "arm")  # of a server by itself: a study sets them


@dataclass(frozen=True)
class Plan:
    """A study: who acts, on what, how much of it, and where the results go. Raises ConfigError out of range.

    server, benchmark: configuration files of vla-eval. shards: processes that run episodes. episodes: a task, instead
    of the file's; tasks, entries: only these (by `name` and `subname`); half: see `log.held_out`.
    """

    server: Path
    benchmark: Path
    out: Path
    shards: int = 1
    episodes: int | None = None
    tasks: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    half: str = "both"
    docker: bool = True

    def __post_init__(self) -> None:
        require_integer("shards", self.shards, 1, 1024)
        require_choice("half", self.half, log.HALVES)
        if self.episodes is not None:
            require_integer("episodes", self.episodes, 1, 10**6)

    @property
    def log(self) -> Path:
        """The study's log."""
        return self.out / LOG

    def entries_to_run(self) -> list[Entry]:
        """The benchmark's entries that were chosen. Raises ConfigError."""
        config = loaded(self.benchmark)
        listed = config.get("benchmarks")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise ConfigError(f"{self.benchmark} lists no `benchmarks`")
        names = [str(entry["subname"]) for entry in listed if "subname" in entry]
        if unknown := [name for name in self.entries if name not in names]:
            raise ConfigError(f"{self.benchmark} has no entry {unknown[0]} (valid: {', '.join(names)})")
        chosen = [
            Entry.of(self, config, entry)
            for entry in listed
            if not self.entries or entry.get("subname") in self.entries
        ]
        resolved = [entry.name for entry in chosen]
        if twice := {name for name in resolved if resolved.count(name) > 1}:
            raise ConfigError(f"{self.benchmark} has several entries called {twice.pop()}: give each a `subname`")
        return chosen

    def server_arguments(self) -> dict[str, Any]:
        """What the server's file says of the model. Raises ConfigError."""
        args = loaded(self.server).get("args") or {}
        known = inspect.signature(DtpModelServer.__init__).parameters
        if unknown := sorted(args.keys() - known.keys() - set(_SERVER_KEYS)):
            raise ConfigError(f"{self.server}: {unknown[0]} not known (valid: {', '.join(list(known)[1:])})")
        return {key: value for key, value in args.items() if key not in _SERVER_KEYS}

    def model_server(self) -> DtpModelServer:
        """The model, loaded, with the study's log. Raises what `DtpModelServer` raises."""
        return DtpModelServer(**self.server_arguments(), log=str(self.log))


@dataclass(frozen=True)
class Entry:
    """One entry of a benchmark's file. name: vla-eval's; suite: without `subname`. config: with this entry alone.

    identity: changes with what is run and by whom, other than the arm's constants and the choice of episodes. items:
    task and number of every episode in the order of vla-eval's queue; None for a benchmark in a container. half: those
    of them to run.
    """

    name: str
    suite: str
    config: Mapping[str, Any]
    identity: str
    items: Sequence[tuple[str, int]] | None
    half: str = "both"

    @property
    def wanted(self) -> set[tuple[str, int]]:
        """Those of `items` that are to be run."""
        chosen = {"both": (False, True), "tuning": (False,), "held_out": (True,)}[self.half]
        return {item for item in self.items or () if log.held_out(self.name, *item) in chosen}

    @classmethod
    def of(cls, plan: Plan, config: Mapping[str, Any], raw: Mapping[str, Any]) -> Entry:
        """The entry `raw` of a file, as the plan wants it. Raises ConfigError."""
        params = dict(raw.get("params") or {})
        who = {key: value for key, value in plan.server_arguments().items() if key != "parameters"}
        what = json.dumps([who, raw.get("benchmark"), params, raw.get("max_steps")], sort_keys=True)
        entry = {**raw, "params": params}
        if plan.episodes:
            entry["episodes_per_task"] = plan.episodes
        if plan.tasks:
            entry["tasks"] = list(plan.tasks)
        try:
            eval_config = EvalConfig.from_dict(entry)
            kind = resolve_import_string(eval_config.benchmark)
        except Exception as error:  # whatever the import of another's module raises
            raise ConfigError(f"{plan.benchmark}: {error}") from None
        own = int(raw.get("episodes_per_task", EvalConfig.episodes_per_task))
        if eval_config.episodes_per_task > own and not getattr(kind, "endless", False):
            raise ConfigError(
                f"episodes = {plan.episodes} exceeds the {own} of {eval_config.resolved_name()} in {plan.benchmark}: "
                "beyond them the same ones would count again (where a task has more of its own, say so in that file)"
            )
        known = inspect.signature(kind.__init__).parameters
        if unknown := sorted(params.keys() - known.keys()):
            raise ConfigError(f"{kind.__name__} has no {unknown[0]} (valid: {', '.join(list(known)[1:])})")
        in_container = plan.docker and bool(config.get("docker"))
        if in_container and plan.half != "both":
            raise ConfigError(
                f"half = {plan.half!r}: the tasks of {plan.benchmark} are not known outside its container"
            )
        return cls(
            name=eval_config.resolved_name(),
            suite=str(eval_config.name or ""),
            config={**config, "benchmarks": [entry]},
            identity=hashlib.sha256(what.encode()).hexdigest()[:8],
            items=None if in_container else _items(kind(**params), eval_config),
            half=plan.half,
        )


def loaded(path: Path) -> dict[str, Any]:
    """A configuration file of vla-eval, with what it extends. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path} is not there: a configuration file of vla-eval is needed (see config/study)")
    try:
        config = load_config(str(path))
    except Exception as error:  # of yaml, OmegaConf, or a file that it extends
        raise ConfigError(f"{path} is no configuration of vla-eval: {error}") from None
    if not isinstance(config.get("args", {}) or {}, dict):
        raise ConfigError(f"{path}: args is no mapping")
    return {**config, "server": {"timeout": ANSWER_TIMEOUT, **(config.get("server") or {})}}


def _items(benchmark: Any, entry: EvalConfig) -> list[tuple[str, int]]:
    tasks = [(str(task.get("name")), task.get("suite")) for task in benchmark.get_tasks()]
    valid = {name for names in tasks for name in names if name}
    if unknown := [name for name in entry.tasks or () if name not in valid]:
        raise ConfigError(f"no task is called {unknown[0]} (valid: {', '.join(sorted(valid))})")
    chosen = [name for name, suite in tasks if not entry.tasks or name in entry.tasks or suite in entry.tasks]
    return [(name, index) for name in chosen[: entry.max_tasks] for index in range(entry.episodes_per_task)]

"""Runs the arms of a study on a benchmark of vla-eval: one model server, episodes spread over processes, one log.

Each arm and each entry of the benchmark's file is an evaluation of its own, whose queue vla-eval keeps in a database.
What the log has is taken from the queue before it begins. The tasks of a benchmark in a container are not known here:
such an evaluation goes on with the queue that it left.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from vla_eval.api import serve_background
from vla_eval.cli.config_loader import load_config
from vla_eval.config import EvalConfig
from vla_eval.recording import RecordingStore
from vla_eval.registry import resolve_import_string

from dtp_ros.errors import ConfigError, DtpError
from dtp_ros.study import log
from dtp_ros.study.arms import Arm
from dtp_ros.study.server import DtpModelServer

LOG = "episodes.jsonl"
ANSWER_TIMEOUT = 600.0  # s for one step of the policy: a large model on a CPU, or behind other shards
_SERVER_KEYS = ("host", "port", "log", "arm")


class StudyError(DtpError):
    """Episodes that could not be run."""


@dataclass(frozen=True)
class Plan:
    """A study: who acts, on what, how much of it, and where the results go.

    server, benchmark: configuration files of vla-eval. shards: processes that run episodes. episodes: a task, instead
    of the file's; tasks, entries: only these (by `name` and `subname`); params: of the benchmark, instead of the
    file's.
    """

    server: Path
    benchmark: Path
    out: Path
    shards: int = 1
    episodes: int | None = None
    tasks: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    params: Mapping[str, Any] | None = None
    docker: bool = True

    @property
    def log(self) -> Path:
        """The study's log."""
        return self.out / LOG

    def evaluations(self) -> list[dict[str, Any]]:
        """The benchmark's configuration, once for each of its entries. Raises ConfigError."""
        config = _loaded(self.benchmark)
        chosen = []
        for entry in config.get("benchmarks") or []:
            if self.entries and entry.get("subname") not in self.entries:
                continue
            entry = {**entry, "params": {**entry.get("params", {}), **(self.params or {})}}
            entry |= {"episodes_per_task": self.episodes} if self.episodes else {}
            entry |= {"tasks": list(self.tasks)} if self.tasks else {}
            chosen.append({**config, "benchmarks": [entry]})
        if not chosen:
            names = [entry.get("subname") for entry in config.get("benchmarks") or []]
            raise ConfigError(f"{self.benchmark} has no entry {', '.join(self.entries)} (valid: {names})")
        return chosen

    def model_server(self) -> DtpModelServer:
        """The model, loaded, with the study's log. Raises what `DtpModelServer` raises."""
        args = _loaded(self.server).get("args") or {}
        own = {key: value for key, value in args.items() if key not in _SERVER_KEYS}
        return DtpModelServer(**own, log=str(self.log))


def run(plan: Plan, arms: Sequence[Arm]) -> list[log.Episode]:
    """Run what the log lacks, and return the log. Raises ConfigError, CheckpointError, StudyError."""
    evaluations = plan.evaluations()
    plan.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the order of sums, and with it the last digit, would depend on the number of threads
    server = plan.model_server()
    failed = 0
    with serve_background(server, host="127.0.0.1") as handle:
        for arm in arms:
            for config in evaluations:
                entry = config["benchmarks"][0]
                name = EvalConfig.from_dict(entry).resolved_name()
                server.begin(arm.name, arm.parameters, benchmark=name)
                failed += _Evaluation(plan, arm, name, config, server, handle.url).run()
    if failed:
        raise StudyError(f"{failed} episodes failed: see {plan.out / 'vla-eval'}; the same command runs them again")
    return log.read([plan.log])


def _wait_for(server: DtpModelServer) -> None:
    """A shard that has ended may have left its last message behind: the log is complete when the server has read it."""
    end = time.monotonic() + ANSWER_TIMEOUT
    while server.running and time.monotonic() < end:
        time.sleep(0.02)


@dataclass(frozen=True)
class _Evaluation:
    """One arm on one entry."""

    plan: Plan
    arm: Arm
    name: str
    config: Mapping[str, Any]
    server: DtpModelServer
    url: str

    def run(self) -> int:
        """Run what is left of it; the number of episodes that failed."""
        self.place.mkdir(parents=True, exist_ok=True)
        items = self._items()
        if items is None:
            self._take_up()
        else:
            self._seed(items)
        done, total = self._queue()
        if total and done == total:
            return 0
        path = self.place / "config.json"
        path.write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        processes = [self._start(path, shard) for shard in range(self.plan.shards)]
        try:
            self._follow(processes)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        _wait_for(self.server)
        done, total = self._queue()
        if not total or done < total:
            raise StudyError(
                f"{self.name} under {self.arm.name!r} ended after {done} of {total} episodes: see {self.place}"
            )
        return self._failed() if items is None else len(set(items) - self._logged())

    @property
    def identity(self) -> str:
        """Changes with anything that changes what is run."""
        server = _loaded(self.plan.server).get("args")
        what = [server, self.arm.parameters, self.config["benchmarks"]]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=list).encode()).hexdigest()[:8]

    @property
    def place(self) -> Path:
        """Folder of vla-eval's own files."""
        words = re.sub(r"[^\w.=-]+", "_", f"{self.arm.name}-{self.name}")
        return self.plan.out / "vla-eval" / f"{words}-{self.identity}"

    @property
    def _database(self) -> Path:
        return self.place / f"recording-{self.identity}.sqlite"

    def _start(self, config: Path, shard: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "vla_eval.cli.main", "run", "--config", str(config), "--yes"]
        command += ["--server-url", self.url, "--output-dir", str(self.place), "--eval-id", self.identity]
        command += ["--shard-id", str(shard), "--num-shards", str(self.plan.shards)]
        command += [] if self.plan.docker else ["--no-docker"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (self.place / f"shard{shard}.log").open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def _follow(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        with tqdm(desc=f"{self.arm.name}, {self.name}", unit="episode", file=sys.stdout, mininterval=1.0) as bar:
            running = True
            while running:
                running = any(process.poll() is None for process in processes)
                bar.n, bar.total = self._queue()
                bar.refresh()
                if running:
                    time.sleep(0.5)

    def _items(self) -> list[tuple[str, int]] | None:
        """Task and number of every episode in the order of the queue, or None for a benchmark in a container."""
        if self.plan.docker and self.config.get("docker"):
            return None
        entry = EvalConfig.from_dict(self.config["benchmarks"][0])
        benchmark = resolve_import_string(entry.benchmark)(**entry.params)
        number = getattr(benchmark, "episode_number", int)
        names = [task["name"] for task in benchmark.get_tasks() if not entry.tasks or task["name"] in entry.tasks]
        return [(name, number(index)) for name in names[: entry.max_tasks] for index in range(entry.episodes_per_task)]

    def _seed(self, items: Sequence[tuple[str, int]]) -> None:
        """Vla-eval's queue, with what is in the log done already."""
        logged, names = self._logged(), list(dict.fromkeys(name for name, _ in items))
        self._database.unlink(missing_ok=True)
        with closing(RecordingStore(self._database)) as store:
            evaluation = f"{self.identity}-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.name)}"
            store.seed_queue(evaluation, [names.index(name) for name, _ in items])
            for index, item in enumerate(items):
                if item in logged:
                    store.finish(evaluation, index)

    def _logged(self) -> set[tuple[str, int]]:
        """Task and number of the log's episodes of this evaluation, under the same constants."""
        if not self.plan.log.exists():
            return set()
        setup = json.loads(json.dumps(self.server.setup()))
        episodes = log.read([self.plan.log])
        mine = [e for e in episodes if e.arm == self.arm.name and e.benchmark == self.name and e.setup == setup]
        return {(e.task, e.episode) for e in mine}

    def _queue(self) -> tuple[int, int]:
        """Episodes done and in all, as vla-eval counts them."""
        with self._connection() as database:
            if database is None:
                return 0, 0
            done, total = database.execute("SELECT COALESCE(SUM(done), 0), COUNT(*) FROM work_queue").fetchone()
            return int(done), int(total)

    def _take_up(self) -> None:
        """Go on with the queue that was left; anew where it is through and episodes failed.

        What a process that is gone had begun is free again, also where there are fewer of them now.
        """
        done, total = self._queue()
        if total and done == total and self._failed():
            self._database.unlink()
        with self._connection() as database:
            if database is not None:
                database.execute("UPDATE work_queue SET shard_id = NULL WHERE done = 0")
                database.commit()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection | None]:
        if not self._database.exists():
            yield None
            return
        with closing(sqlite3.connect(self._database, timeout=60.0)) as database:
            there = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'work_queue'").fetchone()
            yield database if there else None

    def _failed(self) -> int:
        """Episodes that broke off: vla-eval counts them as done, and they are not in the log."""
        with self._connection() as database:
            assert database is not None
            ended = "SELECT DISTINCT task_name, episode_id FROM episode_results WHERE status != 'error'"
            return self._queue()[0] - len(database.execute(ended).fetchall())


def _loaded(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path} is not there: a configuration file of vla-eval is needed (see config/study)")
    config: dict[str, Any] = load_config(str(path))
    config.setdefault("server", {})["timeout"] = ANSWER_TIMEOUT
    return config

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
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from tqdm import tqdm
from vla_eval.api import serve_background
from vla_eval.recording import RecordingStore

from dtp_ros.errors import DtpError
from dtp_ros.study import log
from dtp_ros.study.arms import Arm
from dtp_ros.study.plan import ANSWER_TIMEOUT, Entry, Plan
from dtp_ros.study.server import DtpModelServer


class StudyError(DtpError):
    """Episodes that could not be run."""


def run(plan: Plan, arms: Sequence[Arm]) -> list[log.Episode]:
    """Run what the log lacks, and return the log. Raises ConfigError, CheckpointError, and StudyError at the end."""
    entries = plan.entries_to_run()
    plan.out.mkdir(parents=True, exist_ok=True)
    log.mend(plan.log)
    server = plan.model_server()
    for arm in arms:
        server.begin(arm.name, arm.parameters)  # a constant that does not fit is refused now, not in some hours
    missing = {}
    with serve_background(server, host="127.0.0.1") as handle:
        for arm in arms:
            for entry in entries:
                server.begin(
                    arm.name, arm.parameters, benchmark=entry.name, evaluation=entry.identity, suite=entry.suite
                )
                evaluation = _Evaluation(plan, arm, entry, server, handle.url)
                if lacking := evaluation.run():
                    missing[evaluation.place] = lacking
    if missing:
        first, why = next(iter(missing.items()))
        raise StudyError(f"{len(missing)} evaluations are not complete: {why} (see {first}); the same command goes on")
    return log.read([plan.log])


@dataclass(frozen=True)
class _Evaluation:
    """One arm on one entry."""

    plan: Plan
    arm: Arm
    entry: Entry
    server: DtpModelServer
    url: str

    def run(self) -> str:
        """Run what is left of it; what is missing in the end, in words."""
        self.place.mkdir(parents=True, exist_ok=True)
        if self.entry.items is None:
            self._take_up()
        else:
            self._seed(self.entry.items)
        path = self.place / "config.yaml"
        path.write_text(yaml.safe_dump(self.entry.config), encoding="utf-8")
        done, total = self._queue()
        while not total or done < total:
            before = done
            self._run_shards(path, done)
            done, total = self._queue()
            if done == before:  # with some progress, what a shard that died had begun is tried again
                return f"{done} of {total} episodes run; {self._last_words()}"
            self._give_back()
        failed = self._failed()
        return f"{failed} of {total} episodes broke off; {self._last_words()}" if failed else ""

    @property
    def identity(self) -> str:
        """Changes with anything that changes the queue or what its episodes are."""
        what = [self.entry.config["benchmarks"], self.server.setup()]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def place(self) -> Path:
        """Folder of vla-eval's own files."""
        words = re.sub(r"[^\w.=-]+", "_", f"{self.arm.name}-{self.entry.name}")
        return self.plan.out / "vla-eval" / f"{words}-{self.identity}"

    @property
    def _database(self) -> Path:
        return self.place / f"recording-{self.identity}.sqlite"

    def _run_shards(self, config: Path, done: int) -> None:
        left = len(self.entry.items) - done if self.entry.items is not None else self.plan.shards
        processes = [self._start(config, shard) for shard in range(min(self.plan.shards, left))]
        try:
            self._follow(processes, done)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        # A shard that has ended may have left its last message behind: the log is complete when the server has read it.
        end = time.monotonic() + ANSWER_TIMEOUT
        while self.server.running and time.monotonic() < end:
            time.sleep(0.02)

    def _start(self, config: Path, shard: int) -> subprocess.Popen[bytes]:
        identity, shards = self.identity, str(self.plan.shards)
        command = [sys.executable, "-m", "vla_eval.cli.main", "run", "--config", str(config), "--yes"]
        command += ["--server-url", self.url, "--output-dir", str(self.place), "--eval-id", identity]
        command += ["--shard-id", str(shard), "--num-shards", shards]
        command += [] if self.plan.docker else ["--no-docker"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self._shard_log(shard).open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def _shard_log(self, shard: int) -> Path:
        return self.place / f"shard{shard}.log"

    def _last_words(self) -> str:
        """The last error that a shard wrote."""
        lines = [
            line
            for shard in range(self.plan.shards)
            if self._shard_log(shard).exists()
            for line in self._shard_log(shard).read_text(encoding="utf-8", errors="replace").splitlines()
        ]
        errors = [line.strip() for line in lines if re.search(r"Error|ERROR|Exception", line)]
        return (errors or lines or ["nothing was written"])[-1]

    def _follow(self, processes: Sequence[subprocess.Popen[bytes]], done: int) -> None:
        what = f"{self.arm.name}, {self.entry.name}"
        with tqdm(desc=what, unit="episode", file=sys.stdout, initial=done, mininterval=1.0) as bar:
            running = True
            while running:
                running = any(process.poll() is None for process in processes)
                bar.n, bar.total = self._queue()
                bar.refresh()
                if running:
                    time.sleep(0.5)

    def _seed(self, items: Sequence[tuple[str, int]]) -> None:
        """A new queue, in which what the log has, or is not wanted, is done."""
        left, names = self.entry.wanted - self._logged(), list(dict.fromkeys(name for name, _ in items))
        self._database.unlink(missing_ok=True)
        with closing(RecordingStore(self._database)) as store:
            evaluation = f"{self.identity}-" + re.sub(r"[^\w\-.]", "_", self.entry.name)  # as vla-eval names it
            store.seed_queue(evaluation, [names.index(name) for name, _ in items])
            for index, item in enumerate(items):
                if item not in left:
                    store.finish(evaluation, index)

    def _logged(self) -> set[tuple[str, int]]:
        """Task and number of the log's episodes of this evaluation, under the same constants."""
        if not self.plan.log.exists():
            return set()
        setup = json.loads(json.dumps(self.server.setup()))
        mine = [e for e in log.read([self.plan.log]) if e.arm == self.arm.name and e.benchmark == self.entry.name]
        return {(e.task, e.episode) for e in mine if e.setup == setup}

    def _queue(self) -> tuple[int, int]:
        """Episodes done and in all, as vla-eval counts them."""
        with self._connection() as database:
            if database is None:
                return 0, 0
            done, total = database.execute("SELECT COALESCE(SUM(done), 0), COUNT(*) FROM work_queue").fetchone()
            return int(done), int(total)

    def _give_back(self) -> None:
        """What a process that is gone had begun is free again, also where there are fewer of them now."""
        with self._connection() as database:
            if database is not None:
                database.execute("UPDATE work_queue SET shard_id = NULL WHERE done = 0")
                database.commit()

    def _take_up(self) -> None:
        """Go on with the queue that was left; episodes that broke off, or that the log lacks, are to be done again."""
        logged = self._logged()
        with self._connection() as database:
            if database is None:
                return
            each = int(self.entry.config["benchmarks"][0].get("episodes_per_task", 1))
            rows = database.execute("SELECT context, task_name, episode_id FROM episode_results")
            ended = {
                json.loads(context)["task_idx"] * each + episode
                for context, task, episode in rows
                if (task, episode) in logged
            }
            items = [item for (item,) in database.execute("SELECT item FROM work_queue") if item not in ended]
            database.executemany("UPDATE work_queue SET done = 0 WHERE item = ?", [(item,) for item in items])
            database.commit()
        self._give_back()

    def _failed(self) -> int:
        """Episodes that vla-eval counts as done and the log lacks: those that broke off."""
        logged = self._logged()
        if self.entry.items is not None:
            return len(self.entry.wanted - logged)
        with self._connection() as database:
            assert database is not None
            rows = database.execute("SELECT DISTINCT task_name, episode_id FROM episode_results")
            return self._queue()[0] - len(logged.intersection(rows))

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection | None]:
        if not self._database.exists():
            yield None
            return
        with closing(sqlite3.connect(self._database, timeout=60.0)) as database:
            there = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'work_queue'").fetchone()
            yield database if there else None

"""`dtp_study`: whether pruning helps a policy on a benchmark, with the statistics that a referee would ask for.

sweep      no pruning, every tolerance of a grid (Eq. 9), and the tolerance of least entropy at every step
ablate     the paper's Table 4: dtp, no_gaussian, random_all, random_unimportant
attention  unimportant attention of successes and failures, from study logs or from rosbag2 recordings of ~/trace
report     reports, figures and outcomes once more, from logs alone
confirm    compare a log with published outcomes, episode for episode
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dtp_ros.errors import ConfigError, DtpError
from dtp_ros.models.registry import model_defaults
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.resources import share_file
from dtp_ros.study import log, outcomes
from dtp_ros.study.arms import Arm, ablation, parsed, sweep

GRID = PruningConfig.tolerance_grid


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where it was done, 1 with one line where it could not be, 130 where it was interrupted."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (DtpError, OSError, sqlite3.Error) as error:
        print(f"dtp_study: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"dtp_study: {error}: pip install -r requirements/study.txt", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndtp_study: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        "dtp_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    one = _episodes(commands.add_parser("sweep", help="success against tolerance"), _sweep)
    one.add_argument("--tolerances", nargs="+", type=float, default=list(GRID), metavar="T")
    one = _episodes(commands.add_parser("ablate", help="the variants of the paper's Table 4"), _ablate)
    one.add_argument("--tolerance", type=float, default=None, help="default: the model's")
    one = commands.add_parser("attention", help="unimportant attention of successes and failures")
    one.add_argument("--log", nargs="+", type=Path, default=[], metavar="FILE", help="logs of a study")
    one.add_argument("--bag", nargs="+", type=Path, default=[], metavar="FOLDER", help="rosbag2 recordings of ~/trace")
    one.add_argument("--labels", type=Path, help="success of the bags' episodes: CSV or JSON lines")
    one.add_argument("--benchmark", default="", help="one name for all bags, e.g. where each holds one episode")
    one.add_argument("--topic", default="", help="of the traces (default: the one that ends in /trace)")
    one.add_argument("--arm", default="off", help="whose attention (default: off, the model's own)")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=_attention)
    one = commands.add_parser("report", help="reports and figures from logs alone")
    one.add_argument("log", nargs="+", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=_report)
    one = commands.add_parser("confirm", help="compare a log with published outcomes")
    one.add_argument("published", type=Path)
    one.add_argument("log", nargs="+", type=Path)
    one.set_defaults(run=_confirm)
    return top


def _episodes(one: argparse.ArgumentParser, run: object) -> argparse.ArgumentParser:
    """The options of a command that runs episodes."""
    config = share_file("config/study/servers/tabletop.yaml").parents[1]
    one.add_argument("--server", type=Path, default=config / "servers" / "tabletop.yaml", help="who acts")
    one.add_argument("--benchmark", type=Path, default=config / "benchmarks" / "tabletop.yaml", help="on what")
    one.add_argument("--out", type=Path, default=Path("out/study"), help="log, figures, report (default: %(default)s)")
    one.add_argument(
        "--shards", type=int, default=min(8, os.cpu_count() or 1), help="processes that run episodes (%(default)s)"
    )
    one.add_argument("--episodes", type=int, help="a task, instead of the benchmark file's number")
    one.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="only these")
    one.add_argument("--entries", nargs="+", default=[], metavar="SUBNAME", help="only these of the benchmark's file")
    one.add_argument("--half", choices=log.HALVES, default="both", help="only the episodes of this half")
    one.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these, by name, e.g. off 'dtp 0.5'")
    one.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="constants of every arm that prunes")
    one.add_argument("--no-docker", action="store_true", help="run the benchmark here, not in its container")
    one.set_defaults(run=run)
    return one


def _sweep(options: argparse.Namespace) -> int:
    return _run(options, sweep(options.tolerances, parsed(options.set)))


def _ablate(options: argparse.Namespace) -> int:
    return _run(options, ablation(_tolerance(options), parsed(options.set)))


def _tolerance(options: argparse.Namespace) -> float:
    if options.tolerance is not None:
        return float(options.tolerance)
    from dtp_ros.study.plan import loaded

    args = loaded(options.server).get("args") or {}
    own: Any = (args.get("parameters") or {}).get("tolerance")
    default: Any = model_defaults(args.get("model", "tabletop"))["tolerance"]
    return float(default if own is None else own)


def _run(options: argparse.Namespace, arms: list[Arm]) -> int:
    from dtp_ros.study import harness
    from dtp_ros.study.plan import Plan

    if options.arms:
        named = {arm.name: arm for arm in arms}
        if unknown := [name for name in options.arms if name not in named]:
            raise log.LogError(f"no arm is called {unknown[0]!r} (there are: {', '.join(named)})")
        arms = [named[name] for name in options.arms]
    plan = Plan(
        server=options.server,
        benchmark=options.benchmark,
        out=options.out,
        shards=options.shards,
        episodes=options.episodes,
        tasks=tuple(options.tasks),
        entries=tuple(options.entries),
        half=options.half,
        docker=not options.no_docker,
    )
    try:
        harness.run(plan, arms)
    except harness.StudyError:
        if log.read([plan.log]):
            _written([plan.log], options.out)  # of what there is
        raise
    return _written([plan.log], options.out)


def _report(options: argparse.Namespace) -> int:
    return _written(options.log, options.out)


def _written(logs: Sequence[Path], out: Path) -> int:
    from dtp_ros.study.report import write_reports

    episodes = log.read(logs)
    out.mkdir(parents=True, exist_ok=True)
    outcomes.write(out / "outcomes.json", episodes)
    for path in write_reports(episodes, out):
        print(path)
    return 0


def _attention(options: argparse.Namespace) -> int:
    from dtp_ros.study.attention import write_attention

    given = [name for name in ("labels", "topic", "benchmark") if getattr(options, name)]
    if given and not options.bag:
        raise ConfigError(f"--{given[0]} is for recordings (valid: with --bag)")
    episodes = log.read(options.log)
    if options.bag:
        from dtp_ros.study.bags import read_bags

        recorded = read_bags(options.bag, options.labels, topic=options.topic, benchmark=options.benchmark)
        print(recorded)
        episodes += recorded.episodes
    options.out.mkdir(parents=True, exist_ok=True)
    for path in write_attention(episodes, options.arm, options.out):
        print(path)
    return 0


def _confirm(options: argparse.Namespace) -> int:
    shared, other = outcomes.compare(outcomes.read(options.published), log.read(options.log))
    print("\n".join(other))
    print(f"{shared - len(other)} of {shared} episodes ended as published")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())

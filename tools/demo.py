"""`make demo`: one episode from camera to command over real ROS 2, with every node a process of its own.

On the way `tolerance` is turned from 1.5 to 0.25 by the parameter service, as rqt would do it. The episode ends with
the task solved, or after `--steps`. Writes `out/demo/episode.gif`, `panel.png` and `episode.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException
from tqdm import tqdm

from dtp_ros.errors import ConfigError, require_choice
from dtp_ros.models.registry import model_names
from dtp_ros.sim.instructions import task_of

from demo_report import Step, summary, write_pictures
from demo_watcher import Watcher
from processes import NodeProcesses, command_timeout, use_private_domain

OUT = Path("out/demo")
TASK = "eggplant_in_basket"
TOLERANCE_BEFORE, TOLERANCE_AFTER = 1.5, 0.25
TRAINED = "tabletop"  # the model whose weights are at hand; the others are shown with random ones
TRAINED_HALF = 9  # steps: half of what the trained policy needs for a task
START_DEADLINE = 600.0  # s to the first step: a real checkpoint is loaded in this time
STEP_DEADLINE = 300.0  # s for one step, also of a large model on a CPU


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; `make demo` fills it from its variables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TRAINED)
    parser.add_argument("--checkpoint", default="", help="folder, hub id or `tiny`; empty: what is shipped, or `tiny`")
    parser.add_argument("--model-options", default="", help="the model's own options that differ, as {name: value}")
    parser.add_argument("--policy", choices=("model", "expert"), default="model")
    parser.add_argument("--images", default="", help="a folder of pictures or a video instead of the simulator")
    parser.add_argument("--task", default="", help="if empty, the one that the instruction means")
    parser.add_argument("--episode", type=int, default=3)
    parser.add_argument("--distractors", type=int, default=3)
    parser.add_argument("--instruction", default="", help="the task in words; the simulator's own if empty")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    require_choice("model", options.model, model_names())
    if not options.checkpoint and options.model != TRAINED:
        options.checkpoint = "tiny"
    if not options.task:
        options.task = task_of(options.instruction).name if options.instruction and not options.images else TASK
    return options


def start_world(nodes: NodeProcesses, options: argparse.Namespace) -> None:
    """Start simulator and arm; with --images the arm is a dry run and the watcher plays the pictures."""
    live = not options.images
    if live:
        scene = {"task": options.task, "episode": options.episode, "distractors": options.distractors}
        nodes.start("sim_node", {**scene, "real_time_factor": 0.0})
    arm: dict[str, object] = {"driver": "sim" if live else "dry_run", "robot": "wx250s", "use_sim_time": live}
    arm["command_timeout"] = command_timeout(options.model)
    if not live:
        arm["reference"] = "measured"  # nothing moves the measured arm, so nothing may build on what was commanded
    nodes.start("widowx_node", arm)


def start_policy(nodes: NodeProcesses, options: argparse.Namespace) -> None:
    """Start the model, or the expert in its place."""
    live = not options.images
    if options.policy == "expert":
        nodes.start("expert_node", {"use_sim_time": live})
        return
    pruning = {"tolerance": TOLERANCE_BEFORE, "max_pruned": 0, "seed": 0}
    model = {"model": options.model, "image_timeout": 5.0, "publish_whole_chunk": not live}
    model |= {"model_options": options.model_options}
    model |= {"checkpoint": options.checkpoint} if options.checkpoint else {}
    nodes.start("policy_node", {**model, **pruning, "use_sim_time": live})


def wait_for_world(watcher: Watcher, nodes: NodeProcesses) -> None:
    """Return at the first picture: a policy that started earlier could be steps ahead of who watches it."""
    deadline = time.monotonic() + STEP_DEADLINE
    while not watcher.sees:
        rclpy.spin_once(watcher, timeout_sec=0.2)
        nodes.require_alive()
        if time.monotonic() > deadline:
            raise RuntimeError(f"no camera image within {STEP_DEADLINE:.0f} s")


def run_episode(watcher: Watcher, nodes: NodeProcesses, options: argparse.Namespace) -> list[Step]:
    """Follow the episode to its end; turns `tolerance` half way. Raises RuntimeError where it stops coming."""
    deadline = time.monotonic() + START_DEADLINE
    switched = options.policy == "expert"
    total = watcher.pictures or options.steps
    half = TRAINED_HALF if options.model == TRAINED and not watcher.pictures else total // 2
    with tqdm(total=total, unit="step", desc="loading", file=sys.stdout, dynamic_ncols=True) as bar:
        while watcher.steps_done < total:
            before = watcher.steps_done
            rclpy.spin_once(watcher, timeout_sec=0.2)
            nodes.require_alive()
            if watcher.failure:
                raise RuntimeError(watcher.failure)
            if watcher.steps_done > before:
                bar.set_description("episode")
                bar.update(watcher.steps_done - before)
                if watcher.held:
                    bar.set_postfix_str(f"{watcher.held} held, see episode.jsonl")
                deadline = time.monotonic() + STEP_DEADLINE
            if not switched and watcher.steps_done >= half:
                watcher.set_policy_parameter("tolerance", TOLERANCE_AFTER)
                switched = True
            if watcher.finished:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"no step for {STEP_DEADLINE:.0f} s; see the logs in {options.out / 'logs'}")
    watcher.wait_for_pictures(timeout=5.0)
    return watcher.steps()[:total]


def write_jsonl(steps: Sequence[Step], path: Path) -> None:
    """One JSON object a step."""
    path.write_text("".join(json.dumps(step.record) + "\n" for step in steps))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when the episode ended and its pictures were written."""
    try:
        options = parsed(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    use_private_domain()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    rclpy.init()
    try:
        watcher = Watcher(options)
        with NodeProcesses(options.out / "logs") as nodes:
            start_world(nodes, options)
            wait_for_world(watcher, nodes)
            start_policy(nodes, options)
            steps = run_episode(watcher, nodes, options)
            memory = nodes.peak_memory()
    except (KeyboardInterrupt, ExternalShutdownException, RuntimeError) as error:
        # rclpy raises a RuntimeError too where Ctrl-C takes the context away under a call.
        if isinstance(error, RuntimeError) and rclpy.ok():
            print(f"demo: {error}", file=sys.stderr)
            return 1
        print("\ndemo: interrupted, every node ended", file=sys.stderr)
        return 130
    finally:
        rclpy.try_shutdown()
    write_jsonl(steps, options.out / "episode.jsonl")
    write_pictures(steps, options.out)
    print(summary(steps, watcher.latencies, memory, time.monotonic() - began, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())

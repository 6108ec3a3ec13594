"""`make success-table` and `make expert-table`: every fixed configuration, over real ROS 2, in lock-step.

`sim_node`, `widowx_node` and a policy (`policy_node` with a model, or `expert_node`) run as separate processes for all
episodes. Writes one JSON object an episode to `episodes.jsonl`, and prints a table in Markdown for each setting.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from tqdm import tqdm

from dtp_ros.ros.compat import Question
from dtp_ros.sim.tasks import EPISODES, MAX_DISTRACTORS, SETTINGS, TASKS
from dtp_ros.study.statistics import wilson

from processes import NodeProcesses, command_timeout, use_private_domain

OUT = Path("out/success")
START_DEADLINE = 120.0  # s of wall time until every node answers
STEP_DEADLINE = 60.0  # s of wall time for one step, or for one answer
ERROR = 2  # level of DiagnosticStatus
SETTLED = 5  # control periods that a success must last
LOAD_DEADLINE = 1800.0  # s until a model is loaded, which may have to be fetched
Record = dict[str, Any]


@dataclass(frozen=True)
class Policy:
    """Who acts: its node, its executable, the parameters that it is started with, and the one that makes it act."""

    node: str
    executable: str
    parameters: Mapping[str, object]
    switch: str

    def acting(self, instruction: str) -> Mapping[str, object]:
        """What makes it act; an empty instruction makes it pause."""
        return {self.switch: instruction if self.switch == "instruction" else bool(instruction)}


def policy_of(options: argparse.Namespace) -> Policy:
    """The policy that the command line names."""
    if options.policy == "expert":
        return Policy("expert", "expert_node", {"acting": False}, "acting")
    model = {"model": options.model, "variant": options.variant, "tolerance": options.tolerance}
    model |= {"checkpoint": options.checkpoint} if options.checkpoint else {}
    # Simulated time stands still while the policy thinks: no image of it is late, nothing has to bridge that time.
    model |= {"image_timeout": 5.0, "publish_whole_chunk": False, "use_sim_time": True}
    return Policy("dtp_policy", "policy_node", model, "instruction")


class Director(Node):  # type: ignore[misc]  # rclpy ships no types
    """Sets up episodes and watches them, as a person would with the command line."""

    def __init__(self, nodes: NodeProcesses, policy: Policy) -> None:
        super().__init__("success_table")
        self._nodes, self._policy = nodes, policy
        self._infos: list[Record] = []
        self.create_subscription(String, "sim/info", lambda m: self._infos.append(json.loads(m.data)), 100)
        self._setters = {n: self.create_client(SetParameters, f"{n}/set_parameters") for n in ("sim", policy.node)}
        self._reset = self.create_client(Trigger, "sim/reset")
        self._arm = self.create_client(SetBool, "widowx/arm")
        self._state = self._failure = ""  # of the model's node
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{self._policy.node}: policy":
                self._state = next((pair.value for pair in status.values if pair.key == "state"), "")
                level = status.level if isinstance(status.level, int) else status.level[0]
                self._failure = f"{status.name}: {status.message}" if level == ERROR else ""

    def wait_for_nodes(self) -> None:
        """Return when every node answers and the model is loaded.

        RuntimeError after the deadline, or where a node has ended or a model cannot be loaded.
        """
        end = time.monotonic() + START_DEADLINE
        for client in (*self._setters.values(), self._reset, self._arm):
            while not client.wait_for_service(timeout_sec=0.5):
                self._check(end, client.srv_name)
        end = time.monotonic() + LOAD_DEADLINE
        while self._policy.executable == "policy_node" and self._state != "active":
            self._spin(end, "a model that is loaded")

    def begin(self, scene: Mapping[str, object]) -> None:
        """Start an episode.

        The policy pauses meanwhile: `widowx/arm` makes motion continue from where the arm now is, and until then an
        action would continue from the last pose of the episode before. Each node answers once before the reset, so
        that no chunk or command of the episode before is still on its way.
        """
        self._set(self._policy.node, self._policy.acting(""))
        self._arm_here()
        self._set("sim", scene)
        self._infos.clear()
        self._ask(self._reset, Trigger.Request())
        end = time.monotonic() + STEP_DEADLINE
        while not self._infos or self._infos[0]["step"] > 0 or any(self._infos[0][k] != v for k, v in scene.items()):
            self._infos[:1] = []  # still of the episode before
            self._spin(end, "the new episode")
        self._arm_here()
        self._set(self._policy.node, self._policy.acting(self._infos[0]["instruction"]))

    def follow(self) -> Record:
        """Watch the episode to its end: a success that lasts, or the last step."""
        seen, grasped, success_at = 0, False, None
        end = time.monotonic() + STEP_DEADLINE
        while True:
            for info in self._infos:
                if info["step"] <= seen:
                    continue  # a moment that is repeated
                seen, end = info["step"], time.monotonic() + STEP_DEADLINE
                grasped = grasped or info["grasped"] == info["source"]
                success_at = (success_at or seen) if info["success"] else None
                if seen >= info["steps"] or (success_at is not None and seen >= success_at + SETTLED):
                    return {"grasped": grasped, "success": success_at is not None, "steps": success_at or seen}
            self._infos.clear()
            self._spin(end, f"step {seen + 1}")

    def _set(self, node: str, values: Mapping[str, object]) -> None:
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        for result in self._ask(self._setters[node], SetParameters.Request(parameters=parameters)).results:
            if not result.successful:
                raise RuntimeError(f"{node} refused a parameter: {result.reason}")

    def _arm_here(self) -> None:
        """Arm; a node that has just started refuses until it has heard joint states."""
        end = time.monotonic() + STEP_DEADLINE
        while not (answer := self._answer(self._arm, SetBool.Request(data=True))).success:
            self._spin(end, f"an arm that can be armed: {answer.message}")

    def _ask(self, client: Client, request: object) -> Any:
        answer = self._answer(client, request)
        if not getattr(answer, "success", True):
            raise RuntimeError(f"{client.srv_name}: {answer.message}")
        return answer

    def _answer(self, client: Client, request: object) -> Any:
        question, end = Question(client, request), time.monotonic() + STEP_DEADLINE
        while not question.answered():
            self._spin(end, f"an answer of {client.srv_name}")
        return question.answer()

    def _spin(self, end: float, what: str) -> None:
        rclpy.spin_once(self, timeout_sec=0.5)
        self._check(end, what)

    def _check(self, end: float, what: str) -> None:
        self._nodes.require_alive()
        if self._failure:  # the node lives on, and an episode without its commands would count as failed
            raise RuntimeError(self._failure)
        if time.monotonic() > end:
            raise RuntimeError(f"waited in vain for {what}")


def markdown(records: Sequence[Record]) -> str:
    """The table: task, grasped, success with its interval, mean steps to a success."""
    lines = ["| task | grasped | success | 95 % interval | mean steps |", "|---|---|---|---|---|"]
    groups = {task: [r for r in records if r["task"] == task] for task in TASKS}
    for task, group in [*groups.items(), ("all", list(records))]:
        if not group:
            continue
        done = [r for r in group if r["success"]]
        rate = wilson(len(done), len(group))
        steps = f"{sum(r['steps'] for r in done) / len(done):.1f}" if done else "-"
        grasped = sum(r["grasped"] for r in group)
        interval = f"{100 * rate.low:.0f} ... {100 * rate.high:.0f} %"
        lines.append(f"| {task} | {grasped}/{len(group)} | {len(done)}/{len(group)} | {interval} | {steps} |")
    return "\n".join(lines)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS), metavar="TASK")
    numbers = range(EPISODES)
    parser.add_argument("--episodes", nargs="+", type=int, choices=numbers, default=list(numbers), metavar="N")
    parser.add_argument("--distractors", type=int, choices=range(MAX_DISTRACTORS + 1), default=0)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["plain"], metavar="SETTING")
    parser.add_argument("--policy", choices=("model", "expert"), default="model")
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--checkpoint", default="", help="a folder or a hub id; the model's own if empty")
    parser.add_argument("--variant", default="off", help="off | dtp | no_gaussian | random_all | random_unimportant")
    parser.add_argument("--tolerance", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, nodes: NodeProcesses) -> list[Record]:
    """Run every episode; each is written as soon as it has ended."""
    nodes.start("sim_node", {"real_time_factor": 0.0})
    arm = {"driver": "sim", "robot": "wx250s", "use_sim_time": True, "command_timeout": command_timeout(options.model)}
    nodes.start("widowx_node", arm)
    policy = policy_of(options)
    nodes.start(policy.executable, policy.parameters)
    director, records = Director(nodes, policy), []
    director.wait_for_nodes()
    todo = list(product(options.settings, options.tasks, options.episodes))
    with (options.out / "episodes.jsonl").open("w") as file, tqdm(todo, unit="episode", file=sys.stdout) as bar:
        for setting, task, episode in bar:
            began = time.monotonic()
            scene = {"task": task, "episode": episode, "distractors": options.distractors, "setting": setting}
            director.begin(scene)
            record = {**scene, **director.follow(), "seconds": round(time.monotonic() - began, 2)}
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            bar.set_postfix(setting=setting, task=task, success=f"{sum(r['success'] for r in records)}/{len(records)}")
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the episodes and print the table; 0 when all were run, however they ended."""
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    use_private_domain()
    options.out.mkdir(parents=True, exist_ok=True)
    rclpy.init()
    try:
        with NodeProcesses(options.out / "logs") as nodes:
            records = run(options, nodes)
    except (KeyboardInterrupt, ExternalShutdownException, RuntimeError) as error:
        # rclpy raises a RuntimeError too where Ctrl-C takes the context away under a call.
        if isinstance(error, RuntimeError) and rclpy.ok():
            print(f"success_table: {error} (logs in {options.out / 'logs'})", file=sys.stderr)
            return 1
        print("\nsuccess_table: interrupted, every node ended", file=sys.stderr)
        return 130
    finally:
        rclpy.try_shutdown()
    for setting in options.settings:
        print(f"\n{setting}\n\n{markdown([record for record in records if record['setting'] == setting])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

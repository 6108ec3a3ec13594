"""What ROS costs: image stamp to command, less the model's own step, between real processes over DDS.

Starts `policy_node` (the shipped tabletop policy on the CPU) and `widowx_node`, plays camera and arm, and says for each
step where the time went. No simulator runs: one picture of the tabletop is shown again and again, and the arm stays
where it is. `python -m benchmarks.node_overhead` prints a table and writes `out/bench/node_overhead.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float32

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from dtp_ros.ros.conversions import joint_state_to_ros, stamp_to_ros
from dtp_ros.ros.images import image_to_ros
from dtp_ros.sim.arm import GRIPPER, GRIPPER_OPEN, JOINT_NAMES, START_JOINTS
from dtp_ros.sim.tabletop import Tabletop

from processes import NodeProcesses, use_private_domain

NAME = "node overhead: image stamp to command, less the model's step"
TARGET = 15.0  # ms, on two cores
TASK = "eggplant_in_basket"
JOINT_STATE_RATE = 50.0  # Hz
WARM_UP = 10  # steps that are not counted
DEADLINE = 180.0  # s to the first command, and from each to the next
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class Step:
    """Where the time of one step went, ms: from the image's stamp to the command that the arm's driver sent.

    taken: to the start of the step (publication and transport of the image, conversion, hand-over to the worker).
    step: in the model. published: from there to the chunk's publication. arm: from there to the command (transport of
    the chunk, gate, inverse kinematics). sent: of `taken`, in the camera's call of publish, which may end later.
    """

    taken: float
    step: float
    published: float
    arm: float
    sent: float

    @property
    def overhead(self) -> float:
        """All but the model's step, ms."""
        return self.taken + self.published + self.arm


class Rig(Node):  # type: ignore[misc]  # rclpy ships no types
    """A camera, an arm that stays where it is, and an ear for what the nodes say about each step."""

    def __init__(self, image_rate: float) -> None:
        super().__init__("overhead_rig")
        table = Tabletop(TASK, 0)
        self._picture = image_to_ros(table.render(), stamp_to_ros(0.0), "camera")
        table.close()
        self._joints = dict(zip(JOINT_NAMES, map(float, START_JOINTS), strict=True)) | {GRIPPER: GRIPPER_OPEN}
        self.sent: dict[float, float] = {}  # by the image's stamp: seconds that its publication took
        self.traces: dict[float, Mapping[str, str]] = {}  # by the image's stamp
        self.latencies: list[tuple[float, float]] = []  # when heard, image stamp to command, s
        self._image = self.create_publisher(Image, "image", SENSOR)
        self._joint_states = self.create_publisher(JointState, "joint_states", 10)
        self.create_subscription(DiagnosticArray, "dtp_policy/trace", self._on_trace, 10)
        self.create_subscription(Float32, "widowx/latency", self._on_latency, 10)
        self.create_subscription(JointState, "sim/joint_command", self._on_command, 10)
        self.create_timer(1.0 / JOINT_STATE_RATE, self._move)
        self.create_timer(1.0 / image_rate, self._show)

    def _move(self) -> None:
        self._joint_states.publish(joint_state_to_ros(self._joints, time.time()))

    def _show(self) -> None:
        now = time.time()
        self._picture.header.stamp = stamp_to_ros(now)
        self._image.publish(self._picture)
        self.sent[_stamp(self._picture)] = time.time() - now

    def _on_trace(self, message: DiagnosticArray) -> None:
        self.traces[_stamp(message)] = {pair.key: pair.value for pair in message.status[0].values}

    def _on_command(self, message: JointState) -> None:
        pass  # the driver sends only while somebody listens

    def _on_latency(self, message: Float32) -> None:
        self.latencies.append((time.time(), float(message.data)))

    def steps(self) -> list[Step]:
        """Every step that made a command, but the first few."""
        stamps, steps = sorted(self.traces), {}
        for heard, latency in self.latencies:
            # A command names no image: its is the newest that is older than the latency, by when that was heard.
            i = bisect_left(stamps, heard - latency) - 1
            if i < 0 or (trace := self.traces[stamps[i]])["latency"] == "null":
                continue
            taken, total, published = (float(trace[k]) for k in ("seconds_waited", "seconds_total", "latency"))
            parts = taken, total, published - taken - total, latency - published, self.sent[stamps[i]]
            steps[stamps[i]] = Step(*(1e3 * part for part in parts))
        return list(steps.values())[WARM_UP:]


def _stamp(message: Image | DiagnosticArray) -> float:
    return float(message.header.stamp.sec) + 1e-9 * float(message.header.stamp.nanosec)


def run(count: int = 100, image_rate: float = 5.0, logs: Path = Path("out/bench/logs")) -> list[Step]:
    """Steps of the nodes at an image rate (Hz), after the warm-up; raises RuntimeError where they do not come."""
    use_private_domain()
    rclpy.init()
    try:
        rig = Rig(image_rate)
        with NodeProcesses(logs) as nodes:
            policy = {"model": "tabletop", "device": "cpu", "instruction": "put the eggplant in the basket"}
            nodes.start("policy_node", policy)
            # Nothing moves the arm, so nothing may build on what was commanded.
            nodes.start("widowx_node", {"driver": "sim", "robot": "wx250s", "reference": "measured"})
            heard, since = 0, time.monotonic()
            while len(rig.latencies) < WARM_UP + count + 1:
                rclpy.spin_once(rig, timeout_sec=0.2)
                nodes.require_alive()
                if len(rig.latencies) > heard:
                    heard, since = len(rig.latencies), time.monotonic()
                elif time.monotonic() > since + DEADLINE:
                    raise RuntimeError(f"no command within {DEADLINE:.0f} s; see {logs}")
        return rig.steps()[:count]
    finally:
        rclpy.try_shutdown()


def figure(steps: Sequence[Step]) -> dict[str, object]:
    """The benchmark's one number: the median overhead, ms, with what it shall be."""
    value = round(float(np.median([step.overhead for step in steps])), 2)
    return {"name": NAME, "value": value, "target": TARGET, "unit": "ms", "runs": len(steps)}


def table(steps: Sequence[Step]) -> dict[str, list[float]]:
    """Median and 95 % of each part and of the sum, ms."""
    parts = {
        "image: publication, transport, conversion, hand-over": [step.taken for step in steps],
        "chunk: publication": [step.published for step in steps],
        "chunk: transport, gate, kinematics, command": [step.arm for step in steps],
        "overhead, the sum of these": [step.overhead for step in steps],
        "of it in the camera's call of publish": [step.sent for step in steps],
        "the model's step": [step.step for step in steps],
    }
    return {name: np.percentile(values, [50, 95]).round(2).tolist() for name, values in parts.items()}


def main() -> int:
    """Print the table and write it as JSON; exit code 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--image-rate", type=float, default=5.0, help="Hz")
    parser.add_argument("--out", type=Path, default=Path("out/bench/node_overhead.json"))
    options = parser.parse_args()
    steps = run(options.steps, options.image_rate)
    rows, result = table(steps), figure(steps)
    print(f"{result['name']}: {result['runs']} steps, images of 640x480 at {options.image_rate:g} Hz")
    print("| part | median ms | 95 % ms |\n|---|---|---|")
    for name, (median, high) in rows.items():
        print(f"| {name} | {median} | {high} |")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    options.out.write_text(json.dumps({"machine": machine, "figures": [result], "parts": rows}, indent=2) + "\n")
    return 0 if float(str(result["value"])) <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())

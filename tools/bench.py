"""make bench: the inverse kinematics of each arm, along random walks of step-sized moves.

A walk starts at a random posture and goes by moves as large as one action may be (5 cm and 0.25 rad along and about
each axis, at random). A pose counts as reachable where some posture near the last one reaches it by construction: the
joints take a random step, and the pose is theirs. Each is sought from the last joints, as a moving arm does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices of six rows: more threads only cost

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtp_ros.widowx.kinematics import ROBOTS, Robot, forward, inverse, robot

MAX_TRANSLATION, MAX_ROTATION = 0.05, 0.25  # m and rad, of one action along each axis
MAX_TURN = 0.2  # rad a joint in one action: 1 rad/s for 0.2 s
WALK = 100  # moves from one random posture
NEAR = 5e-4, float(np.deg2rad(0.5))  # m, rad
LEAST_REACHED, SLOWEST_MEDIAN = 0.995, 1.0  # ms


@dataclass(frozen=True)
class Figures:
    """Of an arm's moves: share reached (0 ... 1), how many ended outside the joint limits, and times in ms."""

    robot: str
    moves: int
    reached: float
    outside_limits: int
    median_ms: float
    p95_ms: float
    max_ms: float

    def is_good(self) -> bool:
        """Whether this is what the package promises."""
        return self.reached >= LEAST_REACHED and not self.outside_limits and self.median_ms < SLOWEST_MEDIAN


def step(arm: Robot, joints: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Joints [n], rad, whose pose is one action away from that of `joints` [n] at most."""
    here = forward(arm, joints)
    while True:
        turned = np.clip(joints + rng.uniform(-MAX_TURN, MAX_TURN, arm.num_joints), arm.lower, arm.upper)
        there = forward(arm, turned)
        angle = Rotation.from_matrix(there[:3, :3] @ here[:3, :3].T).magnitude()
        if np.abs(there[:3, 3] - here[:3, 3]).max() <= MAX_TRANSLATION and angle <= MAX_ROTATION:
            return turned


def measure(arm: Robot, count: int, seed: int) -> Figures:
    """Times and accuracy of `count` moves of an arm."""
    rng = np.random.default_rng(seed)
    seconds, reached, beyond = np.empty(count), 0, 0
    joints = arm.lower
    for i in range(count):
        if i % WALK == 0:
            joints = rng.uniform(arm.lower, arm.upper)
        target = forward(arm, step(arm, joints, rng))
        begin = time.perf_counter()
        found = inverse(arm, target, joints, restarts=0)
        seconds[i] = time.perf_counter() - begin
        pose = forward(arm, found.joints)
        angle = Rotation.from_matrix(pose[:3, :3] @ target[:3, :3].T).magnitude()
        reached += bool(np.linalg.norm(pose[:3, 3] - target[:3, 3]) <= NEAR[0] and angle <= NEAR[1])
        beyond += bool((found.joints < arm.lower).any() or (found.joints > arm.upper).any())
        joints = found.joints
    median, p95, longest = (round(float(value), 3) for value in 1e3 * np.percentile(seconds, [50, 95, 100]))
    return Figures(arm.name, count, reached / count, beyond, median, p95, longest)


def main() -> int:
    """Print a table and write it as JSON; exit code 1 where the kinematics fall short of what docs promise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--moves", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench/kinematics.json"))
    arguments = parser.parse_args()
    rows = [measure(robot(name), arguments.moves, arguments.seed) for name in ROBOTS]
    print("inverse kinematics, step-sized moves from the last joints")
    print("| robot | moves | within 0.5 mm and 0.5 deg | outside the limits | median ms | 95 % ms | max ms |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.robot} | {row.moves} | {100 * row.reached:.2f} % | {row.outside_limits} |"
            f" {row.median_ms} | {row.p95_ms} | {row.max_ms} |"
        )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}"
    result = {"machine": machine, "kinematics": [asdict(row) for row in rows]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0 if all(row.is_good() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

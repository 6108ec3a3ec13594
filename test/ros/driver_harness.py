"""What the drivers' tests share: processes that stand in for arms, and what went out to them."""

import math
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from widowx_harness import DEADLINE, PATIENT, START

FORWARD = [0.02, 0, 0, 0, 0, 0, 1.0]
CLOSE = [0, 0, 0, 0, 0, 0, 0.0]
HERE = Path(__file__).parent


def environment(domain, extra):
    return {**os.environ, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **extra}


@contextmanager
def process(command, domain, extra=(), **parameters):
    """`python command...` with ROS parameters, in a domain; interrupted at the end."""
    arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    started = subprocess.Popen(
        [sys.executable, *command, *arguments], env=environment(domain, dict(extra)), stderr=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGINT)
        try:
            _, errors = started.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            started.kill()
            _, errors = started.communicate()
        print(errors)  # of use where a test fails


def stand_in(name, domain, extra, namespace="", **parameters):
    """A file of this folder as a process, its node in `namespace`."""
    return process([str(HERE / name), "--ros-args", "-r", f"__ns:={namespace or '/'}"], domain, extra, **parameters)


def widowx(domain, extra=(), **parameters):
    """`widowx_node` as a process."""
    patient = {"joint_state_timeout": PATIENT, "command_timeout": PATIENT, **parameters}
    return process(["-m", "dtp_ros.ros.widowx_node", "--ros-args"], domain, extra, **patient)


def malformed(bench):
    """Chunks that must never become a number on a wire, each on its own."""
    chunks = [bench.message([value, 0, 0, 0, 0, 0, 1.0]) for value in (math.nan, math.inf, -math.inf, 1e9, -1e300)]
    chunks += [bench.message([0, 0, 0, value, 0, 0, 1.0]) for value in (math.nan, 1e9)]
    chunks += [bench.message([0, 0, 0, 0, 0, 0, value]) for value in (math.nan, math.inf, -5.0)]
    reordered = bench.message(FORWARD)
    reordered.joint_names.reverse()
    return [*chunks, reordered]


def require_sane(robot, joints):
    """Every row finite and inside the arm's limits."""
    rows = np.array(joints)
    assert np.isfinite(rows).all()
    assert (rows >= robot.lower - 1e-6).all()
    assert (rows <= robot.upper + 1e-6).all()


__all__ = ["CLOSE", "FORWARD", "START", "malformed", "process", "require_sane", "stand_in", "widowx"]

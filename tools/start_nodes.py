"""Starts every installed node, waits until it shows in the ROS graph, and ends it with Ctrl-C: each must exit 0.

usage: python3 start_nodes.py <install prefix of dtp_ros>
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import rclpy
from lifecycle_msgs.srv import GetState
from rclpy.node import Node

# Executable -> node name, and the parameters that make it start at once.
NODES = {
    "policy_node": ("dtp_policy", ["model:=tabletop", "checkpoint:=shipped"]),
    "widowx_node": ("widowx", []),
    "sim_node": ("sim", []),
    "expert_node": ("expert", []),
}
DEADLINE = 150.0


def wait_for(node: Node, name: str, process: subprocess.Popen[bytes]) -> None:
    """Return when `name` is in the graph; raise RuntimeError if the process ends or the deadline passes."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode} before it was seen")
        if name in node.get_node_names():
            return
        rclpy.spin_once(node, timeout_sec=0.1)
    raise RuntimeError(f"{name} was not seen within {DEADLINE:.0f} s")


def wait_until_active(node: Node, name: str) -> None:
    """Return when the model of a lifecycle node is loaded, from what was installed; RuntimeError after the deadline."""
    client, end = node.create_client(GetState, f"{name}/get_state"), time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if client.wait_for_service(0.5):
            answer = client.call_async(GetState.Request())
            rclpy.spin_until_future_complete(node, answer, timeout_sec=2.0)
            if answer.done() and answer.result().current_state.label == "active":
                return
        time.sleep(0.3)  # the model needs the cores
    raise RuntimeError(f"{name} was not active within {DEADLINE:.0f} s")


def start_and_stop(watcher: Node, prefix: Path, executable: str) -> None:
    """Start one executable, see its node, interrupt it, and require exit code 0."""
    name, parameters = NODES[executable]
    arguments = [part for p in parameters for part in ("-p", p)]
    command = [str(prefix / "lib" / "dtp_ros" / executable), "--ros-args", *arguments]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        wait_for(watcher, name, process)
        if executable == "policy_node":
            wait_until_active(watcher, name)
        # Ctrl-C reaches a node that runs; one that still imports would end by the default handler.
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        raise RuntimeError(f"{executable} ended with {code} after Ctrl-C, not 0")
    print(f"{executable}: started as /{name}, ended with 0", flush=True)


def main() -> int:
    """Check every node; 0 when all started and stopped."""
    prefix = Path(sys.argv[1])
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ["ROS_DOMAIN_ID"] = str(10 + os.getpid() % 90)
    rclpy.init()
    watcher = rclpy.create_node("start_nodes")
    try:
        for executable in NODES:
            start_and_stop(watcher, prefix, executable)
    except RuntimeError as error:
        print(f"start_nodes: {error}", file=sys.stderr)
        return 1
    finally:
        watcher.destroy_node()
        rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The simulator's expert through real arms' traffic, in lock-step: every node a process of its own, over real DDS."""

import json
import sys
from pathlib import Path

import pytest
import rclpy
from driver_harness import HERE, process

from dtp_ros.sim.tasks import EPISODES, TASKS

sys.path.insert(0, str(HERE.parents[1] / "tools"))

DOMAIN = 86
DRIVERS = ("joint_trajectory", "interbotix")
SOLVED = 22  # of the 24 configurations of each task


def solved(driver, tasks, episodes, arm_messages, monkeypatch, logs: Path):
    """Records of the tasks' `episodes` through the traffic of `driver`."""
    from success_table import Director, parsed, policy_of

    from processes import NodeProcesses

    for name, value in {**arm_messages, "ROS_DOMAIN_ID": str(DOMAIN)}.items():
        monkeypatch.setenv(name, value)
    policy, records = policy_of(parsed(["--policy", "expert"])), []
    rclpy.init()
    try:
        with NodeProcesses(logs) as nodes, process([str(HERE / "lock_step_bridge.py"), driver], DOMAIN, arm_messages):
            nodes.start("sim_node", {"real_time_factor": 0.0})
            nodes.start("widowx_node", {"driver": driver, "use_sim_time": True})
            nodes.start(policy.executable, policy.parameters)
            director = Director(nodes, policy)
            director.wait_for_nodes()
            for task in tasks:
                for episode in episodes:
                    scene = {"task": task, "episode": episode, "distractors": 0, "setting": "plain"}
                    director.begin(scene)
                    records.append({**scene, **director.follow()})
                    (logs / "episodes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            director.destroy_node()
    finally:
        rclpy.shutdown()
    return records


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_expert_solves_an_episode(driver, arm_messages, monkeypatch, tmp_path):
    records = solved(driver, ["stack_blocks"], [5], arm_messages, monkeypatch, tmp_path)
    assert [(r["task"], r["success"]) for r in records] == [("stack_blocks", True)]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("driver", DRIVERS)
def test_the_expert_solves_nearly_every_configuration(driver, arm_messages, monkeypatch, tmp_path):
    records = solved(driver, TASKS, range(EPISODES), arm_messages, monkeypatch, tmp_path)
    counts = {task: sum(r["success"] for r in records if r["task"] == task) for task in TASKS}
    print(f"\n{driver}: {counts} of {EPISODES}")
    assert min(counts.values()) >= SOLVED, counts

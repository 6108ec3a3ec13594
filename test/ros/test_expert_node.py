"""The node `expert` over real DDS: what it publishes and when, and that it solves each task among real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import Point, Pose, PoseArray, Quaternion
from graph import spinning
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from dtp_ros.ros.compat import Question
from dtp_ros.ros.conversions import header_to_ros, joint_state_to_ros, stamp_from_ros
from dtp_ros.ros.expert_node import LOST_AFTER, ExpertNode
from dtp_ros.sim.expert import Scene, expert_action, scene_of
from dtp_ros.sim.layout import fixed_layout
from dtp_ros.sim.lockstep import LockStep
from dtp_ros.sim.tasks import TASKS
from dtp_ros.widowx.kinematics import forward, robot

DOMAIN = 96
ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 150.0
ARM = robot("wx250s")
START = (0.0, 0.02201199, 0.18310092, 0.0, 1.36568341, 0.0)
OBJECTS = {
    "carrot": ((0.25, -0.06, 0.0115), (1.0, 0.0, 0.0, 0.0)),
    "plate": ((0.35, 0.12, 0.004), (1.0, 0.0, 0.0, 0.0)),
}
ACTION = expert_action(
    TASKS["carrot_on_plate"],
    Scene({n: (np.array(p), np.array(q)) for n, (p, q) in OBJECTS.items()}, forward(ARM, np.array(START)), 0.074),
)


class Bench(Node):
    """A simulator of one scene whose moments the test chooses, and an ear on action_chunk."""

    def __init__(self):
        super().__init__("bench")
        self.heard = []
        self.create_subscription(JointTrajectory, "action_chunk", self.heard.append, 50)
        self.joints = self.create_publisher(JointState, "joint_states", 50)
        self.objects = self.create_publisher(PoseArray, "sim/objects", 50)
        self.info = self.create_publisher(String, "sim/info", 50)
        self.parameters = self.create_client(SetParameters, "expert/set_parameters")

    def publish_joints(self, stamp):
        names = {**dict(zip(ARM.joint_names, START, strict=True)), "gripper": 0.074}
        self.joints.publish(joint_state_to_ros(names, stamp))

    def publish_objects(self, stamp):
        message = PoseArray(header=header_to_ros(stamp, "base_link"))
        for (x, y, z), (qw, qx, qy, qz) in OBJECTS.values():
            quaternion = Quaternion(x=qx, y=qy, z=qz, w=qw)
            message.poses.append(Pose(position=Point(x=x, y=y, z=z), orientation=quaternion))
        self.objects.publish(message)

    def publish_info(self, stamp, **changes):
        info = {"task": "carrot_on_plate", "objects": list(OBJECTS), "time": round(stamp, 3), **changes}
        self.info.publish(String(data=json.dumps(info)))

    def moment(self, stamp):
        self.publish_joints(stamp)
        self.publish_objects(stamp)
        self.publish_info(stamp)

    def stamps(self):
        return [round(stamp_from_ros(message.header.stamp), 3) for message in self.heard]

    def wait_for(self, *stamps):
        """The chunks so far have exactly these stamps, in order, the last of which may still be on its way."""
        wait_until(lambda: len(self.heard) >= len(stamps), f"{stamps}, heard {self.stamps()}")
        assert self.stamps() == list(stamps)

    def set(self, **values):
        request = SetParameters.Request()
        request.parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        question = Question(self.parameters, request)
        wait_until(question.answered, "set_parameters")
        return question.answer().results


def wait_until(condition, what="the condition", deadline=DEADLINE):
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.005)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    rclpy.init(domain_id=DOMAIN)
    try:
        with spinning(Bench()) as bench, spinning(ExpertNode()) as bench.expert:
            for publisher in (bench.joints, bench.objects, bench.info):
                wait_until(lambda p=publisher: p.get_subscription_count() > 0, "the expert's subscriptions")
            wait_until(lambda: bench.count_publishers("action_chunk") > 0, "the expert's publisher")
            assert bench.parameters.wait_for_service(DEADLINE)
            # A chunk that is heard is the only proof that both directions are matched.
            wait_until(lambda: [bench.moment(0.2), time.sleep(0.05), bench.heard][-1], "the first chunk")
            bench.moment(0.4)
            wait_until(lambda: 0.4 in bench.stamps(), "a chunk of a new moment")
            bench.heard.clear()
            yield bench
    finally:
        rclpy.shutdown()


def test_a_chunk_is_one_action_of_the_moment_it_is_stamped_with(bench):
    bench.moment(0.6)
    bench.wait_for(0.6)
    chunk = bench.heard[0]
    assert list(chunk.joint_names) == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    assert chunk.header.frame_id == "base_link"
    assert len(chunk.points) == 1
    assert stamp_from_ros(chunk.points[0].time_from_start) == pytest.approx(0.2)
    np.testing.assert_allclose(chunk.points[0].positions, ACTION, atol=1e-9)


def test_a_repeated_moment_makes_no_second_action_until_the_chunk_counts_as_lost(bench):
    bench.moment(0.6)
    bench.wait_for(0.6)
    for _ in range(LOST_AFTER - 1):
        bench.moment(0.6)
    bench.moment(0.8)
    bench.wait_for(0.6, 0.8)  # nothing in between
    for _ in range(LOST_AFTER):
        bench.moment(0.8)
    bench.wait_for(0.6, 0.8, 0.8)
    assert bench.heard[1] == bench.heard[2]


def test_only_what_belongs_to_one_moment_is_put_together(bench):
    bench.publish_joints(0.6)
    bench.publish_objects(0.8)
    bench.publish_info(0.8)
    bench.moment(1.0)
    bench.wait_for(1.0)  # of 0.8 the joint states were never heard
    for publish in (bench.publish_info, bench.publish_objects, bench.publish_joints):
        publish(1.2)
    bench.wait_for(1.0, 1.2)


def test_in_real_time_it_acts_at_the_control_frequency(bench):
    # As the simulator does: moments at 15 Hz, on ticks of 20 ms.
    moments = [0.46, 0.54, 0.60, 0.66, 0.74, 0.80, 0.86, 0.94, 1.00, 1.06]
    for stamp in moments:
        bench.moment(stamp)
    bench.wait_for(0.60, 0.80, 1.00)


def test_time_that_stands_still_makes_an_action_due_at_once(bench):
    bench.moment(0.45)
    bench.moment(0.45)
    bench.wait_for(0.45)


def test_a_simulator_that_starts_anew_is_followed(bench):
    bench.moment(0.6)
    bench.wait_for(0.6)
    bench.moment(0.2)
    bench.wait_for(0.6, 0.2)
    bench.moment(0.4)
    bench.wait_for(0.6, 0.2, 0.4)


def test_it_pauses_and_goes_on_with_the_moment_that_waits(bench):
    assert bench.set(acting=False)[0].successful
    bench.moment(0.6)
    bench.moment(0.8)
    # Nothing that is published tells that a paused node has heard.
    wait_until(lambda: 800 in bench.expert._moments and bench.expert._moments[800].is_complete(), "the moment")
    assert bench.heard == []
    assert bench.set(acting=True)[0].successful
    bench.wait_for(0.8)


def test_bad_input_moves_nothing_and_ends_nothing(bench):
    bench.info.publish(String(data="no JSON"))
    bench.info.publish(String(data="[1, 2]"))
    faults = {0.6: {"task": "fold_laundry"}, 0.8: {"objects": ["carrot"]}, 1.0: {"objects": ["a", "b"]}}
    for stamp, changes in faults.items():
        bench.publish_joints(stamp)
        bench.publish_objects(stamp)
        bench.publish_info(stamp, **changes)
    bench.joints.publish(joint_state_to_ros({"waist": float("nan")}, 1.2))
    bench.moment(1.2)
    bench.wait_for(1.2)


def test_what_is_fixed_at_start_is_refused_later(bench):
    assert not bench.set(control_frequency=10.0)[0].successful
    assert not bench.set(acting=1)[0].successful
    bench.moment(0.6)
    bench.wait_for(0.6)


# Separate processes

ENVIRONMENT = {**os.environ, "ROS_DOMAIN_ID": str(DOMAIN + 1), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


STARTED = []


def start(*command, **options):
    STARTED.append(
        subprocess.Popen([sys.executable, *map(str, command)], env=ENVIRONMENT, cwd=ROOT, text=True, **options)
    )
    return STARTED[-1]


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """A table that a failed test leaves would go on, with its nodes."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=150)
    STARTED.clear()


def test_a_parameter_that_cannot_stand_is_one_line_and_exit_code_1():
    node = start("-m", "dtp_ros.ros.expert_node", "--ros-args", "-p", "control_frequency:=0.0", stderr=subprocess.PIPE)
    _, error = node.communicate(timeout=90)
    assert node.returncode == 1
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1
    assert "control_frequency" in lines[0]


def steps_without_ros(task):
    """What sim.LockStep, which has no nodes, needs for the same episode."""
    episode = LockStep(fixed_layout(task, 5))
    try:
        while not episode.table.success():
            episode.act(expert_action(episode.table.task, scene_of(episode.table)))
        return round(episode.table.time / 0.2)
    finally:
        episode.close()


def test_the_expert_solves_an_episode_of_each_task_through_sim_and_arm(tmp_path):
    table = start(
        "tools/success_table.py", "--policy", "expert", "--episodes", 5, "--out", tmp_path, stdout=subprocess.PIPE
    )
    output, _ = table.communicate(timeout=500)
    assert table.returncode == 0
    records = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [(r["task"], r["grasped"], r["success"]) for r in records] == [(task, True, True) for task in TASKS]
    assert all(10 <= r["steps"] <= 30 for r in records)
    assert {r["task"]: r["steps"] for r in records} == {task: steps_without_ros(task) for task in TASKS}
    assert "| all | 4/4 | 4/4 | 51 ... 100 % |" in output  # Wilson: 1 / (1 + 1.96^2 / 4) = 0.51


@pytest.mark.long
def test_ctrl_c_ends_every_process(tmp_path):
    table = start(
        "tools/success_table.py",
        "--policy",
        "expert",
        "--out",
        tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    episodes = tmp_path / "episodes.jsonl"
    wait_until(lambda: episodes.exists() and episodes.read_text(), "a first episode", 150)
    children = Path(f"/proc/{table.pid}/task/{table.pid}/children").read_text().split()
    assert len(children) == 3
    table.send_signal(signal.SIGINT)
    _, error = table.communicate(timeout=30)
    assert table.returncode == 130
    assert "every node ended" in error
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]

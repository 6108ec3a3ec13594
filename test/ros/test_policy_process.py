"""The policy node as a process of its own: how it starts, how it ends, what it says."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import rclpy
from lifecycle_msgs.srv import ChangeState
from policy_harness import CONFIGURE, LATCHED, User, picture, spinning, wait_until
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String

from dtp_ros.ros.compat import Question

DOMAIN = 75


@pytest.fixture(scope="module")
def user():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=DOMAIN)
    with spinning(User(), SingleThreadedExecutor()) as node:
        yield node
    rclpy.try_shutdown()


@pytest.fixture
def start():
    """Start `policy_node` with parameters; ended after the test."""
    processes = []

    def run(*parameters, remaps=()):
        arguments = [a for p in parameters for a in ("-p", p)] + [a for r in remaps for a in ("-r", r)]
        process = subprocess.Popen(
            [sys.executable, "-m", "dtp_ros.ros.policy_node", "--ros-args", *arguments],
            env={**os.environ, "ROS_DOMAIN_ID": str(DOMAIN), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process):
    """Exit code and output, within a deadline."""
    output, _ = process.communicate(timeout=150)
    return process.returncode, output


def test_a_plain_start_acts_on_a_latched_instruction_and_ends_on_ctrl_c(user, start):
    early = user.create_publisher(String, "instruction", LATCHED)
    early.publish(String(data="stack the blocks"))  # before there is a node to hear it
    process = start("checkpoint:=tiny", "device:=cpu", "image_timeout:=30.0")
    wait_until(lambda: user.count_subscribers("image"), "the camera's subscriber")
    chunk, trace = user.step(picture(0))
    assert chunk is not None
    assert trace["instruction"] == "stack the blocks"
    user.destroy_publisher(early)
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == 0, output
    assert "Traceback" not in output


def test_a_missing_checkpoint_leaves_it_alive_and_sigterm_ends_it(user, start):
    process = start("checkpoint:=/nowhere/at/all")
    wait_until(lambda: user.diagnostics and "/nowhere/at/all" in user.diagnostics[-1].status[0].message, "the cause")
    assert user.state() == "unconfigured"
    assert user.diagnostics[-1].status[0].level == b"\x02"
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == 0, output
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if "configure refused" in line]
    assert line.startswith("[ERROR]")
    assert "/nowhere/at/all" in line


def test_parameters_answer_mostly_within_200_ms_while_libraries_and_weights_load(user, start):
    """The first configure of a process also imports torch and transformers, which stop every thread at times."""
    process = start("checkpoint:=tiny", "device:=cpu", "autostart:=false")
    parameters = user.create_client(SetParameters, "dtp_policy/set_parameters")
    change = user.create_client(ChangeState, "dtp_policy/change_state")
    wait_until(lambda: parameters.service_is_ready() and change.service_is_ready(), "the services")
    first = Question(parameters, SetParameters.Request())  # its answer may be lost, see Question; later ones are not
    wait_until(first.answered, "set_parameters")
    request = ChangeState.Request()
    request.transition.id = CONFIGURE
    future, seconds = change.call_async(request), []
    while not future.done():
        result, took = user.put_one(parameters, "overlay_alpha", 0.4)
        assert result.successful
        seconds.append(took)
    assert future.result().success
    user.destroy_client(parameters)
    user.destroy_client(change)
    assert len(seconds) > 10
    # A machine that is busy with other tests may pause in some, none may wait for the libraries.
    assert np.median(seconds) < 0.2, sorted(seconds)[-5:]
    assert max(seconds) < max(1.5, 0.25 * sum(seconds)), sorted(seconds)[-5:]
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == 0, output


def test_ctrl_c_while_weights_load_ends_it(user, start):
    process = start("checkpoint:=tiny", "device:=cpu", remaps=["__node:=loading"])
    wait_until(lambda: "loading" in user.get_node_names(), "the node")
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == 0, output
    assert "Traceback" not in output


@pytest.mark.parametrize(("parameter", "named"), [("model:=gpt", "nora"), ("tolerance:=1", "write 1.0")])
def test_a_start_that_cannot_stand_is_one_line_and_exit_code_1(start, parameter, named):
    code, output = ended(start(parameter))
    assert code == 1
    (line,) = output.strip().splitlines()
    assert line.startswith("policy_node: ")
    assert named in line

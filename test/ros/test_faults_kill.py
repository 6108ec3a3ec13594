"""kill -9 of each process while the arm moves, each started again, and two policies at once."""

import time

import pytest
from fault_harness import ARM, COMMAND_TIMEOUT, POLICY, START_UP, TINY_POLICY, graph
from widowx_harness import wait_until

DOMAIN = 34
AT_REST = 1.5  # s: the simulated arm's way to its last command
LATE = 1.2  # s, by which a busy machine may hear late what was sent before


def start(person, name):
    parameters = {
        "sim_node": {},
        "widowx_node": {"driver": "sim"},
        "policy_node": TINY_POLICY,
        "expert_node": {},
    }[name]
    person.processes.start(name, use_sim_time=name != "sim_node", **parameters)


@pytest.fixture(scope="module")
def graph_of_all(tmp_path_factory):
    # Over shared memory, a process that takes a killed one's place may get no images for good, on a busy machine: not
    # what is tested here. docs/safety.md tells people what is known of it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
        with graph(DOMAIN, tmp_path_factory.mktemp("log")) as person:
            yield person


@pytest.fixture
def bench(graph_of_all):
    for name in ("sim_node", "widowx_node", "policy_node"):
        if name not in graph_of_all.processes:  # at first; or where a test ended before it had started it again
            start(graph_of_all, name)
    graph_of_all.begin()
    graph_of_all.arm()
    graph_of_all.wait_for_motion()
    return graph_of_all


def test_the_policy_killed(bench):
    killed, told = bench.processes.kill("policy_node"), bench.recorder.newest()
    assert bench.says(ARM, "holding: command_timeout", deadline=60.0)["armed"] == "true"
    held = bench.recorder.held(killed)
    (hold,) = [command for command in bench.recorder.sent(killed) if command.at == held]
    assert hold.stamp < told + COMMAND_TIMEOUT + 2 * LATE  # in the arm's own time
    start(bench, "policy_node")
    values = bench.says(ARM, "disarmed: publisher", deadline=START_UP)
    assert values["stops/publisher"] == "1"
    assert bench.recorder.motions(held) == 0
    bench.arm()
    bench.wait_for_motion()
    bench.recorder.require_safe(anchored=1)


def test_the_arms_node_killed(bench):
    killed = bench.processes.kill("widowx_node")
    ends = bench.recorder.newest() + AT_REST + LATE
    wait_until(lambda: bench.recorder.turns(ends) is not None, "joint states")
    assert bench.recorder.turns(ends) < 0.01
    assert not bench.recorder.sent(killed + LATE)
    bench.says(POLICY, "acting")
    start(bench, "widowx_node")
    bench.wait_for_motion()
    bench.recorder.require_safe(anchored=1)


def test_the_simulator_killed(bench):
    killed = bench.processes.kill("sim_node")
    bench.says(ARM, "no joint states for")
    # While commands come without a pause, free time looks like lock-step: then that patience holds, or ten times the
    # policy's slowest answer, which on a busy machine is more. (How long exactly: test_lock_step.py.)
    wait_until(lambda: bench.recorder.held(killed), "a hold", START_UP)
    assert bench.recorder.motions(killed) <= 3  # what was under way: no images, no chunks
    assert bench.status(ARM)[1]["armed"] == "true"
    start(bench, "sim_node")
    bench.wait_for_motion()
    assert int(bench.status(ARM)[1]["drops/time_backwards"]) >= 1
    bench.recorder.require_safe(anchored=1)


def test_a_second_policy(bench):
    _, before = bench.status(ARM)
    start(bench, "expert_node")
    bench.says(ARM, "disarmed: publisher", deadline=START_UP)
    bench.arm()  # with both still there: their chunks alternate
    values = bench.says(ARM, "disarmed: publisher")
    assert values["publishers"] == "2"
    assert int(values["stops/publisher"]) == int(before["stops/publisher"]) + 2
    bench.processes.kill("expert_node")
    for _ in range(2):  # what the expert had sent is heard by now
        bench.status(ARM)
    armed = time.monotonic()
    bench.arm()
    bench.wait_for_motion(10)
    bench.status(ARM, lambda _, values: values["armed"] == "true")
    assert bench.recorder.motions(armed) >= 10
    bench.recorder.require_safe(anchored=3)

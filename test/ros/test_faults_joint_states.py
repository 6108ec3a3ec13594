"""Joint states that stop or carry nonsense, `~/stop` in a chunk, parameters that change while the arm moves."""

import time

import pytest
from fault_harness import ARM, ARM_LIMITS, JOINT_STATE_TIMEOUT, Arm, Mover, graph, storm
from widowx_harness import wait_until

DOMAIN = 30


@pytest.fixture(scope="module")
def graph_of_all(tmp_path_factory):
    with graph(DOMAIN, tmp_path_factory.mktemp("log")) as person:
        person.arm_itself, person.mover = Arm(person), Mover(person)
        person.processes.start("widowx_node", driver="sim")
        yield person


@pytest.fixture
def bench(graph_of_all):
    graph_of_all.begin()
    graph_of_all.arm_itself.fault, graph_of_all.mover.acting = None, True
    graph_of_all.wait_for_motion()
    return graph_of_all


@pytest.mark.parametrize(
    ("fault", "message", "counter"),
    [
        ("silent", "no joint states for", "holds/joint_states"),
        ("frozen", "holding: joint_states", "holds/joint_states"),
        ("nan", "holding: joint_states", "drops/joint_finite"),
        pytest.param("names", "holding: joint_states", "drops/joint_names", marks=pytest.mark.long),
    ],
)
def test_without_joint_states_the_arm_holds_and_goes_on_by_itself(bench, fault, message, counter):
    before = bench.status(ARM)[1]
    bench.arm_itself.fault = fault
    fresh = bench.arm_itself.heard_last
    bench.require_hold(fresh, JOINT_STATE_TIMEOUT)
    ends = bench.arm_itself.sound + JOINT_STATE_TIMEOUT
    assert all(command.hold for command in bench.recorder.sent(fresh) if command.stamp > ends + 0.01)
    values = bench.says(ARM, message)
    assert (values["armed"], values["cause"]) == ("true", "joint_states")
    assert float(values["joint_states_age"].split()[0]) > JOINT_STATE_TIMEOUT
    assert int(values[counter]) > int(before[counter])
    bench.arm_itself.fault = None
    bench.wait_for_motion()
    bench.recorder.require_safe()


def test_stop_in_the_middle_of_a_chunk(bench):
    bench.mover.acting = False
    began = time.monotonic()

    def moving():
        bench.mover.send(*[[0.0, 0.005, 0, 0, 0, 0, 1.0]] * 30)  # 6 s; again: a busy machine may let it run out
        time.sleep(0.8)
        return bench.recorder.motions(began) >= 3

    wait_until(moving, "motions")
    called = bench.stop()
    stopped = bench.now()
    held = called + bench.require_hold(called, 0.0)
    assert all(command.hold for command in bench.recorder.sent(called) if command.stamp > stopped)
    values = bench.says(ARM, "disarmed: stop")
    assert values["stops/stop"] == "1"
    bench.mover.acting = True
    bench.status(ARM, lambda _, values: int(values["holds/not_armed"]) > 3)
    assert bench.recorder.motions(held) == 0
    bench.arm()
    bench.wait_for_motion()
    bench.recorder.require_safe(anchored=1)


def test_parameters_changed_at_50_hz_while_the_arm_moves(bench):
    """The recorder's limits are the widest that are set: no mixture of old and new goes beyond them."""
    put = bench.setter("widowx")
    assert storm(bench, 3.0, (put, *ARM_LIMITS)) >= 5  # of 15 that 3 s have room for
    refused = put(max_joint_velocity=float("nan"), workspace_low=[0.5, 0.0, 0.0])
    wait_until(refused.done, "an answer")
    assert not any(result.successful for result in refused.result().results)
    bench.wait_for_motion()
    bench.recorder.require_safe()

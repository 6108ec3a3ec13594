"""A camera that stops, freezes or jumps back in time, and 20 s of new parameters, between policy and arm processes."""

import pytest
from fault_harness import ARM, ARM_LIMITS, COMMAND_TIMEOUT, POLICY, TINY_POLICY, Arm, Camera, graph, storm
from widowx_harness import PATIENT

DOMAIN = 33
IMAGE_TIMEOUT = 0.5


@pytest.fixture(scope="module")
def graph_of_all(tmp_path_factory):
    with graph(DOMAIN, tmp_path_factory.mktemp("log")) as person:
        person.arm_itself, person.camera = Arm(person), Camera(person)
        person.processes.start("widowx_node", driver="sim", joint_state_timeout=PATIENT)
        person.processes.start("policy_node", **TINY_POLICY)
        yield person


@pytest.fixture
def bench(graph_of_all):
    graph_of_all.begin()
    graph_of_all.wait_for_motion()
    return graph_of_all


@pytest.mark.parametrize(
    ("fault", "counter", "cause"),
    [("silent", None, "no image for"), ("frozen", "dropped_stale", "images are dropped: stale")],
)
def test_a_camera_that_gives_nothing_new_ends_in_a_hold_and_goes_on_by_itself(bench, fault, counter, cause):
    _, before = bench.status(POLICY)
    bench.wait_for_motion(1)  # an arm that holds already would send no hold
    bench.camera.fault = fault
    last = bench.camera.sent_last
    bench.require_hold(last, COMMAND_TIMEOUT + IMAGE_TIMEOUT)
    # A chunk is refused, and what is left of one dropped, when its image is older than that.
    ends = bench.camera.sound + 2 * COMMAND_TIMEOUT
    assert all(command.hold for command in bench.recorder.sent(last) if command.stamp > ends)
    # The last chunk may come so late that it is refused for the age of its image.
    causes = ("holding: command_timeout", "holding: image")
    assert bench.status(ARM, lambda message, _: message in causes)[1]["armed"] == "true"
    values = bench.says(POLICY, cause)
    if counter is not None:
        assert int(values[counter]) > int(before[counter])
    bench.camera.fault = None
    bench.wait_for_motion()
    bench.says(POLICY, "acting")
    bench.recorder.require_safe()


def test_a_camera_whose_time_jumps_back_is_a_new_episode(bench):
    _, before = bench.status(POLICY)
    _, before_arm = bench.status(ARM)
    counted = jumps = 0
    while not counted and jumps < 5:  # a busy machine may lose the images of 0.3 s
        bench.camera.fault, jumps = None, jumps + 1
        bench.wait_for_motion()
        bench.camera.fault = "back"
        bench.wait_for_motion(10)
        counted = int(bench.status(POLICY)[1]["dropped_time_backwards"]) - int(before["dropped_time_backwards"])
    assert counted == 1
    _, values = bench.status(ARM)
    assert values["armed"] == "true"
    assert int(values["drops/time_backwards"]) - int(before_arm["drops/time_backwards"]) <= jumps
    bench.camera.fault = None
    bench.wait_for_motion()
    bench.recorder.require_safe(anchored=1)


@pytest.mark.long
def test_parameters_of_policy_and_arm_changed_at_50_hz_for_20_s(bench):
    policy = (
        {"tolerance": 0.1, "variant": "dtp", "top_k": 5, "sigma": 0.3, "mask_scope": "all", "weights": "query"},
        {"tolerance": 2.0, "variant": "off", "top_k": 40, "sigma": 2.0, "mask_scope": "action", "seed": 7},
    )
    _, before = bench.status(POLICY)
    changes = (bench.setter("dtp_policy"), *policy), (bench.setter("widowx"), *ARM_LIMITS)
    assert storm(bench, 20.0, *changes) >= 15  # of some 100 that 20 s have room for; random weights hold often
    values = bench.says(POLICY, "acting")
    assert values["holds"] == before["holds"]
    bench.wait_for_motion()
    bench.recorder.require_safe()

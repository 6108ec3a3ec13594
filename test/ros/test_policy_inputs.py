"""What the policy node does with bad images, bad times, instructions and transports; over real DDS."""

import itertools
import threading
import time
from array import array

import numpy as np
import pytest
import torch
from policy_harness import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, picture, running_policy, time_at, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from dtp_ros.ros.images import compressed_image_from_ros, compressed_image_to_ros, image_from_ros, image_to_ros
from dtp_ros.ros.overlays import OVERLAYS

INSTRUCTION = "put the carrot on the plate"
QUICK = {"tolerance": 2.0, "variant": "off"}


@pytest.fixture(scope="module")
def running():
    torch.set_num_threads(1)
    with running_policy(78, checkpoint="tiny", device="cpu", image_timeout=30.0, **QUICK) as (policy, user):
        wait_until(lambda: user.state() == "active", "autostart")
        yield policy, user


@pytest.fixture
def user(running):
    """The user of an active node with an instruction, in a new episode."""
    user = running[1]
    result = user.put(instruction=INSTRUCTION, image_timeout=30.0, **QUICK)
    assert result.successful, result.reason
    assert user.reset().success
    return user


def publish_until(user, key, send):
    """Send bad input until its cause is counted: best effort, one may be lost."""
    before = int(user.figures()[key])

    def counted():
        send()
        return int(user.figures()[key]) > before

    wait_until(counted, key)


def broken(**changes):
    message = image_to_ros(picture(0, 48, 64), time_at(0), "camera")
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_broken_images_are_counted_by_cause_and_command_nothing(user):
    messages = {
        "image_size": Image(encoding="rgb8"),
        "image_step": broken(step=100),
        "image_data": broken(data=array("B", bytes(10))),
        "image_encoding": broken(encoding="nv12"),
    }
    before, chunks = user.figures(), len(user.chunks)
    missing = set(messages)
    while missing:
        for cause in missing:
            messages[cause].header.stamp = user.now()
            user.image.publish(messages[cause])
            time.sleep(0.02)  # depth 1: the next one would take its place
        figures = user.figures()
        missing = {c for c in missing if int(figures[f"dropped_{c}"]) == int(before[f"dropped_{c}"])}
    assert len(user.chunks) == chunks
    assert any(word in figures["last_error"] for word in ("pixels", "step", "bytes", "nv12"))
    assert user.step(picture(0))[0] is not None  # the next good one is acted on


def test_an_image_older_than_the_timeout_is_dropped(user):
    assert user.put(image_timeout=0.5).successful
    chunks = len(user.chunks)

    def send():
        user.reset()
        user.show(picture(0, 48, 64), time_at(user.get_clock().now().nanoseconds * 1e-9 - 0.6))

    publish_until(user, "dropped_stale", send)
    assert len(user.chunks) == chunks


def test_time_backwards_drops_that_image_and_the_next_is_accepted(user):
    now = user.get_clock().now().nanoseconds * 1e-9
    user.step(picture(0))
    chunks = len(user.chunks)
    back = itertools.count(5)  # s, each further than the one before: none of them is a new episode's next image
    publish_until(user, "dropped_time_backwards", lambda: user.show(picture(1), time_at(now - next(back))))
    assert len(user.chunks) == chunks
    stamp = time_at(now - 4.9)
    wait_until(lambda: user.show(picture(2), stamp) and len(user.chunks) > chunks, "the next image's chunk")
    assert user.chunks[chunks].header.stamp == stamp
    steps = [pair.value for pair in user.traces[-1].status[0].values if pair.key == "step"]
    assert steps == ["0"]  # a new episode


def test_an_image_in_the_middle_of_a_reset_is_acted_on_without_the_old_history(user, running):
    worker, inputs, stamps = running[0]._worker, running[0]._inputs, []
    clear = worker.clear

    def meanwhile():
        stamps.append(user.now())
        message = image_to_ros(picture(1), stamps[-1], "camera")
        thread = threading.Thread(target=inputs._on_image, args=(0, message))
        thread.start()
        thread.join(1.0)  # where it waits for the reset it cannot end
        time.sleep(0.5)
        clear()

    user.step(picture(0))
    worker.clear = meanwhile
    try:
        assert user.reset().success
    finally:
        worker.clear = clear
    trace = wait_until(lambda: [t for t in user.traces if t.header.stamp == stamps[0]], "a step on that image")[0]
    assert next(pair.value for pair in trace.status[0].values if pair.key == "step") == "0"


def test_a_repeated_stamp_is_dropped(user):
    chunk, _ = user.step(picture(0))
    chunks = len(user.chunks)
    publish_until(user, "dropped_repeated_stamp", lambda: user.show(picture(1), chunk.header.stamp))
    assert len(user.chunks) == chunks


def test_the_next_image_is_stamped_after_the_publication(user):
    shown = user.step(picture(0))[0].header.stamp
    chunks = len(user.chunks)
    just_after = time_at(shown.sec + shown.nanosec * 1e-9 + 0.001)  # the model was still computing then
    publish_until(user, "skipped", lambda: user.show(picture(1), just_after))
    assert len(user.chunks) == chunks
    assert user.step(picture(1))[0] is not None


def test_an_empty_instruction_stops(user):
    user.step(picture(0))
    user.instruction.publish(String(data=""))
    wait_until(lambda: user.get("instruction") == "", "the instruction")
    chunks = len(user.chunks)
    for seed in range(3):
        user.show(picture(seed))
        assert user.status().message == "waits for an instruction"
    assert len(user.chunks) == chunks
    assert user.put(instruction=INSTRUCTION).successful
    assert user.step(picture(0))[0] is not None


def test_bad_instructions_are_refused_and_the_old_one_stands(user):
    before = int(user.figures()["refused_instructions"])
    wrong = ["x" * 100_000, "pick up\nthe carrot", "bell \x07"]
    for text in wrong:
        user.instruction.publish(String(data=text))
        time.sleep(0.05)  # depth 1
    user.wait_for_figure("refused_instructions", str(before + len(wrong)))
    assert "2000" in user.figures()["last_error"]
    assert user.get("instruction") == INSTRUCTION
    assert user.step(picture(0))[1]["instruction"] == INSTRUCTION


def test_instructions_of_volatile_and_latched_publishers_are_heard_once(user):
    for publisher, text in ((user.instruction, "open the drawer"), (user.latched_instruction, "close the drawer")):
        publisher.publish(String(data=text))
        wait_until(lambda text=text: user.get("instruction") == text, text)
        assert user.step(picture(0))[1]["instruction"] == text


def test_of_many_instructions_at_once_the_newest_stands(user):
    """Each is heard twice; the echo of an older one must not replace a newer one."""
    for i in range(9):
        user.latched_instruction.publish(String(data=f"task {i}"))
    wait_until(lambda: user.get("instruction") == "task 8", "the newest instruction")
    assert user.step(picture(0))[1]["instruction"] == "task 8"
    assert user.get("instruction") == "task 8"


def test_overlays_are_drawn_while_someone_looks(user, running):
    drawn = []
    policy = running[0]
    assert user.put(variant="dtp", tolerance=0.25).successful
    user.step(picture(0))
    topics = {name: [] for name in OVERLAYS}
    subscriptions = [
        user.create_subscription(Image, f"dtp_policy/debug/{name}", heard.append, 1) for name, heard in topics.items()
    ]
    jpegs = []
    subscriptions.append(user.create_subscription(CompressedImage, "dtp_policy/debug/mask/compressed", jpegs.append, 1))
    wait_until(
        lambda: all(user.count_publishers(f"dtp_policy/debug/{n}") for n in OVERLAYS), "the debug topics' publishers"
    )
    camera = picture(7, 300, 420)
    wait_until(lambda: user.step(camera) and all(topics.values()) and jpegs, "every overlay")
    for name, heard in topics.items():
        overlay = image_from_ros(heard[-1])
        assert overlay.shape == camera.shape, name
        assert heard[-1].encoding == "rgb8"
        assert heard[-1].header.frame_id == "camera"
        assert heard[-1].header.stamp in [t.header.stamp for t in user.traces], name
        assert (overlay != camera).any(), name
    raw_mask, jpeg_mask = image_from_ros(topics["mask"][-1]), compressed_image_from_ros(jpegs[-1])
    assert np.abs(raw_mask.astype(int) - jpeg_mask).mean() < 6.0
    for subscription in subscriptions:
        user.destroy_subscription(subscription)
    publishers = [*policy._debug_images._raw.values(), *policy._debug_images._compressed.values()]
    wait_until(lambda: not any(p.get_subscription_count() for p in publishers), "nobody to look")
    publish = policy._debug_images.publish
    policy._debug_images.publish = lambda *a: drawn.append(publish(*a))
    try:
        user.step(camera)
        wait_until(lambda: drawn, "the next step's overlays")
    finally:
        policy._debug_images.publish = publish
    assert drawn[0] == 0


def test_lock_step_in_simulated_time_does_not_stop(user):
    """Time stands still until a chunk comes; the image may be there before or after the clock's message."""
    clock = user.create_publisher(Clock, "/clock", 1)
    assert user.put(use_sim_time=True).successful
    wait_until(lambda: clock.get_subscription_count() == 1, "the node to listen to /clock")
    try:
        user.reset()
        for step in range(8):
            stamp = time_at(100.0 + 0.2 * step)

            def moment(stamp=stamp, step=step):
                order = [lambda: clock.publish(Clock(clock=stamp)), lambda: user.show(picture(step), stamp)]
                for publish in order if step % 2 else reversed(order):
                    publish()

            moment()
            again, end = time.monotonic() + 3.0, time.monotonic() + 60.0
            while not user.chunk_of(stamp):
                if time.monotonic() > again:  # best effort: either may be lost
                    moment()
                    again += 3.0
                assert time.monotonic() < end
                time.sleep(0.005)
    finally:
        assert user.put(use_sim_time=False).successful
        user.destroy_publisher(clock)


def test_compressed_transport(user):
    assert not user.put(image_transport="compressed").successful  # fixed while configured
    assert user.change_state(DEACTIVATE)
    assert user.change_state(CLEANUP)
    assert user.put(image_transport="compressed").successful
    assert user.change_state(CONFIGURE)
    assert user.change_state(ACTIVATE)
    for kind in ("jpeg", "png"):
        stamps = []

        def commanded(kind=kind, stamps=stamps):
            stamps.append(user.now())
            user.compressed.publish(compressed_image_to_ros(picture(3), stamps[-1], "camera", kind))
            return any(user.chunk_of(stamp) for stamp in stamps)

        wait_until(commanded, kind)
    policy_idle(user)
    chunks = len(user.chunks)
    cut = compressed_image_to_ros(picture(3), user.now(), "camera")
    cut.data = cut.data[: len(cut.data) // 2]

    def send():
        cut.header.stamp = user.now()
        user.compressed.publish(cut)

    publish_until(user, "dropped_image_compression", send)
    assert len(user.chunks) == chunks


def policy_idle(user):
    """Wait until no further step ends within a second."""
    steps = ""
    while (now := user.figures()["steps"]) != steps:
        steps = now

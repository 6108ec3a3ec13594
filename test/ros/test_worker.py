"""dtp_ros/ros/worker.py: the newest item only, calls in order, an end without anybody left waiting."""

import gc
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from dtp_ros.ros.worker import Worker

DEADLINE = 10.0


@pytest.fixture
def make():
    workers = []

    def build(step, on_crash=lambda error: None):
        workers.append(Worker(step, on_crash))
        return workers[-1]

    yield build
    for worker in workers:
        worker.stop()


def test_a_slow_step_finds_only_the_newest_item(make):
    done, free = [], threading.Event()

    def step(item):
        done.append(item)
        assert free.wait(DEADLINE)

    worker = make(step)
    busy = threading.Event()
    worker.call(busy.set)
    assert busy.wait(DEADLINE)
    blocked = worker.call(lambda: free.wait(DEADLINE))
    for item in range(5):
        worker.offer(item)
    free.set()
    blocked.result(DEADLINE)
    worker.call(lambda: None).result(DEADLINE)
    worker.stop()
    assert done in ([4], [])  # the end may come before the step, never an older item
    assert 0 not in done


def test_what_a_call_that_failed_had_made_is_free_once_its_answer_is(make):
    """A model that was loaded and then refused: it must not stay on the GPU until a collector comes round."""
    left = []

    class Model:
        pass

    def load():
        model = Model()
        left.append(weakref.ref(model))
        raise ValueError("does not fit")

    worker = make(lambda item: None)
    gc.disable()
    try:
        answer = worker.call(load)
        assert isinstance(answer.exception(DEADLINE), ValueError)
        del answer
        worker.call(lambda: None).result(DEADLINE)
        assert left[0]() is None
    finally:
        gc.enable()


def test_calls_come_in_order_and_before_the_next_step(make):
    order, start, stepped = [], threading.Event(), threading.Event()

    def step(item):
        order.append(item)
        stepped.set()

    worker = make(step)
    worker.call(lambda: start.wait(DEADLINE))
    worker.offer("step")
    for i in range(3):
        worker.call(lambda i=i: order.append(i))
    start.set()
    assert stepped.wait(DEADLINE)
    assert order == [0, 1, 2, "step"]


def test_a_cleared_item_is_not_stepped(make):
    items, start = [], threading.Event()
    worker = make(items.append)
    worker.call(lambda: start.wait(DEADLINE))
    worker.offer("old")
    worker.clear()
    start.set()
    worker.call(lambda: None).result(DEADLINE)
    worker.stop()
    assert items == []


def test_a_crash_is_reported_and_the_thread_lives(make):
    crashes, crashed = [], threading.Event()

    def on_crash(error):
        crashes.append(error)
        crashed.set()

    def step(item):
        raise ZeroDivisionError(item)

    worker = make(step, on_crash)
    worker.offer("first")
    assert crashed.wait(DEADLINE)
    assert [type(e) for e in crashes] == [ZeroDivisionError]
    assert worker.call(lambda: 7).result(DEADLINE) == 7


def test_what_a_call_raises_is_its_callers(make):
    crashes = []
    worker = make(print, crashes.append)
    with pytest.raises(KeyError):
        worker.call(lambda: {}["nothing"]).result(DEADLINE)
    assert crashes == []


def test_stop_ends_the_thread_and_cancels_what_waits(make):
    worker, start = make(print), threading.Event()
    started = threading.Event()

    def long_call():
        started.set()
        assert start.wait(DEADLINE)
        return worker.stopping

    running = worker.call(long_call)
    assert started.wait(DEADLINE)
    waiting = worker.call(lambda: None)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    while not worker.stopping:
        pass
    start.set()
    stopper.join(DEADLINE)
    assert not stopper.is_alive()
    assert running.result(DEADLINE) is True  # a long call could see the end coming
    with pytest.raises(CancelledError):
        waiting.result(DEADLINE)
    with pytest.raises(CancelledError):
        worker.call(lambda: None).result(DEADLINE)

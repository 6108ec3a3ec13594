"""The thread that owns the model: it loads it, steps it on the newest observation, and is never waited for."""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")


class Worker(Generic[Item]):
    """Runs calls in the order they came, and between them `step` on what lies in a slot of size one.

    step: called with the newest item offered.
    on_crash: called, from the worker, with what `step` let escape. The thread lives on and steps again on the next
        item; it is the caller's to offer none.
    """

    def __init__(self, step: Callable[[Item], None], on_crash: Callable[[BaseException], None]) -> None:
        self._step = step
        self._on_crash = on_crash
        self._condition = threading.Condition()
        self._calls: deque[tuple[Callable[[], None], Callable[[], bool]]] = deque()  # what to run, how to cancel it
        self._slot: list[Item] = []
        self._stopping = False
        # Daemon: an owner that fails before it can stop() it shall not hang at its end.
        self._thread = threading.Thread(target=self._run, name="policy_worker", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether stop() was called: a long call may look here and give up."""
        return self._stopping

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in the worker, after the calls before it and before the next step."""
        future: Future[T] = Future()
        owed = [future]

        def run() -> None:
            answer = owed.pop()
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)
            finally:
                # An exception holds this frame, and all that the call made, as half a model: no cycle by its answer.
                del answer

        with self._condition:
            if self._stopping:
                future.cancel()
            else:
                self._calls.append((run, future.cancel))
                self._condition.notify()
        return future

    def offer(self, item: Item) -> None:
        """Put an item into the slot; what lay there is forgotten."""
        with self._condition:
            self._slot = [item]
            self._condition.notify()

    def clear(self) -> None:
        """Empty the slot."""
        with self._condition:
            self._slot = []

    def stop(self) -> None:
        """End the thread after what it is doing now, and wait for it."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException as error:
                self._on_crash(error)
            del work  # what it holds shall not stay until there is more

    def _next(self) -> Callable[[], None] | None:
        """What to do next; waits for it. None: the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping or self._calls or self._slot)
            if self._stopping:
                # Nobody shall wait for ever on a call that will not run.
                for _, cancel in self._calls:
                    cancel()
                return None
            if self._calls:
                return self._calls.popleft()[0]
            item = self._slot.pop()
            return lambda: self._step(item)


@contextmanager
def paused_collector() -> Iterator[None]:
    """No garbage collection inside.

    A full collection stops every thread, and while large libraries are imported there are many, of 0.15 s and more.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""Conversations with an arm's services, written as generators, that never make the node wait.

A step is `answer = yield from call(client, request)`; the generator goes on when the answer is there. An error ends
it: an ArmError where a service is missing or silent, or whatever the generator itself raises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future

from dtp_ros.errors import ArmError, DtpError

TICK = 0.02  # s
ANSWER_TIMEOUT = 2.0  # s that a service has to answer
RETRY_PERIOD = 1.0  # s between a failed set-up and the next try


@dataclass(frozen=True)
class Pending:
    """An answer that is under way: whose, and its future."""

    client: Client
    future: Future


Steps = Generator[Pending, Any, None]


def call(client: Client, request: Any) -> Generator[Pending, Any, Any]:
    """Ask a service; returns its answer. Raises ArmError where it is not there."""
    if not client.service_is_ready():
        raise ArmError(f"no service {client.srv_name} (is the arm's driver running?)")
    answer = yield Pending(client, client.call_async(request))
    return answer


class Conversation:
    """Goes through steps as far as the answers allow."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._pending: Pending | None = None
        self._deadline = 0.0  # steady clock, s

    def advance(self) -> bool:
        """Whether the steps have come to their end; raises what ends them early."""
        while True:
            answer = None
            if self._pending is not None:
                if not self._pending.future.done():
                    if time.monotonic() <= self._deadline:
                        return False
                    self._pending.client.remove_pending_request(self._pending.future)
                    raise ArmError(f"{self._pending.client.srv_name} did not answer within {ANSWER_TIMEOUT} s")
                answer = self._pending.future.result()
            try:
                self._pending = self._steps.send(answer)
            except StopIteration:
                return True
            self._deadline = time.monotonic() + ANSWER_TIMEOUT

    def finish(self, node: Node, seconds: float) -> None:
        """Spin the node until the end, for its last words; raises ArmError after `seconds`.

        Only where nothing else spins it.
        """
        executor, end = node.executor, time.monotonic() + seconds
        if executor is None:
            executor = SingleThreadedExecutor(context=node.context)
            executor.add_node(node)
        while not self.advance():
            if time.monotonic() > end:
                raise ArmError(f"not done within {seconds} s")
            executor.spin_once(timeout_sec=TICK)


class SetUp:
    """Has steps done in the node's executor, again and again until they succeed.

    status: what it waits for, or why it failed; "" when all was done.
    """

    def __init__(self, node: Node, steps: Callable[[], Steps]) -> None:
        self._logger, self._steps = node.get_logger(), steps
        self._conversation: Conversation | None = None
        self._retry_at = 0.0  # steady clock, s
        self._logged = ""
        self.status = "the set-up has not begun"
        self._timer = node.create_timer(TICK, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def again(self, why: str) -> None:
        """Begin anew, since what was set up went away."""
        self._fail(why)

    def stop(self) -> None:
        """Do no more."""
        self._timer.cancel()
        self._conversation = None

    def _tick(self) -> None:
        if not self.status or time.monotonic() < self._retry_at:
            return
        if self._conversation is None:
            self._conversation = Conversation(self._steps())
        try:
            if self._conversation.advance():
                self._conversation, self.status, self._logged = None, "", ""
        except DtpError as error:
            self._fail(str(error))
            if self.status != self._logged:  # said once, and in /diagnostics all along
                self._logged = self.status
                self._logger.error(f"the arm is not set up: {self.status}")

    def _fail(self, why: str) -> None:
        self._conversation, self.status = None, why
        self._retry_at = time.monotonic() + RETRY_PERIOD

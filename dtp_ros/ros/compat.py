"""What differs between the rclpy of Humble and of later releases, and what is amiss in both. See docs/humble.md."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from rclpy.client import Client
from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# Whether a subscription's callback may take (message, info): rclpy 3.4 and later, so not Humble.
HAS_MESSAGE_INFO = hasattr(Subscription, "CallbackType")
ASK_AGAIN = 5.0  # s


def no_events() -> SubscriptionEventCallbacks:
    """For a subscription that is meant to hear some publishers of its topic only: rclpy warns of each of the others."""
    return SubscriptionEventCallbacks(use_default_callbacks=False)


def unknown_parameters(node: Node, elsewhere: Iterable[str] = ()) -> list[str]:
    """Those that a file or `-p` gives the node and it never declared: ROS ignores them, and a limit misspelt is none.

    elsewhere: names of other nodes' parameters, which stand under `/**` for all. A line each, with the nearest name.
    """
    given = set(getattr(node, "_parameter_overrides", {}))  # rclpy has no public way to ask
    strange = sorted(name for name in given - set(elsewhere) if not node.has_parameter(name))
    own = node.get_parameters_by_prefix("")
    lines = []
    for name in strange:
        if not name.startswith(("qos_overrides.", "start_type_description_service")):
            near = get_close_matches(name, own, 1) or get_close_matches(name.partition(".")[0], own, 1)
            lines.append(f"parameter {name} is none of this node's" + f" (is it {near[0]}?)" * bool(near))
    return lines


class Question:
    """A request to a service, sent again every `again` seconds until it is answered; it must bear being served twice.

    A server may hear the first request before it has found the reader of the answers, and its answer is lost then
    (ros2/rmw_fastrtps#467). Somebody else spins the client's node.
    """

    def __init__(self, client: Client, request: object, again: float = ASK_AGAIN) -> None:
        self._client, self._request, self._again = client, request, again
        self._asked_at = time.monotonic()
        self._futures = [client.call_async(request)]

    def answered(self) -> bool:
        """Whether the answer is there; asks again where it is late."""
        if time.monotonic() > self._asked_at + self._again:
            self._futures.append(self._client.call_async(self._request))
            self._asked_at = time.monotonic()
        return any(future.done() for future in self._futures)

    def answer(self) -> Any:
        """The response, once `answered`."""
        return next(future.result() for future in self._futures if future.done())


class LastingExecutor(MultiThreadedExecutor):
    """Goes on where a callback destroys a subscription that the executor is about to wait for or to read.

    rclpy's own ends with InvalidHandle in the first case (Jazzy too). In the second Humble's never again runs the
    callback group.
    """

    def spin(self) -> None:
        """Spin until the context or the executor is shut down."""
        ended = False
        while not ended:
            with suppress(InvalidHandle):  # what was destroyed has left the node's lists: the next round is clean
                super().spin()
                ended = True

    def _take_subscription(self, subscription: Subscription) -> Any:
        try:
            return super()._take_subscription(subscription)
        except InvalidHandle:
            return None

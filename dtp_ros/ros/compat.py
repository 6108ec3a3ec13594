"""What differs between the rclpy of Humble and of later releases, and what is amiss in both. See docs/humble.md."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.subscription import Subscription

# Whether a subscription's callback may take (message, info): rclpy 3.4 and later, so not Humble.
HAS_MESSAGE_INFO = hasattr(Subscription, "CallbackType")


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

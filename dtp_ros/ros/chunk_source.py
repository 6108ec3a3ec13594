"""Who is behind `action_chunk`: one subscription that tells when another publisher appears."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from dtp_ros.ros.compat import HAS_MESSAGE_INFO

_UNSUPPORTED = 2**64 - 1  # what middlewares without sequence numbers report


class ChunkSource:
    """Subscribes to chunks; calls `on_other` before `on_chunk` where the publisher may have changed.

    rclpy names no publisher with a message. Two signs stand in: an endpoint on the topic that was not there when the
    last chunk was taken (a respawned policy, a second one), and, where rclpy hands out message info (not in Humble), a
    publication number that does not grow, as when the messages of two publishers alternate.
    """

    def __init__(
        self, node: Node, topic: str, on_chunk: Callable[[JointTrajectory], None], on_other: Callable[[], None]
    ) -> None:
        self._node, self._on_chunk, self._on_other = node, on_chunk, on_other
        self._known: frozenset[bytes] = frozenset()
        self._number = -1
        callback: Callable[..., None] = self._with_info if HAS_MESSAGE_INFO else self._without_info
        self._subscription = node.create_subscription(JointTrajectory, topic, callback, 10)

    def trust(self) -> None:
        """Take the publishers of this moment for the right ones."""
        self._known, self._number = self._endpoints(), -1

    def count(self) -> int:
        """How many publishers are behind the topic."""
        return len(self._endpoints())

    def _endpoints(self) -> frozenset[bytes]:
        infos = self._node.get_publishers_info_by_topic(self._subscription.topic_name)
        return frozenset(bytes(info.endpoint_gid) for info in infos)

    def _with_info(self, message: JointTrajectory, info: Mapping[str, Any]) -> None:
        number = info.get("publication_sequence_number")
        self._take(message, int(number) if number is not None and number != _UNSUPPORTED else None)

    def _without_info(self, message: JointTrajectory) -> None:
        self._take(message, None)

    def _take(self, message: JointTrajectory, number: int | None) -> None:
        endpoints = self._endpoints()
        if (self._known and endpoints - self._known) or (number is not None and number <= self._number):
            self._on_other()
            self._number = -1
        self._known |= endpoints
        self._number = self._number if number is None else number
        self._on_chunk(message)

"""Which camera images the policy may act on, decided by their stamps alone. Pure; all times in ns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

FRAME_CAUSES = ("time_backwards", "repeated_stamp", "stale", "not_paired")


@dataclass
class FrameGate:
    """The stamps of one episode's images, and when its last chunk was published.

    newest: newest stamp seen; used: the one acted on last; published: when the last chunk was, on the node's clock;
    wait: how long after that no image is looked at.
    """

    newest: int | None = None
    used: int | None = None
    published: int | None = None
    wait: int = 0

    def refusal(self, stamp: int, now: int, timeout: int) -> str:
        """Why an image of this stamp is dropped (one of FRAME_CAUSES), or "".

        After `time_backwards` the caller must `restart`: the next image is accepted.
        """
        if self.newest is not None and stamp < self.newest:
            return "time_backwards"
        self.newest = stamp
        if stale := self.staleness(stamp, now, timeout):
            return stale
        return "repeated_stamp" if stamp == self.used else ""

    def staleness(self, stamp: int, now: int, timeout: int) -> str:
        """`stale` where the image is older than the timeout, or ""."""
        return "stale" if now - stamp > timeout else ""

    def is_due(self, stamp: int) -> bool:
        """Whether the image was taken after the last chunk's publication and its wait."""
        return self.published is None or stamp > self.published + self.wait

    def publish(self, stamp: int, now: int, wait: int) -> int:
        """Note that the chunk of the image `stamp` is published now; returns its latency, ns.

        wait: how long what it asks for lasts, but for its last action. An image may overtake the /clock message of its
        own moment: the later of the two is now.
        """
        self.published, self.wait = max(now, stamp), wait
        return self.published - stamp

    def restart(self, newest: int | None = None) -> None:
        """Begin a new episode, whose newest stamp so far is given."""
        self.newest, self.used, self.published = newest, None, None


class CameraSync(Generic[Item]):
    """Sets of images of several cameras whose stamps lie within a slop of the main camera's (index 0)."""

    def __init__(self, num_cameras: int) -> None:
        self._newest: list[tuple[int, Item] | None] = [None] * num_cameras

    def add(self, index: int, stamp: int, item: Item, slop: int) -> Sequence[Item] | None:
        """Take an image; returns a set, main camera first, when it completes one. No image serves twice."""
        self._newest[index] = (stamp, item)
        together = [entry for entry in self._newest if entry is not None]
        if len(together) < len(self._newest) or any(abs(s - together[0][0]) > slop for s, _ in together):
            return None
        self.clear()
        return [item for _, item in together]

    @property
    def is_waiting(self) -> bool:
        """Whether the main camera's image waits for the others."""
        return self._newest[0] is not None

    def clear(self) -> None:
        """Forget every image."""
        self._newest = [None] * len(self._newest)

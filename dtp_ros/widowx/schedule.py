"""When the actions of a chunk are due. Times in seconds on one clock, which the caller reads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from dtp_ros.widowx.kinematics import Array

SAME_TIME = 1e-6  # s: stamps this near are one moment (float64 seconds since 1970 resolve 0.24 us)


@dataclass(frozen=True)
class Chunk:
    """Actions [H, 7] as ActionChunk has them, the image's stamp (s), and the seconds that each action lasts."""

    actions: Array
    stamp: float
    period: float


@dataclass(frozen=True)
class DueAction:
    """An action [7] whose turn it is. seconds: how long it lasts. ends: end of its slot counted from the image, s.

    image_stamp: s, where it is the first of its chunk to be taken; else None.
    """

    action: Array
    seconds: float
    ends: float
    image_stamp: float | None


class Schedule:
    """The newest chunk, action by action.

    An action is due when its predecessor ends, the first of a chunk too: a policy that answers faster than its actions
    last would else have them run on each other's heels, each as if it had its whole time. Where nothing is under way it
    is due on arrival, but not before the arm was measured at the time of the chunk's image or later (so that the
    outcome does not depend on which of two topics is read first); after `patience` s it waits for that no longer.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Chunk, float] | None = None
        self._queue: deque[DueAction] = deque()
        self._due = 0.0

    def clear(self) -> None:
        """Forget what is left."""
        self._queue.clear()
        self._waiting = None

    def put(self, chunk: Chunk, now: float) -> None:
        """Take a chunk that arrived at `now`; it replaces what is left of the one before.

        It goes on waiting for one that it replaces before its turn: chunks that follow fast shall not wait for ever.
        """
        self._queue.clear()
        self._waiting = chunk, now if self._waiting is None else self._waiting[1]

    def begin(self, now: float, measured: float, patience: float, *, paced: bool) -> None:
        """Make the waiting chunk's first action due, if its time has come. paced: when its predecessor ends."""
        if self._waiting is None:
            return
        chunk, arrival = self._waiting
        if measured < chunk.stamp - SAME_TIME and now - arrival <= patience:
            return
        self._waiting = None
        # Jitter below half a period is made up for, as within a chunk: one chunk that is late delays no later ones. A
        # predecessor of a longer period is not waited for to its end.
        punctual = paced and now - self._due <= 0.5 * chunk.period
        self._due = min(self._due, now + chunk.period) if punctual else now
        self._queue = deque(
            DueAction(action, chunk.period, chunk.stamp + (i + 1) * chunk.period, None if i else chunk.stamp)
            for i, action in enumerate(chunk.actions)
        )

    def take(self, now: float, *, drop_late: bool) -> tuple[DueAction | None, int]:
        """The action due at `now`, or None; and how many were left out.

        drop_late: leave out those whose slot, counted from the image's stamp, is over.
        """
        late, image_stamp = 0, None
        while self._queue and now >= self._due - SAME_TIME:
            action = self._queue.popleft()
            image_stamp = action.image_stamp if image_stamp is None else image_stamp
            if drop_late and action.ends <= now + SAME_TIME:
                late += 1
                continue
            # Jitter below half a period is made up for; a longer delay shifts what follows.
            self._due = max(self._due, now - 0.5 * action.seconds) + action.seconds
            return replace(action, image_stamp=image_stamp), late
        return None, late

"""Whether simulated time waits for a command that does not come. A simulator in lock-step moves only with commands."""

from __future__ import annotations

import time
from collections import deque

from dtp_ros.widowx.schedule import SAME_TIME

FREE_RUNNING = 1.0  # s that simulated time goes on without a command: it is not in lock-step
MIN_PATIENCE = 5.0  # s of wall time, at least (or `lock_step_timeout`, where that is less)
MOMENTS = 1000  # that are remembered
SLOWER = 10.0  # times the slowest answer so far: a policy that took longer holds


class LockStepWatch:
    """Learns from what passes how long simulated time may stand still, by the wall clock (s)."""

    def __init__(self) -> None:
        self._moved: float | None = None  # time last moved, or a chunk came, or a policy was first seen
        self._seen: deque[tuple[float, float]] = deque(maxlen=MOMENTS)  # simulated time of joint states, and when, s
        self._slowest = 0.0  # longest wait for a chunk
        self._answered = False  # a chunk came
        self._lock_step = True  # until simulated time is seen to go on without commands
        self._commanded_at: float | None = None  # simulated time of the last command, or of the first joint states, s

    def policy_seen(self) -> None:
        """There is a policy: from now on it is waited for."""
        self._moved = time.monotonic() if self._moved is None else self._moved

    @property
    def in_lock_step(self) -> bool:
        """Whether time waits for commands; so it is until it is seen to go on without."""
        return self._lock_step

    def chunk(self, stamp: float) -> None:
        """A chunk came, the answer to an image of simulated time `stamp`, s; periods may have been held meanwhile."""
        now = time.monotonic()
        asked = next((at for moment, at in self._seen if moment >= stamp - SAME_TIME), now)
        if self._answered:
            self._slowest = max(self._slowest, now - asked)
        self._moved, self._answered = now, True

    def command(self, stamp: float) -> None:
        """A command was sent at simulated time `stamp`, s."""
        self._commanded_at = stamp

    def joint_states(self, before: float | None, measured: float | None) -> None:
        """Joint states came; the newest sound ones were of simulated time `before`, and are of `measured` (s)."""
        if self._moved is not None and measured != before:
            self._moved = time.monotonic()
        if measured is not None and measured != before:
            if before is not None and measured < before:  # another episode's time, or another simulator's
                self._seen.clear()
            self._seen.append((measured, time.monotonic()))
        if measured is None or measured == before:  # another simulator, perhaps; or one that repeats a moment
            self._lock_step, self._commanded_at = True, measured
        elif before is None or self._commanded_at is None:
            self._commanded_at = measured
        elif measured > self._commanded_at + FREE_RUNNING:
            self._lock_step = False

    def stands_still(self, lock_step_timeout: float, command_timeout: float) -> bool:
        """Whether nothing came for so long that the policy must be holding, or lost; then the wait begins anew."""
        patience = lock_step_timeout
        if not self._lock_step:
            patience = command_timeout
        elif self._answered:
            patience = max(min(lock_step_timeout, MIN_PATIENCE), SLOWER * self._slowest)
        now = time.monotonic()
        if self._moved is None or now - self._moved <= patience:
            return False
        self._moved = now
        return True

"""Whether a step of the policy keeps its period. All on the clock that the arm goes by; times in s."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rclpy.clock import Clock

_RESOLUTION = 1e-6  # s; a step of exactly one period is none too long


@dataclass(frozen=True)
class Pace:
    """waited: s from the image's stamp to the start of its step. seconds: from there to the publication of the chunk,
    or to the decision to hold. period: for how long the executed actions of a chunk last, s.
    """

    waited: float
    seconds: float
    period: float

    @property
    def overrun(self) -> bool:
        """Whether the arm had nothing left to execute before the step was over."""
        return self.seconds > self.period + _RESOLUTION


class PaceWatch:
    """Times one step on a node's clock: begin it by construction, end it with `stop`.

    Where time is simulated the step is measured in that time: in lock-step it stands still while the policy computes,
    and no step is too long, whatever the wall clock says. Else the monotonic clock counts, which nobody sets.
    """

    def __init__(self, clock: Clock, stamp_ns: int) -> None:
        """stamp_ns: of the image, which may overtake the /clock message of its own moment."""
        self._clock, self._stamp_ns = clock, stamp_ns
        self._simulated = bool(clock.ros_time_is_active)
        now = max(int(clock.now().nanoseconds), stamp_ns)
        self._waited = (now - stamp_ns) * 1e-9
        self._began = now if self._simulated else time.monotonic_ns()

    def stop(self, period: float) -> Pace:
        """The step is over; period in s."""
        now = max(int(self._clock.now().nanoseconds), self._stamp_ns) if self._simulated else time.monotonic_ns()
        return Pace(self._waited, (now - self._began) * 1e-9, period)

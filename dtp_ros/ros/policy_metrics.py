"""The figures of the policy node: one Float32 topic each a step, and /diagnostics once a second in every state."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from std_msgs.msg import Float32

from dtp_ros.engine.types import StepTrace
from dtp_ros.ros.frames import FRAME_CAUSES
from dtp_ros.ros.images import IMAGE_CAUSES
from dtp_ros.ros.pace import Pace
from dtp_ros.ros.trace import step_figures

METRICS = (
    "tolerance", "pruned", "fire_rate", "unimportant_attention", "entropy_clean", "entropy_refined", "latency",
)  # fmt: skip
DROP_CAUSES = (*IMAGE_CAUSES, *FRAME_CAUSES, "observation", "no_state")
WINDOW = 100  # steps that rate, latency and fire rate look back
RATE_MEMORY = 10.0  # s after which a step no longer counts for the rate
SILENCE = 2.0  # s without an image after which the camera is named; in lock-step an image comes every 0.5 s


class MetricPublishers:
    """`~/metrics/<name>`, std_msgs/Float32, one each a step."""

    def __init__(self, node: Node, group: CallbackGroup) -> None:
        self._publishers = {
            name: node.create_publisher(Float32, f"~/metrics/{name}", 10, callback_group=group) for name in METRICS
        }

    def publish(self, trace: StepTrace, latency: float | None) -> None:
        """Publish a step's figures; no latency (s) where nothing was published."""
        values = step_figures(trace)
        if latency is not None:
            values["latency"] = latency
        for name, value in values.items():
            self._publishers[name].publish(Float32(data=float(value)))


@dataclass
class Figures:
    """Counts and rolling figures of a node's life; any thread may write, any may read.

    `restart` begins a new episode: the rolling figures start again, drops, holds and overruns go on counting.
    """

    drops: Counter[str] = field(default_factory=Counter)
    holds: int = 0
    overruns: int = 0
    steps: int = 0
    skipped: int = 0
    refused_instructions: int = 0
    last_error: str = ""
    failed: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies: deque[float] = deque(maxlen=WINDOW)
        self._fired: deque[float] = deque(maxlen=WINDOW)
        self._ended: deque[float] = deque(maxlen=WINDOW)
        self._hold_reason = ""  # of the last step
        self._seen = time.monotonic()  # when the last image came, or the episode began
        self._dropped = ""  # why it was dropped, "" where it was not

    def image(self, cause: str) -> None:
        """Note that an image came, and why it is dropped ("": it is not)."""
        with self._lock:
            self._seen, self._dropped = time.monotonic(), cause

    def drop(self, cause: str, reason: str = "") -> None:
        """Count a dropped image by its cause, one of DROP_CAUSES."""
        with self._lock:
            self.drops[cause] += 1
            self.last_error = reason or self.last_error

    def skip(self) -> None:
        """Count a sound image that was not looked at: it came before the last chunk was executed."""
        with self._lock:
            self.skipped += 1

    def refuse_instruction(self, reason: str) -> None:
        """Count an instruction that was refused."""
        with self._lock:
            self.refused_instructions += 1
            self.last_error = reason

    def step(self, trace: StepTrace, latency: float | None, hold_reason: str, pace: Pace) -> None:
        """Take in a step; latency in s, None where it held."""
        with self._lock:
            self.steps += 1
            self.overruns += pace.overrun
            self._ended.append(time.monotonic())
            self._fired.append(trace.fire_rate)
            self._hold_reason = hold_reason
            if latency is None:
                self.holds += 1
                self.last_error = f"hold: {hold_reason}"
            else:
                self._latencies.append(latency)

    def fail(self, reason: str, *, failed: bool = False) -> None:
        """Remember what went wrong; failed: the node cannot act until it is configured or activated again."""
        with self._lock:
            self.last_error, self.failed = reason, failed

    def restart(self) -> None:
        """Begin a new episode."""
        with self._lock:
            self.steps, self._hold_reason = 0, ""
            self._seen, self._dropped = time.monotonic(), ""
            for window in (self._latencies, self._fired, self._ended):
                window.clear()

    def waiting(self) -> str:
        """Why an active node sends no commands, "" where it does."""
        with self._lock:
            if (silence := time.monotonic() - self._seen) > SILENCE:
                return f"no image for {silence:.0f} s"
            if self._dropped not in ("", "repeated_stamp"):  # a moment of lock-step is repeated until it was acted on
                return f"images are dropped: {self._dropped}"
            if not self._ended:
                return "no step yet: waits for an image that it can act on"
            if time.monotonic() - self._ended[-1] > RATE_MEMORY:
                return f"no step for {RATE_MEMORY:.0f} s"
            return f"the last step held: {self._hold_reason}" if self._hold_reason else ""

    def summary(self) -> dict[str, str]:
        """Key/value for /diagnostics: rates in Hz, latencies in s, counts since the node was started."""
        now = time.monotonic()
        with self._lock:
            ended = [t for t in self._ended if now - t < RATE_MEMORY]
            rate = (len(ended) - 1) / (ended[-1] - ended[0]) if len(ended) > 1 and ended[-1] > ended[0] else 0.0
            p50, p95 = np.percentile(self._latencies, [50, 95]) if self._latencies else (np.nan, np.nan)
            return {
                "steps": str(self.steps),
                "rate": f"{rate:.2f}",
                "latency_p50": f"{p50:.3f}",
                "latency_p95": f"{p95:.3f}",
                "fire_rate": f"{np.mean(self._fired) if self._fired else np.nan:.3f}",
                "overruns": str(self.overruns),
                "holds": str(self.holds),
                "dropped": str(self.drops.total() if hasattr(self.drops, "total") else sum(self.drops.values())),
                **{f"dropped_{cause}": str(self.drops[cause]) for cause in DROP_CAUSES},
                "skipped": str(self.skipped),
                "refused_instructions": str(self.refused_instructions),
                "last_error": self.last_error,
            }


def status_to_ros(
    name: str, hardware_id: str, figures: Figures, about: Mapping[str, str], waiting: str
) -> DiagnosticStatus:
    """The node's status: ERROR after a crash or a refused configure, WARN while it waits for something, else OK.

    about: what is loaded and where. waiting: why the node does not act, "" if it does.
    """
    level, message = DiagnosticStatus.OK, "acting"
    if figures.failed:
        level, message = DiagnosticStatus.ERROR, figures.last_error
    elif waiting:
        level, message = DiagnosticStatus.WARN, waiting
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id)
    pairs = {**about, **figures.summary(), "memory": f"{_resident_bytes() / 2**20:.0f} MiB"}
    status.values = [KeyValue(key=key, value=value) for key, value in pairs.items()]
    return status


def _resident_bytes() -> int:
    """Resident memory of this process, bytes; 0 where /proc is not there."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")

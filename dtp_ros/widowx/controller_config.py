"""How the controller turns actions into commands: its settings and their ranges."""

from __future__ import annotations

from dataclasses import dataclass, field

from dtp_ros.errors import require_choice, require_range
from dtp_ros.widowx.gate import GateConfig
from dtp_ros.widowx.semantics import REFERENCES

LATE_ACTIONS = ("execute", "drop")


@dataclass(frozen=True)
class ControllerConfig:
    """How actions become commands; raises ConfigError where a value is not valid.

    reference: pose that increments are composed on, `commanded` or `measured`.
    gripper_threshold: openings above it open the gripper, 0 ... 1.
    late_actions: `execute` runs every action in order; `drop` leaves out those whose time, counted from the image's
    stamp, is over.
    move_time: s that a command may take the credit for at most, however far apart the actions: arms that take a
    position go there at once, in about this time.
    """

    gate: GateConfig = field(default_factory=GateConfig)
    reference: str = "commanded"
    gripper_threshold: float = 0.5
    late_actions: str = "execute"
    move_time: float = 0.2

    def __post_init__(self) -> None:
        require_choice("reference", self.reference, REFERENCES)
        require_range("gripper_threshold", self.gripper_threshold, 0.0, 1.0)
        require_choice("late_actions", self.late_actions, LATE_ACTIONS)
        require_range("move_time", self.move_time, 0.01, 0.2)

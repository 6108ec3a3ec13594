"""What a driver is: the last yard, from a safe command to the messages of one kind of arm."""

from __future__ import annotations

from typing import Protocol

from dtp_ros.widowx.controller import Command


class Driver(Protocol):
    """Sends what the gate let through, and decides nothing.

    A driver is made by `drivers.create_driver`, as `Driver(node, robot)`, and lives in a file of its own; what it
    imports beyond rclpy and the common messages, it imports there.

    arms_at_start: whether motion may begin without a call of `~/arm` (nothing that can hurt is moved).
    """

    arms_at_start: bool

    def is_ready(self) -> bool:
        """Whether someone listens; nothing is decided, and so nothing lost, before."""

    def send(self, command: Command) -> None:
        """Send a command; where it is not `armed`, nothing that drives a motor."""

    def close(self) -> None:
        """Leave the arm as it was found (its last command was a hold) and see the last message delivered."""

"""From a safe target to the messages of one kind of arm, one file each (see `base.Driver`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import cast

from rclpy.node import Node

from dtp_ros.errors import require_choice
from dtp_ros.ros.drivers.base import Driver
from dtp_ros.widowx.kinematics import Robot

DRIVERS: Mapping[str, str] = MappingProxyType({"dry_run": "DryRunDriver", "sim": "SimDriver"})


def create_driver(name: str, node: Node, robot: Robot) -> Driver:
    """The driver called `name`, its module imported now; raises ConfigError listing the valid names."""
    class_name = DRIVERS[require_choice("driver", name, DRIVERS)]
    driver = cast(Callable[[Node, Robot], Driver], getattr(import_module(f"{__name__}.{name}"), class_name))
    return driver(node, robot)

"""From a safe target to the messages of one kind of arm, one file each (see `base.Driver`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import cast

from rclpy.exceptions import NameValidationException
from rclpy.node import Node

from dtp_ros.errors import ConfigError, require_choice
from dtp_ros.ros.drivers.base import Driver, DriverSettings
from dtp_ros.widowx.kinematics import Robot

DRIVERS: Mapping[str, str] = MappingProxyType(
    {
        "dry_run": "DryRunDriver",
        "sim": "SimDriver",
        "interbotix": "InterbotixDriver",
        "joint_trajectory": "JointTrajectoryDriver",
        "servo": "ServoDriver",
        "cartesian": "CartesianDriver",
    }
)


def create_driver(name: str, node: Node, robot: Robot, settings: DriverSettings) -> Driver:
    """The driver called `name`, its module imported now.

    Raises ConfigError: listing the valid names, where a package that it needs is missing, or a setting cannot stand.
    """
    class_name = DRIVERS[require_choice("driver", name, DRIVERS)]
    make = cast(
        Callable[[Node, Robot, DriverSettings], Driver],
        getattr(import_module(f"{__name__}.{name}"), class_name),
    )
    try:
        return make(node, robot, settings)
    except NameValidationException as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"driver {name}: a parameter is not a ROS name: {text} (valid: as /wx250s)") from error

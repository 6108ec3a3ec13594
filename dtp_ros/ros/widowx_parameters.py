"""The parameters of the arm's node: one table <-> the frozen settings that the controller reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from dtp_ros.errors import ConfigError, require_choice
from dtp_ros.ros.drivers import DRIVERS
from dtp_ros.ros.drivers.base import DriverSettings
from dtp_ros.ros.drivers.cartesian import CONTROLLERS
from dtp_ros.widowx.controller_config import LATE_ACTIONS, ControllerConfig
from dtp_ros.widowx.gate import GATE_RANGES, GateConfig
from dtp_ros.widowx.kinematics import ROBOTS
from dtp_ros.widowx.semantics import REFERENCES

Value = str | float | list[float]
_C, _G, _D = ControllerConfig(), GateConfig(), DriverSettings()


@dataclass(frozen=True)
class Spec:
    """One parameter: default, meaning with its unit, limits (a slider in rqt), choices, whether fixed once started."""

    default: Value
    meaning: str
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    fixed: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """The descriptor; ranges have step 0.0, since rclpy refuses what is off a step."""
        text = self.meaning + (f" ({' | '.join(self.choices)})" if self.choices else "")
        descriptor = ParameterDescriptor(description=text, read_only=self.fixed)
        if self.limits is not None:
            low, high = self.limits
            descriptor.description += f" ({low} ... {high}; a double: write 1.0, not 1)"
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
        return descriptor


def _gate(name: str, meaning: str) -> Spec:
    return Spec(getattr(_G, name), meaning, GATE_RANGES[name])


def _driver(name: str, meaning: str, limits: tuple[float, float] | None = None, choices: tuple[str, ...] = ()) -> Spec:
    return Spec(getattr(_D, name), meaning, limits, choices, fixed=True)


SPECS: Mapping[str, Spec] = {
    "driver": Spec("dry_run", "where commands go", choices=tuple(DRIVERS), fixed=True),
    "robot": Spec("wx250s", "the arm", choices=tuple(ROBOTS), fixed=True),
    "arm_namespace": _driver("arm_namespace", "prefix of the arm's topics, as /wx250s; /: none; empty: the node's own"),
    "base_frame": _driver("base_frame", "frame of chunks, poses and the workspace"),
    "end_effector_frame": _driver("end_effector_frame", "frame of the end effector, as `~/commanded_gripper` has it"),
    "arm_controller": _driver("arm_controller", "driver joint_trajectory: the arm's controller"),
    "gripper_controller": _driver(
        "gripper_controller", "drivers joint_trajectory, servo, cartesian: the gripper's controller"
    ),
    "servo_topic": _driver("servo_topic", "driver servo: topic of MoveIt Servo's twists"),
    "cartesian_controller": _driver(
        "cartesian_controller", "driver cartesian: whose it is", choices=tuple(CONTROLLERS)
    ),
    "cartesian_topic": _driver("cartesian_topic", "driver cartesian: topic of the poses; empty: that controller's own"),
    "cartesian_frame": _driver("cartesian_frame", "driver cartesian: frame it expects; empty: it is asked"),
    "profile_move_time": _driver("profile_move_time", "driver interbotix: time of a move, s", (0.05, 5.0)),
    "profile_acceleration_time": _driver(
        "profile_acceleration_time", "driver interbotix: time to speed up and to slow down, s", (0.0, 2.5)
    ),
    "gripper_pwm": _driver("gripper_pwm", "driver interbotix: drive of a gripper in PWM mode", (150.0, 350.0)),
    "reference": Spec(_C.reference, "pose that increments are composed on", choices=REFERENCES),
    "workspace_low": Spec(list(_G.workspace_low), "lowest x y z of the end effector in the base frame, m"),
    "workspace_high": Spec(list(_G.workspace_high), "highest x y z of the end effector in the base frame, m"),
    "max_step_translation": _gate("max_step_translation", "largest increment of an action along each axis, m"),
    "max_step_rotation": _gate("max_step_rotation", "largest increment of an action about each axis, rad"),
    "max_joint_velocity": _gate("max_joint_velocity", "fastest turn of each joint, rad/s"),
    "joint_limit_margin": _gate("joint_limit_margin", "distance kept from the arm's joint limits, rad"),
    "max_joint_jump": _gate("max_joint_jump", "largest distance of a command from the measured joints, rad"),
    "command_timeout": _gate("command_timeout", "without a new chunk for so long the arm holds; oldest image, s"),
    "joint_state_timeout": _gate("joint_state_timeout", "with older joint states the arm holds, s"),
    "lock_step_timeout": Spec(
        30.0, "lock-step: wall time without a first chunk until a period is held, s", (0.1, 3600.0)
    ),
    "gripper_threshold": Spec(_C.gripper_threshold, "openings above it open the gripper", (0.0, 1.0)),
    "late_actions": Spec(_C.late_actions, "actions whose time, from the image's stamp, is over", choices=LATE_ACTIONS),
}


def declare(node: Node) -> dict[str, Value]:
    """Declare every parameter; returns their values by name, overrides included."""
    return {name: _plain(node.declare_parameter(name, spec.default, spec.descriptor())) for name, spec in SPECS.items()}


def changed(values: Mapping[str, Value], parameters: Iterable[Parameter]) -> dict[str, Value]:
    """The values with those of `parameters` that are ours replaced."""
    return {**values, **{p.name: _plain(p) for p in parameters if p.name in SPECS}}


def driver_settings(values: Mapping[str, Value]) -> DriverSettings:
    """What drivers are told; raises ConfigError naming the value and what is valid."""
    for name, spec in SPECS.items():
        if spec.limits is not None:
            _number(values, name)
    return DriverSettings(**{field.name: values[field.name] for field in fields(DriverSettings)})  # type: ignore[arg-type]


def controller_config(values: Mapping[str, Value]) -> ControllerConfig:
    """The frozen settings of all values; raises ConfigError naming the value and what is valid."""
    for name, spec in SPECS.items():
        if spec.choices:
            require_choice(name, str(values[name]), spec.choices)
    gate = {name: _number(values, name) for name in GATE_RANGES}
    profile = _number(values, "profile_move_time")
    return ControllerConfig(
        gate=GateConfig(_corner(values, "workspace_low"), _corner(values, "workspace_high"), **gate),
        reference=str(values["reference"]),
        gripper_threshold=_number(values, "gripper_threshold"),
        late_actions=str(values["late_actions"]),
        move_time=min(_C.move_time, profile) if values["driver"] == "interbotix" else _C.move_time,
    )


def _number(values: Mapping[str, Value], name: str) -> float:
    value = values[name]
    if not isinstance(value, float):
        raise ConfigError(f"{name} = {value!r} is not a double (valid: a number with a point, as 1.0)")
    return value


def _corner(values: Mapping[str, Value], name: str) -> tuple[float, float, float]:
    value = values[name]
    if not isinstance(value, list) or len(value) != 3:
        raise ConfigError(f"{name} = {value!r} (valid: three doubles, x y z in m)")
    x, y, z = value
    return x, y, z


def _plain(parameter: Parameter) -> Value:
    value = parameter.value
    if isinstance(value, (str, float)):
        return value
    return [float(item) for item in value]

"""The errors this package raises on purpose.

Every message names the value that was refused, the limit it broke, and the valid choices.
"""

from __future__ import annotations

import math
from collections.abc import Collection


class DtpError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(DtpError, ValueError):
    """A setting is out of range, of a wrong type, or does not fit the loaded model."""


class CheckpointError(DtpError):
    """A checkpoint is missing, incomplete or of another layout."""


class DeviceError(DtpError):
    """The asked device is not there, or cannot run the asked dtype."""


class ObservationError(DtpError, ValueError):
    """An image, an instruction or a state that a model cannot take."""


class CaptureError(DtpError):
    """Attention that was asked for was not captured."""


class ActionDecodeError(DtpError):
    """Generated tokens do not decode to an action; the arm holds."""


class ActionError(DtpError, ValueError):
    """An action or a chunk of actions that must not reach the arm."""


class KinematicsError(DtpError):
    """A pose that the arm cannot reach from where it is."""


class ArmError(DtpError):
    """The arm's own driver is missing, silent, or set up otherwise than it must be."""


class SimulationError(DtpError):
    """The simulator cannot start or render."""


def require_range(name: str, value: float, low: float, high: float) -> float:
    """Return `value` as a float, or raise ConfigError unless low <= value <= high (NaN refused)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} = {value!r} is not a number (valid: {low} ... {high})")
    if not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{name} = {value} is out of range (valid: {low} ... {high})")
    return float(value)


def require_integer(name: str, value: int, low: int, high: int) -> int:
    """Return `value`, or raise ConfigError unless it is an integer with low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} = {value!r} is not an integer (valid: {low} ... {high})")
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value} is out of range (valid: {low} ... {high})")
    return value


def require_choice(name: str, value: str, choices: Collection[str]) -> str:
    """Return `value`, or raise ConfigError unless it is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name} = {value!r} is not known (valid: {', '.join(choices)})")
    return value

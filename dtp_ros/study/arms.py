"""What a study compares: an arm is a name and the constants that it sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dtp_ros.errors import ConfigError
from dtp_ros.pruning.config import VARIANTS, PruningConfig

_OWN = ("variant", "tolerance", "tolerance_mode", "tolerance_grid")  # what the arms of a study set
ABLATIONS = ("dtp", "no_gaussian", "random_all", "random_unimportant")


@dataclass(frozen=True)
class Arm:
    """One setting of a comparison. parameters: constants by their ROS names; those that are missing are the model's."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


OFF = Arm("off", {"variant": "off"})


def pruning_arm(variant: str, tolerance: float, shared: Mapping[str, Any] = {}) -> Arm:
    """A variant at a tolerance, named after both; `shared` holds for every arm of a study."""
    if variant not in VARIANTS[1:]:
        raise ConfigError(f"variant = {variant!r} is not one that prunes (valid: {', '.join(VARIANTS[1:])})")
    parameters = {**shared, "variant": variant, "tolerance": float(tolerance), "tolerance_mode": "fixed"}
    return Arm(f"{variant} {tolerance:g}{_suffix(shared)}", parameters)


def sweep(grid: Sequence[float], shared: Mapping[str, Any] = {}) -> list[Arm]:
    """No pruning, every tolerance of the grid (Eq. 9), and the one of least entropy at every step (Eq. 8 online)."""
    if not grid:
        raise ConfigError("the grid of tolerances is empty")
    grid = tuple(sorted(set(grid)))
    entropy = {**shared, "variant": "dtp", "tolerance_mode": "min_entropy", "tolerance_grid": grid}
    arms = [pruning_arm("dtp", tolerance, shared) for tolerance in grid]
    own = "" if grid == PruningConfig.tolerance_grid else " " + ",".join(f"{t:g}" for t in grid)
    return [OFF, *arms, Arm(f"min_entropy{own}{_suffix(shared)}", entropy)]


def ablation(tolerance: float, shared: Mapping[str, Any] = {}) -> list[Arm]:
    """The rows of the paper's Table 4."""
    return [OFF, *(pruning_arm(variant, tolerance, shared) for variant in ABLATIONS)]


def parsed(assignments: Sequence[str]) -> dict[str, Any]:
    """`name=value` constants of a command line, as YAML reads the values. Raises ConfigError.

    Those that an arm sets itself are not for it, nor what is not of the method: `off` must differ in nothing else.
    """
    import yaml

    values: dict[str, Any] = {}
    known = [name for name in PruningConfig.__dataclass_fields__ if name not in _OWN]
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ConfigError(f"{text!r} is no constant (valid: NAME=VALUE, NAME one of {', '.join(known)})")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{text!r} is not readable: {error}") from None
    return values


def _suffix(shared: Mapping[str, Any]) -> str:
    return "".join(f" {name}={value}" for name, value in sorted(shared.items()))

"""The parameters of the policy node: one table of descriptors <-> the frozen objects that a step reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from dtp_ros.engine.types import ENSEMBLES, GenerationConfig
from dtp_ros.errors import ConfigError, DtpError, require_choice, require_integer, require_range
from dtp_ros.models.registry import model_defaults, model_names
from dtp_ros.pruning.config import (
    MASK_SCHEDULES,
    MASK_SCOPES,
    MAX_COUNT,
    MAX_SEED,
    MAX_SIGMA,
    MAX_TOLERANCE,
    TOLERANCE_MODES,
    VARIANTS,
    WEIGHTS,
    PruningConfig,
)
from dtp_ros.widowx.kinematics import ROBOTS

Value = bool | int | float | str | list[int] | list[float]
MAX_INSTRUCTION = 2000
MAX_HORIZON = 64


@dataclass(frozen=True)
class Spec:
    """One parameter: its default where the model's file has none, its limits, and what a reader is told."""

    name: str
    default: Value
    description: str
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    fixed: bool = False

    @property
    def type(self) -> Parameter.Type:
        """The ROS type, that of the default."""
        return Parameter.Type.from_parameter_value(self.default)

    def descriptor(self) -> ParameterDescriptor:
        """The descriptor; ranges have step 0.0, since rclpy refuses what is off a step."""
        text = self.description
        if self.choices:
            text += f" ({' | '.join(self.choices)})"
        if self.fixed:
            text += "; fixed while configured"
        descriptor = ParameterDescriptor(name=self.name, description=text)
        if self.limits is not None and isinstance(self.default, float):
            low, high = self.limits
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
        elif self.limits is not None and isinstance(self.default, int):
            low, high = (int(limit) for limit in self.limits)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        return descriptor


_P, _G = PruningConfig(), GenerationConfig()

SPECS = (
    Spec("model", "nora", "the vision-language-action model", choices=tuple(model_names()), fixed=True),
    Spec("checkpoint", "tiny", "a folder, a hub id, `shipped` (tabletop), or `tiny`: a seeded random one", fixed=True),
    Spec("revision", "", "revision of a hub checkpoint; empty: the pinned one", fixed=True),
    Spec("device", "auto", "where the model runs", choices=("auto", "cpu", "cuda"), fixed=True),
    Spec("dtype", "auto", "type of the weights; auto: what the device does best",
         choices=("auto", "float32", "bfloat16", "float16"), fixed=True),
    Spec("preprocess", "", "which published preprocessing, where a model has several; empty: its default", fixed=True),
    Spec("model_options", "", "the model's own options that differ from config/models, as {name: value}", fixed=True),
    Spec("image_transport", "raw", "how images arrive", choices=("raw", "compressed"), fixed=True),
    Spec("base_frame", "base_link", "frame of the action chunk", fixed=True),
    Spec("robot", "wx250s", "the arm whose joint states a model takes", choices=tuple(ROBOTS), fixed=True),
    Spec("control_frequency", _G.control_frequency, "actions per second, Hz", (0.1, 100.0), fixed=True),
    Spec("autostart", True, "configure and activate by itself at start", fixed=True),
    Spec("instruction", "", f"the task in words, at most {MAX_INSTRUCTION} printable characters; empty: stop acting"),
    Spec("tolerance", _P.tolerance, "factor on the most attended important token (Eq. 5), larger prunes less; "
         "a double: write 1.0, not 1", (0.0, MAX_TOLERANCE)),
    Spec("tolerance_mode", _P.tolerance_mode, "a fixed tolerance, or the one of the grid with the least entropy",
         choices=TOLERANCE_MODES),
    Spec("tolerance_grid", list(_P.tolerance_grid), f"tolerances tried by min_entropy, each 0.0 ... {MAX_TOLERANCE}"),
    Spec("variant", _P.variant, "the method, one of its ablations, or off", choices=VARIANTS),
    Spec("top_k", _P.top_k, "image tokens in the important region", (1, MAX_COUNT)),
    Spec("sigma", _P.sigma, "smoothing of the relevance map, image tokens (patches)", (0.0, MAX_SIGMA)),
    Spec("max_pruned", _P.max_pruned, "cap on the pruned image tokens; 0: no cap", (0, MAX_COUNT)),
    Spec("mask_scope", _P.mask_scope, "queries that a pruned token is hidden from", choices=MASK_SCOPES),
    Spec("mask_schedule", _P.mask_schedule, "one mask a step, or one a token", choices=MASK_SCHEDULES),
    Spec("weights", _P.weights, "layer weights (Eq. 4) of each query, or of the first action token", choices=WEIGHTS),
    Spec("relevance_layers", list(_P.relevance_layers), "layers of the relevance map, counted from 0"),
    Spec("seed", _P.seed, "seed of the random variants", (0, MAX_SEED)),
    Spec("fast_grammar", _G.fast_grammar, "only FAST tokens that decode; on by default for the tiny checkpoint"),
    Spec("speculative", _G.speculative, "mask_scope action: run the next token with a masked one; the tokens stay"),
    Spec("execute_horizon", 1, "actions of a chunk executed before the next image is looked at", (1, MAX_HORIZON)),
    Spec("publish_whole_chunk", True, "also the actions beyond execute_horizon, to go on with until the next chunk"),
    Spec("ensemble", _G.ensemble, "how overlapping chunks are averaged", choices=ENSEMBLES),
    Spec("ensemble_weight", _G.ensemble_weight, "k in w = exp(k * rank), the newest chunk heaviest", (0.0, 10.0)),
    Spec("image_timeout", 0.5, "an older image is dropped, s", (0.001, 3600.0)),
    Spec("sync_slop", 0.05, "largest difference of stamps within a set of camera images, s", (0.0, 10.0)),
    Spec("overlay_alpha", 0.5, "strength of the overlays on the debug images", (0.0, 1.0)),
)  # fmt: skip
SPEC_BY_NAME = {spec.name: spec for spec in SPECS}
FIXED = tuple(spec.name for spec in SPECS if spec.fixed)
# What decides the defaults of the others.
_SOURCES = ("model", "checkpoint")


@dataclass(frozen=True)
class Settings:
    """All parameters of one moment, frozen: a step reads it once, at its start. Raises ConfigError.

    control_frequency in Hz; image_timeout and sync_slop in s; the rest as SPECS describes.
    """

    model: str
    checkpoint: str
    revision: str
    device: str
    dtype: str
    preprocess: str
    model_options: str
    image_transport: str
    base_frame: str
    robot: str
    control_frequency: float
    autostart: bool
    instruction: str
    execute_horizon: int
    publish_whole_chunk: bool
    image_timeout: float
    sync_slop: float
    overlay_alpha: float
    pruning: PruningConfig
    generation: GenerationConfig

    @property
    def acting(self) -> bool:
        """Whether there is an instruction to act on."""
        return bool(self.instruction.strip())

    @property
    def period(self) -> float:
        """For how long the executed actions of a chunk last, s: a step that takes longer is an overrun."""
        return self.execute_horizon / self.control_frequency

    def require_fits(self, model: ModelLimits) -> None:
        """Raise ConfigError where the loaded model has no such layer, token or action."""
        self.pruning.require_fits(model.num_layers, model.num_image_tokens)
        require_integer("execute_horizon", self.execute_horizon, 1, model.horizon)


@dataclass(frozen=True)
class ModelLimits:
    """What a loaded model sets bounds to: decoder layers, image tokens of the main camera, actions of a chunk."""

    num_layers: int
    num_image_tokens: int
    horizon: int


def settings_from_values(values: Mapping[str, Value]) -> Settings:
    """The frozen settings of a full set of parameter values; raises ConfigError naming value, limit and choices."""
    for spec in SPECS:
        value = values[spec.name]
        if spec.choices:
            require_choice(spec.name, str(value), spec.choices)
        elif spec.limits is not None and isinstance(spec.default, float) and isinstance(value, float):
            require_range(spec.name, value, *spec.limits)
        elif spec.limits is not None and isinstance(value, int):
            require_integer(spec.name, value, int(spec.limits[0]), int(spec.limits[1]))
    _require_instruction(str(values["instruction"]))
    parsed_options(str(values["model_options"]))
    for name in ("checkpoint", "base_frame"):
        if not str(values[name]).strip():
            raise ConfigError(f"{name} is empty ({SPEC_BY_NAME[name].description})")
    frozen: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    pruning, generation, rest = (
        {f.name: frozen[f.name] for f in fields(group) if f.name in frozen}
        for group in (PruningConfig, GenerationConfig, Settings)
    )
    return Settings(**rest, pruning=PruningConfig(**pruning), generation=GenerationConfig(**generation))


def parsed_options(text: str) -> dict[str, object]:
    """The mapping that `model_options` writes in YAML, {} if empty; raises ConfigError."""
    try:
        options = yaml.safe_load(text) if text.strip() else {}
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ConfigError(f"model_options = {text!r} is no mapping (valid: as {{convention: bridge}})")
    return options


def _require_instruction(text: str) -> None:
    if len(text) > MAX_INSTRUCTION:
        raise ConfigError(f"instruction has {len(text)} characters (valid: at most {MAX_INSTRUCTION}, printable)")
    if not text.isprintable():
        odd = next(c for c in text if not c.isprintable())
        raise ConfigError(f"instruction contains {odd!r} (valid: at most {MAX_INSTRUCTION} printable characters)")


def defaults(model: str, checkpoint: str = "") -> dict[str, Value]:
    """Default of every parameter for a model and its checkpoint ("": the model's own); raises ConfigError."""
    values: dict[str, Value] = {spec.name: spec.default for spec in SPECS}
    for name, value in model_defaults(model, checkpoint).items():
        # The pinned revision belongs to one checkpoint: the registry knows when it holds.
        if name in SPEC_BY_NAME and name != "revision":
            values[name] = _as_type_of(SPEC_BY_NAME[name].default, value)
    return {**values, "model": model, **({"checkpoint": checkpoint} if checkpoint else {})}


def _as_type_of(default: Value, value: object) -> Value:
    """A YAML value in the ROS type of the parameter's default: integers as floats, sequences as lists."""
    if isinstance(default, float) and isinstance(value, int):
        return float(value)
    if isinstance(default, list) and isinstance(value, Sequence):
        return [float(v) for v in value] if isinstance(default[0], float) else [int(v) for v in value]
    if isinstance(value, type(default)):
        return value
    raise ConfigError(f"default {value!r} is not of the type of {default!r}")


class PolicyParameters:
    """Declares SPECS on a node and keeps the newest frozen Settings.

    `settings` may be read from any thread. `on_change(old, new)` is called after each accepted change, from the
    thread that set the parameter. Construction raises ConfigError with one line for an override that cannot stand.
    """

    def __init__(self, node: Node, on_change: Callable[[Settings, Settings], None]) -> None:
        self._node = node
        self._on_change = on_change
        self._lock = threading.RLock()
        self._limits: ModelLimits | None = None
        self._is_configured = False
        self._is_rereading = False
        given = _declared_overrides(node)
        self._chosen = set(given)
        values = defaults(str(given.get("model", SPEC_BY_NAME["model"].default)), str(given.get("checkpoint", "")))
        node.set_parameters_atomically([Parameter(n, value=v) for n, v in values.items() if n not in given])
        self._values: dict[str, Value] = {**values, **given}
        self.settings = settings_from_values(self._values)
        # rclpy asks this callback first and that of use_sim_time last, which cannot refuse (its type is checked
        # before both): what is accepted here is always stored.
        node.add_on_set_parameters_callback(self._on_set)

    def freeze(self) -> Settings:
        """Refuse changes of the fixed parameters from now on, and return the settings to load the model with."""
        with self._lock:
            self._is_configured = True
            return self.settings

    def thaw(self) -> None:
        """Allow them again: no model is loaded."""
        with self._lock:
            self._is_configured = False
            self._limits = None

    def fit(self, limits: ModelLimits) -> None:
        """Check the settings, and from now on every change, against a loaded model; raises ConfigError."""
        with self._lock:
            self.settings.require_fits(limits)
            self._limits = limits

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        ours = {p.name: _plain(p.value) for p in parameters if p.name in SPEC_BY_NAME}
        if not ours or self._is_rereading:
            return SetParametersResult(successful=True)
        with self._lock:
            old = self.settings
            try:
                self._accept(ours)
            except DtpError as error:
                return SetParametersResult(successful=False, reason=str(error))
        if self.settings != old:
            self._on_change(old, self.settings)
        return SetParametersResult(successful=True)

    def _accept(self, changes: Mapping[str, Value]) -> None:
        """Validate all changes together, then swap; raises DtpError and changes nothing."""
        for name, value in changes.items():
            if self._is_configured and name in FIXED and value != self._values[name]:
                raise ConfigError(f"{name} is fixed while the node is configured: `cleanup` first, then set it")
        values = {**self._values, **changes}
        reread = self._fresh_defaults(values, self._chosen | changes.keys())
        values.update(reread)
        settings = settings_from_values(values)
        if self._limits is not None:
            settings.require_fits(self._limits)
        self._chosen |= changes.keys()
        self._values, self.settings = values, settings
        if reread:
            self._store(reread)

    def _fresh_defaults(self, values: Mapping[str, Value], chosen: set[str]) -> dict[str, Value]:
        """Defaults of a newly chosen model or checkpoint, for what nobody ever chose."""
        if all(values[n] == self._values[n] for n in _SOURCES):
            return {}
        checkpoint = str(values["checkpoint"]) if "checkpoint" in chosen else ""
        fresh = defaults(str(values["model"]), checkpoint)
        return {n: v for n, v in fresh.items() if n not in chosen and v != values[n]}

    def _store(self, values: Mapping[str, Value]) -> None:
        """Write re-read defaults to the node; they were validated with the change that caused them."""
        self._is_rereading = True
        try:
            self._node.set_parameters_atomically([Parameter(n, value=v) for n, v in values.items()])
        finally:
            self._is_rereading = False


def _declared_overrides(node: Node) -> dict[str, Value]:
    """Declare every parameter without a value, and return those that the user's overrides gave one."""
    given: dict[str, Value] = {}
    for spec in SPECS:
        try:
            node.declare_parameter(spec.name, spec.type, spec.descriptor())
        except InvalidParameterTypeException as error:
            raise ConfigError(f"{error}: {spec.description}") from error
        except InvalidParameterValueException as error:
            raise ConfigError(str(error)) from error
        parameter = node.get_parameter_or(spec.name)
        if parameter.type_ != Parameter.Type.NOT_SET:
            given[spec.name] = _plain(parameter.value)
    return given


def _plain(value: Value | Iterable[float]) -> Value:
    """The value, with ROS's arrays as lists."""
    return value if isinstance(value, (bool, int, float, str)) else list(value)

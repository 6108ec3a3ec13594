"""What a LeRobot checkpoint says besides its weights: its policy type, its features, its normalisation.

Facts from huggingface/lerobot (src/lerobot/processor): `policy_preprocessor.json` and `policy_postprocessor.json` list
the steps around a policy; the step that normalises names a safetensors file with statistics `<feature>.<statistic>`. A
LeRobot data set keeps the same statistics in `meta/stats.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation

from dtp_ros.errors import CheckpointError, require_integer
from dtp_ros.models import checkpoint as ckpt

STATE, ACTION = "observation.state", "action"
PIPELINES = {STATE: "policy_preprocessor.json", ACTION: "policy_postprocessor.json"}
FILES = ("config.json", *PIPELINES.values(), "policy_*.safetensors")
TEXT_TOKENIZER = "google/paligemma-3b-pt-224"
# Step of the preprocessor and its setting that name a tokenizer, and LeRobot's default.
TOKENIZERS = {
    "text": ("tokenizer_processor", "tokenizer_name", TEXT_TOKENIZER),
    "action": ("action_tokenizer_processor", "action_tokenizer_name", "lerobot/fast-action-tokenizer"),
}
# Commits that a public evaluation of pi0fast-libero names (RLinf, docs of its PI0-FAST recipe).
PINNED = {
    TEXT_TOKENIZER: "35e4f46485b4d07967e7e9935bc3786aad50687c",
    "jadechoghari/tokenizer-lib-mean": "79ae83e3cbd8786dcb84b628569f8d076ca8151e",
}
EPSILON = 1e-8  # of LeRobot's normalising steps
# Mode to the two statistics it needs: mean and deviation, or what becomes -1 and 1.
MODES = {
    "IDENTITY": (), "MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}  # fmt: skip
_STEPS = {STATE: "normalizer_processor", ACTION: "unnormalizer_processor"}
_KINDS = {STATE: "STATE", ACTION: "ACTION"}

# What state and actions of a data set mean -> how many numbers a state may have.
# bridge: WidowX, as BridgeData V2: `Observation.state`, with a 0 before the gripper where there are 8 numbers; actions
#   in m and rad, gripper 1 = open.
# libero: a simulated Panda: position, rotation vector, two fingers (m); actions in units of robosuite's OSC_POSE, in
#   which 1 is 5 cm and 0.5 rad (a rotation vector), gripper 1 = close.
CONVENTIONS: Mapping[str, tuple[int, ...]] = {"bridge": (7, 8), "libero": (8,)}
LIBERO_STEP = np.array([0.05] * 3 + [0.5] * 3)
LIBERO_FINGER = 0.04

Statistics = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Normaliser:
    """Normalisation of one feature, as LeRobot computes it.

    mode: one of MODES. statistics: name -> float64 [n]; those of the mode are there. n: the feature's size.
    """

    mode: str
    statistics: Statistics
    size: int

    def normalise(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Normalised values [..., n] of physical ones, in float32 as LeRobot has them; not clipped."""
        physical = values.astype(np.float32)
        if self.mode == "IDENTITY":
            return physical
        first, second = (self.statistics[name].astype(np.float32) for name in MODES[self.mode])
        if self.mode == "MEAN_STD":
            normalised: NDArray[np.float32] = (physical - first) / (second + np.float32(EPSILON))
        else:
            normalised = np.float32(2) * (physical - first) / self._span(first, second) - np.float32(1)
        return normalised

    def unnormalise(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Physical values [..., n] of normalised ones."""
        if self.mode == "IDENTITY":
            return values
        first, second = (self.statistics[name] for name in MODES[self.mode])
        if self.mode == "MEAN_STD":
            return values * second + first
        physical: NDArray[np.float64] = (values + 1.0) * self._span(first, second) / 2.0 + first
        return physical

    def bound(self) -> float | None:
        """Largest normalised magnitude in the data, from its `min` and `max`; None where these are not known."""
        if "min" not in self.statistics or "max" not in self.statistics:
            return None
        ends = np.stack([self.statistics["min"], self.statistics["max"]])
        return float(np.abs(self.normalise(ends)).max())

    @staticmethod
    def _span(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
        span: NDArray[Any] = np.where(second == first, first.dtype.type(EPSILON), second - first)
        return span


def pipeline_step(folder: Path, pipeline: str, name: str) -> dict[str, Any] | None:
    """The step registered as `name` in a pipeline's JSON, or None where there is no such file or step."""
    if not (folder / pipeline).is_file():
        return None
    steps = ckpt.read_json(folder, pipeline).get("steps")
    found = [step for step in steps or () if isinstance(step, dict) and step.get("registry_name") == name]
    return found[0] if found else None


def require_inputs(folder: Path, raw: Mapping[str, Any], wanted: int) -> None:
    """Raise CheckpointError for what no adapter here computes, ConfigError for more cameras than there were."""
    if raw.get("use_relative_actions"):
        raise CheckpointError(f"{folder} has use_relative_actions: true (valid: false, increments from step to step)")
    cameras = [
        name
        for name, feature in (raw.get("input_features") or {}).items()
        if feature.get("type") == "VISUAL" and ".empty_camera_" not in name
    ]
    visual = modes(folder, raw, STATE).get("VISUAL", "IDENTITY")
    if visual != "IDENTITY":
        raise CheckpointError(f"{folder} normalises images by {visual!r} (valid: IDENTITY)")
    if cameras:
        require_integer("cameras", wanted, 1, len(cameras))


def integer(folder: Path, raw: Mapping[str, Any], name: str, default: int, high: int) -> int:
    """A number 1 ... high of config.json; raises CheckpointError."""
    value = raw.get(name, default)
    if type(value) is not int or not 1 <= value <= high:
        raise CheckpointError(f"{folder / 'config.json'}: {name} = {value!r} (valid: 1 ... {high})")
    return value


def _setting(folder: Path, config: Mapping[str, Any], step: str, name: str, fallback: str) -> str:
    """A setting of a step of the preprocessor, else the one called `fallback` in config.json, else ""."""
    found = (pipeline_step(folder, PIPELINES[STATE], step) or {}).get("config", {}).get(name)
    return str(found or config.get(fallback) or "")


def tokenizer_folder(
    folder: Path, raw: Mapping[str, Any], which: str, chosen: str, revision: str, files: Sequence[str]
) -> Path:
    """Folder of the `text` or `action` tokenizer: what the user chose, else what the checkpoint names."""
    step, name, default = TOKENIZERS[which]
    own = _setting(folder, raw, step, name, f"{which}_tokenizer_name") or default
    if not chosen and ".." not in Path(own).parts and (folder / own).is_dir():
        return folder / own
    source = chosen or own
    return ckpt.resolve(source, revision or PINNED.get(source, ""), files, weights=False)


def modes(folder: Path, config: Mapping[str, Any], feature: str) -> Mapping[str, str]:
    """Kind of feature (VISUAL, STATE, ACTION) -> mode, of the step that normalises `feature`, else of config.json."""
    step = pipeline_step(folder, PIPELINES[feature], _STEPS[feature]) or {}
    return step.get("config", {}).get("norm_map") or config.get("normalization_mapping") or {}


def load_normaliser(folder: Path, config: Mapping[str, Any], feature: str, statistics: str = "") -> Normaliser:
    """Normalisation of `observation.state` or `action`.

    statistics: `stats.json` of a LeRobot data set, or a folder that has it (or `meta/stats.json`); "": the checkpoint's
    own. Raises CheckpointError where there are none, or they lack what the mode needs.
    """
    mode = modes(folder, config, feature).get(_KINDS[feature], "IDENTITY")
    if mode not in MODES:
        raise CheckpointError(f"{folder}: normalisation {mode!r} of {feature} is not known (valid: {', '.join(MODES)})")
    source, features = _dataset(statistics) if statistics else _own(folder, feature)
    if feature not in features:
        raise CheckpointError(f"{source} has no statistics of {feature!r} (it has: {', '.join(sorted(features))})")
    found = {name: np.atleast_1d(value) for name, value in features[feature].items()}
    absent = [name for name in MODES[mode] if name not in found]
    if absent:
        raise CheckpointError(f"{source}: {feature} lacks {', '.join(absent)}, which {mode} needs")
    used = {name: found[name] for name in {*MODES[mode], "min", "max"} & found.keys()}
    shapes = {value.shape for value in used.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or not all(np.isfinite(v).all() for v in used.values()):
        raise CheckpointError(f"{source}: the statistics of {feature} are not finite vectors of one size")
    return Normaliser(mode, used, shape[0])


def _own(folder: Path, feature: str) -> tuple[Path, dict[str, dict[str, NDArray[np.float64]]]]:
    name = (pipeline_step(folder, PIPELINES[feature], _STEPS[feature]) or {}).get("state_file")
    if not name:
        raise CheckpointError(
            f"checkpoint {folder} has no statistics of {feature!r}: name the meta/stats.json of the LeRobot data set "
            "it was trained on in the option `statistics`"
        )
    if Path(name).name != name:
        raise CheckpointError(f"{folder / PIPELINES[feature]} names {name!r}, not a file beside it")
    path = ckpt.require_file(folder, name)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from None
    features: dict[str, dict[str, NDArray[np.float64]]] = {}
    for key, value in tensors.items():
        owner, _, statistic = key.rpartition(".")
        features.setdefault(owner, {})[statistic] = value.astype(np.float64)
    return path, features


def _dataset(statistics: str) -> tuple[Path, dict[str, dict[str, NDArray[np.float64]]]]:
    given = Path(statistics).expanduser()
    places = (given, given / "stats.json", given / "meta" / "stats.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"statistics = {statistics!r} is neither a stats.json nor a folder with (meta/)stats.json"
        )
    try:
        return path, {
            feature: {name: np.asarray(value, dtype=np.float64) for name, value in values.items() if name != "count"}
            for feature, values in ckpt.read_json(path.parent, path.name).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not the statistics of a LeRobot data set ({error})") from None


def state_as_data(state: NDArray[np.float64], convention: str, size: int) -> NDArray[np.float64]:
    """Observation's state [7], which is Bridge's, as the data set writes it, float64 [size]."""
    if convention == "bridge":
        return state if size == len(state) else np.insert(state, 6, 0.0)
    # Bridge's zero is the gripper pointing down, at which LIBERO's frame is half a turn about x from the base's.
    turned = Rotation.from_euler("xyz", state[3:6]) * Rotation.from_rotvec([np.pi, 0.0, 0.0])
    vector, finger = turned.as_rotvec(), LIBERO_FINGER * state[6]
    # LIBERO writes turns beyond half a one too, about axes that all point to the front (its data go to 3.67 rad).
    if vector[0] < 0.0:
        vector *= 1.0 - 2.0 * np.pi / np.linalg.norm(vector)
    return np.concatenate([state[:3], vector, [finger, -finger]])


def actions_from_data(actions: NDArray[np.float64], convention: str) -> NDArray[np.float64]:
    """Actions [H, 7] of the data set as increments in m and rad (`ActionChunk`) and an opening 0 ... 1, clipped."""
    result = actions.copy()
    if convention == "libero":
        steps = np.clip(actions[:, :6], -1.0, 1.0) * LIBERO_STEP
        result[:, :3] = steps[:, :3]
        result[:, 3:6] = Rotation.from_rotvec(steps[:, 3:6]).as_euler("xyz")
        result[:, 6] = 0.5 * (1.0 - actions[:, 6])
    result[:, 6] = np.clip(result[:, 6], 0.0, 1.0)
    return result

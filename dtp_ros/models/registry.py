"""Model name to adapter and defaults. Importing this imports no model, no torch and no transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import yaml

from dtp_ros.errors import ConfigError, require_choice
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.resources import share_file

if TYPE_CHECKING:
    from dtp_ros.models.base import VlaAdapter

_ADAPTERS = {
    "nora": "dtp_ros.models.nora",
    "openvla": "dtp_ros.models.openvla",
    "pi0_fast": "dtp_ros.models.pi0_fast",
    "spatialvla": "dtp_ros.models.spatialvla",
    "tabletop": "dtp_ros.models.tabletop",
    "univla": "dtp_ros.models.univla",
}
_TINY = "tiny"
_PRUNING = tuple(field.name for field in fields(PruningConfig))
_TYPES: Mapping[str, type] = {
    "model": str, "checkpoint": str, "revision": str, "dtype": str, "preprocess": str, "fast_grammar": bool,
    "execute_horizon": int, "ensemble": str, "ensemble_weight": float, "options": dict,
}  # fmt: skip


def model_names() -> tuple[str, ...]:
    """The models that there are, in alphabetical order."""
    return tuple(sorted(_ADAPTERS))


def model_defaults(name: str, checkpoint: str = "") -> Mapping[str, object]:
    """Defaults of a model: ROS parameter name -> value, from config/models/<name>.yaml, checked.

    Sequences are tuples; `options` is a mapping of the adapter's own settings. For the checkpoint `tiny`,
    `fast_grammar` is on: random FAST tokens seldom decode. Raises ConfigError for an unknown model, and for a file
    with a setting that is unknown, missing, of a wrong type or out of range.
    """
    require_choice("model", name, model_names())
    path = share_file(f"config/models/{name}.yaml")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    defaults = _checked(raw, str(path))
    if checkpoint == _TINY:
        defaults["fast_grammar"] = True
    return defaults


def _checked(raw: object, path: str) -> dict[str, Any]:
    known = {*_TYPES, *_PRUNING}
    if not isinstance(raw, dict) or raw.keys() != known:
        found = set(raw) if isinstance(raw, dict) else set()
        raise ConfigError(f"{path}: unknown {sorted(found - known)}, missing {sorted(known - found)}")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()}
    for key, kind in _TYPES.items():
        if type(values[key]) is not kind:
            raise ConfigError(f"{path}: {key} = {values[key]!r} is not of type {kind.__name__}")
    PruningConfig(**{key: values[key] for key in _PRUNING})
    return values


def load_adapter(
    name: str,
    checkpoint: str,
    *,
    revision: str = "",
    device: str = "auto",
    dtype: str = "auto",
    preprocess: str = "",
    options: Mapping[str, object] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> VlaAdapter:
    """Load a model, whole or not at all.

    checkpoint: a folder, a hub id, or `tiny` (a seeded random one). revision: branch, tag or commit on the hub; "": the
    model's default for its default checkpoint, else `main`. device: auto | cpu | cuda. dtype: auto (the checkpoint's on
    CUDA, float32 on the CPU) | float32 | float16 | bfloat16, or int8 | int4 for the matrices of the decoder's layers
    and bfloat16 for the rest (`quantise.py`). preprocess: "" is the model's default. options: adapter settings that
    replace those of the model's file.
    progress: called with a message and the fraction done, 0 ... 1, ascending.
    Raises ConfigError (unknown model, option or choice, torchao missing), CheckpointError (missing, half or foreign
    checkpoint, hub out of reach), DeviceError (no CUDA, or a dtype that the device does not compute).
    """
    defaults = model_defaults(name)
    own: Any = defaults["options"]
    unknown = sorted((options or {}).keys() - own.keys())
    if unknown:
        raise ConfigError(f"options of {name}: {', '.join(unknown)} not known (valid: {', '.join(sorted(own))})")
    if not revision and checkpoint == defaults["checkpoint"]:
        revision = str(defaults["revision"])
    from dtp_ros.models.request import LoadRequest  # which brings torch

    request = LoadRequest(
        checkpoint=checkpoint,
        revision=revision,
        device=device,
        dtype=dtype,
        preprocess=preprocess or str(defaults["preprocess"]),
        options={**own, **(options or {})},
        progress=progress or (lambda message, fraction: None),
    )
    adapter: VlaAdapter = importlib.import_module(_ADAPTERS[name]).load(request)
    return adapter

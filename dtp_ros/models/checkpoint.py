"""Checkpoints: a local folder or a hub id becomes files, and files become weights, whole or not at all.

Only safetensors and JSON are read; no code and no pickle comes from a checkpoint.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dtp_ros.errors import CheckpointError, DeviceError, require_choice

Progress = Callable[[str, float], None]

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MAPPED = 2**26  # bytes of a shard that are read before the file is opened anew
DEVICES = ("auto", "cpu", "cuda")
INT4_CAPABILITY = (8, 0)  # of a CUDA device: torch has kernels for it from Ampere on
# What config.json names as its model_type (LeRobot: type) -> which of the models here it is.
MODELS = {
    "qwen2_5_vl": "nora", "openvla": "openvla", "spatialvla": "spatialvla", "Emu3": "univla", "pi0_fast": "pi0_fast",
    "dtp_tabletop": "tabletop",
}  # fmt: skip


class Dtype(NamedTuple):
    """What a name of `dtype` stands for.

    compute: floating point type of activations and weights. bits: of a weight in the decoder's layers where these are
    whole numbers (`quantise.py`), else 0.
    """

    compute: torch.dtype
    bits: int = 0


DTYPES = {
    "float32": Dtype(torch.float32), "float16": Dtype(torch.float16), "bfloat16": Dtype(torch.bfloat16),
    "int8": Dtype(torch.bfloat16, bits=8), "int4": Dtype(torch.bfloat16, bits=4),
}  # fmt: skip

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_log = logging.getLogger(__name__)


def no_progress(message: str, fraction: float) -> None:
    """Report nothing."""


def stage(progress: Progress, low: float, high: float) -> Progress:
    """Progress of a part that goes from `low` to `high` of the whole."""
    return lambda message, fraction: progress(message, low + (high - low) * fraction)


def resolve_device(name: str) -> torch.device:
    """Device of `auto`, `cpu` or `cuda`; raises DeviceError where CUDA is asked for and is not there."""
    require_choice("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device = 'cuda' but no CUDA device is available (valid here: auto, cpu)")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_dtype(name: str, device: torch.device, of_checkpoint: str) -> torch.dtype:
    """Floating point type that is computed in: `auto` is the checkpoint's on CUDA and float32 on the CPU.

    Raises ConfigError for an unknown name, and DeviceError for a type that the device does not compute.
    """
    require_choice("dtype", name, ("auto", *DTYPES))
    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        name = of_checkpoint if device.type == "cuda" and of_checkpoint in DTYPES else "float32"
        name = "float32" if name == "bfloat16" and emulated else name  # float16 is too narrow for some of them
    kind, bits = DTYPES[name]
    if kind is torch.float16 and device.type == "cpu":
        raise DeviceError(f"dtype = {name!r} on the CPU (valid there: auto, float32, bfloat16, int8, int4)")
    if kind is torch.bfloat16 and emulated:
        raise DeviceError(f"dtype = {name!r} on {torch.cuda.get_device_name()} (valid there: float32, float16)")
    if bits == 4 and device.type == "cuda" and torch.cuda.get_device_capability() < INT4_CAPABILITY:
        valid = ", ".join(other for other in DTYPES if other != name)
        raise DeviceError(f"dtype = {name!r} on {torch.cuda.get_device_name()} (valid there: {valid})")
    return kind


def is_hub_id(checkpoint: str) -> bool:
    """Whether `checkpoint` reads owner/name and no such folder exists."""
    return not Path(checkpoint).expanduser().exists() and _HUB_ID.fullmatch(checkpoint) is not None


def resolve(
    checkpoint: str,
    revision: str,
    files: Sequence[str],
    progress: Progress = no_progress,
    *,
    weights: bool = True,
    subfolder: str = "",
) -> Path:
    """Folder of a checkpoint: a local one, or the snapshot of a hub id at `revision` ("" = main), downloaded once.

    files: the small files that are needed, or patterns of those that may be there; weights: whether the shards are
    needed too. subfolder: where all of them lie in a repository of several checkpoints, and may lie in a local folder.
    Raises CheckpointError where there is no such folder or repository, or the hub cannot be reached.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder / subfolder if (folder / subfolder).is_dir() else folder
    if not is_hub_id(checkpoint):
        raise CheckpointError(f"checkpoint {checkpoint!r} is neither a folder, nor a hub id (owner/name), nor 'tiny'")
    progress(f"fetching {checkpoint}", 0.0)
    extra = (WEIGHTS_INDEX,) if weights else ()
    prefix = f"{subfolder}/" if subfolder else ""
    snapshot = _snapshot(checkpoint, revision or "main", [f"{prefix}{name}" for name in (*files, *extra)])
    # The snapshot folder is named after the commit: later files come from that one even if `main` moves.
    _log.info("%s at %s is commit %s", checkpoint, revision or "main", snapshot.name)
    root = snapshot / subfolder
    shards = (_shards(root) if (root / WEIGHTS_INDEX).is_file() else [WEIGHTS]) if weights else []
    for i, shard in enumerate(shards):
        progress(f"fetching {checkpoint}: {shard} ({i + 1} of {len(shards)})", i / len(shards))
        _snapshot(checkpoint, snapshot.name, (f"{prefix}{shard}",))
    progress(f"fetched {checkpoint}", 1.0)
    return root


def commit_of(checkpoint: str, revision: str = "") -> str:
    """The commit that a hub id at `revision` ("" = main) is now; "" for what is from no hub.

    Raises CheckpointError where the hub cannot be reached, and no copy is in the cache.
    """
    return _snapshot(checkpoint, revision or "main", ["config.json"]).name if is_hub_id(checkpoint) else ""


def _snapshot(repository: str, revision: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    failed = f"checkpoint {repository} at {revision} cannot be had from the hub"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{failed}: it cannot be reached, and no whole copy is in the cache") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{failed}: {reason}") from error


def require_file(folder: Path, name: str) -> Path:
    """Path of a file of the checkpoint; raises CheckpointError naming it where it is missing."""
    if not (folder / name).is_file():
        raise CheckpointError(f"checkpoint {folder} lacks the file {name}")
    return folder / name


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the checkpoint; raises CheckpointError where it is missing or broken."""
    path = require_file(folder, name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def require_model_type(folder: Path, model_type: str, field: str = "model_type") -> dict[str, Any]:
    """The checkpoint's config.json; raises CheckpointError where it is of another model type, and says which.

    field: where config.json names it; LeRobot's policies have `type`.
    """
    config = read_json(folder, "config.json")
    if config.get(field) != model_type:
        found = str(config.get("model_type") or config.get("type"))
        looks = f": it looks like {MODELS[found]}, see the parameter `model`" if found in MODELS else ""
        raise CheckpointError(f"{folder} is a checkpoint of model_type {found!r} (valid here: {model_type!r}){looks}")
    return config


def _shards(folder: Path) -> list[str]:
    """Names of the weight files, each in the folder itself."""
    if not (folder / WEIGHTS_INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(f"checkpoint {folder} lacks the file {WEIGHTS_INDEX} (or {WEIGHTS})")
        return [WEIGHTS]
    weight_map = read_json(folder, WEIGHTS_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / WEIGHTS_INDEX} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / WEIGHTS_INDEX} names {name!r}, not a safetensors file beside it")
    return names


@contextmanager
def blank_model(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Models made inside have their parameters on `device` in `dtype`, not initialised: `load_weights` fills them."""
    from transformers.initialization import no_init_weights

    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), torch.device(device):
            yield
    finally:
        torch.set_default_dtype(previous)


def load_weights(
    model: nn.Module,
    folder: Path,
    rename: Callable[[str], str],
    tied: Mapping[str, str],
    progress: Progress = no_progress,
    *,
    unused: Callable[[str], bool] = lambda key: False,
    filled: Callable[[str], None] = lambda name: None,
) -> None:
    """Fill every parameter of `model` from the checkpoint, shard by shard, in the model's dtype.

    rename: name in the checkpoint to name in the model. tied: parameter -> the one it may be tied to where the
    checkpoint lacks it. unused: whether a name in the checkpoint is a weight that the model does without.
    filled: called with the name in the model of each weight once it is filled; may put another in its place.
    Raises CheckpointError for a missing or broken file, for missing, unexpected or misshapen weights, and for weights
    that are not finite (or overflow the dtype): then the model must not be used.
    """
    targets = {name for name, _ in model.named_parameters()} | {name for name, _ in _persistent_buffers(model)}
    shards = _shards(folder)
    paths = [require_file(folder, name) for name in shards]
    total, loaded = sum(path.stat().st_size for path in paths), set[str]()
    done = 0
    for i, path in enumerate(paths):
        progress(f"loading {path.name} ({i + 1} of {len(paths)})", done / total)
        loaded |= _load_shard(model, targets, path, rename, unused, filled)
        done += path.stat().st_size
    for name, source in tied.items():
        if name not in loaded and source in loaded:
            _tie(model, name, source)
            loaded.add(name)
    missing = sorted(targets - loaded)
    if missing:
        raise CheckpointError(f"checkpoint {folder} lacks the weights {_some(missing)}")
    progress("weights loaded", 1.0)


def _load_shard(
    model: nn.Module,
    targets: Collection[str],
    path: Path,
    rename: Callable[[str], str],
    unused: Callable[[str], bool],
    filled: Callable[[str], None],
) -> set[str]:
    """Copy one shard into the model's tensors; returns the names it filled."""
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            names = {key: rename(key) for key in shard.keys() if not unused(key)}  # noqa: SIM118 (not a mapping)
        unexpected = sorted(key for key, name in names.items() if name not in targets)
        if unexpected:
            raise CheckpointError(f"{path} holds weights that this model has not: {_some(unexpected)}")
        with torch.no_grad():
            for key, value in _tensors(path, names):
                _copy(attrgetter(names[key])(model), value, key, path)  # looked up anew: nothing here keeps it alive
                filled(names[key])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from None
    return set(names.values())


def _tensors(path: Path, keys: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a shard. What was read of a mapped file counts as memory until it is closed: that is done often."""
    left = deque(keys)
    while left:
        with safe_open(path, framework="pt", device="cpu") as shard:
            read = 0
            while left and read < MAPPED:
                value = shard.get_tensor(left[0])
                read += value.nbytes
                yield left.popleft(), value
                del value


def _copy(target: torch.Tensor, value: torch.Tensor, key: str, path: Path) -> None:
    if value.shape != target.shape:
        raise CheckpointError(f"{path}: {key} has shape {list(value.shape)}, the model needs {list(target.shape)}")
    target.copy_(value)
    if not bool(torch.isfinite(target).all()):
        raise CheckpointError(f"{path}: {key} holds values that are not finite in {target.dtype}")


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    kept = model.state_dict(keep_vars=True).keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _tie(model: nn.Module, name: str, source: str) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, model.get_parameter(source))


def _some(names: Collection[str], limit: int = 3) -> str:
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"

"""Tiny checkpoints, written once a session and loaded through the real loader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dtp_ros.models.nora import NoraAdapter
from dtp_ros.models.openvla import OpenVlaAdapter
from dtp_ros.models.pi0_fast import Pi0FastAdapter
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.spatialvla import SpatialVlaAdapter
from dtp_ros.models.tiny import tiny_checkpoint
from dtp_ros.models.tiny_nora import write_tiny_nora
from dtp_ros.models.tiny_openvla import write_tiny_openvla
from dtp_ros.models.tiny_pi0_fast import write_tiny_pi0_fast
from dtp_ros.models.tiny_spatialvla import write_tiny_spatialvla
from dtp_ros.models.tiny_univla import write_tiny_univla


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Iterator[Path]:
    """A user's cache of its own."""
    before = os.environ.get("XDG_CACHE_HOME")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def nora_folder(cache) -> Path:
    return tiny_checkpoint("nora", write_tiny_nora)


@pytest.fixture(scope="session")
def nora(cache) -> NoraAdapter:
    adapter = load_adapter("nora", "tiny", device="cpu")
    assert isinstance(adapter, NoraAdapter)
    return adapter


@pytest.fixture(scope="session")
def openvla_folder(cache) -> Path:
    return tiny_checkpoint("openvla", write_tiny_openvla)


@pytest.fixture(scope="session")
def openvla(cache) -> OpenVlaAdapter:
    adapter = load_adapter("openvla", "tiny", device="cpu")
    assert isinstance(adapter, OpenVlaAdapter)
    return adapter


@pytest.fixture(scope="session")
def pi0_fast_folder(cache) -> Path:
    return tiny_checkpoint("pi0_fast", write_tiny_pi0_fast)


@pytest.fixture(scope="session")
def pi0_fast(cache) -> Pi0FastAdapter:
    adapter = load_adapter("pi0_fast", "tiny", device="cpu", options={"cameras": 2})
    assert isinstance(adapter, Pi0FastAdapter)
    return adapter


@pytest.fixture(scope="session")
def pi0_fast_short(pi0_fast_folder, tmp_path_factory) -> Pi0FastAdapter:
    """The same weights with chunks of two actions, of WidowX data: quick to generate."""
    folder = tmp_path_factory.mktemp("short") / "checkpoint"
    shutil.copytree(pi0_fast_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "chunk_size": 2, "n_action_steps": 2}))
    adapter = load_adapter("pi0_fast", str(folder), device="cpu", options={"convention": "bridge"})
    assert isinstance(adapter, Pi0FastAdapter)
    return adapter


@pytest.fixture(scope="session")
def spatialvla_folder(cache) -> Path:
    return tiny_checkpoint("spatialvla", write_tiny_spatialvla)


@pytest.fixture(scope="session")
def spatialvla(cache) -> SpatialVlaAdapter:
    adapter = load_adapter("spatialvla", "tiny", device="cpu")
    assert isinstance(adapter, SpatialVlaAdapter)
    return adapter


@pytest.fixture(scope="session")
def univla_folder(cache) -> Path:
    return tiny_checkpoint("univla", write_tiny_univla)


@pytest.fixture
def damaged(nora_folder, tmp_path) -> Callable[..., Path]:
    """A copy of the tiny checkpoint without the files that are named."""

    def copy(*without: str) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(nora_folder, folder)
        for name in without:
            (folder / name).unlink()
        return folder

    return copy


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A 640x480 picture with smooth areas, edges and some noise, uint8 [480, 640, 3]."""
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(int)
    picture[200:320, 250:400] = (30, 180, 60)
    return np.clip(picture + rng.integers(-8, 9, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)

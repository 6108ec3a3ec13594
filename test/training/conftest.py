"""A small network and a few frames of demonstrations, made once a session."""

from __future__ import annotations

import os

import pytest
import torch

from dtp_ros.models.tabletop_network import TabletopConfig
from dtp_ros.training.demonstrations import Frames, demonstrations
from dtp_ros.training.main import action_statistics, new_network
from dtp_ros.training.objective import tabletop_tokenizer

SIZE = 64


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A user's cache of its own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def frames() -> Frames:
    return demonstrations(seed=7, frames=60, size=SIZE)


@pytest.fixture(scope="session")
def statistics(frames):
    return action_statistics(frames)


@pytest.fixture(scope="session")
def tokenizer():
    return tabletop_tokenizer()


@pytest.fixture(scope="session")
def config(tokenizer):
    return TabletopConfig(
        tokenizer.get_vocab_size(), image_size=SIZE, widths=(16, 24, 32), hidden=32, layers=4, heads=2, mlp=64
    )


@pytest.fixture
def network(config):
    return new_network(config, seed=3)

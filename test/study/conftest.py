"""What every test of the study needs."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A user's cache of its own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)

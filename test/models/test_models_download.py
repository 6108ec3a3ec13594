from __future__ import annotations

import pytest

from dtp_ros.errors import CheckpointError
from dtp_ros.models.download import folder_of
from dtp_ros.models.tiny import cache_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "a.json").write_text("1")
    (folder / "b.json").write_text("2")
    return folder


def test_a_folder_is_taken_as_it_is(source):
    assert folder_of(str(source), ("a.json", "missing.json")) == source


def test_an_address_is_asked_once(source):
    address = source.as_uri()
    folder = folder_of(address, ("a.json", "b.json"))
    assert folder.parent == cache_folder() / "files"
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]
    (source / "a.json").unlink()
    assert (folder_of(address, ("a.json",)) / "a.json").read_text() == "1"
    assert folder_of(f"{address}/.", ("b.json",)) != folder


def test_what_cannot_be_had_is_named_and_leaves_nothing(source):
    with pytest.raises(CheckpointError, match=r"published/missing\.json cannot be had"):
        folder_of(source.as_uri(), ("a.json", "missing.json"))
    assert [path.name for path in (cache_folder() / "files").rglob("*") if path.is_file()] == ["a.json"]


@pytest.mark.parametrize("name", ["", "nowhere/at/all", "http://plain.example/x", "ftp://x"])
def test_what_is_neither_folder_nor_https_is_refused(name):
    with pytest.raises(CheckpointError, match=r"for a\.json, is neither a folder nor an https address"):
        folder_of(name, ("a.json",))

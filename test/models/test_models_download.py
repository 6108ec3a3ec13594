from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from dtp_ros.errors import CheckpointError
from dtp_ros.models.download import folder_of
from dtp_ros.models.tiny import cache_folder

COMMIT = "c" * 40


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


class Hub(BaseHTTPRequestHandler):
    """A hub of one repository at one commit, whose second small file cannot be had at first."""

    files: ClassVar = {"config.json": b"{}", "extra.json": b"[1]", "model.safetensors": b"weights"}
    broken: ClassVar = {"extra.json"}
    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        pass

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        Hub.asked.append(self.path)
        name = self.path.rsplit("/", 1)[-1]
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": k, "size": len(v), "oid": k} for k, v in Hub.files.items()]
            self._answer(json.dumps(tree).encode(), **{"Content-Type": "application/json"})
        elif name in Hub.broken or name not in Hub.files:
            self.send_error(403 if name in Hub.broken else 404)
        else:
            self._answer(Hub.files[name], ETag=f'"{name}"', **{"X-Repo-Commit": COMMIT})

    def do_HEAD(self):
        self.do_GET()


FETCH = """
import sys
from dtp_ros.errors import CheckpointError
from dtp_ros.models.checkpoint import resolve
try:
    print(*sorted(path.name for path in resolve("lab/model", sys.argv[1], ("config.json", "ex*.json")).iterdir()))
except CheckpointError as error:
    print("refused:", error)
"""


def test_an_interrupted_download_of_a_commit_goes_on_and_then_asks_no_more(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": address}

    def fetch() -> str:
        command = [sys.executable, "-c", FETCH, COMMIT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout.strip()

    try:
        assert fetch().startswith(f"refused: checkpoint lab/model at {COMMIT} cannot be had from the hub")
        Hub.broken.clear()
        assert fetch() == "config.json extra.json model.safetensors"
        Hub.asked.clear()
        assert fetch() == "config.json extra.json model.safetensors"
        assert [path for path in Hub.asked if "lab/model" in path] == []
    finally:
        server.shutdown()
        server.server_close()

"""Messages of rosbag2 recordings, without ROS: in one file or several, finished or left by a recorder that died."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rosbags.rosbag2 import Reader
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from dtp_ros.errors import DtpError

_STORAGES = (".mcap", ".db3")
# https://mcap.dev/spec
_MAGIC = b"\x89MCAP0\r\n"
_DATA_END, _FOOTER = 0x0F, 0x02
_HEAD, _NO_SUMMARY = 9, 20  # bytes: opcode and length of a record; the content of a footer


class BagError(DtpError):
    """A recording that cannot be read, or that does not hold what an analysis needs."""


@dataclass(frozen=True)
class Heard:
    """A message. time: when it was recorded, ns."""

    topic: str
    time: int
    message: Any


@dataclass(frozen=True)
class Bag:
    """An open recording. topics: type by name. cut: its end is missing, since the recorder did not finish it."""

    path: Path
    topics: Mapping[str, str]
    cut: bool
    readers: Sequence[Reader]

    def messages(self, topics: Collection[str]) -> Iterator[Heard]:
        """What was said on some topics, of types that ROS 2 Humble and Jazzy share; in order. Raises BagError."""
        with _told(self.path):
            for reader in self.readers:
                chosen = [connection for connection in reader.connections if connection.topic in topics]
                # None chosen would mean all of them.
                for connection, time, raw in reader.messages(chosen) if chosen else ():
                    yield Heard(connection.topic, time, self._decoded(connection.topic, raw))

    def _decoded(self, topic: str, raw: bytes) -> Any:
        try:
            return _types().deserialize_cdr(raw, self.topics[topic])
        except SerdeError as error:
            raise BagError(f"{self.path}, {topic}: a message is no {self.topics[topic]}: {error}") from None


@contextmanager
def opened(path: Path) -> Iterator[Bag]:
    """A folder as `ros2 bag record` writes it (sqlite3 or MCAP), or one of its files.

    A folder without metadata.yaml was not finished by its recorder: its files are read one by one, the last of them up
    to the last record that is whole. Raises BagError.
    """
    with ExitStack() as stack:
        with _told(path):
            files, cut = _files(path, Path(stack.enter_context(TemporaryDirectory())))
            readers = [stack.enter_context(Reader(file)) for file in files]
            topics = {connection.topic: connection.msgtype for reader in readers for connection in reader.connections}
        yield Bag(path, topics, cut, readers)


def _files(path: Path, folder: Path) -> tuple[list[Path], bool]:
    """What rosbags is to open, and whether the end is missing. folder: for what must be mended first."""
    if not path.exists():
        raise BagError(f"{path} does not exist (valid: a folder that `ros2 bag record` wrote, or a file in it)")
    unfinished = path.is_dir() and not (path / "metadata.yaml").exists()
    files = sorted((f for f in path.iterdir() if f.suffix in _STORAGES), key=_part) if unfinished else [path]
    if not files:
        raise BagError(f"{path} is no recording: it has neither metadata.yaml nor a file *{' or *'.join(_STORAGES)}")
    last = files[-1]
    if last.suffix == ".mcap" and not _is_whole(last):
        return [*files[:-1], _mended(last, folder)], True
    return files, unfinished


def _part(file: Path) -> int:
    """Parts are named <bag>_0, <bag>_1, ..., <bag>_10."""
    number = re.search(r"\d+$", file.stem)
    return int(number.group()) if number else -1


def _is_whole(file: Path) -> bool:
    with file.open("rb") as source:
        source.seek(-min(len(_MAGIC), file.stat().st_size), 2)
        return source.read() == _MAGIC


def _mended(file: Path, folder: Path) -> Path:
    """A copy of an MCAP file that ends after its last whole record, with a footer that has no summary.

    A record is an opcode, the length of its content (uint64, little endian), and the content.
    """
    copy, left = folder / file.name, file.stat().st_size - len(_MAGIC)
    with file.open("rb") as source, copy.open("wb") as target:
        target.write(source.read(len(_MAGIC)))
        while len(head := source.read(_HEAD)) == _HEAD and head[0] not in (0, _DATA_END, _FOOTER):
            length = int.from_bytes(head[1:], "little")
            left -= _HEAD + length
            if left < 0:
                break
            target.write(head + source.read(length))
        target.write(bytes([_FOOTER]) + _NO_SUMMARY.to_bytes(8, "little") + bytes(_NO_SUMMARY) + _MAGIC)
    return copy


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Of a broken file the database, the compressors and rosbags each raise errors of their own: say which file."""
    try:
        yield
    except DtpError:
        raise
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise BagError(f"{path} cannot be read: it is broken, or no rosbag2 recording ({what})") from error


@cache
def _types() -> Typestore:
    return get_typestore(Stores.ROS2_HUMBLE)

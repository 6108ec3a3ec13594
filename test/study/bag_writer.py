"""Recordings of a policy and a simulator for tests: real messages of `trace_to_ros`, written by rosbags."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from builtin_interfaces.msg import Time
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from std_msgs.msg import Bool, String

from dtp_ros.engine.types import ActionChunk, StepResult, StepTrace, TokenTrace
from dtp_ros.ros.pace import Pace
from dtp_ros.ros.parameters import defaults, settings_from_values
from dtp_ros.ros.trace import trace_to_ros

TRACE, SUCCESS, INFO = "/dtp_policy/trace", "/sim/success", "/sim/info"
TYPES = {TRACE: "diagnostic_msgs/msg/DiagnosticArray", SUCCESS: "std_msgs/msg/Bool", INFO: "std_msgs/msg/String"}
STORAGES = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
INSTRUCTION = "put the carrot on the plate"
SECOND = 10**9
GRID = (2, 3)
LARGE = (20, 20)


def settings(**changes):
    values = {**defaults("nora"), "checkpoint": "tiny", "instruction": INSTRUCTION, "variant": "off", **changes}
    return settings_from_values(values)


def step_result(seed, step=0, hold="", level=None, grid=GRID):
    """A step with two tokens of arbitrary figures; level: its unimportant attention."""
    rng = np.random.default_rng([7, seed, step])
    tokens = []
    for _ in range(2):
        figures = rng.uniform(0.0, 3.0, 5) if level is None else [level, *rng.uniform(0.0, 3.0, 4)]
        pattern, mask = rng.random(grid, dtype=np.float32), rng.random(grid) < 0.4
        tokens.append(TokenTrace(5, 6, pattern, mask, *(float(f) for f in figures)))
    relevance = rng.random(grid, dtype=np.float32)
    trace = StepTrace(relevance, relevance, relevance > 0.5, tuple(tokens), 0.5, {"total": 0.1}, step)
    return StepResult(None if hold else ActionChunk(rng.normal(size=(4, 7))), trace, hold)


@dataclass
class Recorder:
    """Collects messages with their times; a new one comes `period` s after the one before."""

    period: float = 0.1
    heard: list = field(default_factory=list)

    @property
    def now(self):
        return int(SECOND * (1 + self.period * len(self.heard)))

    def put(self, topic, message):
        self.heard.append((topic, self.now, bytes(serialize_message(message))))

    def step(self, result, chosen):
        stamp = Time(sec=self.now // SECOND, nanosec=self.now % SECOND)
        pace = Pace(0.01, 0.1, chosen.period)
        self.put(TRACE, trace_to_ros(result, chosen, stamp, "camera", None if result.hold_reason else 0.1, pace))

    def say(self, success):
        self.put(SUCCESS, Bool(data=success))

    def inform(self, step, success, grasped=None, steps=2):
        info = {"step": step, "steps": steps, "success": success, "grasped": grasped, "source": "carrot"}
        self.put(INFO, String(data=json.dumps(info)))

    def episode(self, results, chosen, **changes):
        for number, result in enumerate(results):
            assert result.trace.step == number
            self.step(result, replace(chosen, **changes))

    def write(self, path, storage="mcap", *, topics=TYPES, compression=CompressionMode.NONE):
        types = get_typestore(Stores.ROS2_JAZZY)
        writer = Writer(path, version=9, storage_plugin=STORAGES[storage])
        writer.set_compression(compression, CompressionFormat.ZSTD)
        with writer:
            used = {topic: kind for topic, kind in topics.items() if topic in {t for t, *_ in self.heard}}
            open_ = {topic: writer.add_connection(topic, kind, typestore=types) for topic, kind in used.items()}
            for topic, time, data in self.heard:
                writer.write(open_[topic], time, data)
        return path


def joined(path: Path, parts: list[Path]) -> Path:
    """One recording in several files, as `ros2 bag record --max-bag-duration` leaves it."""
    path.mkdir(parents=True)
    whole = None
    for number, part in enumerate(parts):
        about = yaml.safe_load((part / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        (name,) = about["relative_file_paths"]
        new = f"{path.name}_{number}{Path(name).suffix}"
        shutil.copy(part / name, path / new)
        about["relative_file_paths"] = [new]
        if whole is None:
            whole = about
            continue
        whole["relative_file_paths"].append(new)
        whole["message_count"] += about["message_count"]
    (path / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": whole}))
    return path


OFF = settings()
DTP = settings(variant="dtp", tolerance=0.5)


def steps(seed, count, holds=()):
    return [step_result(seed, i, "no action" if i in holds else "") for i in range(count)]


def two_episodes(recorder=None):
    """One that ends well, off, of three steps; one that does not, dtp, of five, two of them held."""
    recorder = recorder or Recorder()
    recorder.inform(0, False, steps=5)
    recorder.episode(steps(1, 3), OFF)
    recorder.inform(3, True, steps=5)
    recorder.inform(0, False, steps=5)  # the simulator was reset
    recorder.episode(steps(2, 5, holds=(1, 4)), DTP)
    recorder.inform(5, False, steps=5)
    return recorder

"""The demo's own node: gives the instruction, plays pictures where asked, and keeps what every step showed."""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float32, String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from dtp_ros.ros.compat import Question
from dtp_ros.ros.images import image_from_ros, image_to_ros
from dtp_ros.sim.tasks import task_named
from dtp_ros.widowx.kinematics import robot

from demo_motion import draw_markers
from demo_report import Latencies, Step
from pictures import MAPS, Moment, Rgb, fit

RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
NEWEST = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
PICTURES = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)  # each is a frame of the animation
CAMERA_SIZE, MAP_SIZE = (640, 480), (256, 192)
KEPT_FRAMES = 400
SETTLED = 5  # steps to show after a success
PERIOD = 0.2  # s between played pictures
Stamp = tuple[int, int]


class Watcher(Node):  # type: ignore[misc]  # rclpy ships no types
    """Counts a step at each trace of the policy; with the expert at each new moment of the simulator."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__("demo_watcher")
        self.failure = ""
        self._options = options
        self._frames: OrderedDict[Stamp, Rgb] = OrderedDict()
        self._maps: dict[Stamp, dict[str, Rgb]] = {}
        self._records: OrderedDict[Stamp, dict[str, object]] = OrderedDict()
        self._actions: dict[Stamp, list[list[float]]] = {}
        self._markers: MarkerArray | None = None
        self._motions: dict[Stamp, Rgb] = {}
        self._seen_at: dict[Stamp, float] = {}  # wall time of each image's first arrival here, s
        self._acted_on: Stamp | None = None  # image of the newest chunk
        self.latencies = Latencies()
        self._info: dict[str, object] = {}
        self._success_at: int | None = None
        self._with_maps = options.policy == "model"
        self._instruction = self.create_publisher(String, "instruction", LATCHED)
        self.create_subscription(Image, "image", self._on_image, PICTURES)
        self.create_subscription(JointTrajectory, "action_chunk", self._on_chunk, RELIABLE)
        self.create_subscription(String, "sim/info", self._on_info, RELIABLE)
        self.create_subscription(Bool, "sim/success", self._on_success, RELIABLE)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        self.create_subscription(MarkerArray, "widowx/markers", self._on_markers, RELIABLE)
        self.create_subscription(Float32, "widowx/latency", self._on_latency, RELIABLE)
        if self._with_maps:
            self.create_subscription(DiagnosticArray, "dtp_policy/trace", self._on_trace, RELIABLE)
            for name in MAPS:
                self.create_subscription(
                    Image, f"dtp_policy/debug/{name}", lambda m, n=name: self._on_map(n, m), RELIABLE
                )
        self._player = PicturePlayer(self, Path(options.images)) if options.images else None
        if self._player:
            self._say(options.instruction or "put the carrot on the plate")

    @property
    def steps_done(self) -> int:
        """Number of steps seen so far."""
        return len(self._records)

    @property
    def held(self) -> int:
        """In how many steps the policy made the arm hold."""
        return sum(bool(record.get("hold_reason")) for record in self._records.values())

    @property
    def sees(self) -> bool:
        """A camera image came, or pictures are ready to be played."""
        return bool(self._frames) or self.pictures > 0

    @property
    def pictures(self) -> int:
        """How many pictures there are to play; 0 with the simulator."""
        return len(self._player) if self._player else 0

    @property
    def finished(self) -> bool:
        """The task is solved and settled."""
        return self._success_at is not None and self.steps_done >= self._success_at + SETTLED

    def set_policy_parameter(self, name: str, value: float) -> None:
        """Set a double on the running policy through its parameter service; RuntimeError if it is refused."""
        client = self.create_client(SetParameters, "dtp_policy/set_parameters")
        try:
            if not client.wait_for_service(timeout_sec=10.0):
                raise RuntimeError("dtp_policy offers no parameter service")
            message = ParameterMessage(name=name)
            message.value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
            question, end = Question(client, SetParameters.Request(parameters=[message])), time.monotonic() + 30.0
            while not question.answered():
                rclpy.spin_once(self, timeout_sec=0.1)
                if time.monotonic() > end:
                    raise RuntimeError(f"{name} = {value}: no answer of dtp_policy within 30 s")
            (result,) = question.answer().results
            if not result.successful:
                raise RuntimeError(f"{name} = {value} was refused: {result.reason}")
        finally:
            self.destroy_client(client)

    def wait_for_pictures(self, timeout: float) -> None:
        """Take what is still on its way for the last steps."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and not all(self._complete(s) for s in self._records):
            rclpy.spin_once(self, timeout_sec=0.1)

    def steps(self) -> list[Step]:
        """The steps in order; one whose pictures were lost on the way has no moment."""
        done = []
        for stamp, record in self._records.items():
            record = {**record, "stamp": stamp[0] + stamp[1] * 1e-9, "actions": self._actions.get(stamp)}
            moment = None
            if self._complete(stamp):
                moment = Moment(self._frames[stamp], self._maps.get(stamp, {}), "", "", self._motions.get(stamp))
            done.append(Step(record, moment))
        return done

    def _complete(self, stamp: Stamp) -> bool:
        return stamp in self._frames and (not self._with_maps or len(self._maps.get(stamp, {})) == len(MAPS))

    def _say(self, instruction: str) -> None:
        self._instruction.publish(String(data=instruction))

    def _on_latency(self, message: Float32) -> None:
        self.latencies.arm.append(message.data)
        if self._acted_on in self._seen_at:
            self.latencies.arm_wall.append(time.monotonic() - self._seen_at[self._acted_on])

    def _on_image(self, message: Image) -> None:
        self.keep_frame(_stamp(message), image_from_ros(message))

    def keep_frame(self, stamp: Stamp, image: Rgb) -> None:
        """Remember the camera image of a moment; old ones without a step are forgotten."""
        self._seen_at.setdefault(stamp, time.monotonic())
        self._frames.setdefault(stamp, fit(image, *CAMERA_SIZE))
        if self._markers is not None and "task" in self._info:  # of pictures, nobody knows where the camera stood
            camera = task_named(str(self._info["task"])).camera
            self._motions[stamp] = draw_markers(self._frames[stamp], self._markers, camera)
        if not self._with_maps and stamp not in self._records:
            # What is known of the scene is published before its image.
            self._records[stamp] = {"step": self.steps_done, "wall": time.monotonic(), **self._scene()}
        for old in list(self._frames)[: max(0, len(self._frames) - KEPT_FRAMES)]:
            if old not in self._records:
                del self._frames[old]
                self._motions.pop(old, None)

    def _on_markers(self, message: MarkerArray) -> None:
        self._markers = message

    def _on_map(self, name: str, message: Image) -> None:
        self._maps.setdefault(_stamp(message), {})[name] = fit(image_from_ros(message), *MAP_SIZE)

    def _on_trace(self, message: DiagnosticArray) -> None:
        values = {pair.key: _parsed(pair.value) for status in message.status for pair in status.values}
        latency = values.get("latency")
        if isinstance(latency, float):
            self.latencies.policy.append(latency)
        self._records[_stamp(message)] = {"step": self.steps_done, "wall": time.monotonic(), **values, **self._scene()}

    def _on_chunk(self, message: JointTrajectory) -> None:
        stamp = _stamp(message)
        self._acted_on = stamp
        if stamp in self._seen_at:
            self.latencies.policy_wall.append(time.monotonic() - self._seen_at[stamp])
        self._actions[stamp] = [list(point.positions) for point in message.points]

    def _scene(self) -> dict[str, object]:
        keys = ("task", "instruction", "episode", "grasped", "on target", "on_target", "success")
        return {key.replace(" ", "_"): self._info[key] for key in keys if key in self._info}

    def _on_info(self, message: String) -> None:
        self._info.update(json.loads(message.data))
        if self._instruction is not None and "said" not in self._info and self._with_maps:
            self._info["said"] = True
            self._say(self._options.instruction or str(self._info["instruction"]))

    def _on_success(self, message: Bool) -> None:
        self._info["success"] = message.data
        if message.data and self._success_at is None:
            self._success_at = self.steps_done

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        # An error of the policy (refused, or crashed) would otherwise only show as a bar that does not move.
        for status in message.status:
            level = status.level if isinstance(status.level, int) else status.level[0]
            if level == 2 and "policy" in status.name:
                self.failure = f"{status.name}: {status.message}"


class PicturePlayer:
    """Publishes a folder of pictures or a video as `image`, the next one when the policy is done with the last.

    A still arm at its neutral pose is published beside it, so that the dry run has something to measure.
    """

    def __init__(self, watcher: Watcher, source: Path) -> None:
        self._watcher = watcher
        self._pictures = load_pictures(source)
        self._next = 0
        self._sent_at = 0.0
        self._arm = robot("wx250s")
        self._image = watcher.create_publisher(Image, "image", NEWEST)
        self._joints = watcher.create_publisher(JointState, "joint_states", RELIABLE)
        watcher.create_timer(0.05, self._tick)

    def __len__(self) -> int:
        return len(self._pictures)

    def _tick(self) -> None:
        now = self._watcher.get_clock().now().to_msg()
        joints = JointState(name=[*self._arm.joint_names, "gripper"])
        joints.header.stamp = now
        joints.position = [*self._arm.neutral.tolist(), self._arm.gripper_open]
        self._joints.publish(joints)
        waited = time.monotonic() - self._sent_at
        if self._image.get_subscription_count() < 2 or waited < PERIOD:  # the policy and the watcher itself
            return
        if self._next > self._watcher.steps_done and waited < 10.0:
            return
        # A picture that was not taken (the model was still loading) is sent again, with a new stamp.
        index = min(self._watcher.steps_done, len(self._pictures) - 1)
        self._next, self._sent_at = index + 1, time.monotonic()
        self._image.publish(image_to_ros(self._pictures[index], now, "camera"))


def load_pictures(source: Path) -> list[Rgb]:
    """Pictures of a folder in the order of their names, or the frames of a video at 5 Hz; RuntimeError if none."""
    if source.is_dir():
        found = sorted(p for p in source.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"))
        pictures = [picture for p in found if (picture := cv2.imread(str(p), cv2.IMREAD_COLOR)) is not None]
    else:
        pictures = _video_frames(source)
    if not pictures:
        raise RuntimeError(f"no picture (png, jpg, bmp) and no video found at {source}")
    return [np.ascontiguousarray(cv2.cvtColor(p, cv2.COLOR_BGR2RGB), dtype=np.uint8) for p in pictures]


def _video_frames(source: Path) -> list[Rgb]:
    video = cv2.VideoCapture(str(source))
    every = max(1, round((video.get(cv2.CAP_PROP_FPS) or 30.0) * PERIOD))
    frames: list[Rgb] = []
    number = 0
    while video.grab():
        if number % every == 0:
            there, frame = video.retrieve()
            frames += [np.asarray(frame, dtype=np.uint8)] if there else []
        number += 1
    video.release()
    return frames


def _stamp(message: Image | DiagnosticArray | JointTrajectory) -> Stamp:
    return message.header.stamp.sec, message.header.stamp.nanosec


def _parsed(value: str) -> object:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value

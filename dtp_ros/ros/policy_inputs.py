"""From camera messages to the frame the policy acts on: format, stamps, pairing, pacing. Nothing here waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState

from dtp_ros.ros.arm_state import ArmState
from dtp_ros.ros.frames import CameraSync, FrameGate
from dtp_ros.ros.images import (
    ImageError,
    Rgb,
    check_compressed_image,
    check_image,
    compressed_image_from_ros,
    image_from_ros,
)
from dtp_ros.ros.parameters import Settings
from dtp_ros.ros.policy_metrics import Figures

if TYPE_CHECKING:
    from dtp_ros.models.base import VlaAdapter

SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
CameraMessage: TypeAlias = Image | CompressedImage


@dataclass(frozen=True)
class Frame:
    """What the cameras saw at one moment, and the episode it belongs to.

    images: RGB uint8 [H, W, 3], the main camera first; stamp, frame_id, stamp_ns: of the main image.
    intrinsics: camera matrix float64 [3, 3] in pixels, where the model uses one and it is known.
    state: the arm's, float64 [7] as Observation has it, where the model takes it.
    """

    images: tuple[Rgb, ...]
    stamp: Time
    frame_id: str
    stamp_ns: int
    episode: int
    intrinsics: NDArray[np.float64] | None = None
    state: NDArray[np.float64] | None = None


class PolicyInputs:
    """Subscribes to what a model needs, and hands each frame that is to be acted on to `on_frame`.

    on_frame: called from a callback; must not wait. on_new_episode: called when an episode begins, before any image of
    it is looked at; must not wait either.
    """

    def __init__(
        self,
        node: Node,
        group: CallbackGroup,
        figures: Figures,
        settings: Callable[[], Settings],
        on_frame: Callable[[Frame], None],
        on_new_episode: Callable[[], None],
    ) -> None:
        self._node, self._group, self._figures, self._settings = node, group, figures, settings
        self._on_frame, self._on_new_episode = on_frame, on_new_episode
        self._lock = threading.RLock()
        self._gate = FrameGate()
        self._sync: CameraSync[CameraMessage] = CameraSync(1)
        self._is_open = False
        self._episode = 0
        self._intrinsics: NDArray[np.float64] | None = None
        self._arm: ArmState | None = None
        self._subscriptions: list[object] = []

    def connect(self, adapter: VlaAdapter, settings: Settings) -> None:
        """Subscribe to the cameras, and to camera_info and joint_states where the model uses them."""
        self._sync = CameraSync(adapter.num_cameras)
        compressed = settings.image_transport == "compressed"
        for index in range(adapter.num_cameras):
            topic = ("image" if index == 0 else f"image_{index}") + ("/compressed" if compressed else "")
            self._subscribe(CompressedImage if compressed else Image, topic, partial(self._on_image, index))
        if adapter.needs_intrinsics:
            self._subscribe(CameraInfo, "camera_info", self._on_camera_info)
        if adapter.needs_state:
            self._arm = ArmState(settings.robot)
            self._subscribe(JointState, "joint_states", self._on_joint_states)

    def disconnect(self) -> None:
        """Unsubscribe."""
        self.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._intrinsics = self._arm = None

    def open(self) -> None:
        """Begin to hand on frames, with a new episode."""
        with self._lock:
            self.begin_episode()
            self._is_open = True

    def close(self) -> None:
        """Hand on nothing more; what is being computed will not be published."""
        with self._lock:
            self._is_open = False
            self._episode += 1

    def begin_episode(self, newest: int | None = None) -> None:
        """Forget stamps and half sets; frames of before count no more. newest: stamp (ns) of the newest image."""
        with self._lock:
            self._episode += 1
            self._gate.restart(newest)
            self._sync.clear()
            self._on_new_episode()

    def require_current(self, frame: Frame, settings: Settings) -> bool:
        """Whether a frame that waited is still to be acted on; a frame that became too old is counted."""
        with self._lock:
            if not self._is_open or frame.episode != self._episode or not settings.acting:
                return False
            if self._gate.staleness(frame.stamp_ns, self._now(), _ns(settings.image_timeout)):
                self._figures.drop("stale")
                return False
            return self._gate.is_due(frame.stamp_ns)

    def is_current(self, frame: Frame) -> bool:
        """Whether the frame's episode still runs."""
        return self._is_open and frame.episode == self._episode

    def publish(self, frame: Frame, publish: Callable[[], None], settings: Settings) -> float | None:
        """Call `publish` unless the episode has ended meanwhile; returns the latency since the image, s.

        settings: those of the step. The next image is one of the chunk's last executed action.
        """
        with self._lock:
            if not self.is_current(frame):
                return None
            publish()
            return self._gate.publish(frame.stamp_ns, self._now(), _wait(settings)) * 1e-9

    def _subscribe(self, kind: type, topic: str, callback: Callable[..., None]) -> None:
        subscription = self._node.create_subscription(kind, topic, callback, SENSOR, callback_group=self._group)
        self._subscriptions.append(subscription)

    def _on_camera_info(self, message: CameraInfo) -> None:
        matrix = np.array(message.k, dtype=np.float64).reshape(3, 3)
        # A camera that was never calibrated sends zeros.
        self._intrinsics = matrix if np.isfinite(matrix).all() and matrix[0, 0] > 0 < matrix[1, 1] else None

    def _on_joint_states(self, message: JointState) -> None:
        if self._arm is not None and (reason := self._arm.update(message, self._now() * 1e-9)):
            self._node.get_logger().warning(f"joint states not used: {reason}", throttle_duration_sec=5.0)

    def _on_image(self, index: int, message: CameraMessage) -> None:
        if not self._is_open:
            return
        try:
            check = check_image if isinstance(message, Image) else check_compressed_image
            check(message)
            with self._lock:
                messages = self._admitted(index, message)
                episode = self._episode
            if messages is not None:
                self._hand_on(messages, episode)
        except ImageError as error:
            self._figures.image(error.cause)
            self._figures.drop(error.cause, str(error))
            self._node.get_logger().warning(f"image dropped: {error}", throttle_duration_sec=5.0)

    def _admitted(self, index: int, message: CameraMessage) -> tuple[CameraMessage, ...] | None:
        """The set of messages that this one completes, if it is to be acted on."""
        settings, stamp = self._settings(), _stamp_ns(message)
        if index == 0:
            cause = self._gate.refusal(stamp, self._now(), _ns(settings.image_timeout))
            self._figures.image(cause)
            if cause:
                self._figures.drop(cause)
                if cause == "time_backwards":
                    self.begin_episode(newest=stamp)
                return None
            if self._sync.is_waiting:
                self._figures.drop("not_paired")
        messages = self._sync.add(index, stamp, message, _ns(settings.sync_slop))
        if messages is None or not settings.acting:
            return None
        stamp = _stamp_ns(messages[0])
        if not self._gate.is_due(stamp):
            self._figures.skip()
            return None
        return tuple(messages)

    def _hand_on(self, messages: tuple[CameraMessage, ...], episode: int) -> None:
        images = tuple(image_from_ros(m) if isinstance(m, Image) else compressed_image_from_ros(m) for m in messages)
        header, stamp = messages[0].header, _stamp_ns(messages[0])
        state = None
        if self._arm is not None:
            state = self._arm.near(stamp * 1e-9, self._settings().image_timeout)
            if state is None:
                self._figures.drop("no_state", "no joint states of the image's time")
                return
        with self._lock:
            if episode == self._episode:  # only now: an image without its joint states may be shown once more
                self._gate.used = stamp
        self._on_frame(Frame(images, header.stamp, header.frame_id, stamp, episode, self._intrinsics, state))

    def _now(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)


def _stamp_ns(message: CameraMessage) -> int:
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _wait(settings: Settings) -> int:
    """Time after a chunk's publication before which no image is looked at, ns: all its actions but the last."""
    return _ns((settings.execute_horizon - 1) / settings.control_frequency)

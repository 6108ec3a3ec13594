"""The heatmap topics: overlays on the camera image, drawn only while someone looks."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from dtp_ros.engine.types import StepTrace
from dtp_ros.ros.images import Rgb, compressed_image_to_ros, image_to_ros
from dtp_ros.ros.overlays import OVERLAYS, draw_overlay

# Reliable, or rqt and rviz show nothing; of depth 1, since only the newest picture matters.
QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class DebugImages:
    """`~/debug/<overlay>` (rgb8) and `~/debug/<overlay>/compressed` (JPEG) for each overlay."""

    def __init__(self, node: Node, group: CallbackGroup) -> None:
        self._raw = {n: node.create_publisher(Image, f"~/debug/{n}", QOS, callback_group=group) for n in OVERLAYS}
        self._compressed = {
            n: node.create_publisher(CompressedImage, f"~/debug/{n}/compressed", QOS, callback_group=group)
            for n in OVERLAYS
        }

    def publish(self, image: Rgb, trace: StepTrace, alpha: float, stamp: Time, frame_id: str) -> int:
        """Draw and publish what is subscribed to, with the camera image's stamp and frame; returns how many drawn."""
        drawn = 0
        for name in OVERLAYS:
            raw, compressed = self._raw[name], self._compressed[name]
            wants_raw, wants_compressed = raw.get_subscription_count() > 0, compressed.get_subscription_count() > 0
            if not (wants_raw or wants_compressed):
                continue
            overlay = draw_overlay(name, image, trace, alpha)
            drawn += 1
            if wants_raw:
                raw.publish(image_to_ros(overlay, stamp, frame_id))
            if wants_compressed:
                compressed.publish(compressed_image_to_ros(overlay, stamp, frame_id))
        return drawn

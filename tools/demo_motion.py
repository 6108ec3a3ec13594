"""The arm's markers (workspace, target, path) drawn into the camera's picture, as rviz would show them in space."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from geometry_msgs.msg import Pose
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from visualization_msgs.msg import Marker, MarkerArray

from dtp_ros.sim.camera import HEIGHT, WIDTH, Camera

from pictures import Rgb

_THICKNESS = 2
_SUBPIXEL_BITS = 4
_DENSE = 24  # pieces of an edge: what is behind the camera is left out piece by piece


def draw_markers(image: Rgb, markers: MarkerArray, camera: Camera) -> Rgb:
    """A copy of `image` [480, 640, 3] with the markers of the base frame, seen by `camera`."""
    drawn = np.ascontiguousarray(image).copy()
    for marker in markers.markers:
        if marker.action != Marker.ADD:
            continue
        color = tuple(round(255 * c) for c in (marker.color.r, marker.color.g, marker.color.b))
        for start, end in _segments(marker):
            _line(drawn, start, end, camera, color)
    return drawn


def _segments(marker: Marker) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Start and end [3] of each line of a marker, m; of an arrow, its shaft."""
    points = [np.array([p.x, p.y, p.z]) for p in marker.points]
    if marker.type == Marker.LINE_LIST:
        return list(zip(points[::2], points[1::2], strict=True))
    if marker.type == Marker.LINE_STRIP:
        return list(pairwise(points))
    return [_arrow(marker.pose, marker.scale.x)] if marker.type == Marker.ARROW else []


def _arrow(pose: Pose, length: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    start = np.array([pose.position.x, pose.position.y, pose.position.z])
    q = pose.orientation
    return start, start + Rotation.from_quat([q.x, q.y, q.z, q.w]).apply([length, 0.0, 0.0])


def _line(
    image: Rgb, start: NDArray[np.float64], end: NDArray[np.float64], camera: Camera, color: tuple[int, ...]
) -> None:
    pixels = camera.project(np.linspace(start, end, _DENSE))
    for a, b in pairwise(pixels):
        near = np.concatenate([a, b])
        if np.isfinite(near).all() and np.abs(near).max() < 4 * max(WIDTH, HEIGHT):
            first, second = (tuple(int(v) for v in np.round(p * (1 << _SUBPIXEL_BITS))) for p in (a, b))
            cv2.line(image, first, second, color, _THICKNESS, cv2.LINE_AA, _SUBPIXEL_BITS)

"""SIMPLER's WidowX cameras as pinholes: pose in the base frame, intrinsics, projection.

Image axes: u to the right, v down, the centre of the first pixel at (0, 0). Camera axes: x forward, y left, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

WIDTH, HEIGHT = 640, 480
FOCAL = 623.588
CENTRE = (319.501, 239.545)


@dataclass(frozen=True)
class Camera:
    """position in m and quaternion (w, x, y, z), both in the base frame."""

    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]

    @property
    def rotation_camera_to_base(self) -> Array:
        """[3, 3]; columns are the camera's forward, left and up in the base frame."""
        w, x, y, z = self.quaternion
        matrix: Array = Rotation.from_quat([x, y, z, w]).as_matrix()
        return matrix

    def shifted(self, offset: tuple[float, float, float]) -> Camera:
        """The same camera moved by `offset` in the base frame, m."""
        x, y, z = (p + d for p, d in zip(self.position, offset, strict=True))
        return Camera((x, y, z), self.quaternion)

    def project(self, points: Array) -> Array:
        """Pixels (u, v) [N, 2] of base-frame points [N, 3]; NaN for points behind the camera."""
        local = (np.asarray(points, dtype=float) - self.position) @ self.rotation_camera_to_base
        depth = np.where(local[:, 0] > 1e-6, local[:, 0], np.nan)
        return np.stack([CENTRE[0] - FOCAL * local[:, 1] / depth, CENTRE[1] - FOCAL * local[:, 2] / depth], axis=1)


BRIDGE_CAMERA = Camera((0.0, -0.16, 0.336), (0.909182, -0.0819809, 0.347277, 0.214629))
SINK_CAMERA = Camera((-0.003, -0.21, 0.39), (0.907313, -0.0782, 0.36434, 0.194741))

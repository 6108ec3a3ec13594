"""Pictures of a MuJoCo state, drawn off screen."""

from __future__ import annotations

import atexit
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtp_ros.errors import SimulationError, require_integer
from dtp_ros.sim.arm_looks import arm_parts
from dtp_ros.sim.gl import load_mujoco, render_error
from dtp_ros.sim.layout import Layout
from dtp_ros.sim.room import light_direction
from dtp_ros.sim.scene import CAMERA, COLLISION_GROUP
from dtp_ros.sim.shadows import TableShadow

_MAX_GEOMS = 400
_thread = threading.local()
_orphans: list[Any] = []


class Painter:
    """Draws one model; the graphics context is made on the first picture and belongs to that picture's thread."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self._mujoco = load_mujoco()
        self._model = model
        self._context: Any = None
        self._owner = 0  # thread of the context
        self._scene = self._mujoco.MjvScene(model, _MAX_GEOMS)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE"):
            self._scene.flags[getattr(self._mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._options = self._mujoco.MjvOption()
        self._options.geomgroup[COLLISION_GROUP] = 0
        self._camera = self._mujoco.MjvCamera()
        self._camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(CAMERA).id
        drawn = {model.body(name).id: [part.mesh for part in parts] for name, parts in arm_parts().items()}
        for name, placement in zip(layout.names, layout.placements, strict=True):
            drawn[model.body(name).id] = [part.mesh for part in placement.item.model().parts]
        self._shadow = TableShadow(model, drawn, light_direction(layout.appearance.light_azimuth))

    def render(self, data: Any, width: int, height: int) -> NDArray[np.uint8]:
        """RGB uint8 [height, width, 3] from the scene's camera. Raises ConfigError, SimulationError."""
        mujoco, buffer = self._mujoco, self._model.vis.global_
        require_integer("width", width, 1, buffer.offwidth)
        require_integer("height", height, 1, buffer.offheight)
        self._make_current()
        self._shadow.update(data.xpos, data.xmat.reshape(-1, 3, 3))
        mujoco.mjr_uploadTexture(self._model, self._context, self._shadow.texture)
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, viewport, self._context)
        return np.ascontiguousarray(picture[::-1])

    def close(self) -> None:
        """Free the graphics context; a later picture makes a new one."""
        if self._context is None:
            return
        if self._owner == threading.get_ident():
            self._make_current()
            self._context.free()
        else:
            _orphans.append(self._context)  # freeing it without its thread's context would crash
        self._context = None

    def _make_current(self) -> None:
        if self._context is not None and self._owner != threading.get_ident():
            raise SimulationError("pictures of one tabletop are drawn in one thread (valid: close() it first)")
        try:
            if not hasattr(_thread, "gl"):
                _thread.gl = self._mujoco.GLContext(64, 64)
                atexit.register(_thread.gl.free)
            _thread.gl.make_current()
            if self._context is None:
                self._context = self._mujoco.MjrContext(self._model, self._mujoco.mjtFontScale.mjFONTSCALE_100)
                self._owner = threading.get_ident()
            # Each time: another tabletop of this thread may have drawn since, into a buffer of its own.
            self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        except Exception as error:  # the backends raise what they like: EGL, GL and MuJoCo errors, AttributeError
            raise render_error(error) from error

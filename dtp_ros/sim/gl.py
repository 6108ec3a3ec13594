"""MuJoCo, imported on first use with a way to draw without a display."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from dtp_ros.errors import SimulationError

_HINT = (
    "drawing needs an OpenGL library: apt-get install libegl1 libgl1 libgles2 libglvnd0 libgl1-mesa-dri "
    "(MUJOCO_GL = {backend!r}; valid without a display: egl, osmesa; set before mujoco is first imported)"
)


def load_mujoco() -> Any:
    """The `mujoco` module; chooses the headless EGL backend where MUJOCO_GL is unset and there is no display.

    Raises SimulationError where it is not installed or its backend does not load.
    """
    if sys.platform.startswith("linux"):
        os.environ.setdefault("MUJOCO_GL", "egl")
        if os.environ["MUJOCO_GL"] == "egl":
            os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    try:
        return importlib.import_module("mujoco")
    except ImportError as error:
        if error.name == "mujoco":
            raise SimulationError("mujoco is not installed (pip install mujoco)") from error
        raise render_error(error) from error
    except (AttributeError, OSError, RuntimeError) as error:
        raise render_error(error) from error


def render_error(cause: BaseException) -> SimulationError:
    """A SimulationError that says which libraries drawing needs."""
    return SimulationError(f"cannot draw: {cause}; " + _HINT.format(backend=os.environ.get("MUJOCO_GL", "")))

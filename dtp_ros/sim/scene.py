"""A layout as a MuJoCo model: room, camera, arm and objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from dtp_ros.sim.arm import ARM_COLLISION, OBJECT_COLLISION, add_arm
from dtp_ros.sim.arm_looks import arm_parts
from dtp_ros.sim.camera import CENTRE, FOCAL, HEIGHT, WIDTH, Camera
from dtp_ros.sim.footprints import Placement
from dtp_ros.sim.gl import load_mujoco
from dtp_ros.sim.layout import Layout
from dtp_ros.sim.objects import Solid
from dtp_ros.sim.room import FRICTION, Decorator, add_room
from dtp_ros.sim.shadows import add_shadow_sheet

TIMESTEP = 0.005
CAMERA = "camera"
COLLISION_GROUP = 3
_TILES = {"grain": 0.09, "cloth": 0.11, "weave": 0.11, "carrot": 0.09}
_PIXEL = 1e-5  # m on the sensor; any size does


def compile_scene(layout: Layout) -> Any:
    """An `mjModel` of the layout; the base frame is the world frame, the table top z = 0."""
    mujoco = load_mujoco()
    spec = mujoco.MjSpec()
    _set_options(mujoco, spec)
    decorator = Decorator(mujoco, spec)
    add_room(mujoco, spec, decorator, layout.appearance)
    add_shadow_sheet(mujoco, spec)
    add_camera(spec, layout.camera)
    add_arm(mujoco, spec)
    for body, parts in arm_parts().items():
        for part in parts:
            decorator.add(spec.body(body), part.mesh, part.colour, gloss=part.gloss)
    for name, placement in zip(layout.names, layout.placements, strict=True):
        _add_object(mujoco, spec, decorator, name, placement)
    model = spec.compile()
    decorator.paint(model)
    return model


def add_camera(spec: Any, camera: Camera) -> None:
    """The pinhole of camera.py; MuJoCo's camera looks along -z with y up."""
    forward, left, up = camera.rotation_camera_to_base.T
    x, y, z, w = Rotation.from_matrix(np.stack([-left, up, -forward], axis=1)).as_quat()
    spec.worldbody.add_camera(
        name=CAMERA,
        pos=camera.position,
        quat=(w, x, y, z),
        resolution=(WIDTH, HEIGHT),
        sensor_size=(WIDTH * _PIXEL, HEIGHT * _PIXEL),
        focal_pixel=(FOCAL, FOCAL),
        principal_pixel=(CENTRE[0] - (WIDTH - 1) / 2, CENTRE[1] - (HEIGHT - 1) / 2),
    )


def _add_object(mujoco: Any, spec: Any, decorator: Decorator, name: str, placement: Placement) -> None:
    model = placement.item.model()
    body = spec.worldbody.add_body(
        name=name, pos=(placement.x, placement.y, model.rest_height), quat=_quaternion(placement.yaw, 0.0)
    )
    if model.mass:
        body.add_freejoint(name=name)
    total = sum(np.prod(solid.size) for solid in model.solids)
    for solid in model.solids:
        body.add_geom(
            **_shape(mujoco, solid), mass=model.mass * np.prod(solid.size) / total, friction=FRICTION,
            group=COLLISION_GROUP, contype=OBJECT_COLLISION, conaffinity=OBJECT_COLLISION | ARM_COLLISION,
        )  # fmt: skip
    for part in model.parts:
        decorator.add(
            body, part.mesh, part.colour, surface=part.surface, tile=_TILES.get(part.surface, 0.1), gloss=part.gloss
        )


def _shape(mujoco: Any, solid: Solid) -> dict[str, Any]:
    shape = mujoco.mjtGeom.mjGEOM_CYLINDER if solid.disc else mujoco.mjtGeom.mjGEOM_BOX
    size = (solid.size[0], solid.size[2], 0.0) if solid.disc else solid.size
    return {"type": shape, "size": size, "pos": solid.position, "quat": _quaternion(solid.yaw, solid.tilt)}


def _quaternion(yaw: float, tilt: float) -> tuple[float, float, float, float]:
    """(w, x, y, z) of a turn about z after a tilt about y, rad."""
    x, y, z, w = Rotation.from_euler("ZY", [yaw, tilt]).as_quat()
    return w, x, y, z


def _set_options(mujoco: Any, spec: Any) -> None:
    """Elliptic cones with a high impratio keep a grasped object from creeping out of the fingers."""
    spec.compiler.degree = False
    option = spec.option
    option.timestep = TIMESTEP
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.impratio = 10
    option.iterations = 30
    visual = spec.visual
    visual.map.znear, visual.map.zfar = 0.02, 6.0
    visual.quality.shadowsize, visual.quality.offsamples = 0, 0
    visual.global_.offwidth, visual.global_.offheight = 1280, 960
    spec.stat.extent, spec.stat.center = 1.0, (0.3, 0.0, 0.05)

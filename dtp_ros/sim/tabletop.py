"""The tabletop: a WidowX 250S, four tasks, friction grasps; deterministic, no ROS."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtp_ros.errors import ActionError, ConfigError
from dtp_ros.sim.arm import (
    EE_SITE,
    FINGER_NAMES,
    GRIPPER,
    GRIPPER_CLOSED,
    GRIPPER_OPEN,
    JOINT_NAMES,
    PAD_NAMES,
    START_JOINTS,
)
from dtp_ros.sim.camera import HEIGHT, WIDTH
from dtp_ros.sim.gl import load_mujoco
from dtp_ros.sim.layout import Layout, fixed_layout
from dtp_ros.sim.render import Painter
from dtp_ros.sim.scene import TIMESTEP, compile_scene
from dtp_ros.sim.tasks import Task

Array = NDArray[np.float64]

CONTROL_PERIOD = 0.2
RAMP = 0.12
SETTLE = 0.25
STILL_SPEED = 0.03
_TOLERANCE = 1e-6


class Tabletop:
    """One episode of a task; poses are in the base frame (base_link), which is also MuJoCo's world.

    The same layout and the same commands give the same states bit for bit (on one machine).
    Objects are held by friction alone. Pictures are drawn in one thread, until `close`.
    """

    def __init__(self, task: str, episode: int, *, distractors: int = 0, setting: str = "plain", seed: int = 0) -> None:
        """The fixed configuration `episode` of `task`; see layout.fixed_layout. Raises ConfigError, SimulationError."""
        self._setup(fixed_layout(task, episode, distractors=distractors, setting=setting, seed=seed))

    @classmethod
    def from_layout(cls, layout: Layout) -> Tabletop:
        """A tabletop of any layout, e.g. of layout.random_layout."""
        self = cls.__new__(cls)
        self._setup(layout)
        return self

    def _setup(self, layout: Layout) -> None:
        self._mujoco = load_mujoco()
        self.layout = layout
        self._model = compile_scene(layout)
        self._data = self._mujoco.MjData(self._model)
        self._painter = Painter(self._model, layout)
        names = [*JOINT_NAMES, *FINGER_NAMES]
        self._qpos = np.array([self._model.joint(n).qposadr[0] for n in names])
        self._ctrl = np.array([self._model.actuator(n).id for n in (*JOINT_NAMES, GRIPPER)])
        self._site = self._model.site(EE_SITE).id
        self._bodies = {name: self._model.body(name).id for name in layout.names}
        self._objects = {body: name for name, body in self._bodies.items()}
        self._pads = tuple(self._model.geom(n).id for n in PAD_NAMES)
        limits = self._model.actuator_ctrlrange[self._ctrl]
        self.lower, self.upper = limits[:6, 0].copy(), limits[:6, 1].copy()
        self.reset()

    @property
    def task(self) -> Task:
        """The task."""
        return self.layout.task

    @property
    def source(self) -> str:
        """Name of the object to move."""
        return self.layout.names[0]

    @property
    def target(self) -> str:
        """Name of the object to move it to."""
        return self.layout.names[1]

    def reset(self, joints: ArrayLike = START_JOINTS, gripper: float = GRIPPER_OPEN) -> None:
        """Back to the start: objects as laid out and at rest, arm at `joints` (rad) and `gripper` (m), time 0."""
        target = self._checked(joints, gripper)
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[self._qpos] = [*target[:6], target[6] / 2, target[6] / 2]
        self._data.ctrl[self._ctrl] = target
        self._from = self._to = target
        self._ramp_start = -RAMP
        for _ in range(round(SETTLE / TIMESTEP)):
            self._mujoco.mj_step(self._model, self._data)
        self._data.qvel[:] = 0
        self._ticks = 0
        self._mujoco.mj_forward(self._model, self._data)

    def command(self, joints: ArrayLike, gripper: float) -> None:
        """New targets: joints [6] in rad and metres between the fingers; time stands still. Raises ActionError."""
        target = self._checked(joints, gripper)
        self._from = np.array(self._data.ctrl[self._ctrl])
        self._to = target
        self._ramp_start = self.time

    def advance(self, seconds: float) -> None:
        """Let physics run for a multiple of 5 ms; targets are approached smoothly within RAMP seconds."""
        count = round(seconds / TIMESTEP)
        if count < 0 or abs(count * TIMESTEP - seconds) > _TOLERANCE:
            raise ConfigError(f"seconds = {seconds} is not a multiple of {TIMESTEP}")
        ramp = min(count, max(0, round((self._ramp_start + RAMP - self.time) / TIMESTEP)))
        for tick in range(1, ramp + 1):
            phase = min(1.0, (self.time + tick * TIMESTEP - self._ramp_start) / RAMP)
            blend = phase * phase * (3 - 2 * phase)
            self._data.ctrl[self._ctrl] = self._from + blend * (self._to - self._from)
            self._mujoco.mj_step(self._model, self._data)
        self._mujoco.mj_step(self._model, self._data, nstep=count - ramp)
        self._ticks += count
        # Poses and contacts of the new moment (mj_step leaves those of the moment before).
        self._mujoco.mj_forward(self._model, self._data)

    def step(self, joints: ArrayLike, gripper: float) -> None:
        """Command and advance one control period, 1/5 s. Raises ActionError."""
        self.command(joints, gripper)
        self.advance(CONTROL_PERIOD)

    @property
    def time(self) -> float:
        """Seconds since reset."""
        return self._ticks * TIMESTEP

    @property
    def joints(self) -> Array:
        """Measured joints [6], rad."""
        return np.array(self._data.qpos[self._qpos[:6]])

    @property
    def gripper(self) -> float:
        """Measured distance between the finger joints, m, 0.030 ... 0.074."""
        return float(self._data.qpos[self._qpos[6:]].sum())

    @property
    def transform_ee_to_base(self) -> Array:
        """Pose [4, 4] of the end effector (ee_gripper) in the base frame."""
        transform = np.eye(4)
        transform[:3, :3] = self._data.site_xmat[self._site].reshape(3, 3)
        transform[:3, 3] = self._data.site_xpos[self._site]
        return transform

    def object_poses(self) -> dict[str, tuple[Array, Array]]:
        """Position [3] m and quaternion [4] (w, x, y, z) of every object, source and target first."""
        return {n: (self._data.xpos[b].copy(), self._data.xquat[b].copy()) for n, b in self._bodies.items()}

    def place(self, name: str, position: ArrayLike, quaternion: ArrayLike = (1.0, 0.0, 0.0, 0.0)) -> None:
        """Put a movable object somewhere, at rest. Raises ConfigError for one that is fixed or unknown."""
        joint = self._model.body(self._body(name)).jntadr[0]
        if joint < 0:
            raise ConfigError(f"{name} is fixed to the table")
        q, v = self._model.jnt_qposadr[joint], self._model.jnt_dofadr[joint]
        self._data.qpos[q : q + 3], self._data.qpos[q + 3 : q + 7] = position, quaternion
        self._data.qvel[v : v + 6] = 0
        self._mujoco.mj_forward(self._model, self._data)

    def grasped(self) -> str | None:
        """Name of the object that both finger pads touch, or None."""
        both = self._touched(self._pads[0]) & self._touched(self._pads[1])
        return self._objects[min(both)] if both else None

    def on_target(self) -> bool:
        """Whether the source's centre of mass is inside the target's region (tasks.Region), held or not."""
        body = self._bodies[self.target]
        offset = self._data.xipos[self._bodies[self.source]] - self._data.xpos[body]
        return self.task.region.contains(self._data.xmat[body].reshape(3, 3).T @ offset)

    def success(self) -> bool:
        """Whether, at this moment, the source is on the target, let go, and still. Not latched."""
        body = self._bodies[self.source]
        held = any(body in self._touched(pad) for pad in self._pads)
        v = self._model.jnt_dofadr[self._model.body(body).jntadr[0]]
        still = bool(np.linalg.norm(self._data.qvel[v : v + 3]) < STILL_SPEED)
        return self.on_target() and not held and still

    def render(self, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
        """The camera's image, RGB uint8 [height, width, 3]; another size than 640x480 is stretched, not cropped.

        Raises SimulationError where there is no OpenGL.
        """
        return self._painter.render(self._data, width, height)

    def close(self) -> None:
        """Free the graphics context; the next picture makes a new one, in the thread that asks for it."""
        self._painter.close()

    def __enter__(self) -> Tabletop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, joints: ArrayLike, gripper: float) -> Array:
        q = np.asarray(joints, dtype=np.float64)
        if q.shape != (6,) or not np.all(np.isfinite(q)) or not np.isfinite(gripper):
            raise ActionError(
                f"joints = {q.tolist()}, gripper = {gripper}: six finite angles and a finite opening needed"
            )
        for name, value, low, high in zip(JOINT_NAMES, q, self.lower, self.upper, strict=True):
            if not low - _TOLERANCE <= value <= high + _TOLERANCE:
                raise ActionError(f"{name} = {value:.4f} rad is out of its limits ({low:.4f} ... {high:.4f})")
        if not GRIPPER_CLOSED - _TOLERANCE <= gripper <= GRIPPER_OPEN + _TOLERANCE:
            raise ActionError(f"gripper = {gripper:.4f} m is out of range ({GRIPPER_CLOSED} ... {GRIPPER_OPEN})")
        return np.append(q.clip(self.lower, self.upper), np.clip(gripper, GRIPPER_CLOSED, GRIPPER_OPEN))

    def _body(self, name: str) -> int:
        if name not in self._bodies:
            raise ConfigError(f"object = {name!r} is not known (valid: {', '.join(self._bodies)})")
        body: int = self._bodies[name]
        return body

    def _touched(self, geom: int) -> set[int]:
        """Bodies of objects in contact with a geom."""
        pairs = np.asarray(self._data.contact.geom)
        mine = pairs[(pairs == geom).any(axis=1)]
        return {int(self._model.geom_bodyid[g]) for g in mine.ravel()} & set(self._objects)

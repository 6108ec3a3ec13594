"""A scripted expert: pick and place with knowledge of the scene, for demonstrations and as a check of the whole chain.

It is Markov: the action follows from where things are now, never from a step counter, so that it recovers from noise, a
nudged object or a dropped one. Steps are proportional to what is left to go, so that what is learned from them has
smooth labels: `expert_intent` is such a step whole, `expert_action` what of it the arm makes at once. Poses are in the
base frame, m and rad; the end effector points down where its rotation is Rz(yaw) BRIDGE_DOWN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtp_ros.errors import ConfigError
from dtp_ros.sim.arm import GRIPPER_OPEN, PAD_INSET, TIP_BEYOND_EE
from dtp_ros.sim.catalog import Item
from dtp_ros.sim.objects import ObjectModel
from dtp_ros.sim.tabletop import Tabletop
from dtp_ros.sim.tasks import Task
from dtp_ros.widowx.semantics import BRIDGE_DOWN

Array = NDArray[np.float64]

PHASES = ("reach", "grasp", "carry", "release", "retreat")

TRAVEL_HEIGHT = 0.12  # m, of the end effector while it moves sideways: finger tips and load pass above 5 cm
FLOOR_CLEARANCE = 0.004  # m between the finger tips, or the load, and what is below
GRASP_ABOVE_ORIGIN = 0.008  # m, end effector above the object's origin
MAX_TRANSLATION = 0.04  # m a step, along the table and vertically
MAX_ROTATION = 0.15  # rad a step

_FAR_GAIN, _NEAR_GAIN = 0.4, 0.8  # share of the way along the table made in one step, beyond _FAR and below _NEAR
_FAR, _NEAR = 0.05, 0.02  # m
_Z_GAIN, _YAW_GAIN, _TILT_GAIN = 0.8, 0.5, 0.6
_FUNNEL_RADIUS, _FUNNEL_SLOPE = 0.010, 3.0  # descent: this near at the bottom, and so much higher a metre further off
_TURN_RADIUS = 0.04  # m a rad: what a wrong yaw counts in the funnel
_SHORTFALL = 0.05  # m below the funnel at which nothing moves sideways any more
_CLOSE_ALONG, _CLOSE_HEIGHT, _CLOSE_TURN = 0.015, 0.010, 0.2  # m, m, rad: near enough to close the fingers
_TIP_ABOVE_ORIGIN = 0.002  # m: with the finger tips higher than this on the object they would slip off
_PLAY = 0.004  # m: a gap this near to open holds nothing
_FINGER_REACH = 0.01  # m beyond an object's edge at which a finger still meets it
_FINGER_ASIDE = 0.03  # m from the end effector to the middle of an open finger
_MAX_TURN = 2.6  # rad from the arm's bearing: the wrist turns no further than pi


@dataclass(frozen=True)
class Scene:
    """What the expert knows of one moment.

    objects: position [3] m and quaternion [4] (w, x, y, z) by name, base frame. transform_ee_to_base: measured, [4, 4].
    gripper: measured metres between the finger joints.
    """

    objects: Mapping[str, tuple[Array, Array]]
    transform_ee_to_base: Array
    gripper: float


def scene_of(tabletop: Tabletop) -> Scene:
    """The present moment of a simulated tabletop."""
    return Scene(tabletop.object_poses(), tabletop.transform_ee_to_base, tabletop.gripper)


def expert_action(task: Task, scene: Scene) -> Array:
    """The next action float64 [7] of BridgeData V2 semantics: dx dy dz (m), droll dpitch dyaw (rad), opening 0 or 1.

    Increments in base axes, pivot at the gripper, within MAX_TRANSLATION and MAX_ROTATION. Raises ConfigError where the
    scene lacks the task's source or target.
    """
    intent = expert_intent(task, scene)
    limits = np.array([MAX_TRANSLATION] + [MAX_ROTATION] * 3)
    intent[:2] *= min(1.0, MAX_TRANSLATION / max(math.hypot(intent[0], intent[1]), 1e-9))
    intent[2:6] = np.clip(intent[2:6], -limits, limits)
    return intent


def expert_intent(task: Task, scene: Scene) -> Array:
    """The same action [7] before it is cut to a step: `expert_action` shortens it along the table, and clips the rest.

    It says how far the way is, where all cut steps look alike: a policy that learns cut steps has many labels in the
    outermost bins, whose one sharp peak wins against a few likelier bins further in.
    """
    return _decide(task, scene)[1]


def expert_phase(task: Task, scene: Scene) -> str:
    """What the expert is about to do, one of PHASES."""
    return _decide(task, scene)[0]


@dataclass(frozen=True)
class _Body:
    """An object of the scene: its model, position [3] and rotation [3, 3] to the base frame."""

    model: ObjectModel
    position: Array
    rotation: Array

    @classmethod
    def find(cls, item: Item, scene: Scene) -> _Body:
        if item.name not in scene.objects:
            raise ConfigError(f"{item.name} is not in the scene (it has: {', '.join(scene.objects) or 'nothing'})")
        position, (w, x, y, z) = scene.objects[item.name]
        return cls(item.model(), position, Rotation.from_quat([x, y, z, w]).as_matrix())

    @property
    def centre_of_mass(self) -> Array:
        """Position [3] of the centre of mass."""
        return self.position + self.rotation @ _centre_of_mass(self.model)

    @property
    def top(self) -> float:
        """Height of its highest point at rest, m above the table."""
        return float(self.position[2]) + self.model.height - self.model.rest_height

    def covers(self, point: Array) -> bool:
        """Whether a finger that comes down at `point` [2 or more], m, would meet it."""
        offset = np.abs(self.rotation[:2, :2].T @ (point[:2] - self.position[:2]))
        x, y = offset / (np.array(self.model.footprint) + _FINGER_REACH)
        return bool((math.hypot(x, y) if self.model.round else max(x, y)) < 1.0)

    @property
    def yaw(self) -> float:
        """Direction of its length on the table, rad; of a block, that of any side that lies flat."""
        axes = self.rotation.T
        level = axes[0] if self.model.footprint[0] > self.model.footprint[1] else min(axes, key=lambda a: abs(a[2]))
        return math.atan2(level[1], level[0])


def _decide(task: Task, scene: Scene) -> tuple[str, Array]:
    source, target = _Body.find(task.source, scene), _Body.find(task.target, scene)
    if _is_held(source, scene):
        return _bring(task, source, target, scene)
    offset = target.rotation.T @ (source.centre_of_mass - target.position)
    if task.region.contains(offset):
        position = scene.transform_ee_to_base[:3, 3]
        goal = np.array([position[0], position[1], max(position[2], TRAVEL_HEIGHT)])
        return "retreat", _action(scene, goal - position, 0.0, open_fingers=True)
    return _fetch(source, target, scene)


def _is_held(source: _Body, scene: Scene) -> bool:
    """Whether the fingers are closed on something and the source is where they are."""
    model = source.model
    gap = scene.gripper - 2 * PAD_INSET
    open_gap = GRIPPER_OPEN - 2 * PAD_INSET
    down, across, along = scene.transform_ee_to_base[:3, :3].T @ (source.position - scene.transform_ee_to_base[:3, 3])
    reach = max(model.footprint)
    there = -0.030 < down < TIP_BEYOND_EE + 0.005 and abs(across) < 0.012 and abs(along) < 0.6 * reach
    return bool(there and 0.5 * _width(model) < gap < open_gap - _PLAY)


def _fetch(source: _Body, target: _Body, scene: Scene) -> tuple[str, Array]:
    """Above the source, down, close the fingers."""
    pose = scene.transform_ee_to_base
    position = pose[:3, 3]
    turn = _turn(source, target, pose)
    grasp = np.array([*source.position[:2], _grasp_height(source, target)])
    error = grasp - position
    across, along = (pose[:3, :3].T @ error)[1:]
    width = _width(source.model)
    spare = (GRIPPER_OPEN - 2 * PAD_INSET - width) / 2 - 0.002
    is_open = scene.gripper - 2 * PAD_INSET > width
    is_low = error[2] > -_CLOSE_HEIGHT and position[2] - TIP_BEYOND_EE < source.position[2] + _TIP_ABOVE_ORIGIN
    near = abs(across) < spare and abs(along) < _CLOSE_ALONG and is_low
    if near and abs(turn) < _CLOSE_TURN and is_open:
        return "grasp", _action(scene, np.zeros(3), 0.0, open_fingers=False)
    distance = math.hypot(error[0], error[1]) + _TURN_RADIUS * abs(turn)
    return "reach", _action(scene, _funnel(error, distance, TRAVEL_HEIGHT - grasp[2]), turn, open_fingers=True)


def _bring(task: Task, source: _Body, target: _Body, scene: Scene) -> tuple[str, Array]:
    """Above the target, down, open the fingers. What is led is the load, wherever it sits between the fingers."""
    hang = source.model.rest_height + 0.5 * max(source.model.footprint) * abs(source.rotation[2, 0])
    error = target.position - source.centre_of_mass
    error[2] = target.top + hang + FLOOR_CLEARANCE - source.position[2]
    distance = math.hypot(error[0], error[1])
    if distance < _release_radius(task) and abs(error[2]) < _CLOSE_HEIGHT:
        return "release", _action(scene, np.zeros(3), 0.0, open_fingers=True)
    headroom = TRAVEL_HEIGHT - (scene.transform_ee_to_base[2, 3] + error[2])
    return "carry", _action(scene, _funnel(error, distance, max(headroom, 0.0)), 0.0, open_fingers=False)


def _funnel(error: Array, distance: float, headroom: float) -> Array:
    """The way to go [3] towards `error` [3]: sideways high up, and down only near the axis, as in a funnel.

    distance: from the axis, m; headroom: from the goal up to the height of travel, m.
    """
    rise = min(headroom, _FUNNEL_SLOPE * max(0.0, distance - _FUNNEL_RADIUS))
    vertical = error[2] + rise
    sideways = float(np.clip(1.0 - vertical / _SHORTFALL, 0.0, 1.0))
    return np.array([sideways * error[0], sideways * error[1], vertical])


def _action(scene: Scene, way: Array, turn: float, *, open_fingers: bool) -> Array:
    """One smooth step of `way` [3] m and `turn` rad, the gripper brought back to pointing down."""
    distance = math.hypot(way[0], way[1])
    gain = float(np.interp(distance, (_NEAR, _FAR), (_NEAR_GAIN, _FAR_GAIN)))
    yaw = gripper_yaw(scene.transform_ee_to_base)
    upright = Rotation.from_euler("z", yaw) * _relative(scene.transform_ee_to_base).inv()
    step = Rotation.from_euler("z", _YAW_GAIN * turn) * Rotation.from_rotvec(_TILT_GAIN * upright.as_rotvec())
    opening = 1.0 if open_fingers else 0.0
    return np.concatenate([gain * way[:2], [_Z_GAIN * way[2]], step.as_euler("xyz"), [opening]])


def _relative(transform_ee_to_base: Array) -> Rotation:
    """Rotation from pointing down at yaw 0 to the end effector's, in base axes."""
    return Rotation.from_matrix(transform_ee_to_base[:3, :3] @ BRIDGE_DOWN.T)


def gripper_yaw(transform_ee_to_base: Array) -> float:
    """Turn of the end effector about the vertical, rad (the twist of _relative about z)."""
    r = transform_ee_to_base[:3, :3] @ BRIDGE_DOWN.T
    return math.atan2(r[1, 0] - r[0, 1], r[0, 0] + r[1, 1])


def _turn(source: _Body, target: _Body, transform_ee_to_base: Array) -> float:
    """Turn to the nearest yaw at which the fingers close across the source, free of the target, rad."""
    period = math.pi if source.model.grasp is None else source.model.grasp.period
    yaw = gripper_yaw(transform_ee_to_base)
    bearing = math.atan2(transform_ee_to_base[1, 3], transform_ee_to_base[0, 3])
    nearest = (source.yaw - yaw + period / 2) % period - period / 2
    low_fingers = _grasp_height(source, target) - TIP_BEYOND_EE < target.top

    def cost(turn: float) -> float:
        aside = _FINGER_ASIDE * np.array([-math.sin(yaw + turn), math.cos(yaw + turn)])
        blocked = low_fingers * sum(target.covers(source.position[:2] + side * aside) for side in (-1, 1))
        return abs(turn) + math.pi * blocked + 100.0 * (abs(yaw + turn - bearing) > _MAX_TURN)

    return min((nearest, nearest - period, nearest + period), key=cost)


def _grasp_height(source: _Body, target: _Body) -> float:
    """Height of the end effector, m: as low as the source needs and what is under the finger tips allows."""
    lies_low = source.position[2] < source.model.rest_height + 0.003
    below = target.top if target.covers(source.position) and not lies_low else 0.0
    return max(below + FLOOR_CLEARANCE + TIP_BEYOND_EE, float(source.position[2]) + GRASP_ABOVE_ORIGIN)


def _release_radius(task: Task) -> float:
    """How far from the middle of the target the load may be let go, m."""
    return min(0.02, 0.6 * min(task.region.half))


def _width(model: ObjectModel) -> float:
    """Gap between the pads on the object, m."""
    return 2 * min(model.footprint) if model.grasp is None else model.grasp.width


@lru_cache(maxsize=32)
def _centre_of_mass(model: ObjectModel) -> Array:
    """Centre of mass in the object's frame, m: its solids have one density (as in scene.py)."""
    weights = np.array([math.prod(solid.size) for solid in model.solids])
    return np.asarray(weights @ np.array([solid.position for solid in model.solids]) / weights.sum())

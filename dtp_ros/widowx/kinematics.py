"""Kinematics of the WidowX arms: product of exponentials and damped least squares.

Poses are homogeneous transforms of the end effector in the base frame (`transform_ee_to_base`), metres; the space
Jacobian and the screws follow Lynch and Park, "Modern Robotics" (2017), chapters 4 to 6: twists are (omega, v).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtp_ros.errors import KinematicsError, require_choice

Array = NDArray[np.float64]

POSITION_TOLERANCE = 5e-4  # m: a pose this near counts as reached
ROTATION_TOLERANCE = float(np.deg2rad(0.5))  # rad

_POSITION_WEIGHT = 30.0  # 1/m: one millimetre weighs as much as 0.03 rad
_POSITION_WEIGHT_UNDERACTUATED = 300.0  # five joints: position first, then the orientation that is left
_MAX_ITERATIONS = 80
_SOLVED = 1e-7  # weighted residual (about 3 nm, 1e-7 rad)
_STALLED = 1e-7  # rad: a step this small ends the search
_MAX_STEP = 0.8  # rad a joint and iteration: further the linear model does not carry


@dataclass(frozen=True, eq=False)
class Robot:
    """An arm with n revolute joints, in the order of `joint_names`.

    screws: float64 [n, 6], rows (omega, v) in the space frame at the zero position, omega of unit length, no pitch.
    home: float64 [4, 4], transform_ee_to_base at the zero position, m.
    lower, upper: joint limits [n], rad. max_velocity: the motors' limit [n], rad/s. neutral: rest posture [n], rad.
    gripper_closed, gripper_open: metres between the fingers.
    finger_joints: prismatic joints of the gripper in `joint_states`, m; the opening is the sum of the fingers'
    travel (twice the first one's where only one is named).
    """

    name: str
    joint_names: tuple[str, ...]
    screws: Array
    home: Array
    lower: Array
    upper: Array
    max_velocity: Array
    neutral: Array
    gripper_closed: float
    gripper_open: float
    finger_joints: tuple[str, ...]

    @property
    def num_joints(self) -> int:
        """Number of arm joints n."""
        return len(self.joint_names)

    @cached_property
    def generators(self) -> tuple[Array, Array]:
        """Matrices [S] and [S]^2 of the screws, each float64 [n, 4, 4]."""
        matrices = np.zeros((self.num_joints, 4, 4))
        x, y, z = self.screws[:, :3].T
        matrices[:, 0, 1], matrices[:, 0, 2], matrices[:, 1, 2] = -z, y, -x
        matrices[:, 1, 0], matrices[:, 2, 0], matrices[:, 2, 1] = z, -y, x
        matrices[:, :3, 3] = self.screws[:, 3:]
        return matrices, matrices @ matrices


@dataclass(frozen=True)
class IkSolution:
    """What `inverse` found; `joints` [n] in rad are inside the limits whether or not it converged.

    position_error (m) and rotation_error (rad, angle of the remaining rotation) are those of `joints`.
    converged: position within 0.5 mm and, on arms with six joints or more, rotation within 0.5 degrees. An arm with
    five joints reaches the position and comes as near to the orientation as it can: read rotation_error.
    """

    joints: Array
    position_error: float
    rotation_error: float
    converged: bool


def _frozen(values: object) -> Array:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def _home(x: float, y: float, z: float) -> Array:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return _frozen(pose)


def _interbotix(name: str, *, forearm_roll: bool) -> Robot:
    """WidowX 250, with six joints or five (screws, limits, neutral posture as Interbotix and Bridge publish them)."""
    rows = {  # joint: (screw, lower deg, upper deg, neutral rad)
        "waist": ((0, 0, 1, 0, 0, 0), -180, 180, -0.13192235),
        "shoulder": ((0, 1, 0, -0.11065, 0, 0), -108, 114, -0.76238847),
        "elbow": ((0, 1, 0, -0.36065, 0, 0.04975), -123, 92, 0.44485444),
        "forearm_roll": ((1, 0, 0, 0, 0.36065, 0), -180, 180, -0.01994175),
        "wrist_angle": ((0, 1, 0, -0.36065, 0, 0.29975), -100, 123, 1.7564081),
        "wrist_rotate": ((1, 0, 0, 0, 0.36065, 0), -180, 180, -0.15953401),
    }
    if not forearm_roll:
        del rows["forearm_roll"]
    screws, lower, upper, neutral = zip(*rows.values(), strict=True)
    return Robot(
        name=name,
        joint_names=tuple(rows),
        screws=_frozen(screws),
        home=_home(0.458325, 0.0, 0.36065),
        lower=_frozen(np.deg2rad(lower)),
        upper=_frozen(np.deg2rad(upper)),
        max_velocity=_frozen([np.pi] * len(rows)),
        neutral=_frozen(neutral),
        gripper_closed=0.030,
        gripper_open=0.074,
        finger_joints=("left_finger", "right_finger"),
    )


def _trossen() -> Robot:
    """WidowX AI (Trossen; link offsets as published, tool 0.156062 m beyond the flange)."""
    pi = np.pi
    return Robot(
        name="wxai",
        joint_names=tuple(f"joint_{i}" for i in range(6)),
        screws=_frozen(
            [
                (0, 0, 1, 0, 0, 0),
                (0, 1, 0, -0.1035, 0, 0.02),
                (0, -1, 0, 0.1035, 0, 0.244),
                (0, -1, 0, 0.1635, 0, -0.001),
                (0, 0, -1, 0, 0.06875, 0),
                (1, 0, 0, 0, 0.1635, 0),
            ]
        ),
        home=_home(0.253762, 0.0, 0.1635),
        lower=_frozen([-3.054, 0.0, 0.0, -pi / 2, -pi / 2, -pi]),
        upper=_frozen([3.054, pi, 2.356, pi / 2, pi / 2, pi]),
        max_velocity=_frozen([3.375, 3.375, 3.375, 7.0, 7.0, 7.0]),
        neutral=_frozen([0.0, 1.2, 1.1, -1.3, 0.0, 0.0]),
        gripper_closed=0.0,
        gripper_open=0.088,
        finger_joints=("left_carriage_joint",),
    )


ROBOTS: Mapping[str, Robot] = MappingProxyType(
    {
        "wx250s": _interbotix("wx250s", forearm_roll=True),
        "wx250": _interbotix("wx250", forearm_roll=False),
        "wxai": _trossen(),
    }
)


def robot(name: str) -> Robot:
    """The arm called `name`; raises ConfigError listing the valid names."""
    return ROBOTS[require_choice("robot", name, ROBOTS)]


def forward(robot: Robot, joints: Sequence[float] | Array) -> Array:
    """transform_ee_to_base, float64 [4, 4], at `joints` [n] in rad: T = exp([S1] q1) ... exp([Sn] qn) M (4.14)."""
    return _chain(robot, _joint_vector(robot, joints))[-1] @ robot.home


def jacobian(robot: Robot, joints: Sequence[float] | Array) -> Array:
    """Space Jacobian, float64 [6, n], rows (omega; v), of `joints` [n] in rad (5.11): twist = J dq."""
    return _space_jacobian(robot, _chain(robot, _joint_vector(robot, joints)))


def inverse(
    robot: Robot, transform_ee_to_base: Array, seed_joints: Sequence[float] | Array, *, restarts: int = 32
) -> IkSolution:
    """Joints that bring the end effector to `transform_ee_to_base` [4, 4], sought from `seed_joints` [n] rad.

    Damped least squares (Levenberg-Marquardt) on the weighted position and rotation error, inside the joint limits
    at every iteration. The search stays on the branch of the seed; only where it ends short of the pose is it
    repeated from up to `restarts` other postures (0: never leave the branch, as a moving arm needs), and the best
    is returned. Raises KinematicsError on a pose or a seed that is not finite or not of this shape.
    """
    target = np.asarray(transform_ee_to_base, dtype=np.float64)
    if target.shape != (4, 4) or not np.isfinite(target).all():
        raise KinematicsError(f"the target pose must be a finite [4, 4] transform, got shape {target.shape}: {target}")
    seed = np.clip(_joint_vector(robot, seed_joints), robot.lower, robot.upper)
    best = _descend(robot, target, seed)
    span = robot.upper - robot.lower
    for k in range(restarts):
        if best.converged and best.rotation_error <= ROTATION_TOLERANCE:
            break
        # Quasi-random postures (additive recurrence on the golden ratio): the same ones every time.
        fraction = (0.5 + (k + 1) * _GOLDEN[: robot.num_joints]) % 1.0
        candidate = _descend(robot, target, robot.lower + fraction * span)
        best = min(best, candidate, key=_badness)
    return best


# Powers of the inverse of the real root of x^7 = x + 1 (R-sequence in six dimensions).
_GOLDEN = np.power(1.0 / 1.112775684278706, np.arange(1, 7))


def _badness(solution: IkSolution) -> tuple[bool, float]:
    return not solution.converged, 10.0 * solution.position_error + solution.rotation_error


def _joint_vector(robot: Robot, joints: Sequence[float] | Array) -> Array:
    vector = np.asarray(joints, dtype=np.float64)
    if vector.shape != (robot.num_joints,) or not np.isfinite(vector).all():
        raise KinematicsError(f"{robot.name} takes {robot.num_joints} finite joint angles, got {vector}")
    return vector


def _chain(robot: Robot, joints: Array) -> list[Array]:
    """Products of the first k exponentials, k = 0 ... n, each [4, 4]."""
    generators, squares = robot.generators
    sine, versine = np.sin(joints)[:, None, None], (1.0 - np.cos(joints))[:, None, None]
    # Screws without pitch satisfy [S]^3 = -[S], so the exponential series closes as Rodrigues' formula does.
    exponentials = np.eye(4) + sine * generators + versine * squares
    products = [np.eye(4)]
    for exponential in exponentials:
        products.append(products[-1] @ exponential)
    return products


def _space_jacobian(robot: Robot, chain: Sequence[Array]) -> Array:
    before = np.stack(chain[:-1])
    rotation, position = before[:, :3, :3], before[:, :3, 3]
    omega = np.einsum("nij,nj->ni", rotation, robot.screws[:, :3])
    linear = np.einsum("nij,nj->ni", rotation, robot.screws[:, 3:])
    return np.concatenate([omega, linear + _cross(position, omega)], axis=1).T


def _cross(a: Array, b: Array) -> Array:
    """Cross product over the last axis (np.cross costs ten times as much at this size)."""
    a1, a2, a3 = a[..., 0], a[..., 1], a[..., 2]
    b1, b2, b3 = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([a2 * b3 - a3 * b2, a3 * b1 - a1 * b3, a1 * b2 - a2 * b1], axis=-1)


def rotation_vector(rotation: Array) -> Array:
    """Logarithm of a rotation matrix [3, 3]: axis times angle [3], rad."""
    skew = 0.5 * np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine, cosine = float(np.sqrt(skew @ skew)), 0.5 * float(np.trace(rotation) - 1.0)
    if cosine < -0.9:  # the axis fades from the skew part towards 180 degrees
        return np.asarray(Rotation.from_matrix(rotation).as_rotvec(), dtype=np.float64)
    return skew * (np.arctan2(sine, cosine) / sine if sine > 1e-9 else 1.0)


def _residual(target: Array, pose: Array) -> Array:
    """Rotation (rad) and position (m) still to go, along the base frame's axes [6]."""
    return np.concatenate([rotation_vector(target[:3, :3] @ pose[:3, :3].T), target[:3, 3] - pose[:3, 3]])


def _descend(robot: Robot, target: Array, start: Array) -> IkSolution:
    """Levenberg-Marquardt inside the joint limits, from `start`; joints pressed against a limit are left out."""
    underactuated = robot.num_joints < 6
    position_weight = _POSITION_WEIGHT_UNDERACTUATED if underactuated else _POSITION_WEIGHT
    weights = np.repeat([1.0, position_weight], 3)
    joints, damping = start, 1e-4
    chain = _chain(robot, joints)
    error = _residual(target, chain[-1] @ robot.home)
    cost = float(np.sum((weights * error) ** 2))
    for _ in range(_MAX_ITERATIONS):
        if cost < _SOLVED**2:
            break
        step = _step(robot, joints, chain, error, weights, damping)
        trial = np.clip(joints + step, robot.lower, robot.upper)
        if np.abs(trial - joints).max() < _STALLED:
            break
        trial_chain = _chain(robot, trial)
        trial_error = _residual(target, trial_chain[-1] @ robot.home)
        trial_cost = float(np.sum((weights * trial_error) ** 2))
        if trial_cost < cost:
            joints, chain, error, cost = trial, trial_chain, trial_error, trial_cost
            damping = max(damping * 0.1, 1e-9)
        else:
            damping *= 8.0
    position_error, rotation_error = float(np.linalg.norm(error[3:])), float(np.linalg.norm(error[:3]))
    turned = underactuated or rotation_error <= ROTATION_TOLERANCE
    return IkSolution(joints, position_error, rotation_error, bool(turned and position_error <= POSITION_TOLERANCE))


def _step(robot: Robot, joints: Array, chain: Sequence[Array], error: Array, weights: Array, damping: float) -> Array:
    """One damped step [n]: (J'WWJ + damping I) dq = J'WW e over the joints that are free to move."""
    space = _space_jacobian(robot, chain)
    position = (chain[-1] @ robot.home)[:3, 3]
    linear = space[3:] + _cross(space[:3].T, np.broadcast_to(position, (robot.num_joints, 3))).T
    weighted = weights[:, None] * np.concatenate([space[:3], linear])
    gradient = weighted.T @ (weights * error)
    free = ~(((joints <= robot.lower) & (gradient < 0)) | ((joints >= robot.upper) & (gradient > 0)))
    step = np.zeros(robot.num_joints)
    if free.any():
        active = weighted[:, free]
        step[free] = np.linalg.solve(active.T @ active + damping * np.eye(int(free.sum())), gradient[free])
    return step * min(1.0, _MAX_STEP / max(float(np.abs(step).max()), 1e-12))

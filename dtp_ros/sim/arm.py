"""The WidowX 250S for MuJoCo: true kinematics and limits, a body of primitives, two fingers that hold by friction.

The gripper's quantity is the Interbotix one: metres between the two finger *joints*, 0.030 ... 0.074. The pads stand
PAD_INSET inside the joint on either side, so that the gap between them is the quantity less 24 mm: 6 ... 50 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dtp_ros.widowx.kinematics import robot

ROBOT = robot("wx250s")
JOINT_NAMES = ROBOT.joint_names
FINGER_NAMES = ROBOT.finger_joints
PAD_NAMES = ("left_pad", "right_pad")
GRIPPER = "gripper"
EE_SITE = "ee_gripper"
GRIPPER_CLOSED, GRIPPER_OPEN = ROBOT.gripper_closed, ROBOT.gripper_open
PAD_INSET = 0.012
TIP_BEYOND_EE = 0.022
GRIP_FORCE = 12.0  # N on each finger

# End effector at (.3, 0, .15), pointing down, fingers opening along y.
START_JOINTS = (0.0, 0.02201199, 0.18310092, 0.0, 1.36568341, 0.0)

ARM_COLLISION, OBJECT_COLLISION = 2, 1
_FINGER_FRAME = 0.066  # of the finger joints in the gripper's frame, m
_EE_X = 0.093575  # of the end effector in the gripper's frame, m
TIP = _EE_X + TIP_BEYOND_EE - _FINGER_FRAME


@dataclass(frozen=True)
class _Link:
    """offset from the parent in m (all frames parallel to the base at zero joints); gains in Nm/rad and Nms/rad."""

    joint: str
    body: str
    offset: tuple[float, float, float]
    axis: tuple[int, int, int]
    mass: float
    centre: tuple[float, float, float]
    armature: float
    stiffness: float
    damping: float


_CHAIN = (
    _Link("waist", "shoulder_link", (0, 0, 0.072), (0, 0, 1), 0.48, (0, 0, 0.007), 0.05, 500, 14),
    _Link("shoulder", "upper_arm_link", (0, 0, 0.03865), (0, 1, 0), 0.43, (0.017, 0, 0.19), 0.05, 600, 18),
    _Link("elbow", "upper_forearm_link", (0.04975, 0, 0.25), (0, 1, 0), 0.23, (0.108, 0, 0), 0.04, 300, 9),
    _Link("forearm_roll", "lower_forearm_link", (0.175, 0, 0), (1, 0, 0), 0.22, (0.037, 0, 0), 0.01, 60, 1.6),
    _Link("wrist_angle", "wrist_link", (0.075, 0, 0), (0, 1, 0), 0.085, (0.042, 0, 0.01), 0.01, 60, 1.7),
    _Link("wrist_rotate", "gripper_link", (0.065, 0, 0), (1, 0, 0), 0.11, (0.033, 0, 0.009), 0.01, 40, 1.2),
)


def add_arm(mujoco: Any, spec: Any) -> None:
    """Add arm, gripper, site `ee_gripper` and actuators (six joints in rad, then `gripper` in m) to an MjSpec."""
    body = spec.worldbody.add_body(name="base_link")
    for link, limits in zip(_CHAIN, zip(ROBOT.lower, ROBOT.upper, strict=True), strict=True):
        body = body.add_body(name=link.body, pos=link.offset, gravcomp=1.0)
        body.mass, body.ipos, body.inertia = link.mass, link.centre, [0.4e-3 * (1 + 4 * link.mass)] * 3
        body.explicitinertial = True
        body.add_joint(
            name=link.joint, axis=link.axis, range=limits, limited=True, armature=link.armature,
            type=mujoco.mjtJoint.mjJNT_HINGE,
        )  # fmt: skip
        actuator = spec.add_actuator(
            name=link.joint, target=link.joint, trntype=mujoco.mjtTrn.mjTRN_JOINT, ctrlrange=limits,
            ctrllimited=True, forcerange=(-35, 35), forcelimited=True,
        )  # fmt: skip
        actuator.set_to_position(kp=link.stiffness, kv=link.damping)
    body.add_site(name=EE_SITE, pos=(_EE_X, 0, 0), size=(0.002,) * 3, group=4)
    _add_gripper(mujoco, spec, body)


def _add_gripper(mujoco: Any, spec: Any, palm: Any) -> None:
    """Two mirrored slides driven by one tendon whose length is the distance between the finger joints."""
    half_range = (GRIPPER_CLOSED / 2, GRIPPER_OPEN / 2)
    _collision(palm, mujoco, "palm", (0.03, 0.038, 0.016), (0.035, 0, 0))
    tendon = spec.add_tendon(name=GRIPPER)
    for side, joint, pad in zip((1, -1), FINGER_NAMES, PAD_NAMES, strict=True):
        finger = palm.add_body(name=f"{joint}_link", pos=(_FINGER_FRAME, 0, 0), gravcomp=1.0)
        finger.mass, finger.ipos, finger.inertia = 0.03, (0.02, 0, 0), [1e-5] * 3
        finger.explicitinertial = True
        finger.add_joint(
            name=joint, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(0, side, 0), range=half_range, limited=True,
            armature=0.1,
        )  # fmt: skip
        half = (TIP / 2 - 0.004, 0.005, 0.0085)
        geom = _collision(finger, mujoco, pad, half, (TIP - half[0], -side * (PAD_INSET - half[1]), 0))
        geom.friction, geom.condim, geom.priority = (1.4, 0.02, 0.0001), 4, 1
        tendon.wrap_joint(joint, 1.0)
    mirror = spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT, name1=FINGER_NAMES[1], name2=FINGER_NAMES[0], objtype=mujoco.mjtObj.mjOBJ_JOINT
    )
    mirror.data[1] = 1.0
    actuator = spec.add_actuator(
        name=GRIPPER, target=GRIPPER, trntype=mujoco.mjtTrn.mjTRN_TENDON, ctrlrange=(GRIPPER_CLOSED, GRIPPER_OPEN),
        ctrllimited=True, forcerange=(-GRIP_FORCE, GRIP_FORCE), forcelimited=True,
    )  # fmt: skip
    actuator.set_to_position(kp=1500, kv=20)


def _collision(body: Any, mujoco: Any, name: str, half: tuple[float, ...], position: tuple[float, ...]) -> Any:
    return body.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=half, pos=position, mass=0, group=3,
        contype=ARM_COLLISION, conaffinity=OBJECT_COLLISION,
    )  # fmt: skip

"""What the arm's node shows: markers of workspace, target and path for rviz, and its diagnostic status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Vector3
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from dtp_ros.ros.conversions import header_to_ros, pose_to_ros
from dtp_ros.widowx.controller import ArmController
from dtp_ros.widowx.gate import CHECKS
from dtp_ros.widowx.kinematics import Array

_CORNERS = [np.array([x, y, z], dtype=np.float64) for x in (0, 1) for y in (0, 1) for z in (0, 1)]


def markers_to_ros(
    low: Array, high: Array, target: Array | None, path: Sequence[Array], stamp: Time, frame_id: str
) -> MarkerArray:
    """Markers `workspace` (edges of the box low ... high, m), `target` (arrow along the gripper of a pose [4, 4],
    deleted where there is none) and `path` (commanded positions [3], oldest first), in `frame_id`.
    """
    header = header_to_ros(stamp, frame_id)
    edges = [
        point
        for i, a in enumerate(_CORNERS)
        for b in _CORNERS[i + 1 :]
        if np.abs(a - b).sum() == 1
        for point in (low + a * (high - low), low + b * (high - low))
    ]
    box = _lines(Marker.LINE_LIST, "workspace", edges, 0.003, ColorRGBA(r=0.3, g=0.6, b=1.0, a=0.8))
    shown = path if len(path) > 1 else ()
    line = _lines(Marker.LINE_STRIP, "path", shown, 0.004, ColorRGBA(r=0.1, g=0.8, b=0.3, a=1.0))
    arrow = Marker(ns="target", type=Marker.ARROW, action=Marker.ADD if target is not None else Marker.DELETE)
    arrow.scale, arrow.color = Vector3(x=0.06, y=0.008, z=0.008), ColorRGBA(r=1.0, g=0.5, b=0.0, a=1.0)
    if target is not None:
        arrow.pose = pose_to_ros(target)
    for marker in (box, arrow, line):
        marker.header = header
    return MarkerArray(markers=[box, arrow, line])


def _lines(kind: int, namespace: str, points: Iterable[Array], width: float, color: ColorRGBA) -> Marker:
    marker = Marker(ns=namespace, type=kind, color=color, scale=Vector3(x=width))
    marker.points = [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in points]
    marker.action = Marker.ADD if marker.points else Marker.DELETE
    marker.pose.orientation.w = 1.0
    return marker


def status_to_ros(name: str, controller: ArmController, about: Mapping[str, str], waiting: str) -> DiagnosticStatus:
    """The arm's status: WARN where it does not move on its own account or waits, else OK.

    about: what drives it. waiting: what is missing from outside, "" where nothing is. Every check of the gate is
    listed with its count, also those that never spoke.
    """
    state = arm_state(controller)
    causes = ", ".join(controller.causes) if controller.armed else controller.disarmed_by
    level = DiagnosticStatus.OK if state in ("moving", "going home") and not waiting else DiagnosticStatus.WARN
    message = waiting or (f"{state}: {causes}" if causes and state != "moving" else state)
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id=controller.robot.name)
    pairs = {
        "armed": str(controller.armed).lower(),
        "state": state,
        "cause": causes,
        "orientation_error": f"{controller.orientation_error:.3f} rad",
        **about,
        **{f"{check.effect}/{key}": str(controller.counts[key]) for key, check in CHECKS.items()},
    }
    status.values = [KeyValue(key=key, value=value) for key, value in pairs.items()]
    return status


def arm_state(controller: ArmController) -> str:
    """`disarmed`, `going home`, `holding` or `moving`."""
    if not controller.armed:
        return "disarmed"
    if controller.homing:
        return "going home"
    return "holding" if controller.holding else "moving"

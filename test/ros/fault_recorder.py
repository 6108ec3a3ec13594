"""All traffic to the arm, and whether it was safe: by the limits and the screws of the published sources, typed here.

The oracle of the fault tests: nothing of `dtp_ros.widowx` is used.
"""

import time
from dataclasses import dataclass

import numpy as np
from scipy.linalg import expm
from sensor_msgs.msg import JointState

NAMES = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
# Product of exponentials of the WidowX 250S, rows (omega, v), and its end effector at the zero position, m.
SCREWS = np.array(
    [
        [0, 0, 1, 0, 0, 0],
        [0, 1, 0, -0.11065, 0, 0],
        [0, 1, 0, -0.36065, 0, 0.04975],
        [1, 0, 0, 0, 0.36065, 0],
        [0, 1, 0, -0.36065, 0, 0.29975],
        [1, 0, 0, 0, 0.36065, 0],
    ]
)
HOME = (0.458325, 0.0, 0.36065)
LOWER = np.deg2rad([-180, -108, -123, -180, -100, -180])
UPPER = np.deg2rad([180, 114, 92, 180, 123, 180])
MARGIN = 0.02  # rad, joint_limit_margin
VELOCITY = 1.0  # rad/s, max_joint_velocity
PERIOD = 0.2  # s, of an action: no command may take the credit for more
BOX = np.array([0.10, -0.15, -0.01]), np.array([0.45, 0.25, 0.25])
GRIPPER = (0.030, 0.074)  # m between the fingers
WALL = 1e-3  # m, residual of the kinematics at the wall of the box
EXACT = 1e-9  # rad: a hold repeats a measured position bit for bit
UNHEARD = 0.5  # s: the arm's node may find a new simulator's joint states before the recorder does
BEFORE, AFTER = 100, 30  # joint states, heard around a command, among which the one behind it is sought
LATE = 200  # joint states that a busy machine may deliver after the hold that repeats one of them


def position(joints):
    """The end effector, m, by general matrix exponentials."""
    transform = np.eye(4)
    for (wx, wy, wz, *v), angle in zip(SCREWS, joints, strict=True):
        generator = np.zeros((4, 4))
        generator[:3, :3] = [[0, -wz, wy], [wz, 0, -wx], [-wy, wx, 0]]
        generator[:3, 3] = v
        transform = transform @ expm(generator * angle)
    return (transform @ [*HOME, 1.0])[:3]


def outside(joints):
    """How far the end effector is outside the box, m."""
    here = position(joints)
    return float(np.linalg.norm(here - np.clip(here, *BOX)))


@dataclass(frozen=True)
class Sent:
    """at: arrival, monotonic s. stamp: of its header, s. joints [6], rad; gripper, m.

    hold: whether it holds. away: rad to the nearest reported position of that time.
    """

    at: float
    stamp: float
    joints: np.ndarray
    gripper: float
    hold: bool
    away: float


class Recorder:
    """Hears what goes to the arm and what the arm reports.

    A hold is a command that repeats a reported position bit for bit (the arm's noise makes that no accident), or the
    command before it (so an arm is held that reports nothing); every other command is a motion.
    """

    def __init__(self, node):
        self.messages, self.measured, self._checked = [], [], 0
        self.start = None  # where the simulated arm stands at its start, which is the same each time
        node.create_subscription(JointState, "sim/joint_command", self._on_command, 200)
        node.create_subscription(JointState, "joint_states", self._on_measured, 200)

    def _on_command(self, message):
        self.messages.append((time.monotonic(), message))

    def _on_measured(self, message):
        table = dict(zip(message.name, message.position, strict=False))
        joints = np.array([table.get(name, np.nan) for name in NAMES])
        if np.isfinite(joints).all():
            stamp = message.header.stamp.sec + message.header.stamp.nanosec * 1e-9
            self.measured.append((time.monotonic(), joints, stamp))
            self.start = joints if self.start is None else self.start

    def clear(self):
        """Forget what was heard, but for what the next command goes on from."""
        del self.messages[:-1]
        del self.measured[:-BEFORE]
        self._checked = len(self.messages)

    def sent(self, since=0.0):
        """What was sent, as Sent, the arrivals after `since` only."""
        measured = list(self.measured)
        times, rows = np.array([t for t, _, _ in measured]), np.array([q for _, q, _ in measured]).reshape(-1, 6)
        found = []
        for at, message in list(self.messages):
            assert tuple(message.name) == (*NAMES, "gripper")
            joints = np.array(message.position[:6])
            middle = int(np.searchsorted(times, at))
            recent = rows[max(0, middle - BEFORE) : middle + AFTER]
            if middle and at - times[middle - 1] > UNHEARD:
                recent = np.vstack([recent, self.start])
            away = float(np.abs(recent - joints).max(axis=1).min()) if len(recent) else np.inf
            before = found[-1] if found else None
            repeats = np.abs(rows[middle : middle + LATE] - joints).max(axis=1, initial=0.0) <= EXACT
            hold = away <= EXACT or bool(repeats.any() or (before and np.array_equal(before.joints, joints)))
            stamp = message.header.stamp.sec + message.header.stamp.nanosec * 1e-9
            found.append(Sent(at, stamp, joints, message.position[6], hold, away))
        return [command for command in found if command.at > since]

    def motions(self, since=0.0):
        """How many motions were sent after `since`."""
        return sum(not command.hold for command in self.sent(since))

    def held(self, since):
        """When the hold arrived that nothing but holds has followed, or None."""
        sent = self.sent(since)
        moving = [i for i, command in enumerate(sent) if not command.hold]
        rest = sent[moving[-1] + 1 if moving else 0 :]
        return rest[0].at if rest else None

    def newest(self):
        """The stamp of the newest joint states heard, s: the arm's own time, which a busy machine does not hurry."""
        return self.measured[-1][2]

    def turns(self, since):
        """By how much the arm, as it reports, turned in the 0.3 s from `since` of its own time, rad; None before."""
        rows = [q for _, q, stamp in list(self.measured) if since <= stamp <= since + 0.3]
        return np.ptp(rows, axis=0).max() if len(rows) > 3 and self.newest() > since + 0.3 else None

    def require_safe(self, anchored=0, velocity=VELOCITY):
        """Assert that every command was inside every limit.

        A motion may be as far from the command before as `velocity` allows in the time between them. `anchored`: how
        many may start from the measured arm instead, as the first one, and one after each restart.
        """
        sent, starts, fastest = self.sent(), 0, 0.0
        assert sent, "nothing was sent"
        for before, command in list(zip([None, *sent], sent, strict=False))[self._checked :]:
            _require_inside(command, before)
            if command.hold:
                continue
            elapsed = min(command.stamp - before.stamp, PERIOD) if before else 0.0
            turned = np.abs(command.joints - before.joints).max() if before else np.inf
            if turned <= velocity * max(elapsed, 0.0) + 1e-6:
                fastest = max(fastest, turned / max(elapsed, 1e-3))
            else:
                assert command.away <= velocity * PERIOD + 1e-6, f"too fast: {before}, then {command}"
                starts += 1
        assert starts <= anchored + 1, f"too fast: {starts} motions did not go on from the command before"
        holds = sum(command.hold for command in sent)
        print(f"{len(sent)} commands safe, {holds} of them holds; fastest joint {fastest:.3f} rad/s")


def _require_inside(command, before):
    """A motion is in the box; or, after a hold outside of it (an arm stopped on its way), no further out than that."""
    joints, margin = command.joints, 0.0 if command.hold else MARGIN
    assert np.isfinite([*joints, command.gripper]).all(), f"not finite: {command}"
    assert GRIPPER[0] - EXACT <= command.gripper <= GRIPPER[1] + EXACT, f"gripper: {command}"
    beyond = np.maximum(LOWER + margin - joints, joints - UPPER + margin).max()
    assert beyond <= EXACT, f"joint limits: {command}"
    out = 0.0 if command.hold else outside(joints)
    within = out <= WALL + 1e-6 or (before and out <= outside(before.joints) + 1e-6)
    assert within, f"workspace: {command}, at {position(joints)}"

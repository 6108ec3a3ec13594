"""Child processes of the demo and of the tables: real nodes, logged to files, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dtp_ros.models.registry import model_defaults
from dtp_ros.resources import share_file

GRACE = 10.0  # s that a node has to end after Ctrl-C


class NodeProcesses:
    """Nodes as separate processes; leaving the `with` interrupts every one and waits for it."""

    def __init__(self, log_folder: Path) -> None:
        log_folder.mkdir(parents=True, exist_ok=True)
        self._log_folder = log_folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, executable: str, parameters: Mapping[str, object], remaps: Sequence[str] = ()) -> None:
        """Start `python -m dtp_ros.ros.<executable>` with ROS parameters and remappings `from:=to`."""
        arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={_yaml(value)}")]
        arguments += [part for remap in remaps for part in ("-r", remap)]
        with (self._log_folder / f"{executable}.log").open("wb") as log:
            # A session of its own: Ctrl-C in the terminal reaches us alone, and we end them in order.
            self._running[executable] = subprocess.Popen(
                [sys.executable, "-m", f"dtp_ros.ros.{executable}", "--ros-args", *arguments],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def require_alive(self) -> None:
        """Raise RuntimeError with the end of its log where a node has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                tail = "\n".join((self._log_folder / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"{name} ended with exit code {process.returncode}:\n{tail}")

    def peak_memory(self) -> int:
        """Sum over the running nodes of the peak resident memory, bytes (0 where /proc is not there)."""
        return sum(_peak_resident(process.pid) for process in self._running.values() if process.poll() is None)

    def stop(self) -> None:
        """Interrupt every node; kill what is still there after a grace, or where the user interrupts once more."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        end = time.monotonic() + GRACE
        for process in self._running.values():
            try:
                process.wait(timeout=max(0.1, end - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._running.clear()

    def __enter__(self) -> NodeProcesses:
        # A terminal that is closed: the nodes, which have sessions of their own, would go on for ever. Not under nohup.
        self._hung_up = signal.getsignal(signal.SIGHUP)
        if self._hung_up is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        signal.signal(signal.SIGHUP, self._hung_up)


def use_private_domain() -> None:
    """Keep the demo's graph on this machine and apart from other graphs, unless the user chose otherwise.

    And let torch's threads sleep while they wait for each other: on two cores with other work beside, threads that spin
    made single steps ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not os.access(Path.home(), os.W_OK):  # where ROS writes its logs, else it does not start
        os.environ.setdefault("ROS_LOG_DIR", str(Path(tempfile.gettempdir()) / "dtp_ros_log"))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if os.environ.get("ROS_DISTRO") == "humble":  # which knows no discovery range
        os.environ.setdefault("ROS_LOCALHOST_ONLY", "1")
    # Fast DDS's own segment is smaller than one camera image, and a best-effort image that does not fit is lost.
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(share_file("config/fastdds.xml")))
    # Domains above 101 meet the ports that Linux hands out to other programs.
    os.environ.setdefault("ROS_DOMAIN_ID", str(10 + os.getpid() % 90))


def command_timeout(model: str) -> float:
    """The arm's `command_timeout`, s, at 5 Hz: 1.5, or what the model's chunk lasts and a little more."""
    horizon = model_defaults(model, "tiny")["execute_horizon"]
    return max(1.5, 0.2 * float(str(horizon)) + 0.5)


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


def _peak_resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

"""The layers of docs/architecture.md: imports point down only, and nothing below `ros` needs rclpy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dtp_ros"
# Lowest first.
ORDER = ["pruning", "widowx", "models", "engine", "sim", "training", "study", "ros"]
MAY_IMPORT = {
    "pruning": set(),
    "widowx": set(),
    "models": {"pruning"},  # the constants in config/models are checked by PruningConfig
    "engine": {"pruning", "models"},
    "sim": {"widowx"},
    "training": {"models", "widowx", "sim"},
    "study": {"pruning", "models", "engine", "widowx", "sim"},
    "ros": {"pruning", "models", "engine", "widowx", "sim"},
}
ROS_MODULES = {"rclpy", "cv_bridge", "launch", "launch_ros", "builtin_interfaces", "rcl_interfaces", "rosgraph_msgs"}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("layer", ORDER)
def test_imports_point_down(layer):
    for path in (PACKAGE / layer).rglob("*.py"):
        for name in imported_names(path):
            parts = name.split(".")
            if parts[0] == "dtp_ros" and len(parts) > 1 and parts[1] in ORDER:
                assert parts[1] in MAY_IMPORT[layer] | {layer}, f"{path} imports {name}"
            if layer != "ros":
                ros = parts[0] in ROS_MODULES or parts[0].endswith("_msgs") or parts[0] == "std_srvs"
                assert not ros, f"{path} imports {name}"


def test_everything_below_ros_imports_without_rclpy():
    modules = [
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts)
        for layer in ORDER[:-1]
        for p in (PACKAGE / layer).rglob("*.py")
    ]
    assert len(modules) > 20
    code = f"import sys; sys.modules['rclpy'] = None; import importlib; [importlib.import_module(m) for m in {modules}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

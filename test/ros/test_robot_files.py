"""config/robots/<robot>.yaml: one a robot, of declared parameters only, and the arm's node takes each."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from widowx_harness import running

from dtp_ros.ros.parameters import SPEC_BY_NAME as POLICY_SPECS
from dtp_ros.ros.widowx_node import WidowxNode
from dtp_ros.ros.widowx_parameters import SPECS
from dtp_ros.widowx.kinematics import ROBOTS, forward, inverse

DOMAIN = 85
FILES = Path(__file__).resolve().parents[2] / "config/robots"


def parameters(name, node="widowx"):
    return yaml.safe_load((FILES / f"{name}.yaml").read_text())[f"/**/{node}"]["ros__parameters"]


def test_there_is_one_file_a_robot():
    assert {path.stem for path in FILES.iterdir()} == set(ROBOTS)


@pytest.mark.parametrize("name", ROBOTS)
def test_a_file_holds_declared_parameters_of_the_right_type_only(name):
    for node, specs in (("widowx", SPECS), ("dtp_policy", POLICY_SPECS)):
        written = parameters(name, node)
        assert written["robot"] == name
        assert {k: type(v) for k, v in written.items()} == {k: type(specs[k].default) for k in written}
    assert parameters(name)["base_frame"] == parameters(name, "dtp_policy")["base_frame"]
    assert parameters(name)["driver"] == "dry_run"  # who wants it to move says so


@pytest.mark.parametrize("name", ROBOTS)
def test_the_node_takes_the_file(name):
    with running(DOMAIN, node=False):
        node = WidowxNode(cli_args=["--ros-args", "--params-file", str(FILES / f"{name}.yaml")])
        try:
            for parameter, value in parameters(name).items():
                np.testing.assert_array_equal(node.get_parameter(parameter).value, value, err_msg=parameter)
        finally:
            node.destroy_node()


@pytest.mark.parametrize("name", ROBOTS)
def test_the_middle_of_the_workspace_is_within_reach(name):
    arm, written = ROBOTS[name], parameters(name)
    target = forward(arm, arm.neutral)
    target[:3, 3] = np.mean([written["workspace_low"], written["workspace_high"]], axis=0)
    assert inverse(arm, target, arm.neutral).position_error < 1e-3

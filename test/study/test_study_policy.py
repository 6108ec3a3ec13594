"""The shipped policy, in one process: that it does what it is told, and that DTP looks where the task is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.sim.camera import BRIDGE_CAMERA
from dtp_ros.sim.layout import fixed_layout
from dtp_ros.sim.tasks import TASKS
from dtp_ros.study.regions import sights, token_of

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = model_defaults("tabletop")
# Each was solved over ROS in at most 18 steps.
SOLVED = {"spoon_on_towel": 16, "carrot_on_plate": 3, "stack_blocks": 7, "eggplant_in_basket": 3}
DTP = PruningConfig(**{name: DEFAULTS[name] for name in PruningConfig.__dataclass_fields__})


@pytest.fixture(scope="module")
def policy() -> DtpPolicy:
    return DtpPolicy(load_adapter("tabletop", str(DEFAULTS["checkpoint"]), device="cpu"))


def test_the_token_of_a_point_worked_out_by_hand():
    """The end of the optical axis is at pixel (319.501, 239.545): just left of and above the middle of the picture."""
    forward = BRIDGE_CAMERA.rotation_camera_to_base[:, 0]
    assert token_of(BRIDGE_CAMERA, np.array(BRIDGE_CAMERA.position) + 0.4 * forward, (8, 8)) == (4, 4)
    assert token_of(BRIDGE_CAMERA, np.array(BRIDGE_CAMERA.position) - 0.4 * forward, (8, 8)) is None
    left = BRIDGE_CAMERA.rotation_camera_to_base[:, 1]
    assert token_of(BRIDGE_CAMERA, np.array(BRIDGE_CAMERA.position) + forward + 0.5 * left, (8, 8)) == (4, 0)
    assert token_of(BRIDGE_CAMERA, np.array(BRIDGE_CAMERA.position) + forward + 0.6 * left, (8, 8)) is None


def test_it_still_solves_what_it_solved(policy):
    """A configuration of each task that it solved when it was measured; one may fail, as on another CPU."""
    off = replace(DTP, variant="off")
    solved = {task: [s.success for s in sights(policy, fixed_layout(task, e), off)][-1] for task, e in SOLVED.items()}
    assert sum(solved.values()) >= len(TASKS) - 1, solved


def test_the_important_region_holds_the_source(policy):
    """With DTP: 99.8 % of 1989 frames were measured (docs/tabletop.md); and something is cut."""
    seen = [s for task, e in SOLVED.items() for s in sights(policy, fixed_layout(task, e), DTP)]
    assert len(seen) > 40
    assert np.mean([sight.inside["source"] for sight in seen]) >= 0.95
    assert 0 < np.mean([sight.trace.fire_rate > 0 for sight in seen]) < 1


@pytest.mark.long
def test_the_card_over_ros(tmp_path):
    """90 of 96 were measured; the least that is not a worse policy, by the lower end of Wilson's interval, is 83."""
    command = [sys.executable, "tools/success_table.py", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=1500)
    records = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert len(records) == 96
    assert sum(record["success"] for record in records) >= 83

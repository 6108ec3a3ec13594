"""The tabletop as a benchmark of vla-eval: semantics, gate and kinematics included, without ROS."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_eval import specs
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.protocol.numpy_codec import set_image_format

from dtp_ros.errors import require_choice, require_integer
from dtp_ros.sim.arm import GRIPPER_CLOSED, GRIPPER_OPEN
from dtp_ros.sim.layout import Layout, random_layout
from dtp_ros.sim.lockstep import LockStep
from dtp_ros.sim.tabletop import CONTROL_PERIOD, Tabletop
from dtp_ros.sim.tasks import MAX_DISTRACTORS, SETTINGS, TASKS
from dtp_ros.widowx.semantics import bridge_state

SETTLED = 5  # control periods that a success must last, as in tools/success_table.py
MAX_STEPS = max(task.steps for task in TASKS.values())


def study_layout(task: str, episode: int, setting: str = "plain", *, distractors: int = 0, seed: int = 0) -> Layout:
    """Configuration `episode` of any number: none of the 24 fixed ones, none of training. Raises ConfigError."""
    require_choice("setting", setting, SETTINGS)
    require_integer("episode", episode, 0, 2**31 - 1)
    require_integer("seed", seed, 0, 2**31 - 1)
    require_integer("distractors", distractors, 0, MAX_DISTRACTORS)
    key = [zlib.crc32(name.encode()) for name in ("study", task, setting)]
    return random_layout(task, np.random.default_rng([*key, seed, episode]), distractors=distractors, setting=setting)


class TabletopBenchmark(StepBenchmark):
    """Four pick-and-place tasks on a simulated WidowX 250S; as many episodes as one likes, the same on every run.

    Actions [7] are those of `ActionChunk`. An episode ends with a success that has lasted a second, or with its time.
    """

    render_backends = frozenset({"gpu", "cpu"})
    endless = True  # every number has an episode of its own

    def __init__(self, setting: str = "plain", distractors: int = 0, seed: int = 0) -> None:
        """setting: plain | clutter | lookalike | unseen. Raises ConfigError."""
        super().__init__()
        self._about: dict[str, Any] = {
            "setting": require_choice("setting", setting, SETTINGS),
            "distractors": distractors,
            "seed": seed,
        }
        self._episode: LockStep | None = None
        set_image_format("raw")  # this process's messages stay on one machine; PNG takes as long as the policy

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        """EGL either way: it takes a GPU where there is one."""
        return {}

    def get_tasks(self) -> list[dict[str, Any]]:
        """The tasks, by name."""
        return [{"name": name, "suite": self._about["setting"]} for name in TASKS]

    def get_metadata(self) -> dict[str, Any]:
        """The longest task's steps; each ends by itself."""
        return {"max_steps": MAX_STEPS, **self._about}

    def get_metric_keys(self) -> dict[str, str]:
        """Success and grasp rates."""
        return {"success": "mean", "grasped": "mean"}

    def reset(self, task: dict[str, Any]) -> NDArray[np.uint8]:
        """Begin the episode that `episode_idx` counts."""
        self.cleanup()
        self._episode = LockStep(study_layout(task["name"], int(task.get("episode_idx", 0)), **self._about))
        self._grasped, self._lasted = False, 0
        return self._table.render()

    def step(self, action: dict[str, Any]) -> StepResult:
        """Carry out one action, or hold."""
        assert self._episode is not None
        if action.get("hold"):
            self._episode.hold()
        else:
            self._episode.act(np.asarray(action["actions"], dtype=np.float64))
        table = self._table
        self._grasped = self._grasped or table.grasped() == table.source
        self._lasted = self._lasted + 1 if table.success() else 0
        over = table.time >= table.task.steps * CONTROL_PERIOD - 1e-6
        image = table.render()
        self._recorder.record_video(image)
        return StepResult(obs=image, reward=float(self._lasted > 0), done=over or self._lasted > SETTLED, info={})

    def make_obs(self, raw_obs: NDArray[np.uint8], task: dict[str, Any]) -> dict[str, Any]:
        """Image [480, 640, 3], instruction, and the arm's state [7] as Bridge has it."""
        table = self._table
        opening = (table.gripper - GRIPPER_CLOSED) / (GRIPPER_OPEN - GRIPPER_CLOSED)
        return {
            "images": {"camera": raw_obs},
            "task_description": table.task.instruction,
            "state": bridge_state(table.transform_ee_to_base, float(np.clip(opening, 0.0, 1.0))),
        }

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        """Whether the task was solved at the end, and whether the right object was ever held."""
        return {"success": self._lasted > 0, "grasped": self._grasped}

    def get_action_spec(self) -> dict[str, specs.DimSpec]:
        """Increments in m and rad, opening 0 ... 1."""
        return {"position": specs.POSITION_DELTA, "rotation": specs.ROTATION_EULER, "gripper": specs.GRIPPER_01}

    def get_observation_spec(self) -> dict[str, specs.DimSpec]:
        """One camera, words, the arm's state."""
        return {"camera": specs.IMAGE_RGB, "language": specs.LANGUAGE, "state": specs.RAW}

    def get_hold_action(self, last_action: dict[str, Any] | None) -> dict[str, Any]:
        """What to do where no action came in time."""
        return {"actions": np.zeros(7), "hold": True}

    def render(self) -> NDArray[np.uint8] | None:
        """The camera's image now."""
        return None if self._episode is None else self._table.render()

    def cleanup(self) -> None:
        """Free the graphics context."""
        if self._episode is not None:
            self._episode.close()
            self._episode = None

    @property
    def _table(self) -> Tabletop:
        assert self._episode is not None
        return self._episode.table

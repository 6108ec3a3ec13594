"""config/study: every file loads, fits vla-eval and our server, and the pairs of docs/study.md fit each other."""

import inspect
import math
import os
import re
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import yaml
from vla_eval.cli import smoke
from vla_eval.cli.config_loader import load_config
from vla_eval.cli.main import _build_serve_cmd
from vla_eval.config import DockerConfig, EvalConfig
from vla_eval.recording import NullEpisodeRecorder
from vla_eval.registry import resolve_import_string

from dtp_ros.models.action_tokens import load_statistics
from dtp_ros.models.registry import model_defaults
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.study.embodiments import embodiment
from dtp_ros.study.server import Constants, DtpModelServer

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "config" / "study"
BENCHMARKS = sorted(path for path in (STUDY / "benchmarks").glob("*.yaml") if not path.name.startswith("_"))
TABLETOP = STUDY / "servers" / "tabletop.yaml"
SERVERS = sorted((STUDY / "servers").glob("*.yaml"))
PAIR = re.compile(r"--server (\S+) --benchmark (\S+)")
# Episodes of the published protocols, by the name of an entry: SIMPLER's scripts; LIBERO: 10 tasks of 50 states.
PUBLISHED = {
    "simpler_widowx": 4 * 24,
    "pick_coke_can_vm": 4 * 3 * 25,
    "move_near_vm": 4 * 60,
    "pick_coke_can_va": 11 * 3 * 25,
    "move_near_va": 10 * 60,
    **{f"{verb}_{level}_drawer_vm": 4 * 9 for verb in ("open", "close") for level in ("top", "middle", "bottom")},
}
YAWS = (0.0, -0.02, -0.025, -0.03, -0.06, -0.09)  # rad, of the robot in SIMPLER's scripts


def names(paths):
    return [path.stem for path in paths]


def benchmark_file(name):
    return STUDY / "benchmarks" / f"{name}.yaml"


@cache
def loaded(path):
    return load_config(str(path))


def entries(path):
    return loaded(path)["benchmarks"]


@cache
def built(path):
    """The benchmarks of a file, constructed: none of them needs its simulator for that."""
    return [resolve_import_string(entry["benchmark"])(**entry.get("params", {})) for entry in entries(path)]


@pytest.mark.parametrize("path", BENCHMARKS, ids=names(BENCHMARKS))
def test_a_benchmark_passes_vla_evals_validation(path):
    test = smoke.smoke_test_from_path(path)
    assert test.category == "benchmark"
    result = smoke.run_validate([test])
    assert result.status == "pass", result.message


@pytest.mark.parametrize("path", BENCHMARKS, ids=names(BENCHMARKS))
def test_an_entry_has_no_key_that_vla_eval_ignores(path):
    known = {field.name for field in fields(EvalConfig)}
    for entry in entries(path):
        assert entry.keys() <= known
        assert all(isinstance(entry.get(key), str) for key in ("name", "subname"))
        accepted = inspect.signature(resolve_import_string(entry["benchmark"]).__init__).parameters
        assert entry["params"].keys() <= accepted.keys()
    docker = loaded(path).get("docker") or {}
    assert docker.keys() <= {field.name for field in fields(DockerConfig)}
    assert len(built(path)) == len(entries(path))


def test_no_two_entries_have_one_name():
    # The log tells episodes apart by it; a study may lie in one log with another.
    every = [EvalConfig.from_dict(entry).resolved_name() for path in BENCHMARKS for entry in entries(path)]
    assert len(every) == len(set(every))


def test_simpler_has_the_published_numbers_of_episodes():
    counted = dict.fromkeys(PUBLISHED, 0)
    for path in BENCHMARKS:
        for entry in entries(path):
            if "simpler" in entry["benchmark"]:
                counted[entry["name"]] += entry["episodes_per_task"]
    assert counted == PUBLISHED


@pytest.mark.parametrize("path", [benchmark_file(f"simpler_google_{kind}") for kind in ("vm", "va", "vm_drawers")])
def test_every_episode_on_the_google_robot_has_a_start_of_its_own(path):
    starts = set()
    for entry, benchmark in zip(entries(path), built(path), strict=True):
        assert len(benchmark._va_grid) == entry["episodes_per_task"], "a grid that is cut, or begun again"
        for robot, options in benchmark._va_grid:
            # SAPIEN: w x y z. The robot stands upright, turned by half a turn and the script's yaw.
            w, x, y, z = options["robot_rot_quat"]
            assert (x, y) == (0.0, 0.0)
            yaw = math.remainder(2 * math.atan2(z, w) - math.pi, 2 * math.pi)
            assert min(abs(yaw - published) for published in YAWS) < 1e-5
            start = [entry["params"][key] for key in ("env_name", "scene_name", "env_build_kwargs")]
            starts.add(repr([entry["name"], *start, robot, options]))
    assert len(starts) == sum(entry["episodes_per_task"] for entry in entries(path))


def test_nothing_on_the_google_robot_depends_on_a_default_that_is_not_simplers():
    for kind in ("vm", "va", "vm_drawers"):
        for entry in entries(benchmark_file(f"simpler_google_{kind}")):
            params = entry["params"]
            assert params["control_mode"].startswith("arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd")
            # `binary` would send 1, which our policies open with, as 1, which closes this robot.
            assert params["gripper_mode"] == "sticky"
            assert params["env_build_kwargs"].items() >= {"control_freq": 3, "sim_freq": 513}.items()
            assert ("rgb_overlay_path" in params["env_build_kwargs"]) == (kind != "va")


class Simulator:
    """In the place of SAPIEN's: notes what a controller would get."""

    def step(self, action):
        self.gripper = float(action[6])
        return None, 0.0, False, False, {}


@pytest.mark.parametrize(
    ("name", "opening", "expected"),
    [
        ("simpler_widowx", 1.0, 1.0), ("simpler_widowx", 0.0, -1.0),  # SIMPLER: 1 opens the WidowX
        ("simpler_google_vm", 1.0, -1.0), ("simpler_google_vm", 0.0, 1.0),  # 1 closes the Google Robot
        ("simpler_google_va", 1.0, -1.0), ("simpler_google_va", 0.0, 1.0),
    ],
)  # fmt: skip
def test_an_open_gripper_opens(name, opening, expected):
    robot = embodiment(name.removesuffix("_vm").removesuffix("_va"))
    for entry in entries(benchmark_file(name)):
        benchmark = resolve_import_string(entry["benchmark"])(**entry["params"])
        benchmark._env, benchmark._recorder = Simulator(), NullEpisodeRecorder()
        benchmark.step({"actions": robot.act(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, opening]))})
        assert benchmark._env.gripper == expected


@pytest.mark.parametrize("suite", ["spatial", "object", "goal", "10"])
def test_a_libero_file_has_its_suite_and_nothing_else_of_its_own(suite):
    for ending, steps in (("", None), ("_990", 990)):
        (entry,) = entries(benchmark_file(f"libero_{suite}{ending}"))
        params = dict(entry["params"])
        limit = params.pop("max_steps")
        assert params == {"suite": f"libero_{suite}", "seed": 7, "env_seed": 0, "num_steps_wait": 10}
        assert limit == (steps or {"spatial": 220, "object": 280, "goal": 300, "10": 520}[suite])
        assert entry["episodes_per_task"] == 50


@pytest.mark.parametrize("path", SERVERS, ids=names(SERVERS))
def test_a_server_file_fits_the_server_and_its_model(path):
    config = loaded(path)
    assert config == yaml.safe_load(path.read_text()), "`python -m dtp_ros.study.server` does not know `extends`"
    assert config.keys() == {"script", "port", "args"}
    assert (ROOT / config["script"]).is_file()
    args = config["args"]
    inspect.signature(DtpModelServer).bind(**args)
    robot = embodiment(args["embodiment"])
    defaults = model_defaults(args["model"])
    constants = Constants.of(args["model"], args["checkpoint"], robot.control_frequency, args.get("parameters") or {})
    # The paper keeps one set of constants for all tasks and robots: what differs is how actions are carried out.
    assert constants.pruning == PruningConfig(**{f.name: defaults[f.name] for f in fields(PruningConfig)})
    options = args.get("options") or {}
    assert options.keys() <= defaults["options"].keys()
    for name, value in options.items():
        own = defaults["options"][name]
        assert isinstance(value, int if own is None else type(own)), name


@pytest.mark.parametrize("path", SERVERS, ids=names(SERVERS))
def test_both_ways_to_start_a_server_read_the_same(path):
    """`python -m dtp_ros.study.server --config` and the command line that `vla-eval serve` makes of the file."""
    config = loaded(path)
    command = _build_serve_cmd("uv", ROOT / config["script"], config)
    for line in (["--config", str(path)], command[3:]):
        parsed = parser().parse_args(line)
        given = parsed.args.as_dict()
        assert {key: given[key] for key in config["args"]} == config["args"]
        assert parsed.port == config["port"] == 8000


def test_pruning_can_be_switched_off_on_the_command_line():
    line = ["--config", str(STUDY / "servers" / "nora_libero_goal.yaml"), "--args.parameters.variant", "off"]
    parameters = parser().parse_args(line).args.parameters
    assert parameters["execute_horizon"] == 5
    assert Constants.of("nora", "tiny", 20.0, parameters).pruning.variant == "off"


def test_what_a_servers_file_sets_holds_under_every_arm():
    server = DtpModelServer(device="cpu", parameters={"top_k": 20})
    server.begin("off", {"variant": "off"})
    assert server._constants.pruning.top_k == 20
    server.begin("other", {"top_k": 9})
    assert server._constants.pruning.top_k == 9


def parser():
    """As `vla_eval.model_servers.serve.run_server` builds its own."""
    made = jsonargparse.ArgumentParser()
    made.add_argument("--config", action=jsonargparse.ActionConfigFile)
    made.add_argument("--port", type=int, default=8000)
    made.add_argument("--script", default=None)
    made.add_class_arguments(DtpModelServer, nested_key="args", fail_untyped=False, sub_configs=True)
    return made


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
@pytest.mark.parametrize("value", [-0.3, -0.02, 0.0, 0.04, 0.3, 0.9, 1.0])
def test_noras_gripper_on_libero_is_that_of_its_own_evaluation(suite, value):
    """declare-lab/nora, experiments/libero: scaled as if normalised, to -1 ... 1, its sign, turned round."""
    scaled = 0.5 * (value + 1.0) * (1.0 - 0.0) + 0.0
    sign = -float(np.sign(2.0 * scaled - 1.0))
    published = 1.0 if sign >= 0.0 else sign
    statistics = load_statistics(STUDY / "statistics" / "nora_libero", suite)
    action = statistics.unnormalise(np.array([0.1, -0.2, 0.3, 0.1, -0.5, 1.0, value]))
    assert embodiment("libero").act(np.clip(action, -1.0, 1.0))[6] == published
    assert (statistics.q01 < statistics.q99).all()


def test_the_rows_in_the_document_are_pairs_that_fit():
    pairs = PAIR.findall((ROOT / "docs" / "study.md").read_text())
    assert len(pairs) >= 11, "the rows of the paper"
    for server, benchmark in pairs:
        robot = loaded(ROOT / server)["args"]["embodiment"]
        for entry in entries(ROOT / benchmark):
            params = entry["params"]
            if "libero" in entry["benchmark"]:
                assert robot in ("libero", "libero_metres")
                assert Path(server).stem.endswith(params["suite"])
                options = loaded(ROOT / server)["args"]["options"]
                assert options["statistics_key"] == params["suite"]
            elif "simpler" in entry["benchmark"]:
                assert robot == f"simpler_{'google' if params['task_name'].startswith('google_robot') else 'widowx'}"
            else:
                assert robot == "tabletop"


def test_every_file_is_named_in_the_document():
    text = (ROOT / "docs" / "study.md").read_text()
    for path in (*BENCHMARKS, *SERVERS):
        family = re.sub(r"(libero)_\w+", r"\1_*", path.stem)
        assert f"{path.stem}.yaml" in text or f"{family}.yaml" in text or path.stem == "tabletop", path.name


def smoked(path, timeout=240):
    """vla-eval's own test of a server: started by uv, shown two black pictures and a state of eight numbers."""
    result = smoke.run_server_test(smoke.smoke_test_from_path(path), timeout)
    if result.message == "uv not found on PATH":
        pytest.skip("uv is not installed (requirements/study.txt)")
    return result


@pytest.fixture
def where_a_user_is(monkeypatch):
    """In the repository's root, with this environment."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("UV_NO_PROJECT", "1")  # else uv writes a uv.lock beside pyproject.toml
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def changed(path, tmp_path, **args):
    """A copy of a server's file with other arguments."""
    config = loaded(path)
    copy = tmp_path / path.name
    copy.write_text(yaml.safe_dump({**config, "args": {**config["args"], **args}}))
    return copy


def test_the_tabletops_server_passes_vla_evals_smoke_test(where_a_user_is, tmp_path):
    result = smoked(changed(TABLETOP, tmp_path, embodiment="libero"))  # whose cameras and state the stub has
    assert result.status == "pass", result.message


@pytest.mark.long
def test_an_observation_without_the_servers_cameras_is_refused(where_a_user_is):
    refused = smoked(TABLETOP)  # the stub is no tabletop: rightly so
    assert refused.status == "fail"
    assert "no image 'camera' (there are: agentview, wrist)" in refused.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("nora_libero_spatial", marks=pytest.mark.long),
        pytest.param("openvla_libero_spatial", marks=pytest.mark.long),
        pytest.param("pi0_fast_libero", marks=pytest.mark.long),  # it takes the state, and two cameras
        pytest.param("spatialvla_simpler_widowx", marks=pytest.mark.long),
        pytest.param("univla_simpler_widowx", marks=pytest.mark.long),
    ],
)
def test_a_model_of_random_weights_passes_vla_evals_smoke_test(name, where_a_user_is, tmp_path):
    path = STUDY / "servers" / f"{name}.yaml"
    # Random weights have statistics of their own.
    options = {k: v for k, v in loaded(path)["args"].get("options", {}).items() if not k.startswith("statistics")}
    result = smoked(changed(path, tmp_path, checkpoint="tiny", embodiment="libero", options=options))
    assert result.status == "pass", result.message

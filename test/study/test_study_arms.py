"""dtp_ros/study/arms.py and the command line."""

import pytest

from dtp_ros.errors import ConfigError
from dtp_ros.study import arms, main


def test_a_sweep_has_every_tolerance_once_and_both_ends():
    found = arms.sweep([1.0, 0.25, 1.0])
    assert [arm.name for arm in found] == ["off", "dtp 0.25", "dtp 1", "min_entropy 0.25,1"]
    assert [arm.parameters.get("tolerance") for arm in found] == [None, 0.25, 1.0, None]
    assert found[-1].parameters["tolerance_grid"] == (0.25, 1.0)


def test_an_ablation_has_the_rows_of_table_4_at_one_tolerance():
    found = arms.ablation(0.5)
    assert [arm.name for arm in found] == [
        "off", "dtp 0.5", "no_gaussian 0.5", "random_all 0.5", "random_unimportant 0.5",
    ]  # fmt: skip
    assert {arm.parameters["tolerance"] for arm in found[1:]} == {0.5}


def test_shared_constants_are_part_of_the_name():
    shared = arms.parsed(["mask_scope=action", "relevance_layers=[1, 2]"])
    assert shared == {"mask_scope": "action", "relevance_layers": [1, 2]}
    arm = arms.sweep([0.5], shared)[1]
    assert arm.name == "dtp 0.5 mask_scope=action relevance_layers=[1, 2]"
    assert arm.parameters == {**shared, "variant": "dtp", "tolerance": 0.5, "tolerance_mode": "fixed"}
    assert arms.sweep([0.5], shared)[0].parameters == {"variant": "off"}


@pytest.mark.parametrize("text", ["tolerance=0.3", "variant=dtp", "execute_horizon=2", "top_k", "speed=1", "=3"])
def test_what_is_no_constant_is_refused(text):
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        arms.parsed([text])


def test_a_value_that_is_not_readable_is_named():
    with pytest.raises(ConfigError, match=r"relevance_layers=\[1,2"):
        arms.parsed(["relevance_layers=[1,2"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--episodes", "0"], "episodes = 0"),
        (["--shards", "0"], "shards = 0"),
        (["--entries", "lookalike", "typo"], "no entry typo (valid: plain, clutter, lookalike, unseen)"),
        (["--tasks", "typo"], "no task is called typo"),
        (["--server", "none.yaml"], "none.yaml is not there"),
        (["--tolerances", "3"], "tolerance = 3.0"),
        (["--set", "top_k=9999"], "top_k"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(capsys, tmp_path, arguments, said):
    assert main.main(["sweep", "--out", str(tmp_path), *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "vla-eval").exists()


def test_half_is_refused_where_tasks_are_not_known(capsys, tmp_path):
    path = "config/study/benchmarks/simpler_widowx.yaml"
    assert main.main(["sweep", "--out", str(tmp_path), "--half", "tuning", "--benchmark", path]) == 1
    assert "are not known outside its container" in capsys.readouterr().err


def test_an_episode_is_not_counted_twice(capsys, tmp_path):
    path = "config/study/benchmarks/simpler_widowx.yaml"
    assert main.main(["sweep", "--out", str(tmp_path), "--episodes", "25", "--benchmark", path]) == 1
    assert "episodes = 25 exceeds the 24 of" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--labels", "--topic", "--benchmark"])
def test_what_is_for_recordings_is_refused_without_one(capsys, tmp_path, option):
    assert main.main(["attention", "--log", "log.jsonl", option, "word", "--out", str(tmp_path)]) == 1
    assert f"{option} is for recordings (valid: with --bag)" in capsys.readouterr().err


def test_an_arm_that_is_not_there_is_named(capsys, tmp_path):
    assert main.main(["ablate", "--arms", "dtp 0.7", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "'dtp 0.7'" in said
    assert "dtp 0.5" in said


def test_a_file_that_is_not_there_is_named(capsys, tmp_path):
    assert main.main(["sweep", "--benchmark", str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 1
    assert "none.yaml is not there" in capsys.readouterr().err

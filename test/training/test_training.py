from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from shard_maker import fails_at_4

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.errors import ConfigError
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.tabletop import TabletopAdapter, write_checkpoint
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.sim.tasks import TASKS
from dtp_ros.training import main as training_main
from dtp_ros.training.demonstrations import Frames
from dtp_ros.training.objective import Batches, Objective
from dtp_ros.training.rollouts import BatchPolicy
from dtp_ros.training.shards import read_shards, require_made, save_shard, shard_path, write_shards
from dtp_ros.training.trainer import Trainer, TrainingConfig

OFF = PruningConfig(variant="off", relevance_layers=(1, 2), top_k=7, mask_schedule="per_step")


def test_many_at_once_act_as_the_engine_does_one_by_one(network, tokenizer, statistics, frames):
    """Instructions of different lengths in one padded batch; the engine has neither batch nor padding."""
    for name, value in network.named_parameters():
        if "norm" not in name and value.dim() > 1:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    adapter = TabletopAdapter(network.eval().requires_grad_(False), tokenizer, statistics)
    said = ["put the spoon on the towel", "stack the green block on the yellow block", "go", *["put it"] * 3]
    images = frames.images[:: len(frames) // 6][:6]
    actions = BatchPolicy(adapter)(images, said)
    policy = DtpPolicy(adapter)
    for image, instruction, action in zip(images, said, actions, strict=True):
        result = policy.step(Observation((image,), instruction), OFF, GenerationConfig())
        np.testing.assert_array_equal(result.chunk.actions[0], action)
    assert len({tuple(action) for action in actions}) >= 4


def trainer(network, folder, data=None, **changes) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = TrainingConfig(**{"steps": 8, "batch": 4, "report": 2, "save": 4, **changes})
    torch.manual_seed(5)
    return Trainer(Objective(network), config, folder, data)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    network, config, tokenizer, frames, statistics, tmp_path, monkeypatch
):
    batches = Batches(frames, statistics, config, tokenizer, seed=1)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    whole = trainer(network, tmp_path / "whole")
    whole.run(batches, 8, dict)
    expected = {name: value.clone() for name, value in whole.averaged(network).state_dict().items()}

    network.load_state_dict(start)
    cut = trainer(network, tmp_path / "cut")

    class InterruptedTrainingError(Exception):
        pass

    def until_six(number, size):
        if number == 6:
            raise InterruptedTrainingError
        return batches(number, size)

    with pytest.raises(InterruptedTrainingError):
        cut.run(until_six, 8, dict)
    resumed = trainer(network, tmp_path / "cut")
    assert resumed.step == 4
    resumed.run(batches, 8, dict)
    assert resumed.step == 8
    for name, value in resumed.averaged(network).state_dict().items():
        assert value.equal(expected[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "whole" / "training.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]


def test_a_state_of_another_configuration_is_not_gone_on_with(network, config, tokenizer, frames, statistics, tmp_path):
    trainer(network, tmp_path / "t").run(Batches(frames, statistics, config, tokenizer, seed=1), 4, dict)
    with pytest.raises(ConfigError, match=r"state\.pt is of a training with .*'seed': 0.*another folder"):
        trainer(network, tmp_path / "t", seed=1)
    with pytest.raises(ConfigError, match=r"state\.pt is of a training with .*, not .*'shards': 10"):
        trainer(network, tmp_path / "t", data={"shards": 10})


def test_figures_are_means_over_the_steps_that_were_run(network, config, tokenizer, frames, statistics, tmp_path):
    """Three steps, then two more to the first report at 4: the mean is over one, as the losses themselves say."""
    batches, seen = Batches(frames, statistics, config, tokenizer, seed=1), []
    one = trainer(network, tmp_path / "t", report=4, save=100)
    one.objective.register_forward_hook(lambda module, inputs, losses: seen.append(float(losses["action"].detach())))
    one.run(batches, 3, dict)
    one.run(batches, 5, dict)
    (record,) = [json.loads(line) for line in (tmp_path / "t" / "training.jsonl").read_text().splitlines()]
    assert record["step"] == 4
    assert record["action"] == pytest.approx(seen[3], abs=1e-5)


@pytest.mark.parametrize("option", ["--steps=0", "--workers=0", "--shards=0", "--seed=-1", "--choice-episodes=0"])
def test_options_out_of_range_are_one_line(option, tmp_path, capsys):
    assert training_main.main([option, "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: ")
    assert option[2:].split("=")[0].replace("-", "_") in line
    assert "valid" in line


def test_learning_rates_rise_and_fall():
    config = TrainingConfig(steps=1000, warm_up=100)
    shares = np.array([config.share(step) for step in range(1000)])
    assert shares[0] == pytest.approx(0.01)
    assert 95 <= shares.argmax() <= 105
    assert (np.diff(shares[105:]) < 0).all()
    assert shares[-1] == pytest.approx(0.02, abs=1e-3)


def test_shards_that_were_made_otherwise_are_not_mixed_in(frames, tmp_path):
    require_made(tmp_path, {"pixels": 64})
    save_shard(shard_path(tmp_path, 3), frames)
    require_made(tmp_path, {"pixels": 64})
    with pytest.raises(ConfigError, match=r"made with {'pixels': 64}, not {'pixels': 128}"):
        require_made(tmp_path, {"pixels": 128})
    (tmp_path / "made.json").unlink()
    with pytest.raises(ConfigError, match="made with None"):
        require_made(tmp_path, {"pixels": 64})


def test_shards_come_back_as_they_were_and_are_not_made_twice(frames, tmp_path):
    save_shard(shard_path(tmp_path, 3), frames)
    write_shards(tmp_path, [3], _never, workers=1, name="test")
    back = read_shards(tmp_path, [3, 3])
    for name in Frames.__dataclass_fields__:
        value = getattr(frames, name)
        np.testing.assert_array_equal(getattr(back, name), np.concatenate([value, value]))
    assert [path.name for path in tmp_path.iterdir()] == ["0003.npz"]


def _never(seed: int) -> Frames:
    raise AssertionError(seed)


def test_shards_are_made_in_another_process_and_after_one_that_failed_no_more_are_begun(tmp_path):
    with pytest.raises(ValueError, match="a full disk"):
        write_shards(tmp_path, range(1, 60), fails_at_4, workers=1, name="test")
    assert len(list(tmp_path.iterdir())) < 12  # what had been handed to the process
    np.testing.assert_array_equal(read_shards(tmp_path, [1]).images, fails_at_4(1).images)


@pytest.mark.long
def test_shards_are_made_in_several_processes(tmp_path):
    write_shards(tmp_path, [1, 2], fails_at_4, workers=2, name="test")
    np.testing.assert_array_equal(read_shards(tmp_path, [2]).images, fails_at_4(2).images)


@pytest.mark.long
def test_make_train_from_nothing_in_small(tmp_path, monkeypatch, capsys):
    """Every stage with a handful of frames: the result loads and acts; asked again, nothing is done anew."""
    monkeypatch.setattr(training_main, "SHARD_FRAMES", 60)
    monkeypatch.setattr(training_main, "VALIDATION_SAMPLES", 64)
    arguments = ["--out", str(tmp_path), "--steps", "10", "--shards", "2", "--own-shards", "1",
                 "--choice-episodes", "1", "--workers", "1"]  # fmt: skip
    assert training_main.main(arguments) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frames"]["demonstrations"] >= 120
    assert report["frames"]["own episodes"] >= 60
    assert set(report["candidates"][report["chosen"]]) == set(TASKS)
    adapter = load_adapter("tabletop", str(tmp_path / "checkpoint"))
    weights = (tmp_path / "checkpoint" / "model.safetensors").read_bytes()
    assert weights == (tmp_path / report["chosen"] / "model.safetensors").read_bytes()
    result = DtpPolicy(adapter).step(
        Observation((np.zeros((480, 640, 3), np.uint8),), "put the carrot on the plate"), OFF, GenerationConfig()
    )
    assert result.chunk is not None
    assert training_main.main(arguments) == 0
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == weights


@pytest.mark.long
@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_finetuning_begins_with_the_checkpoint(rate, network, tokenizer, statistics, tmp_path, monkeypatch, capsys):
    """At a rate of nothing it ends with the weights it began with; the bins and words are the checkpoint's always."""
    monkeypatch.setattr(training_main, "SHARD_FRAMES", 60)
    monkeypatch.setattr(training_main, "VALIDATION_SAMPLES", 64)
    begin = tmp_path / "begin"
    write_checkpoint(begin, network, tokenizer, statistics)
    arguments = ["--out", str(tmp_path / "out"), "--finetune", str(begin), "--rate", str(rate), "--drop", "0.5",
                 "--steps", "4", "--shards", "1", "--own-shards", "0", "--choice-episodes", "1"]  # fmt: skip
    assert training_main.main(arguments) == 0
    end = load_adapter("tabletop", str(tmp_path / "out" / "checkpoint")).network.state_dict()
    changed = [name for name, value in network.state_dict().items() if not value.equal(end[name])]
    assert bool(changed) == (rate > 0)
    for name in ("norm_stats.json", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / "checkpoint" / name).read_bytes() == (begin / name).read_bytes()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["finetuned"] == str(begin)
    write_checkpoint(tmp_path / "second", network, tokenizer, statistics)
    arguments[3] = str(tmp_path / "second")  # a state that began elsewhere is not gone on with
    assert training_main.main(arguments) == 1
    assert "is of a training with" in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_to_finetune_that_is_not_there_is_one_line(tmp_path, capsys):
    assert training_main.main(["--out", str(tmp_path / "out"), "--finetune", str(tmp_path / "none")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "none" in line
    assert not (tmp_path / "out").exists()


def test_a_written_checkpoint_is_read_back_bit_for_bit(network, tokenizer, statistics, tmp_path):
    write_checkpoint(tmp_path / "c", network, tokenizer, statistics)
    adapter = load_adapter("tabletop", str(tmp_path / "c"))
    own = network.state_dict()
    for name, value in adapter.network.state_dict().items():
        assert value.equal(own[name]), name
    assert adapter.words("put the spoon") == tokenizer.encode("put the spoon").ids

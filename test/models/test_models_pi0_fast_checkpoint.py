"""Each way in which a pi0-FAST checkpoint can be broken, foreign, or laid out otherwise, and its statistics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pi0_fast_harness import PREFIX, WEIGHTS, observation
from safetensors.torch import load_file, save_file

from dtp_ros.errors import CheckpointError, ConfigError
from dtp_ros.models.registry import load_adapter

NORM = f"{PREFIX}model.language_model.norm.weight"


@pytest.fixture
def broken(pi0_fast_folder, tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(pi0_fast_folder, copy)
    return copy


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_step(folder: Path, pipeline: str, name: str, change) -> None:
    """Apply `change` to a step of a pipeline's JSON."""
    path = folder / f"policy_{pipeline}.json"
    raw = json.loads(path.read_text())
    change(next(step for step in raw["steps"] if step["registry_name"] == name))
    path.write_text(json.dumps(raw))


def edit_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def load(folder: Path, **options: object):
    return load_adapter("pi0_fast", str(folder), device="cpu", options={"convention": "libero", **options})


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_of_a_data_set_serve_a_checkpoint_without(broken, tmp_path):
    """As pi0fast-base: the steps have neither features nor a state file."""
    for pipeline, step in (("preprocessor", "normalizer_processor"), ("postprocessor", "unnormalizer_processor")):
        edit_step(broken, pipeline, step, lambda found: found.pop("state_file"))
    with pytest.raises(CheckpointError, match=r"no statistics of 'observation.state'.*meta/stats.json"):
        load(broken)
    spread = {"mean": [0.0], "std": [0.5], "min": [-1.0], "max": [1.0], "count": [9]}
    stats = {
        key: {name: v * size for name, v in spread.items()} for key, size in (("observation.state", 7), ("action", 7))
    }
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "stats.json").write_text(json.dumps(stats))
    adapter = load(broken, statistics=str(tmp_path), convention="bridge")
    assert adapter.state_bins(np.array([0, 0.25, -0.25, 0, 0, 0, 0.6])) == [128, 192, 64, 128, 128, 128, 255]
    assert adapter._assets.action.bound() == pytest.approx(2.0)
    with pytest.raises(CheckpointError, match=r"neither a stats\.json"):
        load(broken, statistics=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t.pop(key) for key in list(t) if key.startswith("action.")], "has: observation.state"),
        (lambda t: t.pop("action.std"), "action lacks std, which MEAN_STD needs"),
        (lambda t: t.update({"action.std": torch.full((7,), torch.nan)}), "not finite"),
        (lambda t: t.update({"action.std": torch.ones(6)}), "of one size"),
        (lambda t: t.update({key: value[:6] for key, value in t.items() if "action" in key}), "actions of 6 numbers"),
        (lambda t: [t.pop(f"action.{name}") for name in ("min", "max")], "set the option action_bound"),
    ],
)
def test_wrong_statistics_are_named(broken, change, message):
    edit_tensors(broken / "policy_postprocessor_step_0_unnormalizer_processor.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load(broken)


def test_a_bound_may_be_given(broken):
    path = broken / "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    edit_tensors(path, lambda t: [t.pop(f"action.{name}") for name in ("min", "max")])
    assert load(broken, action_bound=2.0)._assets.codec.coefficient_limits[0] == int(10 * 2 * np.sqrt(10) + 0.5)


# --- broken and foreign checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["config.json", "policy_preprocessor_step_3_normalizer_processor.safetensors", "tokenizer/tokenizer.json",
     "action_tokenizer/tokenizer.json", "action_tokenizer/processor_config.json", WEIGHTS],
)  # fmt: skip
def test_a_missing_file_is_named(broken, name):
    (broken / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks the file .*{Path(name).name}"):
        load(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "smolvla"}, r"model_type 'smolvla' \(valid here: 'pi0_fast'\)"),
        ({"type": None, "model_type": "qwen2_5_vl"}, "model_type 'qwen2_5_vl'"),
        ({"paligemma_variant": "gemma_300m"}, "'gemma_300m' .valid: gemma_2b"),
        ({"image_resolution": [448, 448]}, "image_resolution"),
        ({"use_relative_actions": True}, "use_relative_actions"),
        ({"chunk_size": 0}, r"chunk_size = 0 \(valid: 1 \.\.\. 64\)"),
        ({"chunk_size": "10"}, "chunk_size = '10'"),
        ({"fast_skip_tokens": 3000}, "do not fit 3072 embeddings"),
    ],
)
def test_a_config_that_is_not_this_models(broken, changes, message):
    edit(broken / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({NORM: torch.full((64,), torch.nan)}), "norm.weight holds values that are not finite"),
        (lambda t: t.pop(NORM), r"lacks the weights model\.language_model\.norm\.weight"),
        (lambda t: t.pop(f"{PREFIX}lm_head.weight"), "lacks the weights .*embed_tokens.weight"),
        (
            lambda t: t.update({"model.action_in_proj.weight": torch.ones(2)}),
            "this model has not: model.action_in_proj",
        ),
        (lambda t: t.update({NORM: torch.ones(32)}), r"shape \[32\], the model needs \[64\]"),
    ],
)
def test_wrong_weights_are_named(broken, change, message):
    edit_tensors(broken / WEIGHTS, change)
    with pytest.raises(CheckpointError, match=message):
        load(broken)


def test_a_truncated_file_is_refused(broken):
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load(broken)


def test_normalisation_that_is_not_known_is_refused(broken):
    edit_step(broken, "preprocessor", "normalizer_processor", lambda s: s["config"]["norm_map"].update(STATE="LOG"))
    with pytest.raises(CheckpointError, match=r"'LOG' of observation\.state is not known \(valid: IDENTITY"):
        load(broken)


def test_images_that_were_normalised_by_statistics_are_refused(broken):
    edit_step(
        broken, "preprocessor", "normalizer_processor", lambda s: s["config"]["norm_map"].update(VISUAL="MEAN_STD")
    )
    with pytest.raises(CheckpointError, match=r"images by 'MEAN_STD' \(valid: IDENTITY\)"):
        load(broken)


def test_a_tokenizer_of_another_model_is_refused(broken):
    shutil.copy(broken / "action_tokenizer" / "tokenizer.json", broken / "tokenizer" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="lacks the token <bos>"):
        load(broken)


def test_todays_names_load_too(broken, pi0_fast, photo):
    """The embedding instead of the head, the vision tower without its middle name, the FAST tokenizer in a folder."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{PREFIX}model.language_model.embed_tokens.weight"] = tensors.pop(f"{PREFIX}lm_head.weight")
        for key in [key for key in tensors if "vision_model" in key]:
            tensors[key.replace("vision_model.", "").removeprefix("model.")] = tensors.pop(key)

    edit_tensors(broken / WEIGHTS, change)
    (broken / "action_tokenizer" / "bpe_tokenizer").mkdir()
    shutil.move(broken / "action_tokenizer" / "tokenizer.json", broken / "action_tokenizer" / "bpe_tokenizer")
    other = load(broken)
    mine, theirs = (a.prepare(observation(photo)).embeddings for a in (pi0_fast, other))
    assert mine.equal(theirs)
    assert other.logits(mine).equal(pi0_fast.logits(mine))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": "droid"}, r"convention = 'droid' is not known \(valid: bridge, libero\)"),
        ({"cameras": 0}, "cameras = 0"),
        ({"cameras": 3}, r"cameras = 3 is out of range \(valid: 1 ... 2\)"),
        ({"action_bound": -1.0}, "action_bound = -1.0"),
        ({"action_bound": float("nan")}, "action_bound = nan"),
        ({"camera": 1}, "camera not known"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        load_adapter("pi0_fast", "tiny", device="cpu", options=options)


def test_what_states_and_actions_mean_has_to_be_said_of_any_other_checkpoint(broken):
    with pytest.raises(ConfigError, match=r"option convention of .* is not set \(valid: bridge, libero;"):
        load_adapter("pi0_fast", str(broken), device="cpu")


def test_a_bound_beyond_all_reason_is_refused(broken):
    """A dimension whose deviation is nearly nothing makes normalised actions without end."""
    path = broken / "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    weights = load_file(path)
    weights["action.std"][0] = 1e-7
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"normalised actions reach .*: set the option action_bound"):
        load(broken)

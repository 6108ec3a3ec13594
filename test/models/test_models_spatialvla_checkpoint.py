"""SpatialVLA's files: against the stock parts of transformers, and each way in which a checkpoint can be broken."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, SiglipVisionModel, ZoeDepthForDepthEstimation

from dtp_ros.errors import CheckpointError
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.spatialvla_network import rename
from dtp_ros.models.tiny_spatialvla import write_tiny_spatialvla

INSTRUCTION = "put the carrot on the plate"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def copied(spatialvla_folder, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(spatialvla_folder, folder)
    return folder


@pytest.fixture(scope="module")
def weights(spatialvla_folder):
    """All weights under the published names, float32."""
    return {name: value.float() for shard in SHARDS for name, value in load_file(spatialvla_folder / shard).items()}


def edit(folder, name: str, **changes) -> None:
    """Change entries of a JSON file; `a__b` is entry b of a."""
    raw = json.loads((folder / name).read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = raw
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    (folder / name).write_text(json.dumps(raw))


def edit_weights(folder, change, shard: str = SHARDS[1]) -> None:
    tensors = load_file(folder / shard)
    change(tensors)
    save_file(tensors, folder / shard)


def refused(folder, message: str, **arguments) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_adapter("spatialvla", str(folder), device="cpu", **arguments)


@torch.no_grad()
def run(adapter, prompt) -> torch.Tensor:
    length = prompt.embeddings.shape[1]
    output = adapter.text_model(
        inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids,
        attention_mask=torch.zeros(1, 1, length, length, dtype=adapter.dtype), use_cache=False,
    )  # fmt: skip
    return adapter.logits(output.last_hidden_state)


# ------------------------------------------------------------------------------------------------ stock parts
def stock(kind, folder, weights, config: dict, prefix: str, tmp_path):
    """A part as `from_pretrained` builds it, with transformers' own renaming of old names."""
    tmp_path.mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config))
    part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    save_file(part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = kind.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def test_every_weight_is_where_transformers_itself_puts_it(spatialvla, spatialvla_folder, weights, tmp_path):
    config = json.loads((spatialvla_folder / "config.json").read_text())
    parts = (
        (SiglipVisionModel, "vision_config", "vision_tower.", spatialvla.network.vision_tower),
        (ZoeDepthForDepthEstimation, "vision_zoe_config", "vision_zoe_model.", spatialvla.network.vision_zoe_model),
    )
    for kind, key, prefix, own in parts:
        model = stock(kind, spatialvla_folder, weights, config[key], prefix, tmp_path / key)
        expected, found = model.state_dict(), own.state_dict()
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name].equal(value), name


def test_logits_equal_the_stock_model(spatialvla, spatialvla_folder, weights, photo):
    """Eager Gemma 2 on token ids and image tokens, with softcaps; action tokens embedded by their own table."""
    config = Gemma2Config(**json.loads((spatialvla_folder / "config.json").read_text())["text_config"])
    config._attn_implementation = "eager"
    model = Gemma2ForCausalLM(config).eval()
    prefix = "language_model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=True)
    table = weights["spatial_embed_tokens.weight"]
    own = spatialvla.vocabulary.action_ids
    assert not model.get_input_embeddings().weight[own].equal(table)
    assert spatialvla.embed(own[None])[0].equal(table * 8.0)  # sqrt(64)
    prompt = spatialvla.prepare(Observation((photo,), INSTRUCTION))
    embeddings = torch.cat([prompt.embeddings, 8.0 * table[None, [5, 4100, 8193]]], dim=1)
    length = embeddings.shape[1]
    mask = torch.full((length, length), -1e30).triu(1)
    mask[: length - 3, : length - 3] = 0.0
    with torch.no_grad():
        expected = model(
            inputs_embeds=embeddings, position_ids=torch.arange(length)[None] + 1, attention_mask=mask[None, None]
        ).logits
        output = spatialvla.text_model(
            inputs_embeds=embeddings, position_ids=torch.arange(length)[None] + 1, attention_mask=mask[None, None]
        )
        logits = spatialvla.logits(output.last_hidden_state)
    assert logits.dtype == torch.float32
    assert expected.abs().max() < 30.0  # the final softcap
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


BIAS = "relative_position_bias.relative_position_bias_table"
# Names of the published index (model.safetensors.index.json of the checkpoints) and where they belong today.
PUBLISHED = {
    "language_model.model.layers.25.self_attn.q_proj.weight": "language_model.model.layers.25.self_attn.q_proj.weight",
    "language_model.lm_head.weight": "language_model.lm_head.weight",
    "spatial_embed_tokens.weight": "spatial_embed_tokens.weight",
    "position_embedding_3d.position_embedding_head.3.bias": "position_embedding_3d.position_embedding_head.3.bias",
    "vision_tower.vision_model.post_layernorm.bias": "vision_tower.post_layernorm.bias",
    "vision_zoe_model.backbone.embeddings.cls_token": "vision_zoe_model.backbone.beit.embeddings.cls_token",
    "vision_zoe_model.backbone.encoder.layer.23.attention.attention.key.weight": (
        "vision_zoe_model.backbone.beit.layers.23.attention.k_proj.weight"
    ),
    f"vision_zoe_model.backbone.encoder.layer.2.attention.attention.{BIAS}": (
        f"vision_zoe_model.backbone.beit.layers.2.{BIAS}"
    ),
    "vision_zoe_model.backbone.encoder.layer.0.attention.output.dense.bias": (
        "vision_zoe_model.backbone.beit.layers.0.attention.o_proj.bias"
    ),
    "vision_zoe_model.backbone.encoder.layer.10.output.dense.weight": (
        "vision_zoe_model.backbone.beit.layers.10.mlp.fc2.weight"
    ),
    "vision_zoe_model.backbone.encoder.layer.10.lambda_1": "vision_zoe_model.backbone.beit.layers.10.lambda_1",
    "vision_zoe_model.metric_head.patch_transformer.transformer_encoder.0.self_attn.query.bias": (
        "vision_zoe_model.metric_head.patch_transformer.transformer_encoder.0.self_attn.query.bias"
    ),
}


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_names_find_their_place(published, weights):
    assert rename(published) == rename(rename(published)) == PUBLISHED[published]
    pattern = re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(published))
    assert any(re.fullmatch(pattern, name) for name in weights)  # the tiny checkpoint has the published names


def test_todays_names_load_too(copied, spatialvla, weights, photo):
    """One file, as transformers 5 would save it."""
    for name in (*SHARDS, "model.safetensors.index.json"):
        (copied / name).unlink()
    save_file({rename(name): value for name, value in weights.items()}, copied / "model.safetensors")
    prompts = [
        a.prepare(Observation((photo,), INSTRUCTION)) for a in (spatialvla, load_adapter("spatialvla", str(copied)))
    ]
    assert prompts[0].embeddings.equal(prompts[1].embeddings)


def test_a_tied_head_is_the_embeddings(copied, spatialvla, photo):
    """Tied as in the original: the action tokens' own embeddings are then the head's too."""
    edit(copied, "config.json", text_config__tie_word_embeddings=True)
    edit_weights(copied, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    tied = load_adapter("spatialvla", str(copied))
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    raw = hidden @ (tied.embed(torch.arange(tied.network.config.text.vocab_size)[None])[0] / 8.0).T
    torch.testing.assert_close(tied.logits(hidden), 30.0 * torch.tanh(raw / 30.0), atol=1e-5, rtol=1e-5)


def test_bfloat16_on_the_cpu_is_close(spatialvla, photo):
    half = load_adapter("spatialvla", "tiny", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    observation = Observation((photo,), INSTRUCTION)
    full, other = (run(a, a.prepare(observation))[0, -1] for a in (spatialvla, half))
    assert other.dtype == torch.float32
    assert torch.corrcoef(torch.stack([full, other]))[0, 1] > 0.9


def test_the_tiny_checkpoint_is_the_same_each_time(spatialvla_folder, tmp_path):
    write_tiny_spatialvla(tmp_path)
    files = sorted(path.name for path in spatialvla_folder.iterdir())
    assert len(files) == 10
    assert sum((tmp_path / name).stat().st_size for name in files) < 10e6
    assert all((tmp_path / name).read_bytes() == (spatialvla_folder / name).read_bytes() for name in files)


def test_horizon_and_statistics_come_from_the_processors_file(copied):
    edit(copied, "processor_config.json", action_chunk_size=2)
    adapter = load_adapter("spatialvla", str(copied), options={"statistics_key": "fractal20220817_data/0.1.0"})
    assert (adapter.horizon, adapter.vocabulary.max_tokens) == (2, 6)
    first = adapter.kinds[0].start
    actions = adapter.decode([first + 7, first + 4096, first + 8193] * 2)
    assert actions.shape == (2, 7)
    assert actions[0, 2] == pytest.approx(0.2184)


# ------------------------------------------------------------------------------------------------ broken
@pytest.mark.parametrize(
    "name", ["config.json", "processor_config.json", "tokenizer.json", SHARDS[0], "model.safetensors.index.json"]
)
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    refused(copied, rf"lacks the file {re.escape(name)}")


def test_another_models_checkpoint_is_called_by_its_name(nora_folder):
    refused(nora_folder, "model_type 'qwen2_5_vl' .valid here: 'spatialvla'")


def test_a_wrong_statistics_key_lists_the_keys(copied):
    keys = r"bridge_orig/1\.0\.0, fractal20220817_data/0\.1\.0"
    refused(copied, rf"no statistics 'bridge_orig' \(valid: {keys}\)", options={"statistics_key": "bridge_orig"})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"use_vision_zoe": False}, r"use_vision_zoe = False \(valid: true\)"),
        ("config.json", {"use_spatial_token": None}, r"use_spatial_token = None \(valid: true\)"),
        ("config.json", {"vision_zoe_config": None}, "not a valid configuration .KeyError: 'vision_zoe_config'"),
        ("config.json", {"action_token_begin_idx": "many"}, "not a valid configuration"),
        ("config.json", {"spatial_token_num": 8000}, "vocab_size = 9987, but actions end at 9793"),
        ("config.json", {"ego3d_patch_reso": 4}, "do not divide each other"),
        ("config.json", {"image_token_index": 5}, "<image> is 1792 in tokenizer.json, 5 in config.json"),
        ("processor_config.json", {"action_chunk_size": 0}, r"action_chunk_size = 0 \(valid: true, 1, 1 \.\.\. 64\)"),
        ("processor_config.json", {"num_obs_steps": 2}, "num_obs_steps = 2"),
        ("processor_config.json", {"action_config__use_spherical": False}, "use_spherical = False"),
        ("processor_config.json", {"bin_policy__rotation__yaw_bins": [0.0, 1.0]}, "4354 cells.*8194 action tokens"),
        ("processor_config.json", {"bin_policy__translation__r_bins": [0, 2, 1]}, "bins that do not ascend"),
        ("processor_config.json", {"bin_policy__translation__r_bins": [0, float("nan")]}, "bins that do not ascend"),
        ("processor_config.json", {"bin_policy__translation": None}, "is incomplete .KeyError: 'translation'"),
        ("processor_config.json", {"intrinsic_config": {}}, "is incomplete .KeyError: 'default'"),
        ("processor_config.json", {"intrinsic_config__bridge_orig/1.0.0__width": 0}, "is incomplete .ZeroDivision"),
        ("processor_config.json", {"intrinsic_config__bridge_orig/1.0.0__intrinsic": [[1.0]]}, "camera matrix"),
        ("processor_config.json", {"statistics": None}, "has no statistics .bridge_orig"),
        ("processor_config.json", {"statistics__bridge_orig/1.0.0__action__mask": None}, "lacks mask"),
    ],
)
def test_broken_settings_are_named(copied, name, changes, message):
    edit(copied, name, **changes)
    refused(copied, message)


def test_broken_json_and_tokenizers_are_named(copied):
    (copied / "tokenizer.json").write_text('{"version": "1.0"}')
    refused(copied, r"tokenizer\.json cannot be read")
    (copied / "processor_config.json").write_text("{")
    refused(copied, r"processor_config\.json is not JSON")


def test_broken_weights_are_named(copied):
    norm = "language_model.model.norm.weight"
    lists = (
        (lambda t: t.__setitem__("spatial_embed_tokens.weight", t["spatial_embed_tokens.weight"] * np.nan),
         r"spatial_embed_tokens\.weight holds values that are not finite"),
        (lambda t: t.__setitem__("spatial_embed_tokens.weight", t["spatial_embed_tokens.weight"][:-1].contiguous()),
         r"shape \[8193, 64\], the model needs \[8194, 64\]"),
        (lambda t: t.__setitem__("extra.weight", torch.zeros(1)), r"has not: extra\.weight"),
    )  # fmt: skip
    whole = (copied / SHARDS[1]).read_bytes()
    for change, message in lists:
        edit_weights(copied, change)
        refused(copied, message)
        (copied / SHARDS[1]).write_bytes(whole)
    edit_weights(copied, lambda t: t.pop("language_model.lm_head.weight"))
    refused(copied, r"lacks the weights language_model\.lm_head\.weight")
    (copied / SHARDS[1]).write_bytes(whole[:1000])
    refused(copied, "truncated or not a safetensors file")
    (copied / SHARDS[1]).write_bytes(whole)
    edit_weights(copied, lambda t: t.__setitem__(norm, t[norm] * np.inf), SHARDS[0])
    refused(copied, "norm.weight holds values that are not finite")

"""dtype int8 and int4: rounding, arithmetic, memory, and what stays as it was, against float64 and plain models.

On a machine with a GPU the same tests run there.
"""

import sys
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.engine.types import GenerationConfig
from dtp_ros.errors import CheckpointError, ConfigError
from dtp_ros.models.action_tokens import ActionStatistics
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter, model_defaults, model_names
from dtp_ros.models.tabletop import word_tokenizer, write_checkpoint
from dtp_ros.models.tabletop_network import TabletopConfig, TabletopNetwork
from dtp_ros.pruning.config import MASK_SCOPES, PruningConfig

NAMES = model_names()
KINDS = ("int8", "int4")
GROUP = 32
STATE = np.array([0.3, 0.0, 0.15, 0.0, 0.0, 0.0, 1.0])
MATRICES = {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}


@cache
def adapter(name, dtype):
    return load_adapter(name, "tiny", dtype=dtype)


def matrices(model):
    """The decoder's linear layers, in order."""
    return [m for layer in model.layers() for m in layer.modules() if isinstance(m, nn.Linear)]


def as_used(linear, dtype):
    """The weight float64 [rows, columns] that a quantised layer multiplies by."""
    weight = linear.weight
    if dtype == "int8":
        return weight.qdata.double() * weight.scale.double()
    one_hot = torch.eye(linear.in_features, dtype=torch.bfloat16, device=weight.device)
    with torch.inference_mode():
        return functional.linear(one_hot, weight).T.double()  # one term a sum: rounded once, to bfloat16


def pairs(name, dtype):
    """(plain layer, quantised layer) of the decoder."""
    return list(zip(matrices(adapter(name, "bfloat16")), matrices(adapter(name, dtype)), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_int8_is_the_nearest_of_255_steps_of_each_row(name):
    for plain, quantised in pairs(name, "int8"):
        weight, scale = plain.weight.double(), quantised.weight.scale.double()
        expected = weight.abs().amax(dim=1, keepdim=True) / 127.5
        assert torch.all((scale / expected - 1.0).abs() < 2.0**-7)  # computed in bfloat16
        nearest = torch.clamp(torch.round(weight / scale), -128, 127)
        assert (quantised.weight.qdata == nearest).double().mean() > 0.99  # the others are ties
        assert torch.all((as_used(quantised, "int8") - weight).abs() <= 0.51 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_int4_is_the_nearest_of_16_steps_of_each_group(name):
    for plain, quantised in pairs(name, "int4"):
        weight = plain.weight.double().unflatten(1, (-1, GROUP))
        low, high = weight.amin(dim=2, keepdim=True), weight.amax(dim=2, keepdim=True)
        step = (high - low) / 15.0
        expected = low + step * torch.round((weight - low) / step)
        used = as_used(quantised, "int4").unflatten(1, (-1, GROUP))
        # Scale, offset and rounding are computed in bfloat16, so that one in thirty falls on the other side of a tie.
        assert ((used - expected).abs() < 0.2 * step).double().mean() > 0.95
        error = (used - weight).abs() / step
        assert error.max() < 0.65
        assert error.mean() < 0.26  # a quarter, of steps that are hit anywhere


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_multiplies_by_what_it_holds(name, dtype):
    for plain, quantised in pairs(name, dtype):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 5, plain.in_features, generator=generator).to(plain.weight)
        with torch.inference_mode():
            y = quantised(x)
        bias = None if plain.bias is None else plain.bias.double()
        expected = functional.linear(x.double(), as_used(quantised, dtype), bias)
        assert y.dtype == torch.bfloat16
        assert (y.double() - expected).abs().max() < 0.04 * expected.std()  # eight bits, up to four deviations out


def logits(model, seed=2):
    """Of the action tokens, float64, after 24 random embeddings."""
    noise = torch.randn(1, 24, model.text_model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        hidden = model.text_model(inputs_embeds=0.5 * noise.to(model.device, model.dtype), use_cache=False)
        return model.logits(hidden.last_hidden_state)[..., model.vocabulary.action_ids].double()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_logits_are_those_of_a_model_that_holds_the_same_weights_in_float32(name, dtype):
    """As near as bfloat16 is to float32 where nothing is quantised; the unquantised model is further off."""
    same = load_adapter(name, "tiny", dtype="float32")
    unquantised = logits(same)
    for linear, (_, quantised) in zip(matrices(same), pairs(name, dtype), strict=True):
        linear.weight.data = as_used(quantised, dtype).float()
    expected = logits(same)

    def distance(a, b):
        return float((a - b).square().mean().sqrt())

    rounding = distance(logits(adapter(name, "bfloat16")), unquantised)
    assert distance(logits(adapter(name, dtype)), expected) < 2.0 * rounding
    if dtype == "int4":
        assert distance(logits(adapter(name, dtype)), unquantised) > 2.0 * rounding


def storage(value):
    """Bytes behind a tensor, or behind the tensors that a quantised one is made of."""
    inner = [v for v in vars(value).values() if isinstance(v, torch.Tensor)]
    return sum(map(storage, inner)) if inner else value.untyped_storage().nbytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_matrices_take_less_memory(name):
    plain = sum(storage(m.weight) for m in matrices(adapter(name, "bfloat16")))
    weights = sum(m.weight.numel() for m in matrices(adapter(name, "bfloat16")))
    assert plain == 2 * weights
    rows = sum(m.out_features for m in matrices(adapter(name, "int8")))
    assert sum(storage(m.weight) for m in matrices(adapter(name, "int8"))) <= weights + 5 * rows
    if adapter(name, "int4").device.type == "cpu":  # CUDA pads the tiny matrices to 1024 columns
        packed = sum(storage(m.weight) for m in matrices(adapter(name, "int4")))
        assert packed == weights // 2 + 4 * weights // GROUP


def tensors(model):
    """Every parameter and buffer that the adapter holds, by name."""
    parts = {key: part for key, part in vars(model).items() if isinstance(part, nn.Module)}
    found = {}
    for key, part in parts.items():
        found |= {f"{key}.{name}": value for name, value in (*part.named_parameters(), *part.named_buffers())}
    return found


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_all_but_the_decoders_matrices_is_as_it_was(name, dtype):
    model = adapter(name, dtype)
    before, after = tensors(adapter(name, "bfloat16")), tensors(model)
    assert before.keys() == after.keys()
    quantised = {key for key, value in after.items() if type(value.data) is not torch.Tensor}
    in_decoder = {key for key in quantised if key.startswith("text_model.")}
    assert len(in_decoder) == 7 * model.num_layers
    assert {key.split(".")[-2] for key in quantised} == MATRICES
    assert {key.split("layers.")[-1] for key in quantised} == {key.split("layers.")[-1] for key in in_decoder}
    assert all(torch.equal(after[key], before[key]) for key in after.keys() - quantised)
    assert model.dtype == torch.bfloat16
    assert model.device == adapter(name, "bfloat16").device


def step(name, dtype, **changes):
    defaults = model_defaults(name, "tiny")
    values = {key: defaults[key] for key in PruningConfig.__dataclass_fields__}
    model = adapter(name, dtype)
    images = np.random.default_rng(0).integers(0, 256, (model.num_cameras, 240, 320, 3), np.uint8)
    model.reset()
    seen = Observation(tuple(images), "put the carrot on the plate", STATE)
    config = PruningConfig(**{**values, "tolerance": 0.05, **changes})
    return DtpPolicy(model).step(seen, config, GenerationConfig(fast_grammar=True))


def seen_of(result):
    return [(token.token_id, token.entropy_clean) for token in result.trace.tokens]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", ["nora", "openvla", pytest.param("spatialvla", marks=pytest.mark.long), "tabletop"])
def test_dtp_runs_and_an_empty_mask_is_the_clean_model(name, dtype):
    rows, cols = adapter(name, dtype).grid
    clean = step(name, dtype, variant="off")
    assert clean.chunk is not None
    for scope in MASK_SCOPES:
        assert sum(token.pruned for token in step(name, dtype, mask_scope=scope).trace.tokens) > 0
        empty = step(name, dtype, mask_scope=scope, top_k=rows * cols)  # everything is important
        assert sum(token.pruned for token in empty.trace.tokens) == 0
        assert seen_of(empty) == seen_of(clean)
        assert np.array_equal(empty.chunk.actions, clean.chunk.actions)


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)  # as Python marks what is not there
    with pytest.raises(ConfigError, match=r"'int8' needs torchao .*: pip install torchao==[\d.]+ \(valid without it: "):
        load_adapter("nora", "/nowhere/at/all", dtype="int8")  # before the checkpoint is looked for
    assert load_adapter("tabletop", "tiny", dtype="bfloat16").dtype == torch.bfloat16


def test_a_name_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"dtype = 'int2' is not known .*int8, int4"):
        load_adapter("nora", "tiny", dtype="int2")


def test_a_matrix_that_int4_cannot_hold_is_named(tmp_path):
    network = TabletopNetwork(TabletopConfig(3, widths=(8, 8, 8), hidden=32, layers=1, heads=2, mlp=40, bins=8))
    limit = np.ones(7)
    statistics = ActionStatistics(-limit, limit, np.array([True] * 7))
    write_checkpoint(tmp_path, network, word_tokenizer(("put",)), statistics)
    with pytest.raises(ConfigError, match=r"gate_proj\.weight is 40 x 32 \(valid: multiples of 16 x 32; int8"):
        load_adapter("tabletop", str(tmp_path), dtype="int4")
    assert load_adapter("tabletop", str(tmp_path), dtype="int8").dtype == torch.bfloat16


def test_a_checkpoint_with_a_hole_is_refused(damaged):
    with pytest.raises(CheckpointError, match="lacks the file model-00002-of-00002"):
        load_adapter("nora", str(damaged("model-00002-of-00002.safetensors")), dtype="int8")

"""dtp_ros/ros/parameters.py: one table, validated together, swapped as one frozen object."""

import os

import pytest
import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from dtp_ros.errors import ConfigError
from dtp_ros.models.checkpoint import DTYPES
from dtp_ros.models.registry import model_defaults
from dtp_ros.ros.inference import Inference
from dtp_ros.ros.parameters import (
    FIXED,
    SPEC_BY_NAME,
    SPECS,
    ModelLimits,
    PolicyParameters,
    defaults,
    settings_from_values,
)

DOMAIN = 71
TINY_LIMITS = ModelLimits(num_layers=24, num_image_tokens=64, horizon=1)


@pytest.fixture(scope="module", autouse=True)
def ros():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=DOMAIN)
    yield
    rclpy.shutdown()


@pytest.fixture
def make(request):
    """A node with the parameters declared; keyword arguments are the user's overrides."""

    def build(**overrides):
        node = Node("parameters", parameter_overrides=[Parameter(n, value=v) for n, v in overrides.items()])
        request.addfinalizer(node.destroy_node)
        changes = []
        store = PolicyParameters(node, lambda old, new: changes.append((old, new)))
        return node, store, changes

    return build


def put(node, **values):
    return node.set_parameters_atomically([Parameter(n, value=v) for n, v in values.items()])


def value(node, name):
    got = node.get_parameter(name).value
    return list(got) if not isinstance(got, (bool, int, float, str)) else got


def test_defaults_are_those_of_the_models_file(make):
    node, store, _ = make()
    for name, default in model_defaults("nora").items():
        if name not in ("options", "revision"):
            assert value(node, name) == (list(default) if isinstance(default, tuple) else default), name
    assert store.settings.pruning.relevance_layers == (12, 13, 21)
    assert store.settings.pruning.max_pruned == 2
    assert store.settings.generation.control_frequency == 5.0
    assert not store.settings.generation.fast_grammar
    assert not store.settings.acting


def test_every_value_of_the_settings_is_a_parameter(make):
    node, store, _ = make()
    of_rclpy = {"use_sim_time", "start_type_description_service"}
    assert set(node.get_parameters_by_prefix("")) - of_rclpy == {s.name for s in SPECS}
    assert settings_from_values({s.name: value(node, s.name) for s in SPECS}) == store.settings


def test_overrides_win(make):
    node, store, _ = make(tolerance=1.5, max_pruned=0, relevance_layers=[1, 2], checkpoint="tiny")
    assert (store.settings.pruning.tolerance, store.settings.pruning.max_pruned) == (1.5, 0)
    assert store.settings.pruning.relevance_layers == (1, 2)
    assert value(node, "tolerance") == 1.5


def test_the_tiny_checkpoint_turns_the_grammar_on_unless_the_user_said_so(make):
    assert make(checkpoint="tiny")[1].settings.generation.fast_grammar
    assert not make(checkpoint="tiny", fast_grammar=False)[1].settings.generation.fast_grammar


def test_every_dtype_of_the_loaders_is_a_choice(make):
    node, store, _ = make()
    assert set(SPEC_BY_NAME["dtype"].choices) == {"auto", *DTYPES}
    for name in ("int8", "int4"):
        assert put(node, dtype=name).successful
        assert store.settings.dtype == name


def test_a_quantised_model_is_reported_as_one(make):
    _, store, _ = make(model="tabletop", checkpoint="tiny", device="cpu", dtype="int8")
    about = Inference(store.settings, lambda message, fraction: None).about()
    assert about == {"device": "cpu", "dtype": "int8, computed in bfloat16"}


def test_a_new_checkpoint_rereads_what_was_never_set(make):
    node, store, _ = make()
    assert put(node, tolerance=1.25).successful
    assert put(node, checkpoint="tiny").successful
    assert value(node, "fast_grammar") is True
    assert store.settings.generation.fast_grammar
    assert value(node, "tolerance") == store.settings.pruning.tolerance == 1.25
    assert put(node, checkpoint="declare-lab/nora").successful
    assert value(node, "fast_grammar") is False
    assert put(node, fast_grammar=False).successful  # said by the user, though equal to the default
    assert put(node, checkpoint="tiny").successful
    assert value(node, "fast_grammar") is False


@pytest.mark.parametrize(("override", "named"), [
    ({"model": "gpt"}, "nora"),
    ({"tolerance": 2.5}, "2.0"),
    ({"tolerance": 1}, "write 1.0"),
    ({"sigma": float("nan")}, "8.0"),
    ({"variant": "on"}, "random_all"),
    ({"dtype": "int2"}, "int4"),
    ({"relevance_layers": [3, 3]}, "twice"),
    ({"instruction": "x" * 2001}, "2000"),
    ({"base_frame": " "}, "empty"),
    ({"model_options": "[convention]"}, "no mapping"),
    ({"model_options": "{convention: "}, "no mapping"),
])  # fmt: skip
def test_an_override_that_cannot_stand_is_one_line(make, override, named):
    with pytest.raises(ConfigError) as caught:
        make(**override)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert next(iter(override)) in str(caught.value)


@pytest.mark.parametrize(("changes", "named"), [
    ({"tolerance": 2.01}, "2.0"),
    ({"tolerance": -0.01}, "0.0"),
    ({"tolerance": float("nan")}, "2.0"),
    ({"tolerance": float("inf")}, "2.0"),
    ({"tolerance": 1}, "DOUBLE"),
    ({"tolerance": "1.0"}, "DOUBLE"),
    ({"tolerance_mode": "auto"}, "min_entropy"),
    ({"dtype": "fp8"}, "int8"),
    ({"tolerance_grid": [0.5, float("nan")]}, "2.0"),
    ({"tolerance_grid": [0.5, 3.0]}, "2.0"),
    ({"variant": ""}, "no_gaussian"),
    ({"top_k": 0}, "1"),
    ({"top_k": 65}, "64"),
    ({"max_pruned": 65}, "64"),
    ({"max_pruned": -1}, "0"),
    ({"relevance_layers": [24]}, "23"),
    ({"relevance_layers": [-1]}, "0"),
    ({"relevance_layers": [1, 1]}, "twice"),
    ({"execute_horizon": 2}, "1"),
    ({"ensemble": "mean"}, "rotation"),
    ({"image_timeout": 0.0}, "0.001"),
    ({"overlay_alpha": 1.1}, "1.0"),
    ({"instruction": "a" * 100_000}, "2000"),
    ({"instruction": "pick\nplace"}, "printable"),
    ({"instruction": "pick\x00"}, "printable"),
    ({"seed": -1}, "0"),
    # One of several: nothing of them holds.
    ({"tolerance": 0.7, "top_k": 1000}, "64"),
    ({"top_k": 10, "use_sim_time": "yes"}, "BOOL"),
])  # fmt: skip
def test_a_refusal_names_the_limit_and_changes_nothing(make, changes, named):
    node, store, seen = make(checkpoint="tiny")
    store.fit(TINY_LIMITS)
    before, values = store.settings, {s.name: value(node, s.name) for s in SPECS}
    result = put(node, **changes)
    assert not result.successful
    assert named in result.reason
    assert store.settings is before
    assert {s.name: value(node, s.name) for s in SPECS} == values
    assert not seen


def test_limits_are_the_loaded_models_own(make):
    node, store, _ = make(top_k=100)  # nobody can know yet that the model has 64 tokens
    assert put(node, relevance_layers=[40]).successful
    with pytest.raises(ConfigError, match=r"relevance_layers = 40 .* 23"):
        store.fit(TINY_LIMITS)
    assert put(node, relevance_layers=[1, 2], top_k=64).successful
    store.fit(TINY_LIMITS)
    assert not put(node, top_k=100).successful
    store.thaw()
    assert put(node, top_k=100).successful


def test_changes_hold_together_in_one_frozen_object(make):
    node, store, seen = make()
    old = store.settings
    assert put(node, tolerance=1.0, variant="random_all", relevance_layers=[3], ensemble="rotation").successful
    new = store.settings
    assert seen == [(old, new)]
    assert (new.pruning.tolerance, new.pruning.variant, new.pruning.relevance_layers) == (1.0, "random_all", (3,))
    assert new.generation.ensemble == "rotation"
    assert old.pruning.tolerance == 0.5
    assert put(node, tolerance=1.0).successful
    assert len(seen) == 1  # nothing changed


def test_what_is_not_ours_is_left_alone(make):
    node, _, seen = make()
    node.declare_parameter("else.where", 3)
    assert put(node, **{"else.where": 4}).successful
    assert not seen


@pytest.mark.parametrize("name", FIXED)
def test_fixed_parameters_are_refused_while_configured(make, name):
    other = {
        "model": "nora", "checkpoint": "elsewhere", "revision": "abc", "device": "cpu", "dtype": "float32",
        "preprocess": "reference", "model_options": "{horizon: 5}", "robot": "wxai",
        "image_transport": "compressed", "base_frame": "world",
        "control_frequency": 10.0, "autostart": False,
    }[name]  # fmt: skip
    node, store, _ = make()
    store.freeze()
    result = put(node, **{name: other})
    if other == value(node, name):  # there is only one model so far: setting it again changes nothing
        assert result.successful
    else:
        assert not result.successful
        assert name in result.reason
        assert "cleanup" in result.reason
    store.thaw()
    assert put(node, **{name: other}).successful


def test_descriptors_make_sliders_and_say_the_choices(make):
    node, _, _ = make()
    (tolerance,) = node.describe_parameter("tolerance").floating_point_range
    assert (tolerance.from_value, tolerance.to_value, tolerance.step) == (0.0, 2.0, 0.0)
    assert "write 1.0" in node.describe_parameter("tolerance").description
    assert node.describe_parameter("top_k").integer_range[0].from_value == 1
    assert "random_unimportant" in node.describe_parameter("variant").description
    assert "fixed while configured" in node.describe_parameter("model").description
    for spec in SPECS:
        assert node.describe_parameter(spec.name).description, spec.name
    assert put(node, tolerance=0.123456789).successful  # no step that a slider's value could miss


def test_defaults_of_an_unknown_model():
    with pytest.raises(ConfigError, match="nora"):
        defaults("gpt")

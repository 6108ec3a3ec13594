from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from dtp_ros.errors import ConfigError
from dtp_ros.models import registry
from dtp_ros.models.registry import load_adapter, model_defaults, model_names
from dtp_ros.pruning.config import PruningConfig

NAMES = ("nora", "openvla", "pi0_fast", "spatialvla", "tabletop", "univla")


def test_names_are_those_that_exist():
    assert model_names() == NAMES


def test_an_unknown_model_lists_the_valid_ones():
    for call in (lambda: model_defaults("octo"), lambda: load_adapter("octo", "tiny")):
        with pytest.raises(ConfigError, match=rf"model = 'octo' is not known \(valid: {', '.join(NAMES)}\)"):
            call()


def test_nora_has_the_papers_constants():
    defaults = model_defaults("nora")
    assert defaults["relevance_layers"] == (12, 13, 21)
    assert (defaults["top_k"], defaults["sigma"], defaults["tolerance"]) == (27, 0.65, 0.5)
    assert (defaults["max_pruned"], defaults["mask_schedule"]) == (2, "per_token")
    assert defaults["preprocess"] == "widowx"
    assert defaults["fast_grammar"] is False
    assert defaults["options"]["statistics_key"] == "bridge_orig"
    pruning = PruningConfig(**{key: defaults[key] for key in PruningConfig.__dataclass_fields__})
    pruning.require_fits(24, 64)


def test_spatialvla_has_the_papers_constants():
    defaults = model_defaults("spatialvla")
    assert (defaults["relevance_layers"], defaults["top_k"]) == ((4, 6), 109)
    assert (defaults["sigma"], defaults["tolerance"], defaults["max_pruned"]) == (0.65, 0.5, 0)
    assert (defaults["mask_schedule"], defaults["mask_scope"]) == ("per_step", "all")
    assert (defaults["ensemble"], defaults["ensemble_weight"], defaults["execute_horizon"]) == ("published", 0.8, 1)
    assert (defaults["preprocess"], defaults["fast_grammar"]) == ("simpler", False)
    pruning = PruningConfig(**{key: defaults[key] for key in PruningConfig.__dataclass_fields__})
    pruning.require_fits(26, 256)


def test_the_grammar_is_on_for_the_tiny_checkpoint():
    assert model_defaults("nora", "tiny")["fast_grammar"] is True
    assert model_defaults("nora", "declare-lab/nora")["fast_grammar"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerence": 1.0}, r"unknown \['tolerence'\], missing \[\]"),
        ({"tolerance": 3.0}, "out of range"),
        ({"fast_grammar": 1}, "fast_grammar = 1 is not of type bool"),
        ({"ensemble": False}, "ensemble = False is not of type str"),
        ({"relevance_layers": []}, "relevance_layers is empty"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, monkeypatch, change, message):
    raw = yaml.safe_load(registry.share_file("config/models/nora.yaml").read_text())
    (tmp_path / "nora.yaml").write_text(yaml.safe_dump({**raw, **change}))
    monkeypatch.setattr(registry, "share_file", lambda relative: tmp_path / "nora.yaml")
    with pytest.raises(ConfigError, match=message):
        model_defaults("nora")


def test_importing_the_registry_imports_no_model():
    code = "import sys, dtp_ros.models.registry as r; r.model_defaults('nora'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

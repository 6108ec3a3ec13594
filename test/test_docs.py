"""What the documents promise, against the code."""

import re
from pathlib import Path

import pytest

from dtp_ros.models.registry import model_defaults, model_names
from dtp_ros.ros.policy_metrics import DROP_CAUSES
from dtp_ros.widowx.gate import CHECKS, GateConfig

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|(.*?)\|", re.MULTILINE)
PARAMETER = re.compile(r"`(\w+)` \((.*?)\)")


def checks():
    """Of the table "Every check": name: (effect, {parameter: default as written})."""
    section = (ROOT / "docs/safety.md").read_text().split("## Every check")[1].split("\n## ")[0]
    return {name: (effect, dict(PARAMETER.findall(cell))) for name, effect, cell in ROW.findall(section)}


def test_the_safety_page_lists_every_check_with_its_effect_and_parameter():
    expected = {
        name: (check.effect, {part.strip() for part in check.parameter.split(",") if part})
        for name, check in CHECKS.items()
    }
    assert {name: (effect, set(parameters)) for name, (effect, parameters) in checks().items()} == expected


def test_the_safety_page_has_the_defaults_of_the_gate():
    for name, (_, parameters) in checks().items():
        for parameter, text in parameters.items():
            default = getattr(GateConfig(), parameter, None)
            if default is not None:
                numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", text)]
                assert numbers == pytest.approx([default] if isinstance(default, float) else list(default)), name


def test_every_model_is_named_beside_the_parameter():
    (line,) = re.findall(r"^    model: .*", (ROOT / "config/widowx.yaml").read_text(), re.MULTILINE)
    assert set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", line))) == {"model", *model_names()}


def test_every_cause_of_a_dropped_image_is_listed():
    listed = (ROOT / "docs/interfaces.md").read_text().split("Dropped images are counted")[1].split("\n\n")[0]
    assert set(DROP_CAUSES) <= set(re.findall(r"`(\w+)`", listed))


def test_the_method_page_has_the_constants_of_the_configurations():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*? \| (.*?) \|", (ROOT / "docs/method.md").read_text(), re.MULTILINE)
    found = {name: cells for name, *cells in rows if name in model_defaults("nora")}
    assert {"relevance_layers", "top_k", "sigma", "tolerance", "max_pruned", "mask_schedule"} <= found.keys()
    for name, cells in found.items():
        for model, cell in zip(("nora", "tabletop"), cells, strict=True):
            value = model_defaults(model)[name]
            said = cell.split(" (")[0].strip("`")
            expected = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            assert said == expected, f"{name} of {model}"

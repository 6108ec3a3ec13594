from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.fft import dct
from tokenizers import Tokenizer

from dtp_ros.errors import ActionDecodeError, CheckpointError
from dtp_ros.models.action_tokens import ActionStatistics, FastCodec, load_fast_codec, load_statistics


def encode(actions: np.ndarray, tokenizer: Tokenizer) -> list[int]:
    """FAST's encoder, from its definition, on the tokenizers library."""
    coefficients = np.around(dct(actions, type=2, norm="ortho", axis=0) * 10).astype(int).ravel()
    return tokenizer.encode("".join(chr(c + 354) for c in coefficients)).ids


@pytest.fixture(scope="module")
def tokenizer(nora_folder) -> Tokenizer:
    return Tokenizer.from_file(str(nora_folder / "fast" / "tokenizer.json"))


@pytest.fixture(scope="module")
def codecs(nora_folder) -> dict[int, FastCodec]:
    return {h: load_fast_codec(nora_folder / "fast", h) for h in (1, 5)}


@pytest.mark.parametrize("horizon", [1, 5])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_normalised_action_survives_the_round_trip(codecs, tokenizer, horizon, data):
    """Also the extremes, which sit at the limits: quantisation moves a value by at most 0.05 sqrt(horizon)."""
    values = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1))
    actions = data.draw(arrays(np.float64, (horizon, 7), elements=values))
    decoded = codecs[horizon].decode(encode(actions, tokenizer))
    assert decoded.shape == (horizon, 7)
    assert np.abs(decoded - actions).max() <= 0.05 * np.sqrt(horizon) + 1e-9


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(0, 2047), min_size=1, max_size=8))
def test_token_bytes_spell_what_the_library_decodes(codecs, tokenizer, ids):
    text = codecs[1].bytes_of(ids).decode("utf-8", errors="replace")
    assert text == tokenizer.decode(ids, skip_special_tokens=False)


def test_limits_are_those_worked_out_by_hand(codecs):
    """Horizon 1: one coefficient 10 x, so +-10 and 1 + 0.05. Horizon 5: frequency 0 is the sum / sqrt 5: 22.36."""
    assert codecs[1].coefficient_limits.tolist() == [10]
    assert codecs[1].value_limit == pytest.approx(1.05)
    assert codecs[5].coefficient_limits[0] == 22
    assert codecs[5].value_limit == pytest.approx(1.604, abs=1e-3)
    assert codecs[1].max_tokens == 14
    assert codecs[5].max_tokens == 70


def spell(codec: FastCodec, coefficients) -> list[int]:
    """Coefficients byte by byte."""
    single = {token: i for i, token in enumerate(codec.token_bytes) if len(token) == 1}
    return [single[bytes([b])] for c in coefficients for b in chr(c - codec.min_token).encode()]


def test_a_worked_example(codecs):
    """Time-constant actions put sqrt(5) * value * 10 into frequency 0 and nothing elsewhere."""
    coefficients = [22, -11, 0, 0, 0, 0, 22] + [0] * 28
    decoded = codecs[5].decode(spell(codecs[5], coefficients))
    expected = np.tile(np.array([22, -11, 0, 0, 0, 0, 22]) / (10 * np.sqrt(5)), (5, 1))
    np.testing.assert_allclose(decoded, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("coefficients", "reason"),
    [
        ([0] * 6, "6 coefficients instead of 7"),
        ([0] * 8, "8 coefficients instead of 7"),
        ([], "0 coefficients"),
        ([11, 0, 0, 0, 0, 0, 0], r"coefficient 11 of frequency 0, dimension 0 is beyond \+-10"),
        ([0, 0, 0, 0, 0, 0, -354], "coefficient -354"),
        ([0, 0, 0, 0, 0, 0, 60000], "coefficient 60000"),
    ],
)
def test_what_no_action_gives_is_refused(codecs, coefficients, reason):
    with pytest.raises(ActionDecodeError, match=reason):
        codecs[1].decode(spell(codecs[1], coefficients))


def test_values_beyond_the_range_are_refused(codecs):
    """Each coefficient alone is possible, together they overshoot."""
    grid = np.zeros((5, 7), dtype=int)
    grid[:, 0] = codecs[5].coefficient_limits
    with pytest.raises(ActionDecodeError, match=r"normalised value \d\.\d+ is beyond"):
        codecs[5].decode(spell(codecs[5], grid.ravel()))


@pytest.mark.parametrize("ids", [[2048], [-1]])
def test_an_id_outside_the_vocabulary_is_refused(codecs, ids):
    with pytest.raises(ActionDecodeError, match=r"is not an action \(0 \.\.\. 2047\)"):
        codecs[1].decode(ids)


def test_a_broken_character_is_refused(codecs):
    ids = spell(codecs[1], [0] * 7)
    for broken in (ids[:-1], ids[1:], [*ids[:2], *ids[3:]]):
        with pytest.raises(ActionDecodeError, match="broken character"):
            codecs[1].decode(broken)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", lambda raw: raw["model"]["vocab"].popitem(), "does not hold the ids"),
        ("tokenizer.json", lambda raw: raw.update(decoder={"type": "WordPiece"}), "decodes by 'WordPiece'"),
        ("tokenizer.json", lambda raw: raw.pop("model"), "is not a FAST tokenizer"),
        ("processor_config.json", lambda raw: raw.pop("min_token"), "is not a FAST tokenizer"),
    ],
)
def test_a_foreign_fast_tokenizer_is_refused(damaged, file, change, message):
    path = damaged() / "fast" / file
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        load_fast_codec(path.parent, 1)


def test_unnormalisation_maps_quantiles_and_keeps_the_gripper():
    statistics = ActionStatistics(
        np.array([-2.0] * 6 + [0.3]), np.array([4.0] * 6 + [0.9]), np.array([True] * 6 + [False])
    )
    normalised = np.array([[-1, 1, 0, -0.5, 0.5, 1, 0.25]])
    np.testing.assert_allclose(statistics.unnormalise(normalised), [[-2, 4, 1, -0.5, 2.5, 4, 0.25]])


def test_statistics_errors_name_what_is_there(damaged):
    folder = damaged()
    with pytest.raises(CheckpointError, match=r"'bridge'.*valid: bridge_orig, fractal20220817_data"):
        load_statistics(folder, "bridge")
    path = folder / "norm_stats.json"
    good = json.loads(path.read_text())
    for change, message in (
        ({"mask": None}, "lacks mask"),
        ({"q01": [0.0] * 6}, "has shapes"),
        ({"q99": [float("nan")] * 7}, "not finite"),
        ({"q01": [9.0] * 7}, "ascending"),
        ({"q01": ["much"] * 7}, "no mapping of numbers"),
        ({"mask": {"x": 1}}, "no mapping of numbers|has shapes"),
    ):
        action = {**good["bridge_orig"]["action"], **change}
        action = {key: value for key, value in action.items() if value is not None}
        path.write_text(json.dumps({"bridge_orig": {"action": action}}))
        with pytest.raises(CheckpointError, match=message):
            load_statistics(folder, "bridge_orig")
    for broken in ({"bridge_orig": None}, {"bridge_orig": {"action": [1, 2]}}):
        path.write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match=r"no mapping of numbers|lacks q01"):
            load_statistics(folder, "bridge_orig")

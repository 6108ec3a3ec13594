from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct

from dtp_ros.errors import ActionDecodeError, CheckpointError
from dtp_ros.models.action_tokens import FastCodec, load_fast_codec
from dtp_ros.models.fast_grammar import FastGrammar

FIRST, ENDS = 151665, (151645, 151643)
LOW, WIDTH = 151643, 2070


@pytest.fixture(scope="module")
def grammars(nora_folder) -> dict[int, FastGrammar]:
    return {h: FastGrammar(load_fast_codec(nora_folder / "fast", h), FIRST, ENDS) for h in (1, 5)}


def greedy(scores: np.ndarray, allowed, limit: int) -> list[int] | None:
    """Ids up to an end; None where the limit comes first. scores: [limit + 1, WIDTH], from id LOW on."""
    ids: list[int] = []
    for row in scores[: limit + 1]:
        choices = np.array([*ENDS, *range(FIRST, FIRST + 2048)]) if allowed is None else allowed(ids).numpy()
        best = int(choices[row[choices - LOW].argmax()])
        if best in ENDS:
            return ids
        ids.append(best)
    return None


@pytest.mark.parametrize("horizon", [1, 5])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_whatever_the_scores_the_grammar_ends_and_decodes(grammars, horizon, seed):
    grammar, codec = grammars[horizon], grammars[horizon]._codec
    scores = np.random.default_rng(seed).normal(size=(codec.max_tokens + 1, WIDTH))
    ids = greedy(scores, grammar.allowed, codec.max_tokens)
    assert ids is not None
    assert len(ids) <= codec.max_tokens
    assert np.abs(codec.decode([i - FIRST for i in ids])).max() <= codec.value_limit + 1e-9


def random_cut(data: bytes, codec: FastCodec, rng: np.random.Generator) -> list[int]:
    """Any way to spell the bytes in tokens, not only the encoder's."""
    ids: list[int] = []
    while data:
        heads = [i for i, token in enumerate(codec.token_bytes) if data.startswith(token)]
        ids.append(int(rng.choice(heads)))
        data = data[len(codec.token_bytes[ids[-1]]) :]
    return ids


@pytest.mark.parametrize("horizon", [1, 5])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), extreme=st.booleans())
def test_greedy_under_the_grammar_is_greedy_wherever_that_decodes(grammars, horizon, seed, extreme):
    grammar, codec = grammars[horizon], grammars[horizon]._codec
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (horizon, 7))
    coefficients = np.around(dct(np.sign(actions) if extreme else actions, axis=0, norm="ortho") * 10).astype(int)
    ids = random_cut("".join(chr(c + 354) for c in coefficients.ravel()).encode(), codec, rng)
    codec.decode(ids)  # it decodes
    scores = rng.normal(size=(codec.max_tokens + 1, WIDTH))
    for row, token in zip(scores, [*(i + FIRST for i in ids), ENDS[0]], strict=False):
        row[token - LOW] = 9.0
    free = greedy(scores, None, codec.max_tokens)
    assert free == [i + FIRST for i in ids]
    assert greedy(scores, grammar.allowed, codec.max_tokens) == free


BYTES = [bytes([b]) for b in range(256)]
SMALL = {
    "one byte a character": FastCodec([*BYTES, b"AB", b"BBA", b"@AB"], 1.0, -65, 1, 3),
    "two bytes, seen twice": FastCodec([*BYTES, "āĀ".encode(), "ĀĀĀ".encode(), b"\x80\xc4"], 1.0, -256, 2, 1),
    "two frequencies": FastCodec([*BYTES, "ĀĀ".encode(), "āāā".encode(), b"\xc4\x80\xc4"], 1.0, -256, 2, 2),
    "across three bytes": FastCodec([*BYTES, "ࠀ߿".encode(), b"\xa0\x80\xdf", b"\xe0\xa0"], 1.0, -2048, 1, 2),
}


def every_sequence(codec: FastCodec) -> set[tuple[int, ...]]:
    """All id sequences that decode, by brute force over coefficients and over the ways to cut their bytes."""
    tokens = {}
    for i, token in enumerate(codec.token_bytes):
        tokens.setdefault(token, []).append(i)

    def cuts(data: bytes) -> list[tuple[int, ...]]:
        if not data:
            return [()]
        heads = [(data[:n], data[n:]) for n in range(1, len(data) + 1) if data[:n] in tokens]
        return [(i, *rest) for head, tail in heads for i in tokens[head] for rest in cuts(tail)]

    found: set[tuple[int, ...]] = set()
    limit = int(codec.coefficient_limits.max())
    for coefficients in itertools.product(range(-limit, limit + 1), repeat=codec.size):
        data = "".join(chr(c - codec.min_token) for c in coefficients).encode()
        for ids in cuts(data):
            try:
                codec.decode(ids)
            except ActionDecodeError:
                break
            found.add(ids)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_allowed_is_exactly_the_prefixes_of_what_decodes(name):
    codec = SMALL[name]
    grammar = FastGrammar(codec, 0, (999,))
    sequences = every_sequence(codec)
    assert len(sequences) > 10
    following: dict[tuple[int, ...], set[int]] = {}
    for ids in sequences:
        for n in range(len(ids)):
            following.setdefault(ids[:n], set()).add(ids[n])
        following.setdefault(ids, set()).add(999)
    for prefix, expected in following.items():
        assert set(grammar.allowed(prefix).tolist()) == expected, prefix
    assert max(map(len, sequences)) <= codec.max_tokens


def test_the_end_comes_exactly_when_complete(grammars):
    codec = grammars[1]._codec
    zero = [codec.token_bytes.index(bytes([b])) + FIRST for b in chr(354).encode()]
    for n in range(14):
        allowed = grammars[1].allowed((zero * 7)[:n])
        assert not set(allowed.tolist()) & set(ENDS)
        assert allowed.dtype == torch.int64
        assert (allowed.diff() > 0).all()
    assert grammars[1].allowed(zero * 7).tolist() == sorted(ENDS)


@pytest.mark.parametrize("ids", [[FIRST + 2048], [5]])
def test_ids_that_are_no_actions_are_refused(grammars, ids):
    with pytest.raises(ActionDecodeError):
        grammars[1].allowed(ids)


def test_a_vocabulary_without_a_byte_is_refused():
    codec = FastCodec([b"A", b"B", b"AB"], 1.0, -65, 1, 2)
    with pytest.raises(CheckpointError, match=r"lacks the single bytes \[64\]"):
        FastGrammar(codec, 0, (9,))

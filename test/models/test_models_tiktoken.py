"""Byte-pair encoding by rank, worked out by hand; test_models_univla_parity compares it with tiktoken itself."""

from __future__ import annotations

import base64

import pytest

from dtp_ros.errors import CheckpointError, ObservationError
from dtp_ros.models.tiktoken_bpe import TiktokenBpe, load_ranks

BYTES = {bytes([byte]): byte for byte in range(256)}


def bpe(*merged: bytes) -> TiktokenBpe:
    return TiktokenBpe(BYTES | {token: 256 + i for i, token in enumerate(merged)})


def test_the_lowest_rank_is_merged_first():
    assert bpe(b"bc", b"ab", b"abc").encode("abc") == [258]  # the whole piece is a token
    assert bpe(b"bc", b"ab").encode("abc") == [ord("a"), 256]
    assert bpe(b"ab", b"bc").encode("abc") == [256, ord("c")]
    assert bpe(b"cd", b"ab", b"abcd").encode("abcde") == [258, ord("e")]


def test_of_equal_ranks_the_left_one_is_merged_first():
    assert bpe(b"aa").encode("aaab") == [256, ord("a"), ord("b")]
    assert bpe(b"aa", b"aaa").encode("aaab") == [257, ord("b")]


def test_no_merge_crosses_the_pieces():
    """Words keep the space before them, digits stand alone, a comma is a piece of its own."""
    encode = bpe(b" b", b"a ", b"12", b"b,").encode
    assert encode("a b") == [ord("a"), 256]
    assert encode("12") == [ord("1"), ord("2")]
    assert encode("b,") == [ord("b"), ord(",")]


def test_text_is_composed_first():
    assert bpe().encode("e\u0301") == list("\u00e9".encode())
    assert bpe().encode("") == []


def test_what_is_no_text_is_refused():
    with pytest.raises(ObservationError, match="not Unicode text"):
        bpe().encode("\ud800")


def lines(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def test_a_rank_file_is_read(tmp_path):
    (tmp_path / "x.tiktoken").write_bytes(lines(BYTES | {b"ab": 256}))
    assert load_ranks(tmp_path, "x.tiktoken") == BYTES | {b"ab": 256}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00\xff not a rank file", "is not a tiktoken file"),
        (b"YWI= x\n", "is not a tiktoken file"),
        (b"YWI\n", "is not a tiktoken file"),
        (lines(BYTES | {b"ab": 300}), r"does not hold the ids 0 \.\.\. 256"),
        (lines(BYTES) + lines({b"a": 256}), r"does not hold the ids 0 \.\.\. 256"),
        (lines({b"ab": 0, b"c": 1}), r"lacks the single bytes \[0, 1, 2, 3, 4\]"),
        (b"", r"lacks the single bytes"),
    ],
)
def test_a_broken_rank_file_is_named(tmp_path, data, message):
    (tmp_path / "x.tiktoken").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.tiktoken.*" + message):
        load_ranks(tmp_path, "x.tiktoken")


def test_a_missing_rank_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks the file x\.tiktoken"):
        load_ranks(tmp_path, "x.tiktoken")

"""Byte-pair encoding as tiktoken does it, for tokenizers that are published as a file of ranks.

`tokenizers` cannot read such a file: its merges are pairs, a rank file holds only what pairs give. Doing the merges
here, on one short instruction a step, needs neither tiktoken nor a converted file.
"""

from __future__ import annotations

import base64
import binascii
import math
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from dtp_ros.errors import CheckpointError, ObservationError
from dtp_ros.models.checkpoint import require_file

# How Qwen, and Emu3 after it, cut a text into pieces; no merge crosses their borders.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TiktokenBpe:
    """Text to ids: NFC, cut into pieces; in each, the neighbours of lowest joint rank are merged, leftmost first.

    ranks: the bytes of each token and its id; every single byte is among them. Special tokens spelled out in a text are
    plain text here.
    """

    def __init__(self, ranks: Mapping[bytes, int], split: str = QWEN_SPLIT) -> None:
        self._ranks = ranks
        self._split = Split(Regex(split), behavior="isolated")

    def encode(self, text: str) -> list[int]:
        """Ids of a text; raises ObservationError where it is not Unicode text."""
        try:
            text = unicodedata.normalize("NFC", text)
            pieces = [piece.encode() for piece, _ in self._split.pre_tokenize_str(text)]
        except (UnicodeError, TypeError):
            raise ObservationError("the text holds characters that are not Unicode text") from None
        return [self._ranks[part] for piece in pieces for part in self._merged(piece)]

    def _merged(self, piece: bytes) -> list[bytes]:
        if piece in self._ranks:
            return [piece]
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while True:
            joint = [self._ranks.get(left + right, math.inf) for left, right in pairwise(parts)]
            lowest = min(joint, default=math.inf)
            if lowest == math.inf:
                return parts
            i = joint.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]


def load_ranks(folder: Path, name: str) -> dict[bytes, int]:
    """Read a rank file: a line a token, its bytes in base 64 and its id; ids are 0, 1, 2, ...

    Raises CheckpointError for a file that is missing or is none.
    """
    path = require_file(folder, name)
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise CheckpointError(f"{path} is not a tiktoken file: {error}") from None
    if sorted(ranks.values()) != list(range(len(pairs))):
        raise CheckpointError(f"{path} does not hold the ids 0 ... {len(pairs) - 1}, each once")
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise CheckpointError(f"{path} lacks the single bytes {absent[:5]}")
    return ranks

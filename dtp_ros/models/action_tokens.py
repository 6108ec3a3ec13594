"""Action tokens back to actions: FAST codes and un-normalisation.

FAST (Pertsch et al., arXiv 2501.09747): a chunk of normalised actions [horizon, 7] is transformed by an orthonormal
DCT-II along time, scaled, rounded, flattened row by row (low frequencies first), each coefficient spelled as the
character `coefficient - min_token`, and the string compressed by byte-level BPE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

from dtp_ros.errors import ActionDecodeError, CheckpointError
from dtp_ros.models.checkpoint import read_json

ROUNDING = 1e-9  # slack of float64 comparisons


def _byte_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE: printable Latin-1 is itself, the other 68 bytes follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _token_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    """Bytes that a token stands for; one with a character outside the byte alphabet stands for its own UTF-8."""
    values = [alphabet.get(character) for character in token]
    return token.encode() if None in values else bytes(value for value in values if value is not None)


class FastCodec:
    """FAST ids to normalised actions, strictly: what no normalised action can give does not decode.

    Training's normalised actions lie within +-`bound`: 1, where it clips them. So a coefficient of frequency k is at
    most `coefficient_limits[k]` = round(scale * bound * sum_n |C[k, n]|), with C the DCT matrix; and the action rebuilt
    from the first k frequencies stays within `value_limit` at every moment, for every k: the largest bound * sum_m
    |P_k[n, m]| with P_k = C[:k]^T C[:k], plus what rounding adds (at bound 1 and scale 10: 1.05 at horizon 1, 1.60 at
    horizon 5). Beyond either is an ActionDecodeError.

    token_bytes: the bytes of each FAST id; scale, min_token: the tokenizer's; horizon: actions in a chunk.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        scale: float,
        min_token: int,
        horizon: int,
        dimensions: int = 7,
        bound: float = 1.0,
    ) -> None:
        self.token_bytes = tuple(token_bytes)
        self.scale = scale
        self.min_token = min_token
        self.horizon = horizon
        self.dimensions = dimensions
        self._bound = bound
        self.basis: NDArray[np.float64] = np.asarray(dct(np.eye(horizon), axis=0, norm="ortho")) / scale
        unit = np.abs(self.basis) * scale
        self.coefficient_limits = np.floor(scale * bound * unit.sum(axis=1) + 0.5 + ROUNDING).astype(np.int64)
        reach = [
            np.abs(c.T @ c).sum(axis=1) * scale**2 * bound + 0.5 * np.abs(c).sum(axis=0)
            for c in (self.basis[:k] for k in range(1, horizon + 1))
        ]
        self.value_limit = float(np.max(reach))

    def counting_down(self) -> FastCodec:
        """The same code for a model whose ids count down as FAST ids count up: its lowest id first, FAST id 0 last."""
        return FastCodec(
            self.token_bytes[::-1], self.scale, self.min_token, self.horizon, self.dimensions, self._bound
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Number of coefficients of a chunk, horizon * dimensions."""
        return self.horizon * self.dimensions

    @property
    def codes(self) -> range:
        """Character codes that a coefficient can have."""
        limit = int(self.coefficient_limits.max())
        return range(max(-limit - self.min_token, 0), limit - self.min_token + 1)

    @property
    def max_tokens(self) -> int:
        """No chunk takes more tokens than this: its bytes, one by one."""
        return self.size * max(len(chr(code).encode()) for code in self.codes)

    def bytes_of(self, ids: Sequence[int], first_id: int = 0) -> bytes:
        """Bytes of FAST ids, counted from `first_id`; raises ActionDecodeError for one outside the vocabulary."""
        last = first_id + len(self.token_bytes) - 1
        if outside := [i for i in ids if not first_id <= i <= last]:
            raise ActionDecodeError(f"token {outside[0]} is not an action ({first_id} ... {last})")
        return b"".join(self.token_bytes[i - first_id] for i in ids)

    def partial_values(self, coefficients: NDArray[np.int64]) -> NDArray[np.float64]:
        """Actions rebuilt from the first coefficients (the missing ones 0), float64 [horizon, dimensions]; checked.

        Raises ActionDecodeError where a coefficient, or the action after any of the frequencies, is beyond the limits.
        """
        padded = np.zeros(self.size, dtype=np.int64)
        padded[: len(coefficients)] = coefficients
        grid = padded.reshape(self.horizon, self.dimensions)
        beyond = np.abs(grid) > self.coefficient_limits[:, None]
        if beyond.any():
            k, d = np.argwhere(beyond)[0]
            raise ActionDecodeError(
                f"coefficient {grid[k, d]} of frequency {k}, dimension {d} is beyond +-{self.coefficient_limits[k]}, "
                "the most that a normalised action gives"
            )
        values: NDArray[np.float64] = np.zeros((self.horizon, self.dimensions))
        for k in range(self.horizon):
            values = values + self.basis[k][:, None] * grid[k]
            if np.abs(values).max() > self.value_limit + ROUNDING:
                worst = values.flat[np.abs(values).argmax()]
                raise ActionDecodeError(f"normalised value {worst:.2f} is beyond +-{self.value_limit:.2f}")
        return values

    def decode(self, ids: Sequence[int], first_id: int = 0) -> NDArray[np.float64]:
        """Normalised actions, float64 [horizon, dimensions], of FAST ids; ActionDecodeError says why there are none.

        first_id: id of the model that stands for FAST id 0.
        """
        data = self.bytes_of(ids, first_id)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ActionDecodeError(f"FAST tokens end in, or hold, a broken character ({error.reason})") from None
        if len(text) != self.size:
            raise ActionDecodeError(f"{len(text)} coefficients instead of {self.size} = {self.horizon} x 7")
        coefficients = np.array([ord(character) for character in text], dtype=np.int64) + self.min_token
        self.partial_values(coefficients)
        grid = coefficients.reshape(self.horizon, self.dimensions) / self.scale
        actions: NDArray[np.float64] = idct(grid, axis=0, norm="ortho")
        return actions


def load_fast_codec(folder: Path, horizon: int, bound: float = 1.0) -> FastCodec:
    """Read a FAST tokenizer folder (tokenizer.json, processor_config.json); raises CheckpointError.

    transformers 5 saves the tokenizer of this processor in a folder `bpe_tokenizer` of its own.
    """
    config = read_json(folder, "processor_config.json")
    nested = not (folder / "tokenizer.json").is_file() and (folder / "bpe_tokenizer").is_dir()
    raw = read_json(folder / "bpe_tokenizer" if nested else folder, "tokenizer.json")
    try:
        vocabulary: dict[str, int] = dict(raw["model"]["vocab"])
        vocabulary |= {token["content"]: token["id"] for token in raw.get("added_tokens") or ()}
        decoder = (raw.get("decoder") or {}).get("type")
        scale, min_token, size = float(config["scale"]), int(config["min_token"]), int(config["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a FAST tokenizer ({type(error).__name__}: {error})") from None
    if decoder != "ByteLevel":
        raise CheckpointError(f"{folder / 'tokenizer.json'} decodes by {decoder!r} (valid: ByteLevel)")
    if sorted(vocabulary.values()) != list(range(size)):
        raise CheckpointError(f"{folder / 'tokenizer.json'} does not hold the ids 0 ... {size - 1}")
    alphabet = _byte_alphabet()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return FastCodec([_token_bytes(token, alphabet) for token in tokens], scale, min_token, horizon, bound=bound)


@dataclass(frozen=True)
class UniformBins:
    """Values in [-1, 1] as `count` equal bins (RT-2, Brohan et al., arXiv 2307.15818; also the bins of OpenVLA).

    Bin i covers [-1 + 2 i / count, -1 + 2 (i + 1) / count) and stands for its middle; what is beyond goes to the end.
    """

    count: int

    @property
    def centres(self) -> NDArray[np.float64]:
        """The value of each bin, float64 [count]."""
        middles: NDArray[np.float64] = (2.0 * np.arange(self.count) + 1.0) / self.count - 1.0
        return middles

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Bins of normalised values, int64 of the same shape."""
        bins: NDArray[np.int64] = np.floor((values + 1.0) * 0.5 * self.count).astype(np.int64)
        return bins.clip(0, self.count - 1)

    def decode(self, bins: Sequence[int]) -> NDArray[np.float64]:
        """Normalised values float64 [N] of bins; raises ActionDecodeError for one outside 0 ... count - 1."""
        if outside := [b for b in bins if not 0 <= b < self.count]:
            raise ActionDecodeError(f"bin {outside[0]} is outside 0 ... {self.count - 1}")
        return self.centres[np.asarray(bins, dtype=np.int64)]


@dataclass(frozen=True)
class CellGrid:
    """The cells of a three-dimensional grid, numbered with the last axis fastest; a cell stands for its middle.

    edges: the cells' borders along each axis, ascending, float64 [n + 1] for n cells.
    """

    edges: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of cells along each axis."""
        first, second, third = (len(edges) - 1 for edges in self.edges)
        return first, second, third

    @property
    def size(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    def middle(self, cell: int) -> NDArray[np.float64]:
        """Middle of a cell, float64 [3]; raises ActionDecodeError for one outside 0 ... size - 1."""
        if not 0 <= cell < self.size:
            raise ActionDecodeError(f"cell {cell} is outside 0 ... {self.size - 1}")
        indices = np.unravel_index(cell, self.shape)
        return np.array([0.5 * (edges[i] + edges[i + 1]) for edges, i in zip(self.edges, indices, strict=True)])


def spherical_to_cartesian(theta: float, phi: float, r: float) -> NDArray[np.float64]:
    """Point float64 [3] at distance r; theta: angle from the z axis, phi: from x towards y, rad."""
    return r * np.array([math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)])


@dataclass(frozen=True)
class ActionStatistics:
    """Quantiles of a training set's actions: q01, q99 float64 [7], mask bool [7] (False: was never normalised)."""

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]

    def unnormalise(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Normalised actions [..., 7] to physical ones: -1 is q01, 1 is q99; dimensions outside the mask are kept."""
        physical = 0.5 * (actions + 1.0) * (self.q99 - self.q01) + self.q01
        return np.where(self.mask, physical, actions)

    def normalise(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Physical actions [..., 7] to normalised ones, clipped to [-1, 1]; dimensions outside the mask are kept."""
        spread = np.where(self.mask, np.maximum(self.q99 - self.q01, ROUNDING), 1.0)
        return np.where(self.mask, np.clip(2.0 * (actions - self.q01) / spread - 1.0, -1.0, 1.0), actions)


def load_statistics(folder: Path, key: str, name: str = "norm_stats.json") -> ActionStatistics:
    """Statistics of the data set `key` in a statistics file; raises CheckpointError naming the keys there are."""
    return select_statistics(read_json(folder, name), key, folder / name)


def select_statistics(raw: Mapping[str, Any], key: str, source: Path) -> ActionStatistics:
    """Statistics of the data set `key` in a mapping read from `source`; raises CheckpointError like the above."""
    if key not in raw:
        raise CheckpointError(f"{source} has no statistics {key!r} (valid: {', '.join(sorted(raw))})")
    try:
        return _statistics(raw[key].get("action", {}), f"{source}: {key}.action")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {key}.action is no mapping of numbers ({error})") from None


def _statistics(action: Mapping[str, Any], where: str) -> ActionStatistics:
    absent = [field for field in ("q01", "q99", "mask") if field not in action]
    if absent:
        raise CheckpointError(f"{where} lacks {', '.join(absent)}")
    q01, q99 = (np.asarray(action[field], dtype=np.float64) for field in ("q01", "q99"))
    mask = np.asarray(action["mask"], dtype=np.bool_)
    if not (q01.shape == q99.shape == mask.shape == (7,)):
        raise CheckpointError(f"{where} has shapes {q01.shape}, {q99.shape}, {mask.shape}, not 7")
    if not (np.isfinite(q01).all() and np.isfinite(q99).all() and (q01[mask] <= q99[mask]).all()):
        raise CheckpointError(f"{where} has q01, q99 that are not finite and ascending")
    return ActionStatistics(q01, q99, mask)

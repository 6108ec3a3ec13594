"""How long a step must take at least: bytes over bandwidth, or operations over their rate, whichever is longer.

The roofline (Williams et al., 2009), pass by pass, as NVlabs/vla-perf uses it for VLAs. A pass of n new tokens after m
cached ones through L layers of P weights in all (projections and MLP), H query heads and H_kv key heads of width d, and
of one row through the K rows of the head that are action tokens, which are all that the engine reads of it:

    operations(n, m) = 2 n P + 4 n (m + n) H d L + 2 K hidden
    bytes(n, m)      = b_w P + b_h K hidden + 2 b_c (m + n) H_kv d L
    seconds(n, m)    = max(operations / rate, bytes / bandwidth)

b_w, b_h, b_c: bytes of a weight of the layers, of one of the head, and of a cached number. The attention is counted in
full, masks or not. Norms, rotations, softmax, activations, the choice of tokens and the start of kernels are left out:
it is a lower bound, and a good guess where a pass is long against the start of its kernels. Rows that DTP captures cost
n_p H d (m + n) operations in few layers, and are left out too.

The passes of a step of T action tokens after a prompt of N, where DTP fires at every token:

    off                prefill(N), T - 1 single tokens
    per_step           scope `action`: prefill, a pass of three rows (the last prompt row again, masked, and the first
                       token clean and masked), T - 2 of two rows (clean and masked)
    per_token action   speculative: prefill, T - 1 passes of two rows, one of one row, and one more single row for each
                       speculation that fails
    per_token all      prefill, T - 1 clean tokens, T masked prefills, each one token longer, as if no two masks were
                       the same and none were large
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dtp_ros.errors import require_choice, require_integer, require_range

MODES = ("off", "per_step", "per_token action", "per_token all")
FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclass(frozen=True)
class Precision:
    """How weights are kept; arithmetic: FLOAT32 or BFLOAT16.

    weight_bytes: of a weight of the decoder's layers, which is all that int8 and int4 are for (`models/quantise.py`);
    int4's with scale and offset, int8's without its one scale a row. number_bytes: of all other weights and of what is
    cached.
    """

    name: str
    weight_bytes: float
    number_bytes: float
    arithmetic: str


PRECISIONS = (
    Precision("float32", 4.0, 4.0, FLOAT32),
    Precision("bfloat16", 2.0, 2.0, BFLOAT16),
    Precision("int8", 1.0, 2.0, BFLOAT16),
    Precision("int4", 0.625, 2.0, BFLOAT16),
)


@dataclass(frozen=True)
class Machine:
    """What a machine can do, and where that is said.

    bandwidth: of memory, bytes/s. rates: operations/s, dense, by arithmetic. memory: bytes.
    """

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    memory: float
    source: str

    def seconds(self, operations: float, num_bytes: float, arithmetic: str) -> float:
        """The longer of the two times, s."""
        return max(operations / self.rates[arithmetic], num_bytes / self.bandwidth)


@dataclass(frozen=True)
class Transformer:
    """Sizes of a stack of layers. gated: an MLP of three matrices, else two."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    gated: bool = True

    @property
    def parameters(self) -> int:
        """Weights of projections and MLPs, P; biases and norms are left out."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.intermediate)

    def operations(self, rows: int, cached: int = 0) -> float:
        """Of a pass of `rows` rows after `cached` ones; a multiplication and an addition are two."""
        attention = 4 * rows * (cached + rows) * self.heads * self.head_dim * self.layers
        return float(2 * rows * self.parameters + attention)

    def cached_numbers(self, tokens: int) -> int:
        """Numbers that the key/value cache holds for so many tokens."""
        return 2 * tokens * self.kv_heads * self.head_dim * self.layers


@dataclass(frozen=True)
class Encoder:
    """What turns an image into tokens, run once a step.

    float32: it is kept and computed so, whatever the precision. idle: weights that are kept with it and not run.
    """

    parameters: float
    operations: float
    float32: bool = False
    idle: float = 0.0

    @classmethod
    def vit(
        cls, layers: Transformer, tokens: int, other: float = 0.0, *, float32: bool = False, idle: float = 0.0
    ) -> Encoder:
        """A vision transformer over `tokens` patches, with `other` weights that run once for each (its projector)."""
        return cls(layers.parameters + other, layers.operations(tokens) + 2 * tokens * other, float32, idle)

    def weight_bytes(self, precision: Precision) -> float:
        """Bytes of a weight."""
        return 4.0 if self.float32 else precision.number_bytes


@dataclass(frozen=True)
class Vla:
    """A model: its decoder, vocabulary, encoders, and the tokens of one step.

    choices: K, action and end tokens. prompt_tokens: N, with the image's. action_tokens: T.
    tied: embedding and head are one matrix.
    """

    name: str
    decoder: Transformer
    vocabulary: int
    choices: int
    prompt_tokens: int
    action_tokens: int
    encoders: Sequence[Encoder] = field(default_factory=tuple)
    tied: bool = False

    @property
    def head_parameters(self) -> int:
        """Weights of the head that a token reads, K x hidden."""
        return self.choices * self.decoder.hidden

    @property
    def table_parameters(self) -> int:
        """Weights of embedding and head."""
        return self.vocabulary * self.decoder.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> float:
        """All weights."""
        return self.decoder.parameters + self.table_parameters + sum(e.parameters + e.idle for e in self.encoders)

    def memory(self, precision: Precision) -> float:
        """Bytes of all weights and of the cache of a step."""
        encoders = sum((e.parameters + e.idle) * e.weight_bytes(precision) for e in self.encoders)
        cached = self.decoder.cached_numbers(self.prompt_tokens + self.action_tokens)
        layers = self.decoder.parameters * precision.weight_bytes
        return encoders + layers + (self.table_parameters + cached) * precision.number_bytes


def pass_seconds(vla: Vla, machine: Machine, precision: Precision, rows: int, cached: int) -> float:
    """Seconds of a pass of `rows` new tokens after `cached` ones, to the logits of one row."""
    decoder = vla.decoder
    operations = decoder.operations(rows, cached) + 2 * vla.head_parameters
    numbers = vla.head_parameters + decoder.cached_numbers(cached + rows)
    num_bytes = precision.weight_bytes * decoder.parameters + precision.number_bytes * numbers
    return machine.seconds(operations, num_bytes, precision.arithmetic)


def encoder_seconds(vla: Vla, machine: Machine, precision: Precision) -> float:
    """Seconds of the encoders of a step."""
    return sum(
        machine.seconds(
            encoder.operations,
            encoder.parameters * encoder.weight_bytes(precision),
            FLOAT32 if encoder.float32 else precision.arithmetic,
        )
        for encoder in vla.encoders
    )


def passes(mode: str, prompt: int, tokens: int, accepted: float = 1.0) -> list[tuple[int, int, float]]:
    """The passes of a step: (new rows, cached rows, how often), in the order of the module's description.

    accepted: share of speculations that hold. Raises ConfigError for another mode or numbers out of range.
    """
    require_choice("mode", mode, MODES)
    require_integer("prompt", prompt, 1, 2**31)
    require_integer("tokens", tokens, 1, 2**31)
    require_range("accepted", accepted, 0.0, 1.0)
    prefill = (prompt, 0, 1.0)
    later = [(1, prompt + i, 1.0) for i in range(tokens - 1)]
    again = (1, prompt - 1, 1.0)
    if mode == "off" or tokens == 1:
        extra = {"off": [], "per_token all": [prefill]}.get(mode, [again])
        return [prefill, *extra, *later]
    if mode == "per_step":
        return [prefill, (3, prompt - 1, 1.0), *((2, prompt + i, 1.0) for i in range(1, tokens - 1))]
    if mode == "per_token action":
        pairs = [(2, prompt - 1 + i, 1.0) for i in range(tokens - 1)]
        failed = [(1, prompt + i, 1.0 - accepted) for i in range(tokens - 1)]
        return [prefill, *pairs, *failed, (1, prompt + tokens - 2, 1.0)]
    return [prefill, *later, *((prompt + i, 0, 1.0) for i in range(tokens))]


def step_seconds(vla: Vla, machine: Machine, precision: Precision, mode: str, accepted: float = 1.0) -> float:
    """Seconds of a step, encoders included; raises ConfigError for a mode that there is none of."""
    total = encoder_seconds(vla, machine, precision)
    for rows, cached, times in passes(mode, vla.prompt_tokens, vla.action_tokens, accepted):
        total += times * pass_seconds(vla, machine, precision, rows, cached)
    return total

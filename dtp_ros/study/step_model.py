"""How long a step takes on which machine: `python -m dtp_ros.study.step_model`. The equations are in `roofline`.

Sizes of the models are those of their published configurations; numbers of prompt and action tokens are for one camera,
an instruction of ten words and the chunk that docs/models.md names. Data sheets are the vendor's, rates dense (half of
what is printed where a sheet counts sparsity); see the source of each machine.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.functional import linear

from dtp_ros.study.roofline import (
    BFLOAT16,
    FLOAT32,
    MODES,
    PRECISIONS,
    Encoder,
    Machine,
    Precision,
    Transformer,
    Vla,
    step_seconds,
)

CONTROL_SECONDS = 0.2  # 5 Hz
ACCEPTED = 0.9  # share of speculations that hold: ours, a guess to be replaced by the trace's figure
BLOCK = 1 << 27  # bytes, far beyond any cache

_SIGLIP = Transformer(27, 1152, 16, 16, 72, 4304, gated=False)
_SIGLIP_PATCHES = 3 * 14 * 14 * 1152
_DINO = Transformer(24, 1024, 16, 16, 64, 4096, gated=False)
_QWEN_VISION = Transformer(32, 1280, 16, 16, 80, 3420)
_QWEN_MERGER = (5120 * 5120 + 5120 * 2048) / 4  # runs once for four patches
# ZoeDepth (BEiT-L at 384 pixels) and Emu3's image encoder (a clip of four frames of 256 pixels): weights and operations
# as torch's FlopCounterMode counts them; the test counts again.
_ZOE = Encoder(0.3333e9, 509.9e9)
_EMU_ENCODER = Encoder(0.1095e9, 3562e9, float32=True, idle=0.2707e9 - 0.1095e9)

MODELS = (
    Vla(
        "tabletop", Transformer(6, 160, 5, 5, 32, 416), 286, 256, prompt_tokens=74, action_tokens=7,
        encoders=(Encoder(1.082e6, 0.221e9, float32=True),),
    ),
    Vla(
        "nora", Transformer(36, 2048, 16, 2, 128, 11008), 153713, 2050, prompt_tokens=97, action_tokens=7, tied=True,
        encoders=(Encoder.vit(_QWEN_VISION, 256, 2 * 3 * 14 * 14 * 1280 + _QWEN_MERGER, idle=3 * _QWEN_MERGER),),
    ),
    Vla(
        "spatialvla", Transformer(26, 2304, 8, 4, 256, 9216), 265347, 8194, prompt_tokens=276, action_tokens=12,
        encoders=(Encoder.vit(_SIGLIP, 256, _SIGLIP_PATCHES + 1152 * 2304), _ZOE),
    ),
    Vla(
        "univla", Transformer(32, 4096, 32, 8, 128, 14336), 184622, 1026, prompt_tokens=2084, action_tokens=8,
        encoders=(_EMU_ENCODER,),
    ),
    Vla(
        "openvla", Transformer(32, 4096, 32, 32, 128, 11008), 32064, 256, prompt_tokens=285, action_tokens=7,
        encoders=(
            Encoder.vit(_SIGLIP, 256, _SIGLIP_PATCHES + 2176 * 8704 + 8704 * 4096 + 4096 * 4096),
            Encoder.vit(_DINO, 261, 3 * 14 * 14 * 1024),
        ),
    ),
    Vla(
        "pi0_fast", Transformer(18, 2048, 8, 1, 256, 16384), 257152, 1025, prompt_tokens=310, action_tokens=40,
        tied=True, encoders=(Encoder.vit(_SIGLIP, 256, _SIGLIP_PATCHES + 1152 * 2048, float32=True),),
    ),
)  # fmt: skip

MACHINES = (
    Machine(
        "Jetson AGX Orin 64 GB", 204.8e9, {FLOAT32: 5.3e12, BFLOAT16: 42.5e12}, 64e9,
        "NVIDIA Jetson AGX Orin technical brief: 204.8 GB/s, 5.3 TFLOPS float32; 170 TOPS sparse int8 of the tensor "
        "cores, a quarter of that in dense 16 bit",
    ),
    Machine(
        "GeForce RTX 4090", 1008e9, {FLOAT32: 82.6e12, BFLOAT16: 165.2e12}, 24e9,
        "NVIDIA Ada architecture white paper: 1008 GB/s, 82.6 TFLOPS float32, 165.2 TFLOPS bfloat16, dense",
    ),
    Machine(
        "H200 SXM", 4.8e12, {FLOAT32: 67e12, BFLOAT16: 989e12}, 141e9,
        "NVIDIA H200 data sheet: 4.8 TB/s, 67 TFLOPS float32, 1979 TFLOPS bfloat16 with sparsity, half of it dense",
    ),
)  # fmt: skip


def measured_machine(device: torch.device, dtype: str = BFLOAT16, name: str = "this machine") -> Machine:
    """The machine at hand, on torch's present threads: what it really reaches, in about three seconds.

    bandwidth: of a product of one row with matrices of `dtype` far beyond the caches, as decoding has them. rates: of
    products of 256 rows.
    """
    rates = {kind: _product_rate(device, getattr(torch, kind)) for kind in (FLOAT32, BFLOAT16)}
    return Machine(name, _weight_bandwidth(device, getattr(torch, dtype)), rates, _memory(device), "measured")


def processor(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What computes, by name: others add up in another order, and a last digit can end an episode another way.

    Of a CPU also its family, model and stepping, which is what libraries choose by: virtual ones share a name.
    """
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = platform.processor() or platform.machine()
    if cpuinfo.exists():
        pairs = (line.partition(":")[::2] for line in cpuinfo.read_text(encoding="utf-8").splitlines() if ":" in line)
        found = {key.strip(): value.strip() for key, value in pairs}
        kind = [f"{key.split()[-1]} {found[key]}" for key in ("cpu family", "model", "stepping") if key in found]
        name = ", ".join([found.get("model name", name), *kind])
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _memory(device: torch.device) -> float:
    """Bytes that the device has."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))


def _weight_bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    size = dtype.itemsize
    matrices = torch.ones(BLOCK // size // (4096 * 1024), 4096, 1024, dtype=dtype, device=device)
    row = torch.ones(1, 1024, dtype=dtype, device=device)
    return matrices.numel() * size / _fastest(lambda: [linear(row, matrix) for matrix in matrices], device)


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    matrices = torch.ones(8, 4096, 1024, dtype=dtype, device=device)
    rows = torch.ones(256, 1024, dtype=dtype, device=device)
    return 2 * 256 * matrices.numel() / _fastest(lambda: [linear(rows, matrix) for matrix in matrices], device)


def _fastest(run: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """The least time of several runs, s, after one that warms up."""

    def once() -> float:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    once()
    return min(once() for _ in range(repeats))


def table(machines: Sequence[Machine], models: Sequence[Vla], precisions: Sequence[Precision]) -> Iterator[str]:
    """Lines of Markdown: ms of a step in every mode, and which modes 5 Hz are possible in, an action a step."""
    for machine in machines:
        rates = ", ".join(f"{kind} {rate / 1e12:.3g} TFLOPS" for kind, rate in machine.rates.items())
        yield f"**{machine.name}**: {machine.bandwidth / 1e9:.0f} GB/s, {rates} ({machine.source})."
        yield ""
        yield f"| model | weights | {' | '.join(f'{mode}, ms' for mode in MODES)} | 5 Hz |"
        yield "|---|---|" + "---|" * (len(MODES) + 1)
        for model in models:
            yield from (_row(machine, model, precision) for precision in precisions)
        yield ""


def _row(machine: Machine, model: Vla, precision: Precision) -> str:
    size = model.memory(precision)
    label = f"| {model.name} | {precision.name}, {size / 1e9:.2g} GB |"
    if size > machine.memory:
        return f"{label} {'- | ' * len(MODES)}does not fit |"
    seconds = [step_seconds(model, machine, precision, mode, ACCEPTED) for mode in MODES]
    possible = [mode for mode, value in zip(MODES, seconds, strict=True) if value <= CONTROL_SECONDS]
    answer = "all" if len(possible) == len(MODES) else ", ".join(possible) or "none"
    return f"{label} {' | '.join(map(_milliseconds, seconds))} | {answer} |"


def _milliseconds(seconds: float) -> str:
    """Three digits, and all of what is before the point."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def main() -> None:
    """Print the table for the machine at hand and for three others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    names = [precision.name for precision in PRECISIONS]
    parser.add_argument("--precisions", nargs="+", choices=names, default=names)
    parser.add_argument("--models", nargs="+", choices=[m.name for m in MODELS], default=[m.name for m in MODELS])
    options = parser.parse_args()
    models = [model for model in MODELS if model.name in options.models]
    precisions = [precision for precision in PRECISIONS if precision.name in options.precisions]
    print("\n".join(table([measured_machine(torch.device(options.device)), *MACHINES], models, precisions)))


if __name__ == "__main__":
    main()

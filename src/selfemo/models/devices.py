"""The devices that torch can compute on, for `selfemo doctor`; nothing is loaded onto them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of CPUs that have instructions for bf16; the last is ARM's."""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its memory in bytes, and whether it computes in bf16 (not by emulation)."""

    name: str
    memory: float
    bf16: bool


@dataclass(frozen=True)
class Devices:
    """The facts that a configuration is checked against; `cpu_bf16`: the CPU has instructions for bf16."""

    torch: str
    threads: int
    cpu_bf16: bool
    gpus: tuple[Gpu, ...] = ()


def cpu_flags() -> frozenset[str]:
    """What this CPU has instructions for, as Linux names it; empty where nothing says so."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()


def devices() -> Devices:
    """The devices of this machine."""
    import torch

    gpus = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        with torch.cuda.device(i):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        gpus.append(Gpu(properties.name, float(properties.total_memory), bf16))
    return Devices(str(torch.__version__), torch.get_num_threads(), bool(cpu_flags() & BF16), tuple(gpus))

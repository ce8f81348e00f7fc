"""The devices that torch can compute on, for `selfemo doctor`; nothing is loaded onto them."""

from __future__ import annotations

from dataclasses import dataclass


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


def devices() -> Devices:
    """The devices of this machine."""
    import torch

    from selfemo.models.loading import pick_dtype  # loads transformers

    gpus = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        with torch.cuda.device(i):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        gpus.append(Gpu(properties.name, float(properties.total_memory), bf16))
    cpu_bf16 = pick_dtype("auto", torch.device("cpu")) == "bf16"
    return Devices(str(torch.__version__), torch.get_num_threads(), cpu_bf16, tuple(gpus))

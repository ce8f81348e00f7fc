"""verl on a CPU, for tests: a platform, and its FSDP engine there.

verl runs on GPUs; its trainer, FSDP workers, TransferQueue, agent loop, reward loop and vLLM run on a CPU too
once they are told what a CPU is. Loaded in each process of verl by VERL_USE_EXTERNAL_MODULES, through verl's
own registries; what vLLM's own process needs is in cpu_vllm.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import types
from pathlib import Path
from typing import Any

import ray
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


class _CpuModule(types.ModuleType):
    """torch.cpu with what verl asks of torch.cuda."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        if name == "mem_get_info":
            return lambda *a, **k: (0, 0)
        if name == "get_device_name":
            return lambda *a, **k: "CPU"
        if "memory" in name:
            return _zero
        return _nothing


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _CpuModule("torch_cpu")

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # only where VERL_PLATFORM names it

    def current_device(self) -> Any:
        return torch.device("cpu")  # a number would be read as one of an accelerator's

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CPU_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"  # verl's resource check knows GPU and NPU alone; the tests tell Ray that there are some

    def ray_resource_options(self, num_gpus: float) -> dict[str, Any]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {}

    def get_collective_module(self) -> None:
        return None

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Any:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def cudart(self) -> None:
        return None


def _one_backend() -> None:
    """verl names a backend for the CPU and one for its device, which are the same here."""
    begin = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return begin("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group
    torch.Tensor.pin_memory = lambda self, *_, **__: self  # there is no device to pin it for


def _note_logprobs(folder: Path) -> None:
    """Write a step's tokens, and what sampler, trainer and reference say of each, to STEP.json."""
    import transfer_queue as tq
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    compute = PPOTrainer._compute_advantage

    def noted(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        fields = ["prompts", "responses", "rollout_log_probs", "old_log_probs", "ref_log_prob"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        said = {name: [row.tolist() for row in data[name].unbind()] for name in fields}
        folder.mkdir(exist_ok=True)
        (folder / f"{self.global_steps}.json").write_text(json.dumps(said))
        return compute(self, batch, metrics)

    PPOTrainer._compute_advantage = noted


def _register() -> None:
    _one_backend()
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device=["cpu"])(
        FSDPEngineWithLMHead
    )
    if folder := os.environ.get("SELFEMO_TEST_LOGPROBS"):
        _note_logprobs(Path(folder))


if os.environ.get("VERL_PLATFORM") == "cpu":
    _register()
    assert ray is not None

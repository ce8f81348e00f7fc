"""vLLM's worker in verl on a CPU: it leaves weights as they are loaded, so that later ones take their place.

vLLM packs the weights of linear layers for the CPU when it has loaded them and frees the loaded ones; new
weights then have nowhere to go, and a head that is tied to the embedding keeps its old packed copy. On GPUs
it does neither.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm.model_executor.layers.utils as layers
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


def _unpacked(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


class Worker(vLLMColocateWorkerExtension):
    """Named by `worker_extension_cls`; made in the process that holds the model, before it is loaded."""

    def __new__(cls, **kwargs: Any) -> Worker:
        layers.dispatch_cpu_unquantized_gemm = _unpacked
        return super().__new__(cls, **kwargs)

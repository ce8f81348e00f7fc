"""Settings for verl alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from selfemo.config.base import Positive, Section


class ClusterConfig(Section):
    """Settings for verl alone (engine = "verl"); defaults are table 12's."""

    nodes: Positive = 1
    gpus_per_node: Positive = 8
    address: str = ""
    """Address of a running Ray cluster ("auto": the one of this node); empty starts one on this node."""
    rollout: Literal["vllm", "sglang"] = "vllm"
    tensor_parallel: Positive = 8
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_batched_tokens: Positive = 12400
    micro_batch_per_gpu: Positive = 16
    """Sequences of one micro-batch on a GPU."""
    offload_reference: bool = True
    offload_policy: bool = False
    """Keep the policy's weights and optimiser in CPU memory while completions are sampled."""
    test_every: Annotated[int, Field(ge=0)] = 10
    """RL rounds between two tests on held-out prompts; 0 for none."""
    save_every: Positive = 480
    """RL rounds between two states that a stage can resume from; each wave ends with one more."""
    reward_workers: Positive = 8
    """Processes of verl that score completions."""
    overrides: tuple[str, ...] = ()
    """Further Hydra overrides of verl's RL configuration; the last word."""
    sft_overrides: tuple[str, ...] = ()
    """The same of its SFT configuration."""

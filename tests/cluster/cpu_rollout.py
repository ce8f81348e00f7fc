"""The rollout server of tests/cluster/cpu.py: samples with transformers, with the trainer's weights."""

from __future__ import annotations

from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

_SERVER = "selfemo_cpu_server"


@ray.remote(num_cpus=0)
class Server:
    def __init__(self, path: str, limit: int):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.eos = AutoTokenizer.from_pretrained(path).eos_token_id
        self.limit, self.version, self.asked = limit, 0, 0

    def load(self, weights: dict[str, torch.Tensor], version: int) -> None:
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected and len(weights) > 0, (missing, unexpected)
        self.version = version

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        self.asked += 1
        torch.manual_seed(self.asked)
        ids = torch.tensor([prompt_ids])
        temperature = sampling_params.get("temperature", 1.0)
        ways = {"do_sample": True, "temperature": temperature, "top_k": 0}
        with torch.no_grad():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.limit,
                eos_token_id=self.eos,
                pad_token_id=self.eos,
                **(ways if temperature else {"do_sample": False}),
            )[0, ids.shape[1] :].tolist()
        if self.eos in out:
            out = out[: out.index(self.eos) + 1]
        return TokenOutput(
            token_ids=out,
            log_probs=[0.0] * len(out) if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            num_preempted=0,
            extra_fields={"global_steps": self.version},
        )

    async def nothing(self, *args: Any, **kwargs: Any) -> None: ...

    wake_up = sleep = abort_all_requests = resume_generation = nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = nothing


class CpuReplica(RolloutReplica):
    async def launch_servers(self) -> None:
        server = Server.options(name=f"{_SERVER}_{self.replica_rank}").remote(
            self.model_config.path, self.config.response_length
        )
        self.servers = [server]
        self._server_handle, self._server_address = server, f"cpu:{self.replica_rank}"


class CpuRollout(BaseRollout):
    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(self, weights: Any, global_steps: int = 0, **_: Any) -> None:
        state = {name: tensor.detach().float().clone() for name, tensor in weights}
        rank = torch.distributed.get_rank()
        if rank == 0:
            server = ray.get_actor(f"{_SERVER}_0")
            await server.load.remote(state, global_steps or 0)

"""Completions of a policy that trains here, sampled by vLLM in the same process.

vLLM has a copy of the weights. It is given the present ones before it samples, whenever they changed, so
that no completion can come of old ones; and then both sides score a short text, which ends the run where
they disagree by more than rounding (`check_weights`). When vLLM starts, that is done with all weights halved,
too: a matrix that new weights do not reach shows there at once, where one small step would hardly show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from selfemo.config import SamplingConfig
from selfemo.method.types import RawCompletion
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.generation.vllm import VllmSampler
from selfemo.models.generation.vllm_here import Here, check_version, check_weights
from selfemo.training.engine import LocalEngine

CAP = 2.0
"""`grpo.importance_cap = "auto"` with vLLM."""


class VllmRollouts:
    """Samples for a `LocalEngine`; one vLLM serves all engines of a run, one after the other.

    Args:
        longest: most tokens of a prompt and its completion.

    Raises:
        MissingExtraError: vLLM is not installed. EngineError: it is too old.
    """

    def __init__(self, config: SamplingConfig, longest: int):
        check_version()
        self.config, self.longest = config, longest
        self._vllm: Here | None = None
        self._given: object = None
        self.gap = 0.0

    def generate(
        self, engine: LocalEngine, requests: Sequence[Request], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        """Completions by the engine's present weights; see `Sampler.generate`.

        Raises:
            EngineError: vLLM cannot run the model, or does not compute with the weights that it is given.
        """
        if self._vllm is None:
            self._vllm = self._start(engine)
        if self._given is not engine.weights_version:
            self._give(self._vllm, engine)
            self._given = engine.weights_version
        return VllmSampler(engine.policy, self._vllm).generate(requests, settings)

    def sleep(self) -> None:
        """Give memory back for the policy's update."""
        if self._vllm is not None and self._vllm.sleep():
            self._given = None

    def _start(self, engine: LocalEngine) -> Here:
        policy = engine.policy
        vllm = Here(
            policy.source,
            policy.device,
            policy.dtype,
            policy,
            context=self.longest,
            cache_tokens=self.config.token_budget,
            shared=True,
        )
        with halved(policy.model):
            self._give(vllm, engine)
        return vllm

    def _give(self, vllm: Here, engine: LocalEngine) -> None:
        engine.policy.model.eval()
        vllm.take(engine.weights())
        self.gap = check_weights(vllm, engine.policy)


@contextmanager
def halved(model: torch.nn.Module) -> Iterator[None]:
    """All weights of a model at half their size; doubling them again is exact but for numbers under 1e-38."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
        try:
            yield
        finally:
            for weight in model.parameters():
                weight.mul_(2.0)

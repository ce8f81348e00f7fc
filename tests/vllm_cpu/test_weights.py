"""Weights that a policy learned reach vLLM: tied and untied heads, adapters; and stale ones are seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from selfemo.config import LoraConfig, ModelConfig, SamplingConfig
from selfemo.errors import EngineError
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.requests import SamplingSettings
from selfemo.models.generation.vllm_here import Here
from selfemo.training.engine import LocalEngine
from selfemo.training.rollouts import VllmRollouts
from tests.vllm_cpu.conftest import asked

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
SETTINGS = SamplingSettings(12)
WAYS = ("tied", "untied", "lora")


def engine_of(model: Path, lora: bool = False) -> LocalEngine:
    adapters = LoraConfig(rank=4, alpha=8) if lora else None
    return LocalEngine(ModelConfig(id=str(model), device="cpu", dtype="fp32", lora=adapters))


def rollouts() -> VllmRollouts:
    return VllmRollouts(SamplingConfig(token_budget=4096), 1024)


@pytest.fixture(scope="module", params=WAYS)
def trained(
    request: pytest.FixtureRequest, tied: Path, untied: Path
) -> Iterator[tuple[LocalEngine, VllmRollouts]]:
    engine = engine_of(tied if request.param == "tied" else untied, request.param == "lora")
    yield engine, rollouts()


def largest_gap(engine: LocalEngine, sampler: VllmRollouts) -> float:
    """Of the log-probabilities of what vLLM draws, to those of the policy as it is."""
    requests = asked(engine.policy)
    gaps = []
    for request, group in zip(requests, sampler.generate(engine, requests, SETTINGS), strict=True):
        for c in group:
            ((found,),) = branch_logp(engine.policy, [(0, request.prompt_ids, [list(c.token_ids)])], [0])
            gaps += [abs(a - b) for a, b in zip(found, c.logprobs, strict=True)]
    return max(gaps)


def scores(sampler: VllmRollouts) -> list[float]:
    """Of a text by vLLM."""
    assert sampler._vllm is not None
    return sampler._vllm.token_logp([list(range(40, 80))], [1])[0]


def alter(engine: LocalEngine, name: str, by: float) -> list[str]:
    """Change the trained weights whose name has `name`, as an optimiser step would."""
    changed = []
    torch.manual_seed(3)
    with torch.no_grad():
        for own, p in engine.policy.model.named_parameters():
            if p.requires_grad and name in own:
                p.add_(torch.randn_like(p) * by)
                changed.append(own)
    engine.weights_version = object()
    return changed


def test_altered_weights_are_those_that_vllm_samples_with(trained: tuple[LocalEngine, VllmRollouts]) -> None:
    engine, sampler = trained
    lora, tied = engine.config.lora is not None, engine.policy.core.config.tie_word_embeddings
    assert largest_gap(engine, sampler) < 1e-4
    for name in ("lora_B", "lora_A") if lora else ("embed_tokens", "lm_head", "q_proj", "down_proj", "norm"):
        before = scores(sampler)
        changed = alter(engine, name, 0.1)
        assert bool(changed) == (name != "lm_head" or not tied)
        if changed:
            assert largest_gap(engine, sampler) < 2e-4, name
            assert max(abs(a - b) for a, b in zip(before, scores(sampler), strict=True)) > 1e-3, name
            assert sampler.gap < 1e-4


def test_unchanged_weights_are_not_sent_again(
    trained: tuple[LocalEngine, VllmRollouts], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sampler = trained
    sampler.generate(engine, asked(engine.policy), SETTINGS)
    monkeypatch.setattr(Here, "take", lambda self, weights: pytest.fail("sent"))
    sampler.generate(engine, asked(engine.policy), SETTINGS)


@pytest.mark.parametrize("stale", ["embed_tokens", "lm_head", "layers.1.mlp.up_proj"])
def test_weights_that_do_not_arrive_stop_the_run(
    untied: Path, stale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU where vLLM packs its head once: the new one is taken and not used."""
    take = Here.take
    monkeypatch.setattr(
        Here, "take", lambda self, weights: take(self, ((n, w) for n, w in weights if stale not in n))
    )
    engine = engine_of(untied)
    alter(engine, "", 0.2)  # random weights as they come do hardly anything
    with pytest.raises(EngineError, match=r"does not compute with the weights.*there and .*here.*rounding"):
        rollouts().generate(engine, asked(engine.policy), SETTINGS)


def test_other_weights_are_loaded_into_an_open_sampler(untied: Path, tied: Path, tmp_path: Path) -> None:
    from selfemo.models.generation.vllm_here import open_here
    from selfemo.models.loading import load_policy

    engine = engine_of(untied)
    alter(engine, "proj", 0.3)
    engine.save(tmp_path / "other")
    sampler = open_here(str(untied), ModelConfig(device="cpu", dtype="fp32"))
    sampler.load(str(tmp_path / "other"))
    policy = load_policy(str(tmp_path / "other"), "cpu")
    (request, _) = asked(policy)
    ((c, *_),) = sampler.generate([request], SETTINGS)
    ((found,),) = branch_logp(policy, [(0, request.prompt_ids, [list(c.token_ids)])], [0])
    assert c.logprobs == pytest.approx(found, abs=1e-4)
    with pytest.raises(EngineError, match="not of the same model"):
        sampler.load("builtin:smollm2-135m")

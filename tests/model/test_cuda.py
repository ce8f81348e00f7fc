"""The local engine on a CUDA device against itself on the CPU; skipped where there is none.

pytest -m "slow or not slow" tests/model/test_cuda.py
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfemo.config import GrpoConfig, LoraConfig, ModelConfig, SftConfig
from selfemo.errors import EngineError
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.packing import pack
from selfemo.models.policy import Attention
from selfemo.training.engine import LocalEngine, SftItem
from selfemo.training.token_scores import inputs, score_tokens
from tests.conftest import Built, build_tiny_model
from tests.support.engines import drawn_items, gradients, plain_logprobs, rl_items

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def tiny_model(built_once: Built) -> Path:
    """The tiny model with heads of 16: the kernels of FlexAttention have none smaller."""
    return built_once("tiny-64", partial(build_tiny_model, hidden_size=64))


def engine(model: Path, device: str = "cuda", dtype: str = "fp32", **kw) -> LocalEngine:
    return LocalEngine(ModelConfig(id=str(model), device=device, dtype=dtype, **kw))


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of two sets of gradients, by parameter."""
    assert a.keys() == b.keys() and a
    distances = [
        (x.cpu().double() - b[n].cpu().double()).norm() / (b[n].cpu().double().norm() + 1e-12)
        for n, x in a.items()
    ]
    return float(max(distances))


def test_packed_scores_and_gradients_equal_separate_rows(tiny_model: Path) -> None:
    e = engine(tiny_model)
    items = rl_items(1, 6)
    tree = pack([inputs(i.prompt_ids, i.completion_ids) for i in items])
    scores = score_tokens(e.policy, [tree], [[i.completion_ids for i in items]])
    (scores.logp * scores.mask).sum().backward()
    packed = gradients(e.policy.core)
    plain = engine(tiny_model, "cpu")
    for row, item in enumerate(items):
        expected = plain_logprobs(plain.policy.core, item)
        assert torch.allclose(scores.logp[row, : len(expected)].cpu(), expected, atol=1e-3)
        expected.sum().backward()
    assert apart(packed, gradients(plain.policy.core)) < 5e-3


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 5e-3), ("bf16", 0.1)])
def test_the_rl_gradient_is_that_of_the_cpu(
    tiny_model: Path, dtype: str, tolerance: float, attention: Attention, compiled: bool
) -> None:
    items = rl_items(4, 4)
    found = {}
    for device, precision in (("cuda", dtype), ("cpu", "fp32")):
        own = {"attention": attention, "compile": compiled} if device == "cuda" else {}
        e = engine(tiny_model, device, precision, **own)
        config = GrpoConfig(kl_coef=0.01, entropy_coef=0.01, micro_tokens=120)
        e.begin_stage(config)
        e.set_reference()
        measures = e.rl_backward(items, config)
        found[device] = gradients(e.policy.core), measures
    assert apart(found["cuda"][0], found["cpu"][0]) < tolerance
    for name in ("entropy", "tokens", "packed_tokens"):
        assert found["cuda"][1][name] == pytest.approx(found["cpu"][1][name], rel=2e-2)


def test_flex_leaves_out_blocks_of_rows_that_have_many(tiny_model: Path) -> None:
    """Rows of several blocks of 128, of another length at each call, by one compiled kernel."""
    config = GrpoConfig(kl_coef=0, micro_tokens=100_000)
    for n in (30, 41, 57):
        items = rl_items(n, 4)
        found = []
        for attention in ("flex", "dense"):
            e = engine(tiny_model, attention=attention)
            e.begin_stage(config)
            e.rl_backward(items, config)
            found.append(gradients(e.policy.core))
        assert apart(*found) < 5e-3


def test_logits_in_fp32_bring_sampler_and_trainer_together(tiny_model: Path) -> None:
    """In bf16 they differ by the kernels of decoding and training; the fp32 head takes out its own part."""
    apart_: dict[bool, float] = {}
    for head in (False, True):
        e = engine(tiny_model, dtype="bf16", fp32_head=head)
        config = GrpoConfig(kl_coef=0.0)
        items = drawn_items(e, 8, 8, 16)
        e.begin_stage(config)
        apart_[head] = e.rl_backward(items, config)["mismatch"]
    assert 0 < apart_[True] < 1.1 * apart_[False] and apart_[False] < 0.05


def test_greedy_completions_are_those_of_the_cpu(tiny_model: Path) -> None:
    requests = [Request(i.prompt_ids, 2, 7, share="s") for i in rl_items(6, 1)]
    settings = SamplingSettings(max_new_tokens=12, temperature=0.0, token_budget=400)
    a, b = (engine(tiny_model, d).sampler.generate(requests, settings) for d in ("cuda", "cpu"))
    same = [x.token_ids == y.token_ids for g, h in zip(a, b, strict=True) for x, y in zip(g, h, strict=True)]
    assert sum(same) >= len(same) - 1  # rounding may break one tie
    for g, h in zip(a, b, strict=True):
        for x, y in zip(g, h, strict=True):
            if x.token_ids == y.token_ids:
                assert x.logprobs == pytest.approx(y.logprobs, abs=1e-3)


def test_a_sampled_completion_does_not_depend_on_its_batch(tiny_model: Path) -> None:
    e = engine(tiny_model)
    requests = [Request(i.prompt_ids, 4, 11 + k) for k, i in enumerate(rl_items(5, 1))]
    settings = SamplingSettings(max_new_tokens=10)
    together = e.sampler.generate(requests, settings)
    alone = [e.sampler.generate([r], settings)[0] for r in requests]
    same = [
        x.token_ids == y.token_ids
        for g, h in zip(together, alone, strict=True)
        for x, y in zip(g, h, strict=True)
    ]
    assert sum(same) >= 0.9 * len(same)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_learns_and_its_state_goes_on(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    items = [
        SftItem(i.prompt_ids, i.completion_ids, [1.0] * len(i.completion_ids), i.prompt)
        for i in rl_items(4, 2)
    ]
    config = SftConfig(lr=1e-2, micro_tokens=200)
    e = engine(tiny_model, dtype=dtype)
    e.begin_stage(config)
    losses = [e.sft_step(items, config, 1e-2)["loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.3
    e.save_training_state(tmp_path / "state.safetensors")
    following = [e.sft_step(items, config, 1e-2)["loss"] for _ in range(2)]
    again = engine(tiny_model, dtype=dtype)
    again.begin_stage(config)
    again.load_training_state(tmp_path / "state.safetensors")
    assert [again.sft_step(items, config, 1e-2)["loss"] for _ in range(2)] == pytest.approx(
        following, rel=2e-2
    )
    e.save(tmp_path / "whole")
    assert LocalEngine(ModelConfig(id=str(tmp_path / "whole"), device="cpu")).policy


@pytest.mark.parametrize("more", [{}, {"compile": True}, {"compile": True, "attention": "flex"}])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_slots_decode_by_a_graph_what_branches_decode(
    tiny_model: Path, dtype: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice from one table: the second time every step is replayed, behind an optimiser step as well."""
    requests = [Request(i.prompt_ids, 4, 7 + k, share="s") for k, i in enumerate(rl_items(6, 1))]
    settings = SamplingSettings(max_new_tokens=24)
    monkeypatch.setattr("selfemo.models.flex.LEAST_TOKENS", 0)
    by_slots = engine(tiny_model, dtype=dtype, decoder="slots", **more)
    by_branches = engine(tiny_model, dtype=dtype, decoder="branches")
    config = GrpoConfig(kl_coef=0, lr=1e-3)
    for e in (by_slots, by_branches):
        e.begin_stage(config)
    for _ in range(3):
        a, b = (e.sampler.generate(requests, settings) for e in (by_slots, by_branches))
        pairs = [(x, y) for g, h in zip(a, b, strict=True) for x, y in zip(g, h, strict=True)]
        same = [x.token_ids == y.token_ids for x, y in pairs]
        assert sum(same) >= (0.9 if dtype == "fp32" else 0.5) * len(same)
        firsts = [(x.logprobs[0], y.logprobs[0]) for x, y in pairs if x.token_ids[0] == y.token_ids[0]]
        assert np.allclose(*zip(*firsts, strict=True), atol=1e-3 if dtype == "fp32" else 0.05)
        for e in (by_slots, by_branches):
            e.rl_round([rl_items(4, 4)], config, [1e-3])
    tables = by_slots.sampler._tables._kept.values()
    assert any(table._graph is not None for table in tables)


def test_adapters_and_checkpointing_have_the_gradient_of_plain_layers(tiny_model: Path) -> None:
    found = []
    for more in ({}, {"compile": True}, {"compile": True, "gradient_checkpointing": True}):
        e = engine(tiny_model, lora=LoraConfig(), **more)
        config = GrpoConfig(kl_coef=0.01, micro_tokens=200)
        e.begin_stage(config)
        e.rl_backward(rl_items(3, 4), config)
        found.append(gradients(e.policy.model))
        requests = [Request(i.prompt_ids, 2, 7) for i in rl_items(2, 1)]
        assert e.sampler.generate(requests, SamplingSettings(max_new_tokens=6))
    assert apart(found[1], found[0]) < 5e-3 and apart(found[2], found[0]) < 5e-3


def test_flex_refuses_heads_that_its_kernels_do_not_have(built_once: Built) -> None:
    small = built_once("tiny", build_tiny_model)
    with pytest.raises(EngineError, match="its heads of 12 are under 16"):
        engine(small, attention="flex")

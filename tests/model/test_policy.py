"""A policy's text and logits (models/policy.py)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo

from selfemo.config import GrpoConfig, ModelConfig
from selfemo.errors import EngineError
from selfemo.models import compiling, flex
from selfemo.models import policy as policies
from selfemo.models.generation.local import LocalGenerator
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.models.packing import pack
from selfemo.training.engine import LocalEngine
from tests.support.engines import gradients, rl_items

CHAT = [{"role": "user", "content": "I got the job!"}]


def test_a_chat_is_encoded_once_and_each_caller_has_its_own_ids(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(str(tiny_model), "cpu")
    read: list[str] = []
    plain = policies.Policy.plain_ids
    monkeypatch.setattr(
        policies.Policy, "plain_ids", lambda self, text: read.append(text) or plain(self, text)
    )
    first = policy.encode(CHAT)
    expected = list(first)
    first.append(7)
    assert policy.encode([dict(m) for m in CHAT]) == expected and len(read) == 1
    assert policy.encode([{"role": "system", "content": "I got the job!"}]) and len(read) == 2
    other = load_policy(str(tiny_model), "cpu").tokenizer
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    policy.take_tokenizer(other)
    assert policy.encode(CHAT) == plain(policy, "I got the job!") != expected


def test_kept_chats_are_bounded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_CHATS", 3)
    policy = load_policy(str(tiny_model), "cpu")
    for k in range(8):
        policy.encode([{"role": "user", "content": str(k)}])
        assert len(policy._chats) <= 3


@pytest.mark.parametrize("matrix_unit", [False, True])
def test_logits_in_fp32_are_not_rounded_to_bf16(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, matrix_unit: bool
) -> None:
    """Of one hidden state in bf16: by the fp32 head they are the products of fp32 weights, else rounded where
    the CPU multiplies in bf16."""
    monkeypatch.setattr("selfemo.models.layers.has_matrix_unit", lambda: matrix_unit)
    found = {}
    for head in (True, False):
        policy = load_policy(str(tiny_model), "cpu", "bf16", fp32_head=head)
        with torch.no_grad(), policy.autocast():
            hidden = policy.hidden(policy.rows([pack([[5, 6, 7]])]))
            found[head] = policy.logits(hidden)
    exact = hidden.float() @ policy.core.get_output_embeddings().weight.detach().T
    assert torch.allclose(found[True], exact, atol=1e-6)
    assert torch.equal(found[False], found[False].bfloat16().float()) == matrix_unit
    assert not torch.equal(found[True], found[True].bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        ("bf16", "aot_eager"),  # all but the kernels
        *(pytest.param(dtype, "inductor", marks=pytest.mark.extended) for dtype in ("fp32", "bf16")),
    ],
)
def test_compiled_layers_compute_what_plain_ones_do(
    tiny_model: Path, dtype: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores, gradients and completions of several shapes by one compilation, behind optimiser steps too."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = {}
    for compiled in (False, True):
        e = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype=dtype, compile=compiled))
        config = GrpoConfig(kl_coef=0.01, lr=1e-3, micro_tokens=200)
        e.begin_stage(config)
        e.set_reference()
        made = []
        for n in (3, 2, 5):
            measures = e.rl_backward(rl_items(n, 4), config)
            made.append((measures, gradients(e.policy.core)))
            e._apply(config, 1e-3, 1.0)
        requests = [Request(i.prompt_ids, 2, 7, share="s") for i in rl_items(4, 1)]
        drawn = e.sampler.generate(requests, SamplingSettings(8, temperature=0.0))
        found[compiled] = made, [[c.token_ids for c in g] for g in drawn]
    exact = dtype == "fp32"
    for (plain, a), (ours, b) in zip(found[False][0], found[True][0], strict=True):
        assert ours == pytest.approx(plain, rel=1e-4 if exact else 0.05, abs=1e-6 if exact else 1e-3)
        far = [float((a[n] - b[n]).norm() / (a[n].norm() + 1e-9)) for n in a]
        assert max(far) < (1e-3 if exact else 0.2), max(far)
    if exact:
        assert found[False][1] == found[True][1]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 24, f"{graphs} graphs: shapes or layers are compiled each for itself"


@pytest.mark.slow
def test_what_is_compiled_by_itself_stays_so_where_a_cache_grows(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoder layers run as they are behind a cache; FlexAttention has no plain kernel on CUDA."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    compiled = compiling.for_all_lengths(flex.flex_attention)
    monkeypatch.setattr(flex, "_kernel", lambda device: compiled)
    monkeypatch.setattr(flex, "LEAST_TOKENS", 0)
    policy = load_policy(str(tiny_model), "cpu", attention="flex")
    policy.compiled = True
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    drawn = LocalGenerator(policy, SamplingSettings(3)).generate([Request([5, 6, 7], 2, 1)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    plain = LocalGenerator(load_policy(str(tiny_model), "cpu"), SamplingSettings(3))
    same = plain.generate([Request([5, 6, 7], 2, 1)])
    assert [c.token_ids for c in drawn[0]] == [c.token_ids for c in same[0]]


@pytest.mark.slow
def test_a_function_that_needs_too_many_versions_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_VERSIONS", 2)
    with (
        torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=False),
        pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit),
    ):
        double = compiling.for_all_lengths(lambda x, n: x * n)
        for kind in (torch.float32, torch.float64, torch.int32, torch.int64, torch.bool):
            double(torch.ones(3, dtype=kind), 2)


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("/no/such/compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(EngineError, match=r"model\.compile: torch\.compile does not work here .*leave"):
        load_policy(str(tiny_model), "cpu", compiled=True)
    torch._dynamo.reset()

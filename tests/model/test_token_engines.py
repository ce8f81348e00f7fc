"""What a sampler over token ids (generation/vllm.py) makes of an engine; here that is the policy itself.

vLLM as the engine is in tests/vllm_cpu.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.config import GrpoConfig, LoraConfig, ModelConfig, load
from selfemo.errors import ConfigError, EndpointError, EngineError, MissingExtraError, UnsupportedError
from selfemo.method.types import LabelSet
from selfemo.models.generation import open_sampler
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.local import LocalSampler, OnToken
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.generation.vllm import Draw, TokenRequest, Tokens, VllmSampler
from selfemo.models.loading import load_policy
from selfemo.models.policy import Policy
from selfemo.training.engine import LocalEngine
from tests.conftest import MELD

OWN = LabelSet("own", ("sad", "sadly", "calm"))


class Plain:
    """A `TokenEngine` that computes each token by a whole forward pass."""

    chunk = 4

    def __init__(self, policy: Policy, context: int = 256):
        self.policy, self.context = policy, context
        self.asked: list[int] = []

    def complete(
        self,
        requests: Sequence[TokenRequest],
        draw: Draw,
        on_done: Callable[[int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Tokens]]:
        self.asked.append(len(requests))
        return [[self._one(r, k, draw) for k in range(r.n)] for r in requests]

    def _one(self, r: TokenRequest, k: int, draw: Draw) -> Tokens:
        generator, ids, logp = torch.Generator().manual_seed(r.seed + k), list[int](), list[float]()
        for _ in range(r.limit):
            with torch.no_grad():
                logits = self.policy.core(torch.tensor([[*r.ids, *ids]])).logits[0, -1]
            scores = torch.log_softmax(logits / (draw.temperature or 1), -1)
            drawn = (
                torch.multinomial(scores.exp(), 1, generator=generator)
                if draw.temperature
                else scores.argmax()
            )
            ids.append(int(drawn))
            logp.append(float(scores[ids[-1]]))
            if ids[-1] in draw.stop:
                return Tokens(ids, logp, True)
        return Tokens(ids, logp, False)

    def next_logp(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        assert len(set(map(tuple, prompts))) == len(prompts), "each place is asked once"
        places = [
            (k, p, [[t] for t in wanted]) for k, (p, wanted) in enumerate(zip(prompts, tokens, strict=True))
        ]
        return [[b[0] for b in branches] for branches in branch_logp(self.policy, places, [0] * len(places))]

    def token_logp(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        places = [
            (k, s[:start], [s[start:]]) for k, (s, start) in enumerate(zip(sequences, starts, strict=True))
        ]
        return [branch for (branch,) in branch_logp(self.policy, places, [0] * len(places))]

    def load(self, weights: str) -> None:
        raise UnsupportedError(weights)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return load_policy(str(tiny_model), "cpu")


def asked(policy: Policy, n: int = 2) -> list[Request]:
    chats = ["Ann: Hooray, we won it!", "Cy: The bus leaves at nine."]
    return [
        Request(policy.encode([{"role": "user", "content": c}]), n, 2**63 - 2 + k)
        for k, c in enumerate(chats)
    ]


@pytest.mark.parametrize("labels", [MELD, OWN], ids=["meld", "one begins another"])
def test_labels_and_channel_are_those_of_the_local_sampler(policy: Policy, labels: LabelSet) -> None:
    mine, local = VllmSampler(policy, Plain(policy)), LocalSampler(policy)
    places = [(k, r.prompt_ids, w) for k, r in enumerate(asked(policy)) for w in ("E:", "")]
    for a, b in zip(
        mine.label_probabilities(places, labels), local.label_probabilities(places, labels), strict=True
    ):
        assert a.vector(labels) == pytest.approx(b.vector(labels), abs=1e-5)
    channel = [(k, r.prompt_ids, f"E: {labels.labels[0]}\nS:", "No.") for k, r in enumerate(asked(policy))]
    for c, d in zip(mine.channel_scores(channel, labels), local.channel_scores(channel, labels), strict=True):
        assert c.prior + c.reply == pytest.approx(d.prior + d.reply, abs=1e-3)


@settings(max_examples=12)
@given(lines=st.integers(0, 3), tokens=st.integers(1, 24), greedy=st.booleans())
def test_a_completion_ends_with_its_last_line_or_token(
    policy: Policy, lines: int, tokens: int, greedy: bool
) -> None:
    """However often it was asked to go on: the limit is of the whole, each token has its probability."""
    done: list[int] = []
    limits = SamplingSettings(tokens, 0.0 if greedy else 1.0, max_lines=lines)
    requests = asked(policy)
    groups = VllmSampler(policy, Plain(policy)).generate(requests, limits, done.append)
    assert sum(done) >= len(requests)
    for request, group in zip(requests, groups, strict=True):
        assert len(group) == 2
        for c in group:
            ((logp,),) = branch_logp(policy, [(0, request.prompt_ids, [list(c.token_ids)])], [0])
            assert c.logprobs == pytest.approx(logp, abs=1e-4) and c.text == policy.decode(c.token_ids)
            ends = [i for i, t in enumerate(c.token_ids) if t in policy.end_ids]
            breaks = policy.line_ends[list(c.token_ids)].cumsum()
            assert ends in ([], [len(c.token_ids) - 1]) and len(c.token_ids) <= tokens
            full = bool(lines and breaks[-1] >= lines)
            assert not lines or len(breaks) == 1 or breaks[-2] < lines
            assert c.finished == (bool(ends) or full) and (c.finished or len(c.token_ids) == tokens)


def test_a_completion_without_room_for_its_last_line_is_unfinished(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    newline = policy.plain_ids("\n")[-1]
    engine = Plain(policy)
    monkeypatch.setattr(
        engine, "complete", lambda parts, *_: [[Tokens([newline], [-1.0], True)] * p.n for p in parts]
    )
    for tokens, ended in ((1, False), (2, True), (3, True)):
        limits = SamplingSettings(tokens, 1.0, max_lines=2)
        for group in VllmSampler(policy, engine).generate(asked(policy), limits):
            assert [(c.finished, len(c.token_ids)) for c in group] == [(ended, min(tokens, 2))] * 2


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_greedy_completions_are_the_local_samplers(policy: Policy, lines: int) -> None:
    limits = SamplingSettings(16, 0.0, max_lines=lines)
    mine, local = (
        s.generate(asked(policy), limits) for s in (VllmSampler(policy, Plain(policy)), LocalSampler(policy))
    )
    for a, b in zip(mine, local, strict=True):
        assert [(c.token_ids, c.finished, c.text) for c in a] == [
            (c.token_ids, c.finished, c.text) for c in b
        ]


def test_copies_differ_and_a_seed_gives_them_again(policy: Policy) -> None:
    sampler = VllmSampler(policy, Plain(policy))
    limits = SamplingSettings(12, max_lines=2)
    first = sampler.generate(asked(policy, 4), limits)
    assert first == sampler.generate(asked(policy, 4), limits)
    assert all(len({c.token_ids for c in group}) > 1 for group in first)


def test_what_leaves_no_room_is_refused(policy: Policy) -> None:
    sampler = VllmSampler(policy, Plain(policy, context=8))
    with pytest.raises(EngineError, match="a prompt of 8 tokens leaves no room in vLLM's context of 8"):
        sampler.generate([Request([5] * 8)], SamplingSettings(4))
    ((c,),) = sampler.generate([Request([5] * 6)], SamplingSettings(4))
    assert len(c.token_ids) <= 2
    with pytest.raises(EngineError, match="leaves no room"):
        sampler.label_probabilities([("c", [5] * 8, "E:")], MELD)
    with pytest.raises(UnsupportedError, match="several lines"):
        sampler.generate([Request([5])], SamplingSettings(4, max_lines=2), on_token=lambda *a: True)


def test_merged_adapters_are_those_of_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    engine = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32", lora=LoraConfig(rank=4)))
    with torch.no_grad():
        for name, p in engine.policy.model.named_parameters():
            if "lora_B" in name:
                p.add_(0.1 * torch.randn_like(p))
    engine.save(tmp_path / "saved")
    saved = dict(load_policy(str(tmp_path / "saved"), "cpu").core.named_parameters())
    given_ = dict(engine.weights())
    assert given_.keys() == saved.keys()
    for name, weight in given_.items():
        assert torch.allclose(weight, saved[name], atol=1e-6), name


def test_halved_weights_come_back_whole(tiny_model: Path) -> None:
    from selfemo.training.rollouts import halved

    model = load_policy(str(tiny_model), "cpu").core
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(KeyError), halved(model):
        assert all(torch.equal(p, before[n] / 2) for n, p in model.named_parameters())
        raise KeyError
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_importance_cap_follows_who_samples(tiny_model: Path) -> None:
    engine = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu"))
    assert engine._cap(GrpoConfig()) == 0 and engine._cap(GrpoConfig(importance_cap=3)) == 3
    engine.importance_cap = 2.0
    assert engine._cap(GrpoConfig()) == 2 and engine._cap(GrpoConfig(importance_cap=0)) == 0


def test_what_would_bias_the_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"top_p = 0.9 with backend = .vllm.*biased; set top_p = 1"):
        load([], ['sampling.backend="vllm"', "sampling.top_p=0.9"])


@pytest.mark.parametrize(
    ("found", "error", "why"),
    [
        ("0.23.1+cpu", EngineError, r"vllm 0.23.1.cpu is installed, and 0.24 is the oldest"),
        ("", MissingExtraError, "pip install"),
    ],
)
def test_another_version_is_told_before_anything_is_loaded(
    found: str, error: type[Exception], why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from selfemo.models.generation import vllm_here
    from selfemo.training import open_rollouts

    monkeypatch.setattr(vllm_here, "version_of", lambda name: found)
    with pytest.raises(error, match=why):
        open_sampler("builtin:smollm2-135m", ModelConfig(backend="vllm"))
    with pytest.raises(error, match=why):
        open_rollouts(load([], ['sampling.backend="vllm"']))


def test_a_server_that_is_no_vllm_is_told(expert: Callable[..., str], tiny_model: Path) -> None:
    sampler = open_sampler(f"mine={expert()},model=m,tokenizer={tiny_model},attempts=1")
    with pytest.raises(EndpointError, match="mine"):
        sampler.generate([Request([5, 6])], SamplingSettings(4))
    with pytest.raises(EngineError, match="nowhere"):
        open_sampler(f"mine={expert()},model=m,tokenizer=/nowhere")

"""vLLM in this process gives what the local sampler gives, and refuses what it cannot do."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from selfemo.config import ModelConfig
from selfemo.errors import EngineError, UnsupportedError
from selfemo.method.parsing import parse
from selfemo.method.types import BUILTIN_MODEL, Completion, LabelSet
from selfemo.models.generation import open_sampler
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.local import LocalSampler
from selfemo.models.generation.own_format import OwnFormat
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.generation.vllm import VllmSampler
from selfemo.models.generation.vllm_here import Here, check_weights
from selfemo.models.loading import load_policy
from selfemo.models.policy import Policy
from tests.conftest import MELD
from tests.support.models import copy_of, with_tokenizer
from tests.vllm_cpu.conftest import asked

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
OWN = LabelSet("own", ("sad", "sadly", "calm"))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(BUILTIN_MODEL, "cpu", "fp32")


@pytest.fixture(scope="module")
def vllm() -> VllmSampler:
    opened = open_sampler(BUILTIN_MODEL, ModelConfig(device="cpu", dtype="fp32", backend="vllm"))
    assert isinstance(opened, VllmSampler)
    return opened


def logp(policy: Policy, request: Request, ids: tuple[int, ...]) -> list[float]:
    ((found,),) = branch_logp(policy, [(0, request.prompt_ids, [list(ids)])], [0])
    return found


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_what_is_drawn_has_the_policys_log_probabilities(
    vllm: VllmSampler, policy: Policy, lines: int
) -> None:
    requests = asked(policy)
    groups = vllm.generate(requests, SamplingSettings(32, max_lines=lines))
    for request, group in zip(requests, groups, strict=True):
        assert len(group) == 3 and len({c.token_ids for c in group}) > 1
        for c in group:
            assert c.text == policy.decode(c.token_ids) and 0 < len(c.token_ids) <= 32
            assert c.logprobs == pytest.approx(logp(policy, request, c.token_ids), abs=1e-3)
            assert c.entropies == tuple(-x for x in c.logprobs)
            breaks = int(policy.line_ends[list(c.token_ids)].sum())
            ended = c.token_ids[-1] in policy.end_ids
            assert c.finished == (ended or bool(lines and breaks >= lines))
            if lines:  # nothing is written behind the last line
                assert int(policy.line_ends[list(c.token_ids[:-1])].sum()) < lines
    assert vllm.generate(requests, SamplingSettings(32, max_lines=lines)) == groups, "a seed is a seed"


def test_temperature_is_the_policys_own(vllm: VllmSampler, policy: Policy) -> None:
    (request, _) = asked(policy)
    (group,) = vllm.generate([request], SamplingSettings(8, 0.7))
    for c in group:
        whole = torch.tensor([[*request.prompt_ids, *c.token_ids]])
        with torch.no_grad():
            logits = policy.core(whole).logits[0, len(request.prompt_ids) - 1 : -1] / 0.7
        wanted = torch.log_softmax(logits, -1).gather(-1, torch.tensor(c.token_ids)[:, None])[:, 0]
        assert c.logprobs == pytest.approx(wanted.tolist(), abs=1e-3)


@pytest.mark.parametrize("repeat", [0, 2])
def test_greedy_completions_are_those_of_the_local_sampler(
    vllm: VllmSampler, policy: Policy, repeat: int
) -> None:
    settings = SamplingSettings(24, 0.0, no_repeat_ngram=repeat)
    requests = asked(policy, 2)
    mine, theirs = vllm.generate(requests, settings), LocalSampler(policy).generate(requests, settings)
    assert [[c.token_ids for c in g] for g in mine] == [[c.token_ids for c in g] for g in theirs]
    if not repeat:
        assert mine[0][0].logprobs == pytest.approx(theirs[0][0].logprobs, abs=1e-3)
        assert all(map(math.isnan, mine[0][0].entropies)), "a greedy token is no draw"


@pytest.mark.parametrize("labels", [MELD, OWN], ids=["meld", "one begins another"])
def test_labels_and_channel_are_read_as_the_policy_reads_them(
    vllm: VllmSampler, policy: Policy, labels: LabelSet
) -> None:
    local = LocalSampler(policy)
    places = [(k, r.prompt_ids, w) for k, r in enumerate(asked(policy)) for w in ("E:", "")]
    for a, b in zip(
        vllm.label_probabilities(places, labels), local.label_probabilities(places, labels), strict=True
    ):
        assert a.vector(labels) == pytest.approx(b.vector(labels), abs=1e-3)
    channel = [
        (k, r.prompt_ids, f"E: {labels.labels[0]}\nS:", "So what?") for k, r in enumerate(asked(policy))
    ]
    for c, d in zip(vllm.channel_scores(channel, labels), local.channel_scores(channel, labels), strict=True):
        assert c.prior == pytest.approx(d.prior, abs=1e-2) and c.reply == pytest.approx(d.reply, abs=1e-2)


def test_answers_are_held_to_the_format_and_followed(vllm: VllmSampler, policy: Policy) -> None:
    """The grammar, its limits and the probabilities that it sees are those of the local sampler."""
    form, local = OwnFormat(policy, MELD), LocalSampler(policy)
    most = form.least_tokens() + 4
    seen: list[tuple[int, int]] = []

    def followed(request: int, copy: int, ids: object) -> bool:
        seen.append((request, len(ids)))  # type: ignore[arg-type]
        return True

    formats = [[form.limited(most) for _ in range(2)] for _ in range(2)]
    prompts = [r.prompt_ids for r in asked(policy)]
    mine, theirs = (
        s.generate(
            [Request(p, constraints=f) for p, f in zip(prompts, limited, strict=True)],
            SamplingSettings(most, 0.0),
            on_token=followed,
        )
        for s, limited in zip((vllm, local), formats, strict=True)
    )
    for (a,), (b,), here, there in zip(mine, theirs, *formats, strict=True):
        assert a.token_ids == b.token_ids and isinstance(parse(a.text, MELD), Completion)
        assert here.cut == there.cut and all(map(math.isnan, a.logprobs))
        for field in "ES":
            assert here.probabilities(field).vector(MELD) == pytest.approx(  # type: ignore[union-attr]
                there.probabilities(field).vector(MELD),
                abs=1e-3,  # type: ignore[union-attr]
            )
    lengths = [n for k, n in seen if k == 0]
    assert lengths[: len(mine[0][0].token_ids)] == list(range(1, len(mine[0][0].token_ids) + 1))


def test_a_completion_that_nobody_waits_for_is_ended(vllm: VllmSampler, policy: Policy) -> None:
    groups = vllm.generate(asked(policy), SamplingSettings(24), on_token=lambda r, c, ids: len(ids) < 4)
    for c in (c for g in groups for c in g):
        assert len(c.token_ids) == 4 or c.finished
    with pytest.raises(UnsupportedError, match="several lines"):
        vllm.generate(asked(policy), SamplingSettings(24, max_lines=2), on_token=lambda *a: True)


def test_an_interrupted_call_leaves_nothing_behind(vllm: VllmSampler, policy: Policy) -> None:
    def stop(request: int, copy: int, ids: object) -> bool:
        raise KeyboardInterrupt

    settings = SamplingSettings(16)
    before = vllm.generate(asked(policy), settings)
    with pytest.raises(KeyboardInterrupt):
        vllm.generate(asked(policy), settings, on_token=stop)
    assert vllm.generate(asked(policy), settings) == before


def test_progress_counts_each_completion_once(vllm: VllmSampler, policy: Policy) -> None:
    done: list[int] = []
    vllm.generate(asked(policy), SamplingSettings(24, max_lines=2), done.append)
    assert sum(done) == 6


def test_a_prompt_longer_than_the_context_is_refused(tied: Path) -> None:
    policy = load_policy(str(tied), "cpu", "fp32")
    vllm = VllmSampler(policy, Here(str(tied), torch.device("cpu"), "fp32", policy, context=64))
    with pytest.raises(EngineError, match=r"64 tokens leaves no room in vLLM's context of 64"):
        vllm.generate([Request([5] * 64)], SamplingSettings(4))
    ((c,),) = vllm.generate([Request([5] * 62)], SamplingSettings(4))
    assert len(c.token_ids) <= 2, "what fits is written"


def test_a_model_that_vllm_cannot_run_is_one_error(tied: Path, tmp_path: Path) -> None:
    policy = load_policy(str(tied), "cpu", "fp32")
    broken = copy_of(tied, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"vLLM cannot run .*broken: .*weights"):
        Here(str(broken), torch.device("cpu"), "fp32", policy)


def test_a_model_that_starts_and_cannot_be_computed_is_told_at_once(tiny_model: Path) -> None:
    with pytest.raises(EngineError, match=r"vLLM cannot run .*tiny: .*head_dim=12"):
        open_sampler(str(tiny_model), ModelConfig(device="cpu", dtype="fp32", backend="vllm"))


def test_an_engine_in_another_process_is_refused(
    policy: Policy, tied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(EngineError, match="vLLM in this process needs 0: unset it"):
        Here(str(tied), torch.device("cpu"), "fp32", policy)


def test_completions_that_make_room_for_others_come_to_the_same(tied: Path) -> None:
    """Its cache holds two of them: others wait, or are taken out and come again, with their constraints."""
    policy = load_policy(str(tied), "cpu", "fp32")
    vllm = VllmSampler(
        policy, Here(str(tied), torch.device("cpu"), "fp32", policy, context=192, cache_tokens=1)
    )
    chats = [f"Ann: {'We won it! ' * k}" for k in range(1, 7)]
    requests = [Request(policy.encode([{"role": "user", "content": c}]), 2) for c in chats]
    settings = SamplingSettings(96, 0.0, no_repeat_ngram=2)
    mine, theirs = vllm.generate(requests, settings), LocalSampler(policy).generate(requests, settings)
    assert [[c.token_ids for c in g] for g in mine] == [[c.token_ids for c in g] for g in theirs]


def test_rows_that_no_token_has_are_not_drawn(tied: Path, tmp_path: Path) -> None:
    wide = with_tokenizer(tied, tmp_path / "wide", lambda t: None, rows=600)
    policy = load_policy(str(wide), "cpu", "fp32")
    assert policy.spare is not None and len(policy.spare) > 100
    vllm = VllmSampler(policy, here := Here(str(wide), torch.device("cpu"), "fp32", policy, context=256))
    assert check_weights(here, policy) < 1e-4
    for request, group in zip(
        requests := asked(policy), vllm.generate(requests, SamplingSettings(24)), strict=True
    ):
        for c in group:
            assert not {*c.token_ids} & {*policy.spare.tolist()}
            assert c.logprobs == pytest.approx(logp(policy, request, c.token_ids), abs=1e-3)


def test_the_process_is_left_as_it_was(tied: Path) -> None:
    policy = load_policy(str(tied), "cpu", "fp32")
    torch.manual_seed(7)
    random.seed(7)
    wanted, set_threads = (torch.rand(3), random.random()), torch.set_num_threads
    torch.manual_seed(7)
    random.seed(7)
    Here(str(tied), torch.device("cpu"), "fp32", policy, context=64)
    assert torch.equal(torch.rand(3), wanted[0]) and random.random() == wanted[1]
    assert torch.set_num_threads is set_threads

"""Decoding in fixed slots (generation/slots.py) against decoding in branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from selfemo.config import GrpoConfig, ModelConfig
from selfemo.errors import NotFiniteError
from selfemo.models.generation import slots
from selfemo.models.generation.draws import Drawn
from selfemo.models.generation.local import LocalGenerator, LocalSampler
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.models.policy import Attention, Policy
from selfemo.training.engine import LocalEngine
from tests.support.engines import rl_items

PROMPT = np.random.default_rng(0).integers(3, 300, 60).tolist()


def policies(tiny_model: Path, attention: Attention = "tree") -> tuple[Policy, Policy]:
    return tuple(
        load_policy(str(tiny_model), "cpu", attention=attention, decoder=d) for d in ("slots", "branches")
    )


@pytest.fixture(scope="module")
def both(tiny_model: Path) -> tuple[Policy, Policy]:
    return policies(tiny_model)


def assert_equal_completions(both: tuple[Policy, Policy], requests, chosen: SamplingSettings) -> list:
    ours, theirs = (LocalGenerator(p, chosen).generate(requests) for p in both)
    assert [len(g) for g in ours] == [r.n for r in requests]
    for a, b in zip((x for g in ours for x in g), (x for g in theirs for x in g), strict=True):
        assert (a.token_ids, a.text, a.finished) == (b.token_ids, b.text, b.finished)
        assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)
        assert a.entropies == pytest.approx(b.entropies, abs=2e-4)
    return [x for g in ours for x in g]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_completions_are_those_of_branches(both: tuple[Policy, Policy], data: st.DataObject) -> None:
    """Whatever prompts, copies, trees, batches, temperatures and limits there are."""
    number = st.integers(1, 5)
    requests = [
        Request(
            PROMPT[data.draw(st.integers(0, 2)) : 20 + data.draw(st.integers(0, 30))],
            data.draw(number),
            data.draw(st.integers(0, 2**40)),
            data.draw(st.sampled_from(["a", "b", None])),
        )
        for _ in range(data.draw(number))
    ]
    chosen = SamplingSettings(
        data.draw(st.integers(1, 20)),
        data.draw(st.sampled_from([0.0, 0.7, 1.0])),
        data.draw(st.sampled_from([0.8, 1.0])),
        data.draw(st.integers(0, 2)),
        token_budget=data.draw(st.sampled_from([100, 400, 8192])),
    )
    assert_equal_completions(both, requests, chosen)


@pytest.mark.parametrize("attention", ["tree", "dense"])
def test_slots_move_together_when_most_have_ended(
    tiny_model: Path, attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completions of mixed length; each look moves the open ones, and none is lost or mixed up."""
    both = policies(tiny_model, attention)
    for policy in both:  # a third of the vocabulary ends a completion, so that lengths are mixed
        policy.core.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(100)]
    monkeypatch.setattr(slots, "_LOOK", 2)
    moves: list[tuple[int, int]] = []
    smaller = slots._smaller

    def counted(table, who, *args):
        found = smaller(table, who, *args)
        if found[0] is not table:
            moves.append((table.tokens.numel(), found[0].tokens.numel()))
            assert (found[1] >= 0).sum() < (who >= 0).sum()
        return found

    monkeypatch.setattr(slots, "_smaller", counted)
    requests = [Request(PROMPT[: 20 + 3 * k], 8, k, "one" if k < 3 else None) for k in range(6)]
    found = assert_equal_completions(both, requests, SamplingSettings(40))
    assert len({len(x.token_ids) for x in found}) > 4, "lengths are mixed"
    assert len(moves) > 1 and all(2 * after <= before for before, after in moves), moves


def test_a_step_reads_nothing_from_the_device(both: tuple[Policy, Policy]) -> None:
    """Tensors without values refuse to be read: neither shapes nor kernels may depend on what was drawn."""
    policy = both[0]
    for chosen in (SamplingSettings(12), SamplingSettings(12, 0.7, 0.9, 1), SamplingSettings(12, 0.0)):
        table = slots.SlotTables().get(policy, chosen, (2, 4, 60))
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            table.step()
            with pytest.raises(DataDependentOutputException):
                bool((table.tokens + 1).sum())


def test_a_step_keeps_its_buffers(both: tuple[Policy, Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a step reads and writes stays where it is, so that a recorded graph can be replayed."""
    addresses: list[list[int]] = []
    step = slots._Table.step

    def watched(table):
        buffers = [*table.state, table.at, *(x for pair in (*table.prefix, *table.own) for x in pair)]
        addresses.append([x.data_ptr() for x in buffers])
        step(table)

    monkeypatch.setattr(slots._Table, "step", watched)
    slots.decode_slots(both[0], SamplingSettings(12), [Request(PROMPT, 3, 1)], [[0]], slots.SlotTables())
    assert len(addresses) == 11 and all(a == addresses[0] for a in addresses)


def test_a_sampler_takes_the_path_of_its_settings_and_branches_where_the_host_decides(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decode = slots.decode_slots

    def counted(*args) -> list[Drawn]:
        calls.append(1)
        return decode(*args)

    monkeypatch.setattr("selfemo.models.generation.local.decode_slots", counted)
    engine = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32", decoder="slots"))
    requests = [Request(PROMPT, 2, 3)]
    engine.sampler.generate(requests, SamplingSettings(6))
    assert len(calls) == 1
    engine.sampler.generate(requests, SamplingSettings(6, no_repeat_ngram=3))
    engine.sampler.generate(requests, SamplingSettings(6), on_token=lambda *a: True)
    assert len(calls) == 1
    plain = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32"))
    plain.sampler.generate(requests, SamplingSettings(6))
    assert len(calls) == 1


def test_training_changes_what_slots_sample(tiny_model: Path) -> None:
    settings_ = SamplingSettings(8)
    found = []
    for decoder in ("slots", "branches"):
        engine = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32", decoder=decoder))
        engine.sampler.generate([Request(PROMPT, 4, 5)], settings_)
        config = GrpoConfig(kl_coef=0, lr=1e-2)
        engine.begin_stage(config)
        engine.rl_round([rl_items(3, 4)], config, [1e-2])
        found.append([c.token_ids for c in engine.sampler.generate([Request(PROMPT, 4, 5)], settings_)[0]])
    assert found[0] == found[1]


def test_weights_that_are_not_numbers_are_told(tiny_model: Path) -> None:
    policy = load_policy(str(tiny_model), "cpu", decoder="slots")
    with torch.no_grad():
        policy.core.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="not numbers"):
        LocalSampler(policy).generate([Request(PROMPT, 2, 3)], SamplingSettings(6))


@given(st.integers(1, 500), st.integers(1, 500))
def test_tables_are_halved_while_what_is_open_fits(n: int, least: int) -> None:
    size = slots._halved(n, least)
    assert size == n if least > -(-n // 2) else least <= size < 2 * least
    halves = [n]
    while halves[-1] > 1:
        halves.append(-(-halves[-1] // 2))
    assert size in halves, "few sizes, whatever is open"


@given(st.integers(1, 5000), st.sampled_from([1, 4, 64]))
def test_buckets_waste_at_most_a_quarter_or_one_unit(n: int, step: int) -> None:
    size = slots._bucket(n, step)
    assert size >= n and size % step == 0 and size - n < max(step, n / 4)
    assert slots._bucket(size, step) == size

"""Causal credit, two-stage rollouts and the divisors of advantages (SPEC section 9)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import load
from selfemo.errors import ConfigError
from selfemo.method.scoring import score_causally, score_completions, with_rest
from selfemo.method.self_grpo import advantages, normalise, scale_of
from selfemo.method.types import (
    Completion,
    FailureKind,
    Lineage,
    ParseFailure,
    Place,
    RawCompletion,
    RolloutGroup,
)
from selfemo.runs.inputs import labels_taught
from selfemo.runs.store import Store
from selfemo.seeds import rng, shuffled_runs
from selfemo.stages.coldstart import gold_samples, label_samples
from selfemo.stages.flywheel import add_sample
from selfemo.stages.rl import rl_items
from selfemo.stages.selfplay import score_group, select_best
from tests.conftest import MELD, dist, make_prompt, toy_conversations

REWARDS = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def test_divisors_by_hand() -> None:
    r = [1.0, 0.0, 0.0, 1.0]
    assert normalise(r, eps=0).tolist() == [1, -1, -1, 1]
    assert normalise(r, how="mean").tolist() == [1, -1, -1, 1]
    assert normalise(r, how="none").tolist() == [0.5, -0.5, -0.5, 0.5]
    assert normalise([1.0, 0, 0, 0], how="mean").tolist() == [3, -1, -1, -1]
    for how in ("std", "mean", "none"):
        assert normalise([0.0, 0.0], how=how).tolist() == [0, 0]  # nobody is right: nothing to learn
        assert normalise([0.7], how=how).tolist() == [0]
    with pytest.raises(ValueError, match="negative"):
        scale_of([-0.5, 0.5], "mean")


@given(REWARDS, REWARDS, st.floats(0, 1), st.sampled_from(["std", "mean", "none"]))
def test_advantages_of_a_group_sum_to_zero(r1: list[float], r2: list[float], lam: float, how: str) -> None:
    n = min(len(r1), len(r2))
    found = advantages(r1[:n], r2[:n], lam, how=how)  # type: ignore[arg-type]
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(0, abs=1e-5 * np.abs(found).max() + 1e-9)


@pytest.mark.parametrize(
    ("how", "p", "weight"),
    [
        ("std", 0.1, 0.23), ("std", 0.5, 0.93), ("std", 0.9, 2.09),
        ("mean", 0.1, 1 - 0.9**7), ("mean", 0.5, 1 - 0.5**7), ("mean", 0.9, 1.00),
    ],
)  # fmt: skip
def test_expected_weight_of_the_gold_label(how: str, p: float, weight: float) -> None:
    """E[mean_i A_i grad log p(y_i)] = w grad log p(gold) for a lone label; w at G 8 (SPEC section 9).

    By the mean it is 1 - (1 - p)^(G - 1): 1 - (1 - p)^G of the rewards, less p (1 - p)^(G - 1), since a group
    without a right answer has no baseline.
    """
    g, total = 8, 0.0
    for k in range(g + 1):
        r = [1.0] * k + [0.0] * (g - k)
        a = normalise(r, eps=0, how=how)  # type: ignore[arg-type]
        # grad log p(other) = -p / (1 - p) grad log p(gold), in expectation over the other labels.
        weights = sum(a[:k]) - sum(a[k:]) * p / (1 - p)
        total += comb(g, k) * p**k * (1 - p) ** (g - k) * weights / g
    assert total == pytest.approx(weight, abs=0.006)


@given(st.integers(0, 2**31), st.floats(0.05, 1), st.floats(-1, 1))
def test_causal_credit_has_the_gradient_of_the_expected_reward(
    seed: int, value: float, baseline: float
) -> None:
    """A model of two tokens, E then what follows it, enumerated: the second one may break the completion."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    second = torch.randn(3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    would = torch.tensor([1.0, value, 0.0], dtype=torch.float64)  # R1 of each E, if the completion parses
    parses = torch.tensor([1.0, 0.0], dtype=torch.float64)
    p = torch.softmax(first, 0)[:, None] * torch.softmax(second, 1)
    reward = would[:, None] * parses
    truth = torch.autograd.grad((p * reward).sum(), (first, second), retain_graph=True)

    log_e, log_rest = torch.log_softmax(first, 0), torch.log_softmax(second, 1)
    surrogates = {
        "completion": torch.zeros((), dtype=torch.float64),
        "causal": torch.zeros((), dtype=torch.float64),
    }
    for e, s in product(range(3), range(2)):
        weight, r = p[e, s].detach(), reward[e, s]
        lost = r - would[e]
        surrogates["completion"] = surrogates["completion"] + weight * (r - baseline) * (
            log_e[e] + log_rest[e, s]
        )
        surrogates["causal"] = surrogates["causal"] + weight * (
            (r - baseline) * log_e[e] + lost * log_rest[e, s]
        )
    for name, surrogate in surrogates.items():
        found = torch.autograd.grad(surrogate, (first, second), retain_graph=True)
        for a, b in zip(found, truth, strict=True):
            assert torch.allclose(a, b, atol=1e-10), name


def raw(text: str, ids: tuple[int, ...] = (1, 2, 3), finished: bool = True) -> RawCompletion:
    return RawCompletion(text, ids, (-0.5,) * len(ids), (0.1,) * len(ids), finished)


def test_e_lines_alone_are_scored_as_whole_completions_are() -> None:
    lines = ["E: joy\n", "E: joy 6, surprise 4\n", "E: happiness\n", "E: anger\n"]
    whole = [raw(f"{line}S: neutral\nR: Fine.") for line in lines]
    alone = score_completions(MELD, dist(joy=1), [raw(t) for t in lines], lam=0.5, emotion_only=True)
    both = score_completions(MELD, dist(joy=1), whole, lam=0.5)
    for a, b in zip(alone, both, strict=True):
        assert (a.r1, a.r2, a.advantage, a.emotion) == (b.r1, b.r2, b.advantage, b.emotion)
        assert a.completion is None and a.head == 3 and b.head is None


def test_e_lines_that_are_cut_or_closed_fail() -> None:
    cut, closed = raw("E: jo", finished=False), raw("E: joy")
    found = score_completions(MELD, dist(joy=1), [cut, closed], lam=0, emotion_only=True)
    kinds = [r.parsed.kind for r in found if isinstance(r.parsed, ParseFailure)]
    assert kinds == [FailureKind.TRUNCATED, FailureKind.NO_SELF_EMOTION]
    assert [r.r1 for r in found] == [0, 0]


def two_stage(rest: str, how: str = "mean") -> RolloutGroup:
    samples = [raw(t) for t in ("E: joy\n", "E: anger\n", "E: joy\n", "E: fear\n")]
    found = score_completions(MELD, dist(joy=1), samples, lam=0.2, how=how, emotion_only=True)  # type: ignore[arg-type]
    group = RolloutGroup(make_prompt(target=dist(joy=1)), found)
    return with_rest(group, 0, raw(rest, (7, 8)), lam=0.2, how=how)  # type: ignore[arg-type]


def test_the_best_is_completed() -> None:
    best = two_stage("S: neutral\nR: Good for you!").rollouts[0]
    assert best.completion is not None and best.completion.reply == "Good for you!"
    assert best.raw.token_ids == (1, 2, 3, 7, 8) and best.head == 3
    assert (best.r1, best.rest) == (1, 0)


@pytest.mark.parametrize(("how", "scale"), [("mean", 0.5), ("none", 1.0), ("std", 0.5 + 1e-6)])
def test_what_breaks_behind_e_is_charged_to_the_tokens_behind_e(how: str, scale: float) -> None:
    group = two_stage("S: neutral", how)
    best = group.rollouts[0]
    assert isinstance(best.parsed, ParseFailure) and best.parsed.kind == FailureKind.NO_REPLY
    assert best.advantage == group.rollouts[2].advantage > 0
    assert best.r1 == 0 and best.rest == pytest.approx(-0.8 / scale)


@pytest.mark.parametrize(("how", "scale"), [("mean", 7 / 8), ("none", 1.0), ("std", 7**0.5 / 8 + 1e-6)])
def test_a_break_is_charged_where_every_e_is_right(how: str, scale: float) -> None:
    """R1 = 1 eight times has no scale; with the broken one at 0 they are 7/8 on average."""
    found = score_completions(MELD, dist(joy=1), [raw("E: joy\n")] * 8, lam=0.2, how=how, emotion_only=True)  # type: ignore[arg-type]
    group = RolloutGroup(make_prompt(target=dist(joy=1)), found)
    broken = with_rest(group, 3, raw("S: neutral", (7, 8)), lam=0.2, how=how).rollouts[3]  # type: ignore[arg-type]
    assert broken.advantage == 0 and broken.rest == pytest.approx(-0.8 / scale)
    wrong = score_completions(MELD, dist(fear=1), [raw("E: joy\n")] * 8, lam=0.2, emotion_only=True)
    group = RolloutGroup(make_prompt(target=dist(fear=1)), wrong)
    assert with_rest(group, 3, raw("S: neutral", (7, 8)), lam=0.2).rollouts[3].rest == 0, "nothing is lost"


@pytest.mark.parametrize("goes_on", [", anger 3\nS: neutral\nR: Hi.", "E: anger\nS: neutral\nR: Hi."])
def test_the_text_behind_the_e_line_cannot_change_e(goes_on: str) -> None:
    best = two_stage(goes_on).rollouts[0]
    assert isinstance(best.parsed, ParseFailure) and best.rest < 0


def test_whole_completions_are_scored_as_their_two_parts() -> None:
    """What TRL samples at once: each completion as its E line, and what breaks behind E charged there."""
    texts = [
        "E: joy\nS: neutral\nR: Hi.",
        "E: anger\nS: fear\nR: No.",
        "E: joy\nS: neutral",
        "E: fear\nS: joy",
    ]
    found = score_causally(
        MELD, dist(joy=1), [raw(t, (1, 2, 3, 7, 8)) for t in texts], [3] * 4, lam=0.2, how="mean"
    )
    lines = [raw(t.split("\n")[0] + "\n") for t in texts]
    alone = score_completions(MELD, dist(joy=1), lines, lam=0.2, how="mean", emotion_only=True)
    assert [r.advantage for r in found] == [r.advantage for r in alone]
    assert [r.head for r in found] == [3] * 4 and [r.raw.text for r in found] == texts
    assert [r.rest for r in found] == pytest.approx([0, 0, -0.8 / 0.5, 0])
    assert [r.r1 for r in found] == [1, 0, 0, 0] and found[0].completion is not None
    bad = [raw("E: joy"), raw("Hello.\nE: joy\n"), raw("E: jo", finished=False), raw("")]
    failed = score_causally(MELD, dist(joy=1), bad, [3] * 4, lam=0, how="mean")
    assert all(r.emotion is None and r.rest == 0 for r in failed)


def test_items_hold_tokens_that_carry_credit_and_the_gold_line() -> None:
    fitted = type("F", (), {"ids": (9,), "prompt": make_prompt(target=dist(joy=1))})()
    grpo = load([], ["grpo.credit=causal", "grpo.gold_weight=0.5", "grpo.reward_weight=2"]).grpo

    def encode(text: str) -> list[int]:
        return list(text.encode())

    whole, broken = two_stage("S: neutral\nR: Hi."), two_stage("S: neutral")
    items = rl_items(fitted, whole, grpo, encode)
    assert [len(i.completion_ids) for i in items] == [3, 3, 3, 3, len("E: joy\n")]
    assert items[-1].advantages() == [0.5] * len("E: joy\n")
    assert items[0].advantages() == [2 * whole.rollouts[0].advantage] * 3
    first = rl_items(fitted, broken, grpo, encode)[0]
    assert first.advantages() == [2 * broken.rollouts[0].advantage] * 3 + [2 * broken.rollouts[0].rest] * 2
    alone = load([], ["grpo.credit=causal", "grpo.gold_weight=1", "grpo.reward_weight=0"]).grpo
    assert len(rl_items(fitted, whole, alone, encode)) == 1
    prompt = whole.prompt
    said = (*prompt.history[:-1], replace(prompt.history[-1], emotion=None))
    for other in (replace(prompt, history=said), replace(prompt, lineage=Lineage(1, "e", 1, "c/1"))):
        assert rl_items(fitted, replace(whole, prompt=other), alone, encode) == [], "no gold label"


def test_e_lines_are_told_apart_without_replies() -> None:
    grpo = load([], ["grpo.credit=causal"]).grpo
    samples = [raw("E: anger\n"), raw("nothing\n"), raw("E: joy\n")]
    group = score_group(make_prompt(target=dist(joy=1)), samples, load([], []).reward, grpo, 0.0)
    assert group.rollouts[select_best(group, 0.0, 0)].raw.text == "E: joy\n"


def test_labels_that_are_no_longer_new(tmp_path: Path) -> None:
    """Those of the run's own samples, whole or E alone, and with sft.seen those of the model before it."""
    train = toy_conversations(6)
    with Store(tmp_path / "store.sqlite") as store:
        whole, alone, played = (make_prompt(i, dist(joy=1)) for i in ("cold/a/1", "b/2", "c/3"))
        said = Completion(dist(joy=1), dist(joy=1), "Yes, I do.")
        store.add_prompts([whole, alone, played], Place("cold-start"))
        add_sample(store, whole, said, 1.0, Place("cold-start"), "gold")
        add_sample(store, alone, dist(joy=1), 1.0, Place("cold-start"), "label")
        add_sample(store, played, replace(said, reply="No."), 1.0, Place("rl"), "selfplay")
        assert labels_taught(store, train, load([], [])) == {"a/1", "b/2"}
        before = gold_samples(train, 5, 0)
        found = labels_taught(store, train, load([], ["sft.seen=5"]))
        assert len(before) == 5 and found == {"a/1", "b/2", *(p.id for p, _ in before)}


def test_samples_of_e_alone_are_labelled_turns_that_are_left() -> None:
    train = toy_conversations(6)
    taught = {p.id for p, _ in gold_samples(train, 8, 0)}
    every = label_samples(train, taught, -1, 0, 4)
    assert len(every) == 6 * 5 - 8 and not taught & {p.id for p, _ in every}
    assert all(gold == p.target == p.history[-1].emotion for p, gold in every)
    some = label_samples(train, taught, 9, 0, 4)
    assert len(some) == 9 and all(s in every for s in some)
    assert [p.id for p, _ in some] == [p.id for p, _ in every if p.id in {q.id for q, _ in some}], "in order"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("grpo.gold_weight=1", "needs grpo.credit"),
        ("grpo.reward_weight=0", "would learn nothing"),
        ("grpo.normalise=variance", "normalise"),
    ],
)
def test_settings_that_cannot_be(setting: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load([], [setting])


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5), st.integers(0, 99))
def test_runs_are_shuffled_whole(keys: list[str], length: int, seed: int) -> None:
    order = shuffled_runs(keys, length, rng(seed)).tolist()
    assert sorted(order) == list(range(len(keys)))
    plain = shuffled_runs(keys, 1, rng(seed)).tolist()
    assert plain == rng(seed).permutation(len(keys)).tolist()
    for a, b in pairwise(order):
        if keys[a] == keys[b] and b == a + 1:
            continue
        # A run ends where its conversation does, or at its length.
        assert (
            a + 1 == len(keys) or keys[a + 1] != keys[a] or sum(keys[a - k] == keys[a] for k in range(length))
        )

"""Each alarm planted in the records of a stage, with values worked by hand."""

from __future__ import annotations

import math

import pytest

from selfemo.config import GuardConfig, load
from selfemo.training.guards import Alarm, about_silence, alarms, decide, rate_scale, silent
from selfemo.training.protocol import finite_means

CALM = {"r1": 0.5, "r2": 0.5, "kl": 0.1, "sampling_entropy": 1.0, "emotions": {"joy": 0.6, "fear": 0.4}}


def records(n: int, **changes) -> list[dict]:
    """n calm rounds; a change is a value, or a function of the round."""
    return [{**CALM, **{k: v(i) if callable(v) else v for k, v in changes.items()}} for i in range(n)]


def kinds(found: list[Alarm]) -> list[str]:
    return [a.kind for a in found]


def test_calm_rounds_and_sft_records_raise_nothing() -> None:
    assert not alarms(records(50), GuardConfig())
    assert not alarms([{"loss": 1.0, "grad_norm": 2.0, "lr": 1e-3}] * 50, GuardConfig())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers(value: float) -> None:
    (alarm,) = alarms([{"loss": 1.0}, {"loss": value, "r1": 0.0}], GuardConfig())
    assert alarm == Alarm("numbers", "not finite: loss")
    (alarm,) = alarms([{"loss": None, "not_finite": 2.0}], GuardConfig())
    assert alarm.kind == "numbers" and "2 optimiser steps" in alarm.reason
    assert not alarms([{"loss": None, "not_finite": 2.0}, {"loss": 1.0}], GuardConfig())


def test_kl_is_over_its_limit_not_at_it() -> None:
    config = GuardConfig(max_kl=3)
    assert not alarms(records(1, kl=3.0), config)
    (alarm,) = alarms(records(1, kl=3.5), config)
    assert alarm.kind == "kl" and "3.5 nats" in alarm.reason


def test_collapse_of_entropy_is_a_mean_over_the_window() -> None:
    config = GuardConfig(window=4, min_entropy=0.5)
    # Means 0.75, 0.5 and 0.25 over the last four rounds.
    for low, found in ((1, []), (2, []), (3, ["collapse"])):
        rounds = records(8, sampling_entropy=lambda i, low=low: 0.0 if i >= 8 - low else 1.0)
        assert kinds(alarms(rounds, config)) == found, low
    assert not alarms(records(3, sampling_entropy=0.0), config), "no full window yet"


def test_collapse_onto_one_emotion() -> None:
    config = GuardConfig(window=2, max_emotion_share=0.9)
    assert not alarms(records(2, emotions={"joy": 0.9, "fear": 0.1}), config)
    alternating = records(4, emotions=lambda i: {("joy", "fear")[i % 2]: 1.0})
    assert not alarms(alternating, config), "0.5 each over the window"
    (alarm,) = alarms(records(2, emotions=lambda i: {"joy": 1.0} if i else {"joy": 0.9}), config)
    assert alarm.kind == "collapse" and "95.0%" in alarm.reason and "'joy'" in alarm.reason
    assert not alarms(records(2, emotions={}), config), "nothing parsed is no collapse onto one"


def test_hacking_needs_r2_up_and_r1_down() -> None:
    config = GuardConfig(window=4, hacking_change=0.1)
    up, down = (lambda i: 0.3 + 0.1 * i), (lambda i: 0.8 - 0.1 * i)  # halves differ by 0.2
    assert kinds(alarms(records(4, r1=down, r2=up), config)) == ["hacking"]
    for r1, r2 in ((up, up), (down, down), (down, 0.5), (0.5, up)):
        assert not alarms(records(4, r1=r1, r2=r2), config)
    assert not alarms(records(4, r1=down, r2=up), GuardConfig(window=4, hacking_change=0.21))
    assert not alarms(records(3, r1=down, r2=up), config)


def test_an_alarm_starts_its_window_anew_and_no_other() -> None:
    config = GuardConfig(window=3, min_entropy=0.5, hacking_change=0.1)
    rounds = records(3, sampling_entropy=0.0)
    assert kinds(alarms(rounds, config)) == ["collapse"]
    rounds[-1]["alarms"] = ["collapse"]
    for _ in range(2):
        rounds.append(records(1, sampling_entropy=0.0)[0])
        assert not alarms(rounds, config)
    rounds.append(records(1, sampling_entropy=0.0)[0])
    assert kinds(alarms(rounds, config)) == ["collapse"]
    rounds[2]["alarms"] = ["kl"]
    assert kinds(alarms(rounds, config)) == ["collapse"]


def test_rounds_without_rollouts_do_not_count() -> None:
    config = GuardConfig(window=2, min_entropy=0.5)
    empty = {"iteration": 1, "lambda": 0.0, "kept": 0}
    assert not alarms([*records(1, sampling_entropy=0.0), empty], config)


def test_the_strictest_action_is_taken() -> None:
    config = GuardConfig(numbers="warn", kl="rollback", collapse="stop")
    numbers, kl, collapse = (Alarm(k, "") for k in ("numbers", "kl", "collapse"))
    assert decide([], config) is None
    assert decide([numbers], config) == "warn"
    assert decide([numbers, kl], config) == "rollback"
    assert decide([numbers, kl, collapse], config) == "stop"


def test_each_rollback_halves_the_rate_from_where_it_goes_back_to() -> None:
    rollbacks = [{"to": 4}, {"to": 4}, {"to": 8}]
    assert [rate_scale(rollbacks, s) for s in (0, 3, 4, 7, 8, 9)] == [1, 1, 0.25, 0.25, 0.125, 0.125]


def test_means_leave_out_what_is_not_finite_and_count_it() -> None:
    steps = [
        {"loss": 1.0, "kl": math.nan},
        {"loss": math.inf, "kl": math.nan, "not_finite": 1.0},
        {"loss": 3.0, "kl": math.nan, "not_finite": 1.0},
    ]
    assert finite_means(steps) == {"loss": 2.0, "kl": None, "not_finite": 2.0}
    assert finite_means([{"loss": 1.0}]) == {"loss": 1.0}


def test_a_silent_round_is_one_without_any_advantage() -> None:
    config = load([], [])
    assert silent({"silent": 1.0}, config)
    assert not silent({"silent": 0.99}, config) and not silent({"loss": 1.0}, config)
    gold_alone = ["grpo.reward_weight=0", "grpo.gold_weight=1", "grpo.credit=causal"]
    assert not silent({"silent": 1.0}, load([], gold_alone)), "its rewards are for no one"


UNREADABLE = {"prompts": 18, "r1": 0.0, "parse_rate": 0.25, "truncated": 0.5, "grad_norm": 0.0}
ALIKE = {"prompts": 1, "r1": 0.75, "parse_rate": 1.0, "truncated": 0.0, "grad_norm": 0.0}


@pytest.mark.parametrize(
    ("record", "settings", "parts"),
    [
        (
            UNREADABLE,
            ["grpo.kl_coef=0", "sampling.max_new_tokens=40"],
            ["in all groups (18) the 8 completions earn the same (mean R1 0.000, 25% can be read, ",
             "50% are cut by sampling.max_new_tokens = 40). The policy stays as it is. ",
             "What may help: a longer cold start"],
        ),
        (
            ALIKE,
            ["sampling.group_size=4", "sampling.temperature=0.5"],
            ["in all groups (1) the 4 completions earn the same (mean R1 0.750, 100% can be read). ",
             "Only the KL term can change the policy. What may help: a higher sampling.temperature, ",
             "(now 0.5 and 4)"],
        ),
        (ALIKE, ["grpo.entropy_coef=0.1"], ["Only the KL and entropy terms can"]),
        (
            ALIKE,
            ["grpo.gold_weight=1", "grpo.credit=causal", "grpo.kl_coef=0"],
            ["Only the gold E lines can change"],
        ),
        (
            {**ALIKE, "grad_norm": 0.5},
            ["grpo.kl_coef=0"],
            ["Only completions that break behind their E line can change"],
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_a_silent_round(record: dict, settings: list[str], parts: list[str]) -> None:
    said = about_silence(record, load([], settings))
    assert all(part in said for part in parts), said


SPOKEN = {
    "replies": 8, "expression": 0.5, "expression_reader": 0.4, "reply_entropy": 2.0, "reply_distinct_2": 0.8,
    "refused": 0.1, "replies_refused": {"copy": 1}, "reply_tokens": 12.0,
    "self_emotions": {"joy": 0.5, "fear": 0.5},
}  # fmt: skip


def test_calm_replies_raise_nothing() -> None:
    assert not alarms(records(20, **SPOKEN), GuardConfig())
    up = lambda i: 0.1 * i  # noqa: E731
    assert not alarms(records(10, **SPOKEN | {"expression": up, "expression_reader": up}), GuardConfig())
    both = {"expression": up, "expression_reader": up, "expression_contrast": lambda i: 0.05 * i}
    assert not alarms(records(10, **SPOKEN | both), GuardConfig()), "half of it is of S"
    without = {k: v for k, v in SPOKEN.items() if k != "expression_reader"}
    assert not alarms(records(10, **without | {"expression": up}), GuardConfig()), "nobody to compare with"
    assert not alarms(records(10, **SPOKEN | {"reply_length_gain": -0.4}), GuardConfig()), "so they began"


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        # Halves of ten rounds differ by .5 and .1 nats, less than a quarter of it.
        ({"expression": lambda i: 0.1 * i, "expression_reader": lambda i: 0.02 * i}, "rose by 0.50 nats and"),
        (
            {
                "expression": lambda i: 0.1 * i,
                "expression_reader": lambda i: 0.1 * i,
                "expression_contrast": 0.0,
            },
            "R3 rose by 0.50 nats, and what replies tell of their S beyond the other emotions by 0.00",
        ),
        ({"reply_entropy": 0.01}, "the entropy of the replies is 0.01 nats"),
        ({"reply_distinct_2": 0.02}, "2.0% of the pairs of words in the replies differ"),
        ({"reply_distinct_2": None}, "0.0% of the pairs of words"),
        (
            {"refused": 0.9, "replies_refused": {"label_word": 3}, "expression": None},
            "90.0% of the replies earn nothing (label word 30)",
        ),
        ({"reply_tokens": lambda i: 12.0 if i < 5 else 4.0}, "replies went from 12 to 4 tokens"),
        ({"reply_tokens": lambda i: 0.0 if i < 5 else 4.0}, "replies went from 0 to 4 tokens"),
        ({"reply_length_gain": lambda i: -0.1 if i < 5 else -0.35}, "than at first, by 0.25 nats"),
        ({"self_emotions": {"fear": 1.0}}, "100.0% of the replies declare 'fear'"),
    ],
)
def test_degenerate_replies_raise_an_alarm(planted: dict, told: str) -> None:
    rounds = records(10, **SPOKEN | planted)
    (alarm,) = alarms(rounds, GuardConfig())
    assert alarm.kind == "expression" and told in alarm.reason
    assert not alarms(rounds[:9], GuardConfig()), "no full window yet"
    rounds[-1]["alarms"] = ["expression"]
    assert not alarms([*rounds, rounds[0]], GuardConfig()), "a new window starts"
    assert decide([alarm], GuardConfig(expression="stop")) == "stop"


def test_a_slow_drift_is_seen_since_the_stage_began() -> None:
    """Half a window to the next the listener's R3 rises by .05, over 60 rounds by .58."""
    rounds = records(60, **SPOKEN | {"expression": lambda i: 0.0105 * i})
    found = [k for k in range(10, 61) if alarms(rounds[:k], GuardConfig())]
    assert found and found[0] == 15, "the means of five rounds differ by .1"
    (alarm,) = alarms(rounds, GuardConfig())
    assert "rose by 0.58 nats and the reader's by 0.00" in alarm.reason


def test_rounds_without_replies_do_not_turn_the_guard_off() -> None:
    rounds = records(30, **SPOKEN | {"reply_entropy": 0.0})
    for k in range(0, 30, 5):
        rounds[k] = dict(CALM)
    (alarm,) = alarms(rounds, GuardConfig())
    assert alarm.kind == "expression"


def test_replies_that_differ_break_the_silence() -> None:
    config = load([], ["grpo.credit=causal", "reward.expression=listener"])
    assert silent({"silent": 1, "replies_flat": 1.0}, config) and silent({"silent": 1}, config)
    assert not silent({"silent": 1, "replies_flat": 0.5}, config)
    alone = load([], ["grpo.credit=causal", "reward.expression=listener", "grpo.reward_weight=0"])
    assert silent({"silent": 1, "replies_flat": 1.0}, alone) and not silent(
        {"silent": 1, "replies_flat": 0.5}, alone
    )

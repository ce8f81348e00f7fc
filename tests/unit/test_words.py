"""The counts of a stage in words."""

from __future__ import annotations

import pytest

from selfemo.counting import counted
from selfemo.runs.words import expression_line, in_words, value_in_words


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"pass": 4}, "4 replies passed the gate"),
        ({"pass": 1, "low_reward": 2}, "1 reply passed the gate, 2 read the emotion wrong"),
        ({"samples": 1, "steps": 1, "duplicates": 0}, "1 sample, 1 step, 0 duplicates left out"),
        ({"labels": 6, "labels_digest": "e6ca"}, "6 labels drawn"),
        ({"originals_taught": 1}, "1 original prompt left out, since samples taught their labels"),
        ({"guard": {"kl": 2, "collapse": 1}}, "guard: kl 2, collapse 1"),
        ({"refit": "none: the policy after RL is kept"}, "refit: none: the policy after RL is kept"),
        ({}, "nothing was counted"),
    ],
)
def test_a_record_as_a_line(record: dict[str, object], said: str) -> None:
    assert in_words(record) == said


def test_values_without_python() -> None:
    value = {"a_b": None, "c": ["x", True], "ends": [0.25, 2], "d": {}, "e": []}
    assert value_in_words(value) == "a b -, c x, yes, ends 0.25 to 2, d none, e none"
    value = {"kept": True, "ends": [1, 2], "names": ["a", "b", "c"], "none": None}
    assert value_in_words(value) == "kept yes, ends 1 to 2, names a, b, c, none -"


def test_one_of_a_thing_is_no_plural() -> None:
    found = [counted(n, things) for n in (0, 1, 2) for things in ("held-out turns", "replies")]
    assert found == [
        "0 held-out turns",
        "0 replies",
        "1 held-out turn",
        "1 reply",
        "2 held-out turns",
        "2 replies",
    ]
    assert counted(1441, "turns", ",") == "1,441 turns" and counted(1, "turns", ",") == "1 turn"


def test_what_replies_came_to_show_over_a_stage() -> None:
    rounds = [
        {"expression": x, "expressed": 0.1 * i} for i, x in enumerate((-1.5, -0.5, 0, 0, 0, 0, 0.25, 0.75))
    ]
    assert expression_line(rounds) == (
        "R3 by the listener -1.00 to +0.50 nats, the declared emotion is the one most heard in 5% to 65% of "
        "the replies (first to last quarter of its 8 rounds)"
    )
    judged = [{**r, "expression_reader": 0.5} for r in rounds[:2]]
    assert expression_line(judged).endswith("(first to last of its 2 rounds)")
    assert "by the reader +0.50 to +0.50, the declared" in expression_line([{}, *judged])
    for nothing in ([], [{"r1": 0.5}], [{"expression": None, "expressed": None}]):
        assert expression_line(nothing).startswith(
            "no reply was rewarded"
        ) and "sft.epochs" in expression_line(nothing)

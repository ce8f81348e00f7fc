"""Held-out conversations: the halves of a split, and that no limit moves a conversation between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import load
from selfemo.data.splits import halves, held_out
from selfemo.errors import ConfigError, DataError
from tests.conftest import toy_conversations


@given(st.integers(0, 40), st.integers(0, 5))
def test_halves_part_the_whole(n: int, seed: int) -> None:
    first, second = halves(range(n), seed, "x")
    assert sorted([*first, *second]) == list(range(n))
    assert first == sorted(first) and second == sorted(second)
    assert len(first) - len(second) == n % 2


def test_tuning_and_claim_are_the_split_and_no_limit_moves_one() -> None:
    everything = [*toy_conversations(4), *toy_conversations(9, "dev"), *toy_conversations(3, "test")]
    ids = {
        half: [c.id for c in held_out(everything, "dev", 0, 0, half)] for half in ("all", "tuning", "claim")
    }
    assert len(ids["tuning"]) == 5 and len(ids["claim"]) == 4
    assert not set(ids["tuning"]) & set(ids["claim"])
    assert set(ids["tuning"]) | set(ids["claim"]) == set(ids["all"]) == {f"toydev{k}" for k in range(9)}
    for half in ("tuning", "claim"):
        some = [c.id for c in held_out(everything, "dev", 2, 0, half)]
        assert len(some) == 2 and set(some) < set(ids[half])
    assert ids["tuning"] != [f"toydev{k}" for k in range(5)], "drawn, not the first five"


def test_a_half_that_is_empty_and_one_that_is_unknown_are_told() -> None:
    one = toy_conversations(1, "dev")
    assert held_out(one, "dev", 0, 0, "tuning") == one
    with pytest.raises(DataError, match=r"split 'dev' \(its claim half, data\.eval_half\)"):
        held_out(one, "dev", 0, 0, "claim")
    with pytest.raises(ConfigError, match=r"data\.eval_half.*'tuning' or 'claim'.*'third'"):
        load([], ["data.eval_half=third"])


def test_where_a_score_is_from_names_the_half() -> None:
    assert load([], ["data.eval_split=dev"]).data.evaluated_on == "dev"
    assert load([], ["data.eval_split=dev", "data.eval_half=claim"]).data.evaluated_on == "dev, claim half"

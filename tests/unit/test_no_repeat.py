"""Greedy decoding that may not loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from selfemo.models.generation.no_repeat import NoRepeat

LINE_END = 4
ENDS = np.array([0, 0, 0, 0, 1])


def banned(tokens: list[int], n: int) -> set[int]:
    rule = NoRepeat(n, ENDS)
    for t in tokens:
        rule.take(t)
    return {i for i, ok in enumerate(rule.allowed().tolist()) if not ok}


def test_by_hand() -> None:
    assert banned([0, 1, 2, 0, 1], 3) == {2}
    assert banned([0, 1, 2, 0, 1, 3, 0, 1], 3) == {2, 3}
    assert banned([0, 1, 2, 0], 3) == set()
    assert banned([0, 1, 2, LINE_END, 0, 1], 3) == set()
    assert banned([], 2) == banned([0], 2) == set()
    assert banned([0, 0], 2) == {0} and banned([1], 1) == {1}


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 4))
def test_what_is_banned_is_exactly_what_would_repeat_an_ngram(tokens: list[int], n: int) -> None:
    line = tokens[max((i + 1 for i, t in enumerate(tokens) if t == LINE_END), default=0) :]
    grams = {tuple(line[i : i + n]) for i in range(len(line) - n + 1)}
    expected = {t for t in range(4) if len(line) >= n - 1 and (*line[len(line) - n + 1 :], t) in grams}
    assert banned(tokens, n) == expected

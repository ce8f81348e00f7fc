"""Rows of an encoder, worked by hand, and that no later turn changes what is read of an earlier one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.method.types import LABEL_SETS, Conversation, Utterance
from selfemo.models.classifiers.layout import Place, Row, RowBuilder, turn_text, windows

CLS, SEP = 1, 2
MELD = LABEL_SETS["meld"]


def talk(*texts: str) -> Conversation:
    """A conversation of A and B in turn."""
    return Conversation(
        "c", "toy", "train", tuple(Utterance("AB"[i % 2], t) for i, t in enumerate(texts)), MELD
    )


def numbers(text: str) -> list[int]:
    """A token for each letter: "A: xy" is those of x and y (1xx of A, 2xx of B), so that rows can be read."""
    speaker, _, said = text.partition(": ")
    return [{"A": 100, "B": 200}[speaker] + ord(c) - ord("a") for c in said]


def rows(conversation: Conversation, **settings: Any) -> list[Row]:
    return RowBuilder(numbers, CLS, SEP, **settings).rows(conversation)


FOUR = talk("ab", "c", "def", "g")
"""Tokens: 100 101 | 202 | 103 104 105 | 206."""


def test_a_turn_is_said_with_its_name() -> None:
    assert turn_text(Utterance("Ann", "Good morning.")) == "Ann: Good morning."


def test_a_row_for_each_turn() -> None:
    found = rows(FOUR)
    assert [list(r.ids) for r in found] == [
        [1, 100, 101, 2],
        [1, 100, 101, 2, 202, 2],
        [1, 100, 101, 202, 2, 103, 104, 105, 2],
        [1, 100, 101, 202, 103, 104, 105, 2, 206, 2],
    ]
    assert [r.places for r in found] == [
        (Place(0, 0, 1, 3),), (Place(1, 0, 4, 5),), (Place(2, 0, 5, 8),), (Place(3, 0, 8, 9),),
    ]  # fmt: skip
    assert all(r.groups == () and r.cut == 0 for r in found)


@pytest.mark.parametrize(
    ("window", "last"),
    [
        (0, [1, 206, 2]),
        (1, [1, 103, 104, 105, 2, 206, 2]),
        (2, [1, 202, 103, 104, 105, 2, 206, 2]),
        (9, [1, 100, 101, 202, 103, 104, 105, 2, 206, 2]),
    ],
)
def test_the_window_is_of_turns(window: int, last: list[int]) -> None:
    assert list(rows(FOUR, window=window)[3].ids) == last


@pytest.mark.parametrize(
    ("limit", "last"),
    [
        (10, [1, 100, 101, 202, 103, 104, 105, 2, 206, 2]),  # all of it, 7 tokens and 3 special ones
        (9, [1, 202, 103, 104, 105, 2, 206, 2]),  # the oldest turn goes first, as a whole
        (8, [1, 202, 103, 104, 105, 2, 206, 2]),
        (7, [1, 103, 104, 105, 2, 206, 2]),
        (6, [1, 206, 2]),  # nothing older is seen past a turn that does not fit
    ],
)
def test_the_oldest_turns_are_left_out_first(limit: int, last: list[int]) -> None:
    assert list(rows(FOUR, max_tokens=limit)[3].ids) == last


@pytest.mark.parametrize(
    ("later", "limit", "second"),
    [
        (0, 99, [1, 100, 101, 2, 202, 2]),
        (1, 99, [1, 100, 101, 2, 202, 2, 103, 104, 105, 2]),
        (-1, 99, [1, 100, 101, 2, 202, 2, 103, 104, 105, 206, 2]),
        (-1, 11, [1, 100, 101, 2, 202, 2, 103, 104, 105, 206, 2]),
        (-1, 10, [1, 100, 101, 2, 202, 2, 103, 104, 105, 2]),  # the latest goes first
        (-1, 9, [1, 100, 101, 2, 202, 2]),
    ],
)
def test_later_turns_are_seen_only_when_asked_for(later: int, limit: int, second: list[int]) -> None:
    row = rows(FOUR, later=later, max_tokens=limit)[1]
    assert list(row.ids) == second and row.places == (Place(1, 0, 4, 5),)


def test_a_turn_that_is_too_long_is_cut_and_counted() -> None:
    found = rows(talk("ab", "cdefghij", "k"), max_tokens=8)
    assert list(found[1].ids) == [1, 202, 203, 204, 205, 206, 2]  # 8 less CLS, SEP, SEP
    assert [r.cut for r in found] == [0, 1, 0]
    assert list(found[2].ids) == [1, 110, 2], "a turn before it is left out whole, not cut"


def test_one_row_for_a_conversation() -> None:
    (row,) = rows(FOUR, layout="conversation")
    assert list(row.ids) == [1, 100, 101, 2, 1, 202, 2, 1, 103, 104, 105, 2, 1, 206, 2]
    assert list(row.groups) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    assert row.places == (Place(0, 0, 1, 3), Place(1, 4, 5, 6), Place(2, 7, 8, 11), Place(3, 12, 13, 14))
    assert row.cut == 0


def test_a_long_conversation_has_several_rows() -> None:
    """Sizes with CLS and SEP: 4, 3, 5, 3. Of 10 tokens turns 0 and 1 take 7; turn 2 begins a part, with what
    of the turns before fits into 5 (half of 10): turn 1; turn 3 would pass 10, and sees turn 2 (5) again."""
    first, second, third = rows(FOUR, layout="conversation", max_tokens=10)
    assert list(first.ids) == [1, 100, 101, 2, 1, 202, 2]
    assert first.places == (Place(0, 0, 1, 3), Place(1, 4, 5, 6))
    assert list(second.ids) == [1, 202, 2, 1, 103, 104, 105, 2] and list(second.groups) == [1] * 3 + [2] * 5
    assert second.places == (Place(2, 3, 4, 7),)
    assert list(third.ids) == [1, 103, 104, 105, 2, 1, 206, 2] and third.places == (Place(3, 5, 6, 7),)


def test_a_turn_that_is_too_long_is_cut_in_one_row_too() -> None:
    first, second, third = rows(talk("ab", "cdefghijkl", "m"), layout="conversation", max_tokens=8)
    assert (first.cut, second.cut, third.cut) == (0, 1, 0)
    assert list(second.ids) == [1, 202, 203, 204, 205, 206, 207, 2]
    assert second.places == (Place(1, 0, 1, 7),)
    assert list(third.ids) == [1, 112, 2], (
        "the cut turn takes more than half of a row, so it is not seen again"
    )


def test_without_a_window_both_layouts_are_the_turns_alone() -> None:
    alone = rows(FOUR, window=0)
    assert rows(FOUR, window=0, layout="conversation") == alone
    assert [list(r.ids) for r in alone] == [[1, 100, 101, 2], [1, 202, 2], [1, 103, 104, 105, 2], [1, 206, 2]]


limits = st.integers(4, 40)
sizes = limits.flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=30)))


@given(sizes)
def test_each_turn_is_read_once_in_a_part_that_fits(case: tuple[int, list[int]]) -> None:
    limit, tokens = case
    parts = windows(tokens, limit)
    assert [i for _, start, end in parts for i in range(start, end)] == list(range(len(tokens)))
    for k, (first, start, end) in enumerate(parts):
        assert sum(tokens[first:end]) <= limit
        assert first <= start and sum(tokens[first:start]) <= limit // 2
        if k:  # nothing is thrown away without need: the turn would have passed the part before
            assert sum(tokens[parts[k - 1][0] : start + 1]) > limit


@given(sizes, st.data())
def test_where_a_part_begins_depends_on_no_later_turn(
    case: tuple[int, list[int]], data: st.DataObject
) -> None:
    limit, tokens = case
    keep = data.draw(st.integers(0, len(tokens)))
    others = tokens[:keep] + data.draw(st.lists(st.integers(1, limit), max_size=12))

    def seen(of: list[int]) -> list[int]:
        """The first turn that each of the first `keep` sees."""
        return [first for first, start, end in windows(of, limit) for _ in range(start, end)][:keep]

    assert seen(tokens) == seen(others)


words = st.text("abcdefgh", min_size=0, max_size=12)


@given(
    st.lists(words, min_size=1, max_size=8),
    st.lists(words, max_size=5),
    st.integers(8, 30),
    st.integers(-1, 3),
)
def test_later_turns_change_no_row_of_an_earlier_one(
    texts: list[str], more: list[str], limit: int, window: int
) -> None:
    """What each turn sees: its row up to its last token, with later groups masked."""

    def seen(conversation: Conversation, layout: str) -> list[tuple[Any, ...]]:
        found = {}
        for row in rows(
            conversation, layout=layout, max_tokens=limit, window=window if layout[0] == "u" else -1
        ):
            for p in row.places:
                there = [
                    t for t, g in zip(row.ids, row.groups or [0] * len(row.ids), strict=True) if g <= p.turn
                ]
                found[p.turn] = (there, p)
        return [found[i] for i in range(len(texts))]

    for layout in ("utterance", "conversation"):
        assert seen(talk(*texts), layout) == seen(talk(*texts, *more), layout)

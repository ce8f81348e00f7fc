"""Blind A/B by a reader, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.evaluation.blind import compare_blind
from selfemo.evaluation.readers import Reply
from selfemo.evaluation.reading_tables import BLIND_HEADER, blind_tables
from tests.conftest import dist, make_prompt

NAMES = ("cold-start, S given", "last, S given")


def reply(i: int, text: str, s: str = "joy", dataset: str = "toy") -> Reply:
    prompt = replace(make_prompt(f"c{i}/1"), conversation_id=f"c{i}", dataset=dataset)
    return Reply(prompt, dist(**{s: 1}), text)


def test_the_better_reply_is_the_one_in_which_s_is_more_probable() -> None:
    early = [reply(i, f"Early {i}.") for i in range(6)]
    late = [reply(i, f"Late {i}.") for i in range(5)] + [reply(5, "Early 5.")]
    a = [0.1, 0.2, 0.5, 0.3, None, 0.4]
    b = [0.6, 0.1, 0.5, 0.5, 0.9, 0.7]
    found = {
        name: {
            r.prompt.id: None if p is None else {"joy": p, "fear": 1 - p} for r, p in zip(rs, ps, strict=True)
        }
        for name, rs, ps in zip(NAMES, (early, late), (a, b), strict=True)
    }
    (record,) = compare_blind(early, late, found, NAMES).values()
    # One was not read; two are equal: one in what is found, one in its words, whatever was found in them.
    counts = {k: record[k] for k in ("pairs", "late", "early", "ties", "conversations")}
    assert counts == {"pairs": 5, "late": 2, "early": 1, "ties": 2, "conversations": 5}
    assert record["difference"][0] == pytest.approx((0.5 - 0.1 + 0 + 0.2 + 0.3) / 5)
    blind = {"early": NAMES[0], "late": NAMES[1], "by_data": {"toy": record}}
    ((title, (row,)),) = blind_tables({"blind": [blind]}, "toy")
    assert title == "Which reply shows the given S better? last against cold-start"
    assert len(row) == len(BLIND_HEADER) and row[:4] == ["5", "2 (40%)", "1 (20%)", "2 (40%)"]
    assert row[4].startswith("+0.180 [") and blind_tables({}, "toy") == []


def test_data_sets_stand_apart_and_another_s_is_not_compared() -> None:
    early = [reply(0, "A."), reply(1, "B.", dataset="own"), reply(2, "C.", s="fear"), reply(3, "D.")]
    late = [reply(0, "E."), reply(1, "F.", dataset="own"), reply(2, "G.", s="joy")]
    found = {
        name: {r.prompt.id: {"joy": p} for r in replies}
        for name, replies, p in zip(NAMES, (early, late), (0.2, 0.8), strict=True)
    }
    by = compare_blind(early, late, found, NAMES)
    assert {d: r["pairs"] for d, r in by.items()} == {"toy": 1, "own": 1}
    assert compare_blind(early, [], found, NAMES) == {}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_turned_around_it_is_the_same(shown: list[tuple[float, float]]) -> None:
    early, late = ([reply(i, f"{w} {i}.") for i in range(len(shown))] for w in ("A", "B"))
    found = {
        name: {f"c{i}/1": {"joy": pair[k]} for i, pair in enumerate(shown)} for k, name in enumerate(NAMES)
    }
    (one,) = compare_blind(early, late, found, NAMES).values()
    (other,) = compare_blind(late, early, found, NAMES[::-1]).values()
    assert (one["early"], one["late"], one["ties"]) == (other["late"], other["early"], other["ties"])
    assert one["difference"][0] == pytest.approx(-other["difference"][0])
    assert one["early"] + one["late"] + one["ties"] == one["pairs"] == len(shown)

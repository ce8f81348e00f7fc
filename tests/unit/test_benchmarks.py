"""The benchmark harness: pairs, checks, and the table that docs/performance.md is written from."""

from __future__ import annotations

import pytest
from benchmarks.harness import Row, close, in_turn
from benchmarks.run import table


def test_pairs_run_in_turn_after_a_checked_warm_up() -> None:
    order: list[str] = []
    checked: list[tuple[int, int]] = []
    row = in_turn(
        Row("a row", "a peer", 2.0),
        lambda: order.append("ours") or 1,
        lambda: order.append("theirs") or 1,
        3,
        lambda a, b: checked.append((a, b)),
    )
    assert order == ["ours", "theirs"] * 4 and checked == [(1, 1)]
    assert len(row.ours) == len(row.theirs) == len(row.ratios) == 3


def test_a_failed_check_ends_the_row() -> None:
    with pytest.raises(AssertionError, match=r"loss: 1.0 and 2.0 differ"):
        in_turn(Row("r", "p", 1.0), lambda: 1.0, lambda: 2.0, 1, lambda a, b: close(a, b, "loss"))
    close(1.0, 1.0005, "loss")


def test_the_ratio_is_the_median_of_pairs_and_the_table_shows_its_range() -> None:
    row = Row("update", "TRL", 3.5, ours=[1.0, 2.0, 1.0], theirs=[4.0, 10.0, 3.0])
    assert row.ratios == [4.0, 5.0, 3.0] and row.ratio == 4.0
    bound = Row("start", "", None, ours=[0.2], details={"bound": 0.5})
    lines = table({"a": row.as_dict(), "b": bound.as_dict()}).splitlines()
    assert "| 4.00 (3.00-5.00) | 3.5 |" in lines[2]
    assert "under 0.5 s" in lines[3]


def test_the_store_row_gives_one_result_on_both_sides() -> None:
    from benchmarks.data import store

    row = store(2_000, 1)
    assert row.details["ours"]["best total"] == pytest.approx(row.details["theirs"]["best total"])
    assert row.details["ours"]["last"] == 3

"""The benchmark harness: pairs, checks, and the table that docs/performance.md is written from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import harness, run
from benchmarks.harness import Meter, Row, close, counted, in_turn
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
    assert len(row.ours) == len(row.theirs) == len(row.ratios) == 3 and len(row.first) == 2


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


def test_rows_in_bf16_stand_beside_those_in_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n{run.BEGIN}\n{run.END}\nafter\n")
    monkeypatch.setattr(run, "PAGE", page)
    monkeypatch.setattr(run, "RESULTS", results)
    row = Row("SFT step", "TRL", 1.5, ours=[1.0], theirs=[3.0])
    more = {
        "threads": 1, "device": "cpu", "model": "m", "results": str(results), "repeats": 1, "micro": 8,
        "groups": 1, "rollout_groups": 4, "data": "sample", "prompts": 5, "batch": 2, "sft_batch": 8,
    }  # fmt: skip
    for dtype in ("bf16", "fp32"):
        run._write("sft-step", row, argparse.Namespace(dtype=dtype, **more))
    assert list(json.loads(results.read_text())) == ["sft-step", "sft-step, bf16"]
    lines = page.read_text().splitlines()
    assert [x.split(" | ")[0] for x in lines[4:6]] == ["| SFT step", "| SFT step, bf16"]
    assert (lines[0], lines[-1]) == ("before", "after")


def test_the_store_row_gives_one_result_on_both_sides() -> None:
    from benchmarks.data import store

    row = store(2_000, 1)
    assert row.details["ours"]["best total"] == pytest.approx(row.details["theirs"]["best total"])
    assert row.details["ours"]["last"] == 3


def test_the_peak_of_a_side_is_what_it_keeps_and_what_a_call_takes_on_top(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Card:
        """Allocates what it is told, in bytes."""

        now = most = 0

        def take(self, n: int) -> None:
            self.now += n
            self.most = max(self.most, self.now)

        def reset_peak_memory_stats(self) -> None:
            self.most = self.now

        def memory_allocated(self) -> int:
            return self.now

        def max_memory_allocated(self) -> int:
            return self.most

    card, mine, other = Card(), Meter(), Meter()
    monkeypatch.setattr(harness, "_cuda", lambda: card)

    def call(kept: int, passing: int) -> None:
        card.take(passing)
        card.take(kept - passing)

    mine.run(lambda: call(100, 100))
    other.run(lambda: call(1000, 1000))
    mine.run(lambda: call(20, 50))  # an optimiser's state stays
    other.run(lambda: call(0, 7))
    mine.run(lambda: call(0, 60))
    assert mine.peak_gib == 180 / 2**30 and other.peak_gib == 1007 / 2**30
    mine.anew()
    mine.run(lambda: call(0, 10))
    assert mine.peak_gib == 130 / 2**30
    monkeypatch.setattr(harness, "_cuda", lambda: None)
    assert mine.peak_gib is None


def test_seconds_inside_functions_count_once_and_the_functions_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = 0.0
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: at))

    class Place:
        def inner(self) -> None:
            nonlocal at
            at += 1

        def outer(self) -> None:
            nonlocal at
            at += 2
            self.inner()

    place = Place()
    with counted((place, "inner"), (place, "outer")) as seconds:
        place.outer()
        at += 10
        place.inner()
        assert seconds() == 4
    assert not vars(place)
    with pytest.raises(AttributeError), counted((place, "nothing")):
        pass

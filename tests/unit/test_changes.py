"""What a stage added: the change of NLL at T by hand, its verdict in words, and which stages are compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from selfemo.config import load
from selfemo.data.splits import halves
from selfemo.evaluation.changes import (
    CHANGE_HEADER,
    COPIED,
    VERDICTS,
    change_line,
    change_record,
    change_rows,
    nll_change,
    shifted_change,
    shifted_sides,
    stage_changes,
    steps,
    verdict,
    whole_change,
)
from selfemo.evaluation.metrics import Interval, PairedDifference, paired_difference
from selfemo.method.types import UNION, LabelSet
from selfemo.runs.folder import NO_REFIT
from selfemo.runs.store import Store
from tests.support.scores import row

TWO = LabelSet("two", ("joy", "anger"))
LABELS = {"toy": TWO}


def rows(beliefs: list[float], gold: str = "jjja") -> list:
    names = {"j": "joy", "a": "anger"}
    return [row(i, names[g], believed=p) for i, (p, g) in enumerate(zip(beliefs, gold, strict=True))]


def test_the_change_of_nll_at_t_by_hand() -> None:
    """Joy is right in three of four: believed .75, the best T is 1, believed .9 it is ln 9 / ln 3 = 2.

    A model that knows nothing has ln 2 = .6931 at any temperature. At .75 the NLL is -ln .75 = .2877 three
    times and -ln .25 = 1.3863 once.
    """
    right, wrong, nothing = -math.log(0.75), -math.log(0.25), math.log(2)
    found = nll_change(rows([0.5] * 4), rows([0.75] * 4), LABELS)
    assert found is not None and found.believed and found.utterances == 4
    assert found.before == pytest.approx(nothing)
    assert found.after == pytest.approx((3 * right + wrong) / 4)
    difference = found.change.difference
    assert (
        difference.value
        == pytest.approx((3 * right + wrong) / 4 - nothing)
        == pytest.approx(-0.1308, abs=1e-4)
    )
    assert difference.low == pytest.approx(right - nothing), "a draw of four conversations that are right"
    assert right - nothing < difference.value < difference.high <= wrong - nothing + 1e-9
    assert found.temperatures[1] == pytest.approx(1, abs=1e-3)
    sharper = nll_change(rows([0.75] * 4), rows([0.9] * 4), LABELS)
    assert sharper is not None
    assert sharper.temperatures == pytest.approx((1, 2), abs=1e-3)
    assert sharper.change.difference.value == pytest.approx(0, abs=1e-6), "surer, and knows as much"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.02, 0.98), st.sampled_from("ja")), min_size=2, max_size=20),
    st.floats(0.5, 3),
)
def test_a_sharper_model_knows_no_more(found, power) -> None:
    """All beliefs to one power: NLL at T does not move, as long as T stays inside its bounds."""
    plain = [p for p, _ in found]
    sharp = [p**power / (p**power + (1 - p) ** power) for p in plain]
    gold = "".join(g for _, g in found)
    change = nll_change(rows(plain, gold), rows(sharp, gold), LABELS)
    assert change is not None
    if all(0.06 < t < 18 for t in change.temperatures):
        assert change.change.difference.value == pytest.approx(0, abs=1e-4)


def shifted(before: list, after: list) -> dict | None:
    """The change of one data set."""
    return shifted_change([shifted_sides(before, after, "toy", LABELS)])


def shifted_by_hand(found: list, power: float) -> np.ndarray:
    """NLL of each row: odds to a power, times the bias that gives joy its share, one added to each count, in
    the other half."""
    first, _ = halves([r["conversation"] for r in found], 0, "cross-fit", "toy")
    odds = np.array([math.log(b["joy"] / b["anger"]) for b in (json.loads(r["believed"]) for r in found)])
    odds *= power
    joy = np.array(["joy" in r["gold"] for r in found])
    part = np.array([r["conversation"] in first for r in found])
    nll = np.zeros(len(found))
    for mine in (part, ~part):
        share = (joy[mine].sum() + 1) / (mine.sum() + 2)
        bias = brentq(lambda b, mine=mine, share=share: np.mean(1 / (1 + np.exp(-odds[mine] - b))) - share,
                      -60, 60)  # fmt: skip
        p = 1 / (1 + np.exp(-odds[~mine] - bias))
        nll[~mine] = -np.log(np.where(joy[~mine], p, 1 - p))
    return nll


def test_the_change_of_nll_after_a_prior_shift_by_hand() -> None:
    """From .6 for each to .9 where joy is gold and .3 where anger is: it tells them apart, and not in two."""
    gold = "jjajajja"
    before, after = (
        rows([0.6] * 8, gold),
        rows([{"j": 0.9, "a": 0.3}[g] for g in gold[:6]] + [0.3, 0.9], gold),
    )
    found = shifted(before, after)
    assert found is not None
    powers = np.geomspace(0.05, 8, 2000)
    sides = [min((shifted_by_hand(r, p) for p in powers), key=np.mean) for r in (before, after)]
    assert (found["before"], found["after"]) == pytest.approx([s.mean() for s in sides], abs=1e-4)
    assert found["difference"][0] == pytest.approx((sides[1] - sides[0]).mean(), abs=1e-4)
    assert found["difference"][1] < found["difference"][0] < found["difference"][2]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 20), st.floats(0.5, 2))
def test_a_model_that_is_surer_or_says_one_label_more_often_knows_no_more(factor, power) -> None:
    """All odds to one power, times one factor: NLL at T after the prior shift stays."""
    plain, gold = [0.8, 0.7, 0.3, 0.6, 0.2, 0.75, 0.4, 0.35, 0.65, 0.55, 0.3, 0.7] * 2, "jjajajajajaj" * 2
    moved = [odds / (1 + odds) for p in plain if (odds := factor * (p / (1 - p)) ** power)]
    change = shifted(rows(plain, gold), rows(moved, gold))
    assert change is not None and change["difference"][0] == pytest.approx(0, abs=1e-4)
    assert change["before"] < math.log(2) - 0.02, "it tells them apart"


def test_a_prior_shift_is_of_label_probabilities_and_of_two_conversations_or_more() -> None:
    assert shifted(rows([0.5], "j"), rows([0.75], "j")) is None, "nothing to fit it on"
    without = [row(i, "joy", believed=None) for i in range(4)]
    assert shifted(without, rows([0.75] * 4)) is None
    assert shifted([], rows([0.75] * 4)) is None


def test_the_change_of_all_data_sets_has_each_at_its_own_shift() -> None:
    """The second says joy far too often: one bias for both would not set both right."""
    gold, told = "jjajajja", {"j": 0.7, "a": 0.4}
    plain, odds = [told[g] for g in gold], [told[g] * 50 / (told[g] * 50 + 1 - told[g]) for g in gold]
    other = [{**r, "dataset": "two", "prompt": "2" + r["prompt"], "conversation": "2" + r["conversation"]}
             for r in rows(odds, gold)]  # fmt: skip
    labels = {"toy": TWO, "two": TWO}
    before = [
        *rows([0.5] * 8, gold),
        *({**r, "believed": json.dumps({"joy": 0.5, "anger": 0.5})} for r in other),
    ]
    record = change_record(before, [*rows(plain, gold), *other], labels)
    toy, two, union = (record[d]["nll_shifted"] for d in ("toy", "two", UNION))
    assert union["after"] == pytest.approx((toy["after"] + two["after"]) / 2)
    assert toy["after"] < math.log(2) > two["after"]
    assert shifted_change([None, shifted_sides(before, before, "toy", labels)]) is None


def test_beliefs_are_compared_with_beliefs_or_what_was_written_with_what_was_written() -> None:
    """One side without beliefs: both by what was written, on the utterances that both parsed."""
    before = [row(0, "joy", believed=0.75), row(1, "anger", believed=None, said="joy"),
              row(2, "joy", believed=0.75, said=None, failure="empty")]  # fmt: skip
    after = rows([0.75] * 3, "jaj")
    found = nll_change(before, after, LABELS)
    assert found is not None and not found.believed and found.utterances == 2
    too_long = [row(0, "joy", believed=None, said=None, failure="too_long"), *rows([0.75] * 3, "jaj")[1:]]
    found = nll_change(too_long, after, LABELS)
    assert found is not None and found.believed and found.utterances == 2, (
        "a prompt that is too long has none"
    )
    nothing = [row(0, "joy", believed=None, said=None, failure="empty")]
    assert nll_change(nothing, rows([0.75], "j"), LABELS) is None
    assert nll_change([], after, LABELS) is None


def moved(sign: int) -> PairedDifference:
    return PairedDifference(Interval(0.1 * sign, 0.1 * sign - 0.05, 0.1 * sign + 0.05), 0.04, 6)


UP, FLAT, DOWN = moved(1), moved(0), moved(-1)


@pytest.mark.parametrize(
    ("r1", "accuracy", "nll", "says"),
    [
        (UP, UP, DOWN, "better"),
        (UP, DOWN, DOWN, "better"),  # R1 goes before accuracy
        (FLAT, UP, DOWN, "better"),
        (UP, FLAT, FLAT, "surer, not better"),
        (UP, UP, UP, "surer, not better"),
        (FLAT, FLAT, DOWN, "knows more, scores the same"),
        (FLAT, FLAT, FLAT, "no change beyond noise"),
        (FLAT, FLAT, UP, "knows less, scores the same"),
        (DOWN, FLAT, DOWN, "scores lower, knows more"),
        (FLAT, DOWN, FLAT, "scores lower, knows the same"),
        (DOWN, DOWN, UP, "worse"),
        (UP, FLAT, None, "scores higher; NLL at T is not known"),
        (FLAT, FLAT, None, "no change beyond noise; NLL at T is not known"),
        (DOWN, FLAT, None, "scores lower; NLL at T is not known"),
    ],
)
def test_verdicts(r1, accuracy, nll, says) -> None:
    assert verdict(r1, accuracy, nll) == says


def test_every_pair_of_signs_has_a_verdict_and_the_edge_of_an_interval_is_no_change() -> None:
    assert set(VERDICTS) == {(a, b) for a in (1, 0, -1) for b in (1, 0, -1)}
    edge = PairedDifference(Interval(0.1, 0.0, 0.2), 0.05, 6)
    assert verdict(edge, FLAT, FLAT) == "no change beyond noise"


def test_fewer_than_six_conversations_show_nothing() -> None:
    few = [replace(d, clusters=5) for d in (UP, UP, DOWN)]
    assert verdict(*few) == "no change beyond noise" and verdict(UP, UP, DOWN) == "better"
    for n, says in ((5, 0), (6, 1)):
        found = paired_difference([0.0] * n, [1.0] * n, [f"c{i}" for i in range(n)])
        assert (found.clusters, found.sign) == (n, says) and found.difference.low == 1
        assert (found.p_value < 0.05) == bool(says)


def test_a_record_holds_what_the_tables_show() -> None:
    """160 conversations: joy right in three of four; the second knows it, the first does not say it."""
    gold = "jjja" * 40
    before = [{**r, "predicted": json.dumps({"anger": 1.0}), "r1": float(g == "a")}
              for r, g in zip(rows([0.5] * 160, gold), gold, strict=True)]  # fmt: skip
    record = change_record(before, rows([0.75] * 160, gold), LABELS)
    assert set(record) == {"toy"}, "one data set has no union"
    found = record["toy"]
    assert found["accuracy"]["difference"][0] == pytest.approx(0.75 - 0.25)
    assert found["macro_f1"]["difference"][0] == pytest.approx(np.mean([6 / 7, 0]) - np.mean([0, 0.4]))
    assert found["nll_at_t"]["difference"][0] == pytest.approx(-0.1308, abs=1e-4)
    assert found["verdict"] == "better" and found["utterances"] == found["conversations"] == 160
    table = change_rows([{"stage": "RL 1", "copied": False, "by": record},
                         {"stage": "refit 1", "copied": True, "by": {}}])  # fmt: skip
    assert [len(r) for r in table] == [len(CHANGE_HEADER)] * 2
    assert table[0][:3] == ["RL 1", "toy", "better"]
    assert table[0][3].startswith("+0.500 [") and " p=0." in table[0][3]
    assert table[1] == ["refit 1", "", COPIED, *["-"] * 6]


def scored(store: Store, *names: str, beliefs: float = 0.75) -> None:
    for name in names:
        with store.transaction():
            store.add_predictions([tuple({**r, "evaluation": f"evaluate-{name}"}.values())
                                   for r in rows([beliefs] * 4)])  # fmt: skip
        store.set_stage(f"evaluate-{name}", "done")


def test_the_stages_of_a_run_and_what_each_is_compared_with(tmp_path: Path) -> None:
    config = load([], ["flywheel.iterations=2"])
    with Store(tmp_path / "new.sqlite") as store:
        scored(store, "start", "cold-start", "iteration-1-rl", "iteration-1", "iteration-2-rl", "iteration-2")
        store.set_stage("iteration-2-refit", "done", info={"refit": NO_REFIT})
        store.set_stage("iteration-1-refit", "done", info={"samples": 3})
        found = [(s.name, s.before, s.after, s.copied) for s in steps(config, store)]
        assert found == [
            ("cold start (labels)", "start", "cold-start", False),
            ("RL 1", "cold-start", "iteration-1-rl", False),
            ("refit 1", "iteration-1-rl", "iteration-1", False),
            ("RL 2", "iteration-1", "iteration-2-rl", False),
            ("refit 2", "iteration-2-rl", "iteration-2", True),
        ]
        changes = stage_changes(config, store, LABELS)
        assert changes[-1]["by"] == {} and changes[-1]["copied"]
        assert {c["by"]["toy"]["verdict"] for c in changes[:-1]} == {"no change beyond noise"}
        assert all(c["by"] == {} for c in stage_changes(config, store, {}))
    with Store(
        tmp_path / "old.sqlite"
    ) as store:  # of a version that did not score RL; stopped in iteration 2
        scored(store, "start", "cold-start", "iteration-1")
        found = [(s.name, s.before, s.after) for s in steps(config, store)]
        assert found == [
            ("cold start (labels)", "start", "cold-start"), ("RL and refit 1", "cold-start", "iteration-1"),
        ]  # fmt: skip


def test_the_last_line_says_what_the_run_added_to_its_cold_start(tmp_path: Path) -> None:
    """Belief .5 to .75 where joy is right in three of four: NLL .693 to .562, and every label as before."""
    with Store(tmp_path / "s.sqlite") as store:
        assert whole_change(store, LABELS, "iteration-1") is None, "the cold start has no scores"
        scored(store, "start", "cold-start", beliefs=0.5)
        scored(store, "iteration-1")
        for name, labels in (("start", LABELS), ("cold-start", LABELS), ("iteration-1", {})):
            assert whole_change(store, labels, name) is None
        found = whole_change(store, LABELS, "iteration-1")
    assert found is not None and (found["from"], found["to"]) == ("cold-start", "iteration-1")
    line = change_line(found)
    assert line.startswith("From cold-start to iteration-1: no change beyond noise; accuracy +0.000 [")
    assert "NLL at T -0.131 [" in line and "(0.693 to 0.562), NLL at T, prior shift +0.000 [" in line
    assert line.count("NLL") == 2 and "mean R1 +0.000 [" in line
    assert "NLL" not in change_line({**found, "nll_at_t": None, "nll_shifted": None})
    assert "no change to report" in change_line(None)

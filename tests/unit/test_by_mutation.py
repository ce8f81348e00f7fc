"""Answers worked by hand that mutation testing found no test to depend on (docs/reliability.md)."""

from __future__ import annotations

import numpy as np
import pytest

from selfemo.evaluation.metrics import (
    FAILED,
    NLL_FLOOR,
    Outcomes,
    average_intervals,
    calibration,
    mean_interval,
    paired_difference,
    percentile_interval,
)
from selfemo.method.parsing import field_spans, parse, parse_emotions, parse_recognition, split_fields
from selfemo.method.rewards import exact_match
from selfemo.method.rewards.consensus import consensus_rows
from selfemo.method.types import FailureKind, ParseFailure
from tests.conftest import MELD, dist

# -- rewards ---------------------------------------------------------------------------------------------


def test_exact_match_is_of_the_top_emotions_with_ties_by_the_label_set() -> None:
    gold = dist(joy=0.6, fear=0.4)
    assert exact_match(dist(joy=1), gold, MELD) == 1 and exact_match(dist(fear=1), gold, MELD) == 0
    assert exact_match(None, gold, MELD) == 0
    tie = dist(fear=0.5, joy=0.5)  # joy stands first in the label set
    assert exact_match(tie, dist(joy=1), MELD) == 1 and exact_match(tie, dist(fear=1), MELD) == 0
    assert exact_match(dist(joy=1), tie, MELD) == 1 and exact_match(dist(fear=1), tie, MELD) == 0


def test_weighted_consensus_of_many_groups_sums_over_emotions() -> None:
    # Two groups of two over four emotions; C is the three with the largest mean.
    groups = np.array([
        [[0.7, 0.3, 0, 0], [0.2, 0, 0.3, 0.5]],  # means .45 .15 .15 .25: C = 0, 3, 1
        [[0, 0, 0, 1.0], [0, 0, 0, 0]],
    ])  # fmt: skip
    expected = [[1.0, 0.7], [1.0, 0.0]]
    assert consensus_rows(groups, weighted=True) == pytest.approx(np.array(expected))
    assert consensus_rows(groups) == pytest.approx(np.array([[2 / 3, 2 / 3], [1 / 3, 0]]))


# -- parsing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        ("joy, fear, anger, sadness", FailureKind.TOO_MANY_EMOTIONS, "joy, fear, anger, sadness"),
        ("joy 1, glee 2", FailureKind.UNKNOWN_EMOTION, "glee"),
        ("joy, Joy 3", FailureKind.REPEATED_EMOTION, "joy"),
        ("joy 3, fear -1 ", FailureKind.BAD_WEIGHT, "fear -1"),
        ("joy inf", FailureKind.BAD_WEIGHT, "joy inf"),
        (" joy 0, fear 0", FailureKind.ZERO_WEIGHT, " joy 0, fear 0"),
        (".joy", FailureKind.UNKNOWN_EMOTION, ".joy"),
        ("joyX", FailureKind.UNKNOWN_EMOTION, "joyx"),
        ("", FailureKind.UNKNOWN_EMOTION, ""),
        ("x" * 200, FailureKind.UNKNOWN_EMOTION, "x" * 80),
    ],
)
def test_a_failed_span_says_what_was_seen(text: str, kind: FailureKind, detail: str) -> None:
    assert parse_emotions(text, MELD) == ParseFailure(kind, detail)


def test_an_emotion_without_a_number_weighs_one() -> None:
    assert parse_emotions("joy, fear 3", MELD) == dist(joy=0.25, fear=0.75)
    assert parse_emotions(" joy 1, fear (1), anger: 2. ", MELD) == dist(joy=1, fear=1, anger=2)
    assert parse_emotions("joy...", MELD) == dist(joy=1)


def test_a_name_is_read_to_160_characters_and_no_further() -> None:
    assert parse_emotions("joy" + " " * 150 + "7", MELD) == dist(joy=1)
    # Beyond them the weight is not looked for: what is left reads as the name alone.
    assert parse_emotions("joy" + " " * 156 + "-7", MELD) != dist(joy=1)
    assert parse_emotions("joy" + " " * 200 + "-7", MELD) == dist(joy=1)


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        ("", FailureKind.EMPTY, ""),
        (" \n", FailureKind.EMPTY, ""),
        ("Well.\nE: joy", FailureKind.EXTRA_TEXT, "Well."),
        ("just prose", FailureKind.EXTRA_TEXT, "just prose"),
        ("S: joy\nE: joy", FailureKind.NO_EMOTION, "S: joy\nE: joy"),
        ("T: thinking", FailureKind.NO_EMOTION, "T: thinking"),
        ("T: a\nT: b\nE: joy", FailureKind.NO_EMOTION, "T: a\nT: b\nE: joy"),
        ("E: glee\nS: joy", FailureKind.UNKNOWN_EMOTION, "glee"),
    ],
)
def test_recognition_fails_with_its_kind_and_what_was_seen(text: str, kind: FailureKind, detail: str) -> None:
    assert parse_recognition(text, MELD) == ParseFailure(kind, detail)


def test_recognition_reads_past_a_thought_and_ignores_the_rest() -> None:
    for text in ("E: joy", "T: well\nE: joy\nS: gl"):
        assert parse_recognition(text, MELD) == dist(joy=1)
    # What is behind the emotions on a line of no field belongs to them.
    assert isinstance(parse_recognition("E: joy\nwell", MELD), ParseFailure)


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        ("", FailureKind.EMPTY, ""),
        ("ah\nE: joy", FailureKind.EXTRA_TEXT, "ah"),
        ("S: joy", FailureKind.NO_EMOTION, "S: joy"),
        ("T: x", FailureKind.NO_EMOTION, "T: x"),
        ("E: joy", FailureKind.NO_SELF_EMOTION, "E: joy"),
        ("E: joy\nR: x", FailureKind.NO_SELF_EMOTION, "E: joy\nR: x"),
        ("E: joy\nS: gloom\nR: x", FailureKind.UNKNOWN_EMOTION, "gloom"),
        ("E: joy\nS: fear", FailureKind.NO_REPLY, "E: joy\nS: fear"),
        ("E: joy\nS: fear\nT: x", FailureKind.NO_REPLY, "E: joy\nS: fear\nT: x"),
        ("E: joy\nS: fear\nR: ", FailureKind.NO_REPLY, "E: joy\nS: fear\nR: "),
        ("E: joy\nS: fear\nR: x\nE: y", FailureKind.EXTRA_TEXT, "E: y"),
    ],
)
def test_a_completion_fails_with_its_kind_and_what_was_seen(
    text: str, kind: FailureKind, detail: str
) -> None:
    assert parse(text, MELD) == ParseFailure(kind, detail)


def test_a_cut_completion_shows_its_end() -> None:
    text = "E: joy\nS: fear\nR: " + "a" * 100 + "the end"
    assert parse(text, MELD, finished=False) == ParseFailure(FailureKind.TRUNCATED, text[-80:])


def test_fields_and_their_places() -> None:
    text = " hi \n\tE :  joy \nR: \n x y \n"
    assert split_fields(text) == ("hi", [("E", "joy"), ("R", "x y")])
    assert [(f, text[a:b]) for f, a, b in field_spans(text)] == [("E", "joy"), ("R", "x y")]
    assert split_fields(" none ") == ("none", [])
    assert field_spans("E:  ") == [("E", 4, 4)]


# -- metrics ---------------------------------------------------------------------------------------------


def test_calibration_rows_by_hand() -> None:
    predicted = [{"joy": 0.3, "fear": 0.25, "anger": 0.25, "neutral": 0.2}, {"joy": 1.0}, {"fear": 1.0}]
    gold = [{"joy": 1.0}, {"joy": 1.0}, {"joy": 1.0}]
    found = calibration(predicted, gold, [MELD.labels] * 3, bins=5)
    edges = [(b["lower"], b["upper"], b["n"]) for b in found["bins"]]
    assert edges == [
        (0, 0.2, 0), (0.2, 0.4, 1), (0.4, pytest.approx(0.6), 0), (pytest.approx(0.6), 0.8, 0),
        (0.8, 1, 2),
    ]  # fmt: skip
    assert set(found["bins"][0]) == {"lower", "upper", "n"}
    assert found["bins"][4]["weight"] == 1 and found["bins"][4]["accuracy"] == 0.5
    assert found["ece"] == pytest.approx((0.7 * 1 + 0.5 * 2) / 3)
    assert found["brier"] == pytest.approx((0.49 + 2 * 0.0625 + 0.04 + 0 + 2) / 3)
    assert found["nll_floor"] == NLL_FLOOR == 0.01
    none = calibration([], [], [])
    assert (none["n"], none["ece"], none["brier"], none["nll"]) == (0, None, None, None)
    assert len(none["bins"]) == 10
    with pytest.raises(ValueError):
        calibration([{"joy": 1.0}], [], [])
    # Seven labels on a level: the least top weight there is.
    low = calibration([dict.fromkeys(MELD.labels, 1 / 7)], [{"joy": 1.0}], [MELD.labels])
    assert low["bins"][1]["n"] == 1 and sum(b["n"] for b in low["bins"]) == 1
    tiny = calibration([{}], [{"joy": 1.0}], [MELD.labels], bins=3)
    assert tiny["bins"][0]["n"] == 1, "a weight of 0 belongs to the first bin"


def test_seeds_and_resamples_are_passed_on_and_intervals_hold_95_per_cent() -> None:
    values, clusters = (np.random.default_rng(0).normal(size=60).tolist(), [i // 3 for i in range(60)])
    usual = mean_interval(values, clusters)
    assert usual == mean_interval(values, clusters, seed=0, resamples=1000)
    assert mean_interval(values, clusters, seed=1) != usual
    assert mean_interval(values, clusters, resamples=50) != usual
    drawn = percentile_interval(2.0, np.arange(1001.0))
    assert (drawn.value, drawn.low, drawn.high) == (2, pytest.approx(25), pytest.approx(975))


def test_paired_difference_by_hand() -> None:
    # One cluster: each flip keeps or negates the sum, so every draw reaches it.
    one = paired_difference([0, 0], [1, 3], ["c", "c"], resamples=40)
    assert one.difference.value == 2 and one.p_value == 1
    # Thirty clusters that all point one way: no draw but the observed one reaches them.
    many = paired_difference([0] * 30, [1] * 30, list(range(30)), resamples=99)
    assert many.p_value == pytest.approx(0.01) and many.difference.low == 1
    # Ten equal ones: the 2 of 1024 flips that reach 10; a looser bound would count those of 8 too.
    ten = paired_difference([0] * 10, [0.5] * 10, list(range(10)), resamples=4000)
    assert ten.p_value < 0.01
    some = ([0.1, 0.9, 0.3, 0.2], [0.5, 0.6, 0.8, 0.1], [0, 1, 2, 3])
    assert paired_difference(*some) == paired_difference(*some, seed=0, resamples=2000)
    few = paired_difference(*some, resamples=20)
    assert few.difference == mean_interval(
        [b - a for a, b in zip(*some[:2], strict=True)], some[2], resamples=20
    )
    with pytest.raises(ValueError, match=r"^paired_difference needs the same observations for both"):
        paired_difference([1.0], [1.0], [])


def test_averages_resample_each_data_set_with_a_seed_of_its_own() -> None:
    rng = np.random.default_rng(1)
    gold = [MELD.labels[k] for k in rng.integers(0, 3, 40)]
    said = [MELD.labels[k] if k < 3 else FAILED for k in rng.integers(0, 4, 40)]
    r1, clusters = rng.random(40).tolist(), [i // 4 for i in range(40)]
    part = Outcomes.of(gold, said, r1, clusters, MELD.labels)
    both = average_intervals([part, part], 200)
    alone = [part.resampled(200, seed) for seed in (0, 1)]
    for name in ("accuracy", "mean_r1"):
        draws = (alone[0][name] + alone[1][name]) / 2
        expected = percentile_interval(float(part.measures()[name]), draws)
        assert both[name] == expected
    assert average_intervals([part]) == average_intervals([part], 1000)

"""Free changes of a checkpoint, worked by hand; nothing is scored on labels that it was fitted on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.evaluation.free_changes import (
    AS_IT_IS,
    FREE,
    FREE_HEADER,
    MAJORITY,
    PROBABLE,
    SHIFTED,
    cross_fit,
    free_changes,
    free_rows,
    gold_share,
    prior_bias,
)
from selfemo.method.types import LabelSet

TWO = LabelSet("two", ("joy", "anger"))


def row(i: int, gold: str, believed: dict | None, said: dict | None, r1: float, failure: str | None = None):
    return {
        "evaluation": "e", "prompt": f"c{i}/1", "dataset": "toy", "conversation": f"c{i}",
        "gold": json.dumps({gold: 1.0}), "predicted": said and json.dumps(said), "failure": failure,
        "r1": r1, "text": "", "believed": believed and json.dumps(believed),
    }  # fmt: skip


def written(n: int = 8, **change) -> list:
    """Half joy, half anger; joy always believed .8 and written .6: R1 .6 / 1.4 if right, else .4 / 1.6."""
    made = [
        row(i, ("joy", "anger")[i % 2], {"joy": 0.8, "anger": 0.2}, {"joy": 0.6, "anger": 0.4},
            (0.6 / 1.4, 0.4 / 1.6)[i % 2])
        for i in range(n)
    ]  # fmt: skip
    return [{**r, **change} for r in made]


def test_free_changes_by_hand() -> None:
    found = free_changes(written(), {"toy": TWO}, resamples=50)["toy"]
    assert list(found) == [AS_IT_IS, *FREE]
    value = {what: {m: v[0] for m, v in by.items()} for what, by in found.items()}
    assert value[AS_IT_IS]["accuracy"] == 0.5
    assert value[AS_IT_IS]["mean_r1"] == pytest.approx((0.6 / 1.4 + 0.4 / 1.6) / 2)
    assert value[AS_IT_IS]["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2, abs=1e-6)
    # The most probable label alone: as often right, and R1 is 1 where it is.
    assert value[PROBABLE]["accuracy"] == value[PROBABLE]["mean_r1"] == 0.5
    for by in found.values():
        for v, low, high in by.values():
            assert low - 1e-12 <= v <= high + 1e-12


def test_the_prior_shift_finds_the_share_and_turns_a_label() -> None:
    """Anger in three of four and believed .4 always: shifted to (3 + 1) / (4 + 2) = 2/3 of the other half."""
    logs = np.log(np.tile([0.6, 0.4], (4, 1)))
    share = gold_share(np.array([[0, 1], [0, 1], [0, 1], [1, 0]], float))
    assert share == pytest.approx([1 / 3, 2 / 3])
    bias = prior_bias(logs, share)
    shifted = np.exp(logs + bias)
    assert shifted / shifted.sum(1, keepdims=True) == pytest.approx(np.tile([1 / 3, 2 / 3], (4, 1)), abs=1e-6)
    assert bias.sum() == pytest.approx(0, abs=1e-9)
    gold = ["anger", "anger", "anger", "joy"] * 20
    rows = [
        row(i, g, {"joy": 0.6, "anger": 0.4}, {"joy": 1.0}, float(g == "joy")) for i, g in enumerate(gold)
    ]
    found = free_changes(rows, {"toy": TWO}, resamples=50)["toy"]
    assert found[AS_IT_IS]["accuracy"][0] == found[PROBABLE]["accuracy"][0] == 0.25
    assert found[SHIFTED]["accuracy"][0] == found[MAJORITY]["accuracy"][0] == 0.75
    assert found[SHIFTED]["nll"][0] == pytest.approx(found[MAJORITY]["nll"][0], abs=1e-4)
    assert found[SHIFTED]["macro_f1"][0] == pytest.approx((0 + 2 * 60 / (60 + 80)) / 2)


shares = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda w: np.array(w) / sum(w))


@settings(max_examples=40, deadline=None)
@given(st.lists(shares, min_size=1, max_size=12), shares)
def test_the_mean_after_a_prior_shift_is_the_share(beliefs, share) -> None:
    logs = np.log(np.array(beliefs))
    shifted = np.exp(logs + prior_bias(logs, share))
    assert (shifted / shifted.sum(1, keepdims=True)).mean(0) == pytest.approx(share, abs=1e-4)


def test_nothing_is_scored_on_labels_that_it_was_fitted_on() -> None:
    """Each fold gets what the other one teaches: here the mark of its gold."""
    seen: list[tuple[float, float]] = []

    def fit(logs, gold):
        def change(other):
            seen.append((float(gold.sum()), float(len(other))))
            return other + gold.sum()

        return change

    fold = np.array([True, False, True])
    gold = np.array([[1.0, 0], [7, 0], [2, 0]])
    assert cross_fit(fit, np.zeros((3, 2)), gold, fold)[:, 0].tolist() == [7, 3, 7]
    assert seen == [(3, 1), (7, 2)]
    alone = cross_fit(fit, np.zeros((1, 2)), gold[:1], np.array([True]))
    assert alone.tolist() == [[0, 0]], "nothing to learn from: as it was"


def test_without_probabilities_or_with_one_conversation_less_is_known() -> None:
    no_beliefs = free_changes(written(believed=None), {"toy": TWO}, resamples=50)["toy"]
    assert list(no_beliefs) == [AS_IT_IS, MAJORITY] and no_beliefs[AS_IT_IS]["nll"] is None
    one = free_changes(written(conversation="c0"), {"toy": TWO}, resamples=50)["toy"]
    assert list(one) == [AS_IT_IS] and one[AS_IT_IS]["nll"] is not None
    assert free_changes(written(), {"other": TWO}, resamples=50) == {}


def test_a_prompt_that_was_too_long_stays_a_failure_but_for_the_majority() -> None:
    rows = [*written(8), row(8, "anger", None, None, 0.0, "too_long")]
    found = free_changes(rows, {"toy": TWO}, resamples=50)["toy"]
    assert found[PROBABLE]["accuracy"][0] == pytest.approx(4 / 9)
    assert list(found) == [AS_IT_IS, *FREE]


def test_rows_of_the_table() -> None:
    found = {"start": free_changes(written(believed=None), {"toy": TWO}, resamples=50)}
    table = free_rows(found)
    assert [r[:3] for r in table] == [["start", "toy", AS_IT_IS], ["start", "toy", MAJORITY]]
    assert all(len(r) == len(FREE_HEADER) for r in table) and table[0][-1] == "-"

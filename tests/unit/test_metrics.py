"""Metrics against scikit-learn and scipy, coverage of intervals, planted and null differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from selfemo.metrics import (
    FAILED,
    accuracy,
    cluster_bootstrap,
    f1,
    mean_interval,
    paired_difference,
)
from tests.conftest import MELD


def test_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        gold = rng.choice(MELD.labels, 60).tolist()
        pred = np.where(rng.random(60) < 0.5, gold, rng.choice(MELD.labels, 60)).tolist()
        assert accuracy(gold, pred) == pytest.approx(sk.accuracy_score(gold, pred))
        for average in ("weighted", "macro"):
            expected = sk.f1_score(gold, pred, labels=MELD.labels, average=average, zero_division=0)
            assert f1(gold, pred, MELD.labels, average) == pytest.approx(expected)


def test_hand_worked_f1_with_a_failed_parse() -> None:
    gold, pred = ["joy", "joy", "anger", "fear"], ["joy", FAILED, "anger", "anger"]
    # joy: P 1, R 1/2, F 2/3 (support 2); anger: P 1/2, R 1, F 2/3; fear: 0.
    assert f1(gold, pred, ("joy", "anger", "fear"), "weighted") == pytest.approx(
        (4 / 3 + 2 / 3) / 4
    )
    assert accuracy(gold, pred) == 0.5


def test_mean_interval_is_the_bootstrap_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    clusters = rng.integers(0, 30, 200).tolist()
    values = rng.random(200)
    fast = mean_interval(values.tolist(), clusters, resamples=4000)
    slow = cluster_bootstrap(lambda i: float(values[i].mean()), clusters, resamples=4000)
    assert fast.value == pytest.approx(slow.value)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.004)


def test_single_cluster_members_agree_with_scipy() -> None:
    values = np.random.default_rng(2).normal(size=80)
    ours = mean_interval(values.tolist(), list(range(80)), resamples=9999)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=0)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_intervals_cover_the_truth_when_conversations_differ() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        level = rng.normal(
            0.5, 0.15, 40
        )  # each conversation has its own level: naive intervals fail
        values = [float(rng.random() < p) for p in np.clip(level, 0, 1) for _ in range(8)]
        interval = mean_interval(values, [c for c in range(40) for _ in range(8)],
                                 resamples=400, seed=trial)  # fmt: skip
        hits += interval.low <= 0.5 <= interval.high
    assert 0.90 <= hits / 300 <= 0.99


def test_planted_difference_is_found_and_a_null_one_is_not() -> None:
    rng = np.random.default_rng(4)
    clusters = [c for c in range(50) for _ in range(8)]
    found = false = 0
    for seed in range(60):
        a = rng.random(400)
        better = paired_difference(a, a + rng.normal(0.05, 0.2, 400), clusters, seed=seed)
        same = paired_difference(a, a + rng.normal(0, 0.2, 400), clusters, seed=seed)
        found += better.p_value < 0.05
        false += same.p_value < 0.05
    assert found >= 55
    assert false <= 9  # 3 expected; 9 or more happens once in 500


def test_paired_difference_edges() -> None:
    equal = paired_difference([0.5, 0.5], [0.5, 0.5], ["a", "b"])
    assert equal.difference.value == 0 and equal.p_value == 1
    with pytest.raises(ValueError, match="same observations"):
        paired_difference([1], [1, 2], ["a", "b"])

"""Metrics against scikit-learn and scipy, coverage of intervals, planted and null differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from selfemo.evaluation.metrics import (
    FAILED,
    NLL_FLOOR,
    Interval,
    Outcomes,
    average_intervals,
    calibration,
    class_report,
    mean_interval,
    paired_average,
    paired_difference,
    paired_measures,
)
from tests.conftest import MELD

LABELS = MELD.labels


def cluster_bootstrap(statistic, clusters, resamples: int) -> Interval:
    """95% interval of `statistic(indices)` over resampled clusters, one resample after the other."""
    members = [np.flatnonzero(np.equal(clusters, c)) for c in dict.fromkeys(clusters)]
    rng = np.random.default_rng(0)
    draws = [
        statistic(np.concatenate([members[j] for j in rng.integers(0, len(members), len(members))]))
        for _ in range(resamples)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(statistic(np.arange(len(clusters))), low, high)


observations = st.lists(
    st.tuples(
        st.sampled_from(LABELS), st.sampled_from([*LABELS, FAILED]), st.floats(0, 1),
        st.integers(0, 6),
    ),
    min_size=1, max_size=60,
)  # fmt: skip


def outcomes(rows, labels=LABELS) -> Outcomes:
    gold, predicted, r1, clusters = (list(c) for c in zip(*rows, strict=True))
    return Outcomes.of(gold, predicted, r1, clusters, labels)


@settings(max_examples=80, deadline=None)
@given(observations)
def test_scores_agree_with_scikit_learn(rows) -> None:
    gold, predicted, r1, _ = (list(c) for c in zip(*rows, strict=True))
    found = outcomes(rows)
    ours = found.measures()
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(gold, predicted))
    assert ours["mean_r1"] == pytest.approx(np.mean(r1))
    assert ours["parse_rate"] == pytest.approx(1 - predicted.count(FAILED) / len(rows))
    for average in ("weighted", "macro"):
        expected = sk.f1_score(gold, predicted, labels=LABELS, average=average, zero_division=0)
        assert ours[f"{average}_f1"] == pytest.approx(expected)
    confusion = found.confusion.sum(0)
    theirs = sk.confusion_matrix(gold, predicted, labels=[*LABELS, FAILED])
    assert confusion.tolist() == theirs[:-1].tolist()
    report = class_report(confusion, LABELS)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        gold, predicted, labels=LABELS, zero_division=0
    )
    for i, e in enumerate(LABELS):
        assert report[e] == pytest.approx(
            {"precision": precision[i], "recall": recall[i], "f1": f1[i], "support": support[i],
             "predicted": predicted.count(e)}
        )  # fmt: skip


weights = st.lists(st.integers(0, 10), min_size=7, max_size=7).filter(any)


def calibrated(rows) -> tuple[np.ndarray, np.ndarray, dict]:
    p = np.array([np.array(w) / sum(w) for w, _ in rows])
    gold = np.array([g for _, g in rows])
    return (
        p,
        gold,
        calibration(
            [dict(zip(LABELS, row, strict=True)) for row in p],
            [{LABELS[g]: 1.0} for g in gold],
            [LABELS] * len(rows),
        ),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(weights, st.integers(0, 6)), min_size=1, max_size=40))
def test_calibration_agrees_with_scikit_learn(rows) -> None:
    p, gold, found = calibrated(rows)
    mixed = (1 - NLL_FLOOR) * p + NLL_FLOOR / 7
    assert found["nll"] == pytest.approx(sk.log_loss(gold, mixed, labels=range(7)))
    assert found["brier"] == pytest.approx(
        sum(sk.brier_score_loss(gold == k, p[:, k]) if set(gold == k) == {True, False}
            else np.mean(((gold == k) - p[:, k]) ** 2) for k in range(7))
    )  # fmt: skip
    assert sum(b["n"] for b in found["bins"]) == found["n"] == len(rows)
    top, hit = p.max(1), p.argmax(1) == gold
    ece = 0.0
    for k in range(10):  # the definition, bin by bin
        mine = (top > k / 10 + 1e-9) & (top <= (k + 1) / 10 + 1e-9)
        if mine.any():
            ece += mine.mean() * abs(hit[mine].mean() - top[mine].mean())
    assert found["ece"] == pytest.approx(ece)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(weights, st.integers(0, 6)), min_size=1, max_size=40))
@example([([0, 0, 0, 0, 1, 1, 1], 0)])  # wrong throughout: the flattest is best
@example([([1, 0, 0, 0, 0, 0, 0], 0)])  # right throughout: the sharpest
def test_no_other_temperature_is_better(rows) -> None:
    p, gold, found = calibrated(rows)
    mixed = (1 - NLL_FLOOR) * p + NLL_FLOOR / 7

    def at(temperature: float) -> float:
        sharp = mixed ** (1 / temperature)
        return float(sk.log_loss(gold, sharp / sharp.sum(1, keepdims=True), labels=range(7)))

    assert found["nll_tempered"] <= found["nll"] + 1e-12
    for t in (0.05, 0.3, 0.9, 1.1, 3, 20):
        assert found["nll_tempered"] <= at(t) + 1e-6


def test_a_sharper_model_that_knows_no_more_has_another_temperature_alone() -> None:
    """Two label sets of different size; probabilities to the third power need a temperature of three."""
    generator = np.random.default_rng(0)
    plain, sharp, gold, sets = [], [], [], []
    for i in range(600):
        names = LABELS if i % 2 else LABELS[:4]
        p = generator.dirichlet(np.full(len(names), 2.0))
        gold.append({names[generator.choice(len(names), p=p)]: 1.0})
        plain.append(dict(zip(names, p, strict=True)))
        sharp.append(dict(zip(names, p**3 / (p**3).sum(), strict=True)))
        sets.append(names)
    a, b = (calibration(p, gold, sets, floor=1e-9) for p in (plain, sharp))
    assert a["temperature"] == pytest.approx(1, abs=0.15)
    assert b["temperature"] == pytest.approx(3 * a["temperature"], rel=1e-2)
    assert b["nll_tempered"] == pytest.approx(a["nll_tempered"], abs=1e-5)
    assert b["nll"] > a["nll"] + 0.2


def test_calibration_by_hand_and_of_nothing() -> None:
    found = calibration(
        [{"joy": 0.6, "anger": 0.4}, {"joy": 1.0}, {"anger": 1.0}, {"fear": 0.6, "joy": 0.4}],
        [{"joy": 1.0}, {"joy": 1.0}, {"joy": 1.0}, {"joy": 1.0}],
        [LABELS] * 4,
    )
    # .6: one of two right, gap .1; 1: one of two right, gap .5
    assert found["ece"] == pytest.approx((0.1 + 0.5) / 2)
    assert found["brier"] == pytest.approx((0.32 + 0 + 2 + 0.72) / 4)
    assert found["bins"][5]["n"] == 2 and found["bins"][9]["n"] == 2
    empty = calibration([], [], [])
    assert empty["n"] == 0 and empty["ece"] is empty["nll"] is empty["temperature"] is None


def test_hand_worked_f1_with_a_failed_parse() -> None:
    rows = [("joy", "joy", 1, 0), ("joy", FAILED, 0, 0), ("anger", "anger", 1, 1), ("fear", "anger", 0, 1)]
    # joy: P 1, R 1/2, F 2/3 (support 2); anger: P 1/2, R 1, F 2/3; fear: 0.
    found = outcomes(rows, ("joy", "anger", "fear")).measures()
    assert found["weighted_f1"] == pytest.approx((4 / 3 + 2 / 3) / 4)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 3)
    assert found["accuracy"] == 0.5 and found["parse_rate"] == 0.75


def test_outcomes_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="outside the classes"):
        Outcomes.of(["glee"], ["joy"], [0.0], ["c"], LABELS)
    with pytest.raises(ValueError, match="one prediction"):
        Outcomes.of(["joy"], ["joy", "joy"], [0.0], ["c"], LABELS)


def test_fast_intervals_are_the_slow_bootstrap() -> None:
    rng = np.random.default_rng(7)
    rows = random_rows(rng, 30, 5, 0.6)
    gold, predicted = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])

    def f1(i: np.ndarray) -> float:
        return sk.f1_score(gold[i], predicted[i], labels=LABELS, average="weighted", zero_division=0)

    slow = cluster_bootstrap(f1, [r[3] for r in rows], resamples=1500)
    fast = outcomes(rows).intervals(1500)["weighted_f1"]
    assert fast.value == pytest.approx(slow.value)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.015)


def random_rows(rng, clusters: int, size: int, skill: float, spread: float = 0.0):
    """Predictions that are right with a probability of each conversation's own, around `skill`."""
    rows = []
    for c in range(clusters):
        level = np.clip(rng.normal(skill, spread), 0, 1)
        for _ in range(size):
            gold = LABELS[min(6, int(rng.exponential(1.5)))]
            right = rng.random() < level
            wrong = LABELS[rng.integers(7)]
            rows.append((gold, gold if right else wrong, float(right), c))
    return rows


@pytest.mark.slow
@pytest.mark.extended
def test_intervals_of_all_measures_cover_the_truth() -> None:
    """The truth is that of a very large sample; each conversation has its own level."""
    rng = np.random.default_rng(11)
    truth = outcomes(random_rows(rng, 20_000, 8, 0.6, 0.15)).measures()
    names = ("accuracy", "weighted_f1", "mean_r1")
    hits = dict.fromkeys(names, 0)
    trials = 400
    for trial in range(trials):
        found = outcomes(random_rows(rng, 60, 8, 0.6, 0.15)).intervals(400, seed=trial)
        for m in names:
            hits[m] += found[m].low <= truth[m] <= found[m].high
    for m in names:  # 95% less a little, as percentile intervals over 60 clusters do
        assert 0.915 <= hits[m] / trials <= 0.98, (m, hits[m])


def another_system(rows, rng, skill: float, spread: float):
    """Predictions for the same gold labels, with a level of each conversation's own."""
    level: dict[int, float] = {}
    answers = []
    for gold, _, _, c in rows:
        level.setdefault(c, float(np.clip(rng.normal(skill, spread), 0, 1)))
        right = rng.random() < level[c]
        answers.append((gold, gold if right else LABELS[rng.integers(7)], float(right), c))
    return answers


@pytest.mark.slow
@pytest.mark.extended
def test_paired_measures_find_a_planted_difference_and_no_null_one() -> None:
    trials, names = 500, ("accuracy", "weighted_f1", "macro_f1", "mean_r1")
    found, false = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for trial in range(trials):
        rng = np.random.default_rng([trial, 9])
        rows = random_rows(rng, 50, 8, 0.5, 0.1)
        base = outcomes(rows)
        for skill, count in ((0.5, false), (0.68, found)):
            other = outcomes(another_system(rows, rng, skill, 0.1))
            p = paired_measures(base, other, resamples=400, seed=trial)
            for m in names:
                count[m] += p[m].p_value < 0.05
    # Ties of counts make the test of accuracy a little conservative: 4% rather than 5.
    low, high = stats.binom.ppf(0.001, trials, 0.035), stats.binom.ppf(0.999, trials, 0.05)
    for m in names:
        assert low <= false[m] <= high, (m, false[m])
        assert found[m] >= 0.85 * trials, (m, found[m])


def test_paired_measures_agree_with_the_paired_difference_of_means() -> None:
    rng = np.random.default_rng(5)
    a, b = random_rows(rng, 20, 6, 0.4), random_rows(rng, 20, 6, 0.7)
    b = [(g, g if r else p, r, c) for (g, p, _, c), (_, _, r, _) in zip(a, b, strict=True)]
    both = paired_measures(outcomes(a), outcomes(b), seed=3)["mean_r1"]
    one = paired_difference([r[2] for r in a], [r[2] for r in b], [r[3] for r in a], seed=3)
    assert both.p_value == one.p_value
    assert both.difference.value == pytest.approx(one.difference.value)
    assert both.difference.low == pytest.approx(one.difference.low)
    same = paired_measures(outcomes(a), outcomes(a))
    assert all(d.difference.value == 0 and d.p_value == 1 for d in same.values())
    with pytest.raises(ValueError, match="same observations"):
        paired_measures(outcomes(a), outcomes(a[:-6]))


def test_average_gives_each_data_set_the_same_weight() -> None:
    rng = np.random.default_rng(6)
    small, large = random_rows(rng, 10, 3, 0.9), random_rows(rng, 100, 3, 0.3)
    mean = average_intervals([outcomes(small), outcomes(large)], 500)["accuracy"]
    parts = [outcomes(r).measures()["accuracy"] for r in (small, large)]
    assert mean.value == pytest.approx(np.mean(parts)) and mean.low < mean.value < mean.high


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
        level = rng.normal(0.5, 0.15, 40)  # each conversation has its own level: naive intervals fail
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


def test_the_paired_average_weighs_data_sets_alike_and_one_alone_is_paired_measures() -> None:
    """By hand: 2 of 4 to 4 of 4 right, and 9 of 10 to 8 of 10, each label its own conversation."""
    few, many = [("joy", p, 0.0, i) for i, p in enumerate(["joy", "joy", "anger", "anger"])], []
    for i in range(10):
        many.append(("anger", "anger" if i < 9 else "joy", 0.0, i))
    few_after = [("joy", "joy", 0.0, i) for i in range(4)]
    many_after = [("anger", "anger" if i < 8 else "joy", 0.0, i) for i in range(10)]
    pairs = [(outcomes(few), outcomes(few_after)), (outcomes(many), outcomes(many_after))]
    found = paired_average(pairs, resamples=400)
    assert found["accuracy"].difference.value == pytest.approx((0.5 - 0.1) / 2)
    # F1 of a lone class with h of n right and nothing else said of it: 2h / (h + n).
    f1 = (1 - 2 * 2 / 6) - (2 * 9 / 19 - 2 * 8 / 18)
    assert found["weighted_f1"].difference.value == pytest.approx(f1 / 2)
    assert found["accuracy"].difference.low < 0.2 < found["accuracy"].difference.high
    assert paired_average(pairs[:1], seed=2) == paired_measures(*pairs[0], seed=2)
    with pytest.raises(ValueError, match="same observations"):
        paired_average([pairs[0], (outcomes(many), outcomes(few))])
    # Two trainings that say the same are one: their conversations are drawn and swapped together.
    one, twice = (paired_average(p, of=[0] * len(p), resamples=400) for p in (pairs[1:], pairs[1:] * 2))
    assert one == twice
    apart = paired_average(pairs[1:] * 2, resamples=400)["accuracy"].difference
    assert apart.high - apart.low < twice["accuracy"].difference.high - twice["accuracy"].difference.low

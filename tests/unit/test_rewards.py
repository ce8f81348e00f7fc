"""Known answers of SPEC section 8, and properties of eqs. 8-12."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.method.rewards import consensus, exact_match, weighted_iou
from selfemo.method.rewards.consensus import consensus_rows, core_rows
from selfemo.method.rewards.consensus import weights as weight_rows
from selfemo.method.rewards.iou import iou_rows
from selfemo.method.types import LABEL_SETS, EmotionDistribution
from tests.conftest import MELD, dist

weights = st.dictionaries(
    st.sampled_from(MELD.labels), st.just(0.0) | st.floats(1e-9, 1e6), min_size=1
).filter(lambda d: any(w > 0 for w in d.values()))
distributions = weights.map(EmotionDistribution)


@pytest.mark.parametrize(
    ("p", "y", "expected"),
    [
        ({"joy": 1}, {"joy": 1}, 1.0),
        ({"joy": 0.6, "surprise": 0.4}, {"joy": 1}, 0.6 / 1.4),
        ({"joy": 2, "surprise": 2}, {"joy": 3, "anger": 1}, 0.5 / 1.5),
        ({"anger": 1}, {"joy": 1}, 0.0),
    ],
)
def test_known_rewards(p: dict[str, float], y: dict[str, float], expected: float) -> None:
    assert weighted_iou(EmotionDistribution(p), EmotionDistribution(y)) == pytest.approx(expected, abs=1e-12)


def test_one_gold_label_gives_w_over_two_minus_w() -> None:
    for w in (0.1, 0.25, 0.5, 0.9):
        got = weighted_iou(dist(joy=w, fear=1 - w), dist(joy=1))
        assert got == pytest.approx(w / (2 - w))


def test_failed_completion_scores_zero() -> None:
    assert weighted_iou(None, dist(joy=1)) == 0.0
    assert exact_match(None, dist(joy=1), MELD) == 0.0


@given(distributions, distributions)
def test_iou_agrees_with_total_variation(p: EmotionDistribution, y: EmotionDistribution) -> None:
    tv = 0.5 * sum(abs(p.weight(e) - y.weight(e)) for e in MELD.labels)
    assert weighted_iou(p, y) == pytest.approx((1 - tv) / (1 + tv), abs=1e-9)
    assert 0 <= weighted_iou(p, y) <= 1
    assert weighted_iou(p, y) == weighted_iou(y, p)
    assert weighted_iou(p, p) == pytest.approx(1)


@given(weights, st.floats(1e-3, 1e3))
def test_raw_weights_are_scale_free(raw: dict[str, float], scale: float) -> None:
    scaled = EmotionDistribution({e: w * scale for e, w in raw.items()})
    assert weighted_iou(EmotionDistribution(raw), scaled) == pytest.approx(1, abs=1e-6)


def test_weights_near_the_float_limit_stay_finite() -> None:
    d = EmotionDistribution({"joy": 1.7e308, "fear": 1.7e308})
    assert d["joy"] == pytest.approx(0.5)


@pytest.mark.parametrize("raw", [{}, {"joy": 0.0}, {"joy": -1.0}, {"joy": float("nan")},
                                 {"joy": float("inf")}])  # fmt: skip
def test_impossible_weights_are_refused(raw: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        EmotionDistribution(raw)


GROUP = [
    dist(joy=0.5, surprise=0.5), dist(joy=1), dist(neutral=1), dist(anger=0.6, disgust=0.4)
]  # fmt: skip


def core(group: list[EmotionDistribution | None]) -> set[str]:
    chosen = core_rows(weight_rows(group, MELD))
    return {e for e, is_core in zip(MELD.labels, chosen, strict=True) if is_core}


def test_known_consensus() -> None:
    # c is 0.375 for joy, 0.25 neutral, 0.15 anger, 0.125 surprise, 0.1 disgust.
    assert core(GROUP) == {"joy", "neutral", "anger"}
    assert consensus(GROUP, MELD) == pytest.approx([1 / 3] * 4)


def test_weighted_consensus_does_not_pay_for_naming_more() -> None:
    # C = joy, neutral, anger: mass on them is .5, 1, 1, .6.
    assert consensus(GROUP, MELD, weighted=True) == pytest.approx([0.5, 1, 1, 0.6])


def test_failed_rollouts_dilute_the_core_and_get_nothing() -> None:
    group = [dist(joy=1), None, None, None]
    assert core(group) == {"joy"}
    assert consensus(group, MELD) == pytest.approx([1 / 3, 0, 0, 0])
    assert core([None, None]) == set()
    assert consensus([None, None], MELD) == [0, 0]


def test_ties_go_by_label_set_order() -> None:
    group = [dist(fear=1), dist(disgust=1), dist(sadness=1), dist(joy=1)]
    assert core(group) == {"joy", "sadness", "disgust"}
    assert dist(fear=0.5, joy=0.5).top(MELD) == "joy"
    assert dist(sad=1, neutral=1).top(LABEL_SETS["iemocap"]) == "sad"


@given(st.lists(st.none() | distributions, min_size=1, max_size=10))
def test_consensus_is_bounded(group: list[EmotionDistribution | None]) -> None:
    for weighted in (False, True):
        values = consensus(group, MELD, weighted=weighted)
        assert all(0 <= v <= 1 for v in values)
        assert all(v == 0 for v, p in zip(values, group, strict=True) if p is None)


@given(st.lists(st.lists(distributions, min_size=3, max_size=3), min_size=1, max_size=4))
def test_rows_of_many_groups_equal_each_group_alone(groups) -> None:
    """Against the equations read sample by sample."""
    w = np.array([weight_rows(g, MELD) for g in groups])
    y = w[:, 0]
    r1, r2 = iou_rows(w, y[:, None]), consensus_rows(w)
    for g, group in enumerate(groups):
        assert consensus(group, MELD) == r2[g].tolist()
        mean = [sum(p.weight(e) for p in group) / 3 for e in MELD.labels]
        core = sorted((k for k in range(7) if mean[k] > 0), key=lambda k: -round(mean[k], 12))[:3]
        for i, p in enumerate(group):
            low = sum(min(p.weight(e), group[0].weight(e)) for e in MELD.labels)
            high = sum(max(p.weight(e), group[0].weight(e)) for e in MELD.labels)
            assert r1[g, i] == pytest.approx(low / high)
            if len({round(m, 9) for m in mean if m}) == sum(m > 0 for m in mean):  # no ties
                named = sum(p.weight(MELD.labels[k]) > 0 for k in core)
                assert r2[g, i] == pytest.approx(named / 3)

"""Rewards of eqs. 8-10 (weighted IoU), 11-12 (consensus), and the exact match of fig. 5a.

A completion that failed to parse is None here: it scores 0 and adds nothing to the consensus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfemo.method.types import EmotionDistribution, LabelSet

CORE_SIZE = 3
"""Emotions in the consensus set C (eq. 11)."""


def iou_rows(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R1 = sum_e min(p_e, y_e) / sum_e max(p_e, y_e) of each row, in [0, 1] (eqs. 8-10).

    Equal to (1 - TV) / (1 + TV), since both distributions sum to 1.

    Args:
        predicted: (..., K) weights; all zero where the completion failed, which gives 0.
        target: (..., K) weights, broadcast against `predicted`.
    """
    shared = np.minimum(predicted, target).sum(-1)
    return np.asarray(np.minimum(1.0, shared / np.maximum(predicted, target).sum(-1)))


def weighted_iou(predicted: EmotionDistribution | None, target: EmotionDistribution) -> float:
    """`iou_rows` of two distributions; 0 for a failed completion."""
    if predicted is None:
        return 0.0
    # Sorted, because float sums depend on their order and set order on the process.
    emotions = sorted(predicted.keys() | target.keys())
    p, y = (np.array([d.weight(e) for e in emotions]) for d in (predicted, target))
    return float(iou_rows(p, y))


def exact_match(
    predicted: EmotionDistribution | None, target: EmotionDistribution, labels: LabelSet
) -> float:
    """1 if the top emotions agree, else 0: the accuracy-based reward of fig. 5a."""
    return float(predicted is not None and predicted.top(labels) == target.top(labels))


def primary_reward(
    predicted: EmotionDistribution | None,
    target: EmotionDistribution,
    labels: LabelSet,
    kind: str = "iou",
) -> float:
    """R1 as configured: weighted IoU ("iou"), or the exact match of fig. 5a ("exact")."""
    if kind == "iou":
        return weighted_iou(predicted, target)
    return exact_match(predicted, target, labels)


def weights(group: Sequence[EmotionDistribution | None], labels: LabelSet) -> np.ndarray:
    """(G, K) weights in the order of the label set; zeros where a completion failed."""
    return np.array(
        [[0.0 if p is None else p.weight(e) for e in labels.labels] for p in group]
    ).reshape(len(group), len(labels.labels))


def core_rows(group: np.ndarray) -> np.ndarray:
    """C of each group: the (at most) three emotions with the largest c_e > 0 (eq. 11).

    c_e = (1/G) sum_i p_i(e), failed rollouts count as all zero; ties go by label-set order.

    Args:
        group: (..., G, K) weights.

    Returns:
        (..., K) bool.
    """
    c = group.mean(-2)
    ranked = np.argsort(-c, axis=-1, kind="stable")[..., :CORE_SIZE]
    chosen = np.zeros(c.shape, dtype=bool)
    np.put_along_axis(chosen, ranked, True, axis=-1)
    return np.asarray(chosen & (c > 0))


def core_distribution(
    group: Sequence[EmotionDistribution | None], labels: LabelSet
) -> dict[str, float]:
    """c_e over the label set (eq. 11)."""
    return dict(zip(labels.labels, weights(group, labels).mean(0).tolist(), strict=True))


def core_emotions(group: Sequence[EmotionDistribution | None], labels: LabelSet) -> tuple[str, ...]:
    """C as names, the largest c_e first."""
    chosen = core_rows(weights(group, labels))
    core = core_distribution(group, labels)
    named = (e for e, is_core in zip(labels.labels, chosen, strict=True) if is_core)
    return tuple(sorted(named, key=lambda e: -core[e]))


def consensus_rows(group: np.ndarray, *, weighted: bool = False) -> np.ndarray:
    """R2 of each rollout: the share of the three core emotions that it names (eq. 12).

    Args:
        group: (..., G, K) weights of each group's rollouts, all zero where one failed.
        weighted: use sum of p_i over C instead of the count, which does not pay for naming three
            emotions [ours].

    Returns:
        (..., G) rewards in [0, 1].
    """
    chosen = core_rows(group)[..., None, :]
    if weighted:
        return np.asarray(np.minimum(1.0, (group * chosen).sum(-1)))
    return np.asarray(((group > 0) & chosen).sum(-1) / CORE_SIZE)


def consensus(
    group: Sequence[EmotionDistribution | None], labels: LabelSet, *, weighted: bool = False
) -> list[float]:
    """`consensus_rows` of one group, None where a completion failed; the label set breaks ties."""
    rewards: list[float] = consensus_rows(weights(group, labels), weighted=weighted).tolist()
    return rewards

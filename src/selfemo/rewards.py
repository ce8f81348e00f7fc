"""Rewards of eqs. 8-10 (weighted IoU), 11-12 (consensus), and the exact match of fig. 5a.

A completion that failed to parse is None here: it scores 0 and adds nothing to the consensus.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.types import EmotionDistribution, LabelSet

CORE_SIZE = 3
"""Emotions in the consensus set C (eq. 11)."""


def weighted_iou(predicted: EmotionDistribution | None, target: EmotionDistribution) -> float:
    """R1 = sum_e min(p_e, y_e) / sum_e max(p_e, y_e), in [0, 1] (eqs. 8-10).

    Equal to (1 - TV) / (1 + TV), since both distributions sum to 1. 0 for a failed completion.
    """
    if predicted is None:
        return 0.0
    emotions = predicted.keys() | target.keys()
    # Sorted, because float sums depend on their order and set order on the process.
    pairs = [(predicted.weight(e), target.weight(e)) for e in sorted(emotions)]
    return min(1.0, sum(map(min, pairs)) / sum(map(max, pairs)))


def exact_match(
    predicted: EmotionDistribution | None, target: EmotionDistribution, labels: LabelSet
) -> float:
    """1 if the top emotions agree, else 0: the accuracy-based reward of fig. 5a."""
    return float(predicted is not None and predicted.top(labels) == target.top(labels))


def core_distribution(
    group: Sequence[EmotionDistribution | None], labels: LabelSet
) -> dict[str, float]:
    """c_e = (1/G) sum_i p_i(e) over the label set; failed rollouts count as all zero (eq. 11)."""
    return {e: sum(p.weight(e) for p in group if p is not None) / len(group) for e in labels.labels}


def core_emotions(group: Sequence[EmotionDistribution | None], labels: LabelSet) -> tuple[str, ...]:
    """C: the (at most) three emotions with the largest c_e > 0; ties go by label-set order."""
    core = core_distribution(group, labels)
    ranked = sorted((e for e in labels.labels if core[e] > 0), key=lambda e: -core[e])
    return tuple(ranked[:CORE_SIZE])


def consensus(
    group: Sequence[EmotionDistribution | None], labels: LabelSet, *, weighted: bool = False
) -> list[float]:
    """R2 of each rollout: the share of the three core emotions that it names (eq. 12).

    Args:
        group: predicted distribution of each rollout, None where it failed; not empty.
        labels: the label set, whose order breaks ties.
        weighted: use sum of p_i over C instead of the count, which does not pay for naming three
            emotions [ours].
    """
    core = core_emotions(group, labels)
    if weighted:
        return [0.0 if p is None else min(1.0, sum(p.weight(e) for e in core)) for p in group]
    return [0.0 if p is None else sum(p.weight(e) > 0 for e in core) / CORE_SIZE for p in group]

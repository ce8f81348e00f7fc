"""R1 as exact match of the top emotions: the accuracy-based reward of fig. 5a."""

from __future__ import annotations

from selfemo.method.types import EmotionDistribution, LabelSet


def exact_match(
    predicted: EmotionDistribution | None, target: EmotionDistribution, labels: LabelSet
) -> float:
    """1 if the top emotions agree, else 0; 0 for a failed completion."""
    return float(predicted is not None and predicted.top(labels) == target.top(labels))

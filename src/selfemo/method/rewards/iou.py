"""R1 as weighted IoU of two emotion distributions (eqs. 8-10)."""

from __future__ import annotations

import numpy as np

from selfemo.method.types import EmotionDistribution, LabelSet


def iou_rows(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R1 = sum_e min(p_e, y_e) / sum_e max(p_e, y_e) of each row, in [0, 1].

    Equal to (1 - TV) / (1 + TV), since both distributions sum to 1. Both are (..., K) and broadcast; all
    zero in `predicted` is a failed completion and gives 0.
    """
    shared = np.minimum(predicted, target).sum(-1)
    return np.asarray(np.minimum(1.0, shared / np.maximum(predicted, target).sum(-1)))


def weighted_iou(
    predicted: EmotionDistribution | None, target: EmotionDistribution, labels: LabelSet | None = None
) -> float:
    """`iou_rows` of two distributions; 0 for a failed completion. `labels` change nothing."""
    if predicted is None:
        return 0.0
    # Sorted, because float sums depend on their order and set order on the process.
    emotions = sorted(predicted.keys() | target.keys())
    p, y = (np.array([d.weight(e) for e in emotions]) for d in (predicted, target))
    return float(iou_rows(p, y))

"""R2: how far a completion agrees with the core emotions of its group (eqs. 11, 12)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfemo.method.types import EmotionDistribution, LabelSet

CORE_SIZE = 3
"""Emotions in the consensus set C (eq. 11)."""


def weights(group: Sequence[EmotionDistribution | None], labels: LabelSet) -> np.ndarray:
    """(G, K) weights in the order of the label set; zeros where a completion failed."""
    rows = [p.vector(labels) if p else [0.0] * len(labels) for p in group]
    return np.array(rows).reshape(len(group), len(labels))


def core_rows(group: np.ndarray) -> np.ndarray:
    """C of each group: the (at most) three emotions with the largest c_e > 0 (eq. 11).

    c_e = (1/G) sum_i p_i(e) from (..., G, K) weights, zero for failed rollouts; ties go by label-set
    order. Returns (..., K) bool.
    """
    c = group.mean(-2)
    ranked = np.argsort(-c, axis=-1, kind="stable")[..., :CORE_SIZE]
    chosen = np.zeros(c.shape, dtype=bool)
    np.put_along_axis(chosen, ranked, True, axis=-1)
    return np.asarray(chosen & (c > 0))


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

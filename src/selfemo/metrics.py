"""Scores with intervals: accuracy, F1, bootstrap over conversations, paired test.

Utterances of one conversation are not independent, so resampling is by conversation (cluster bootstrap)
and the paired test flips signs by conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

FAILED = "(failed)"
"""Predicted label of a completion that did not parse: an error for every class."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its percentile-bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    return float(np.mean(np.asarray(gold, dtype=object) == np.asarray(predicted, dtype=object)))


def f1(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str], average: str) -> float:
    """F1 averaged over the label set ("weighted" by support, or "macro"); a class without any
    support or prediction counts 0, and a failed parse is a miss of its gold class."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, labels=list(labels), average=average, zero_division=0))


def _cluster_indices(clusters: Sequence[Hashable]) -> list[np.ndarray]:
    members: dict[Hashable, list[int]] = {}
    for i, c in enumerate(clusters):
        members.setdefault(c, []).append(i)
    return [np.asarray(m) for m in members.values()]


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic(indices)` over resampled clusters.

    Args:
        statistic: maps indices of observations (with repeats) to a number.
        clusters: the cluster (conversation) of each observation; at least one.
    """
    members = _cluster_indices(clusters)
    rng = np.random.default_rng(seed)
    point = statistic(np.arange(len(clusters)))
    draws = [
        statistic(np.concatenate([members[j] for j in rng.integers(0, len(members), len(members))]))
        for _ in range(resamples)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(point), float(low), float(high))


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Cluster-bootstrap interval of a mean (ratio of resampled sums to resampled counts)."""
    members = _cluster_indices(clusters)
    array = np.asarray(values, dtype=np.float64)
    sums = np.array([array[m].sum() for m in members])
    counts = np.array([len(m) for m in members])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(members), (resamples, len(members)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(array.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of b - a with its interval and a two-sided sign-flip p-value."""

    difference: Interval
    p_value: float


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two systems on the same observations.

    The null hypothesis of the p-value is that swapping the systems within a conversation changes
    nothing: the signs of whole clusters are flipped at random, and the observed statistic is counted
    among the draws, so p is never 0.

    Raises:
        ValueError: a and b are not of one length.
    """
    if not len(a) == len(b) == len(clusters):
        raise ValueError("paired_difference needs the same observations for both systems")
    delta = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    sums = np.array([delta[m].sum() for m in _cluster_indices(clusters)])
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (resamples, len(sums)))
    reached = np.sum(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12)
    interval = mean_interval(delta.tolist(), clusters, resamples=resamples, seed=seed)
    return PairedDifference(interval, float((reached + 1) / (resamples + 1)))

"""Scores with intervals: accuracy, F1, calibration, bootstrap over conversations, paired test.

Utterances of one conversation are not independent, so resampling is by conversation (cluster bootstrap)
and the paired test flips signs by conversation.

Shapes: c clusters (conversations), k classes, b resamples, n observations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from selfemo.evaluation.tempered import best_temperature, likelihoods, log_table

_Names = Sequence[str]
_Values = Sequence[float]
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

    def as_list(self) -> list[float]:
        """[value, low, high], as JSON files hold an interval."""
        return [self.value, self.low, self.high]


def _cluster_indices(clusters: Sequence[Hashable]) -> list[list[int]]:
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, c in enumerate(clusters):
        members[c].append(i)
    return list(members.values())


def mean_interval(
    values: _Values, clusters: Sequence[Hashable], *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Cluster-bootstrap interval of a mean (ratio of resampled sums to resampled counts)."""
    members = _cluster_indices(clusters)
    array = np.asarray(values, dtype=np.float64)
    sums = np.array([array[m].sum() for m in members])
    counts = np.array([len(m) for m in members])
    drawn = _draws(len(members), resamples, seed)
    return percentile_interval(float(array.mean()), sums[drawn].sum(1) / counts[drawn].sum(1))


def _draws(clusters: int, resamples: int, seed: int) -> np.ndarray:
    """(b, c) clusters drawn with repeats."""
    return np.random.default_rng(seed).integers(0, clusters, (resamples, clusters))


def cluster_weights(clusters: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(b, c) how often each bootstrap resample takes each cluster."""
    drawn = _draws(clusters, resamples, seed) + clusters * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * clusters)
    return counts.reshape(resamples, clusters).astype(float)


def _flips(clusters: int, resamples: int, seed: int) -> np.ndarray:
    """(b, c) random signs, -1 where the two systems are swapped in a cluster."""
    return np.random.default_rng(seed).choice((-1.0, 1.0), (resamples, clusters))


def percentile_interval(value: float, draws: np.ndarray) -> Interval:
    """The 95% interval of a value, from its resampled values (b,)."""
    low, high = np.quantile(draws, [(1 - 0.95) / 2, 1 - (1 - 0.95) / 2])
    return Interval(float(value), float(low), float(high))


LEAST_CLUSTERS = 6
"""Conversations from which on a difference counts: with five the least p of sign flips is 2 / 2^5 > .05, and
a bootstrap of so few shows too narrow an interval."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of b - a with its interval, a two-sided sign-flip p-value, and the number of conversations."""

    difference: Interval
    p_value: float
    clusters: int

    @property
    def sign(self) -> int:
        """+1 or -1 where the 95% interval of LEAST_CLUSTERS conversations or more leaves out 0, else 0."""
        return sign_of(self.difference.as_list(), self.clusters)


def sign_of(difference: Sequence[float], clusters: int) -> int:
    """`PairedDifference.sign` of [value, low, high]."""
    _, low, high = difference
    return (low > 0) - (high < 0) if clusters >= LEAST_CLUSTERS else 0


def paired_difference(
    a: _Values, b: _Values, clusters: Sequence[Hashable], *, resamples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Compare two systems on the same observations; raises ValueError for other lengths.

    The null hypothesis is that swapping the systems within a conversation changes nothing: the signs of whole
    clusters are flipped at random. The observed statistic counts among the draws, so p is never 0.
    """
    if not len(a) == len(b) == len(clusters):
        raise ValueError("paired_difference needs the same observations for both systems")
    delta = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    sums = np.array([delta[m].sum() for m in _cluster_indices(clusters)])
    signs = _flips(len(sums), resamples, seed)
    reached = np.sum(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12)
    interval = mean_interval(delta.tolist(), clusters, resamples=resamples, seed=seed)
    return PairedDifference(interval, float((reached + 1) / (resamples + 1)), len(sums))


MEASURES = ("accuracy", "weighted_f1", "macro_f1", "mean_r1", "parse_rate")


def class_f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class, (..., k), from confusion (..., k, k + 1); 0 where a class never occurs."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    both = confusion.sum(-1) + confusion[..., :-1].sum(-2)
    f1: np.ndarray = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    return f1


def measures_of(confusion: np.ndarray, r1: np.ndarray) -> dict[str, np.ndarray]:
    """MEASURES from counts; macro F1 is the mean over the whole label set, weighted F1 that by support.

    A failed parse (the last column) is a miss of its gold class and no prediction of another.

    Args:
        confusion: (..., k, k + 1), gold by predicted class, then failed; at least one observation each.
        r1: (...,) sum of R1.
    """
    support = confusion.sum(-1)
    n = support.sum(-1)
    f1 = class_f1(confusion)
    return {
        "accuracy": np.trace(confusion, axis1=-2, axis2=-1) / n,
        "weighted_f1": (f1 * support).sum(-1) / n,
        "macro_f1": f1.mean(-1),
        "mean_r1": r1 / n,
        "parse_rate": 1 - confusion[..., -1].sum(-1) / n,
    }


def micro_f1(confusion: np.ndarray, left_out: int) -> np.ndarray:
    """F1 over all classes but one, pooled, (...,), from confusion (..., k, k + 1); 0/0 is 0.

    A gold turn of the class that is left out still counts where it was read as another, as a false alarm.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    both = confusion.sum(-1) + confusion[..., :-1].sum(-2)
    rest = np.arange(hits.shape[-1]) != left_out
    over = both[..., rest].sum(-1)
    f1: np.ndarray = np.divide(2 * hits[..., rest].sum(-1), over, out=np.zeros_like(over), where=over > 0)
    return f1


@dataclass(frozen=True)
class Outcomes:
    """A system's predictions on one data set as counts by conversation: all that MEASURES depend on.

    Attributes:
        classes: the k classes.
        clusters: the c conversations, in order of appearance.
        confusion: (c, k, k + 1) gold by predicted class, the last column failed parses.
        r1: (c,) sums of R1.
    """

    classes: tuple[str, ...]
    clusters: tuple[Hashable, ...]
    confusion: np.ndarray
    r1: np.ndarray

    @staticmethod
    def of(
        gold: _Names, predicted: _Names, r1: _Values, clusters: Sequence[Hashable], classes: _Names
    ) -> Outcomes:
        """Count; a prediction outside the classes (FAILED) is a failed parse.

        Raises:
            ValueError: a gold label outside the classes, no observation, or lengths that differ.
        """
        if not gold or not len(gold) == len(predicted) == len(r1) == len(clusters):
            raise ValueError("outcomes need one prediction, R1 and cluster for each gold label")
        index = {e: i for i, e in enumerate(classes)}
        if unknown := set(gold) - set(index):
            raise ValueError(f"gold labels outside the classes: {sorted(unknown)}")
        rows = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
        confusion = np.zeros((len(rows), len(classes), len(classes) + 1))
        sums = np.zeros(len(rows))
        for g, p, r, c in zip(gold, predicted, r1, clusters, strict=True):
            confusion[rows[c], index[g], index.get(p, len(classes))] += 1
            sums[rows[c]] += r
        return Outcomes(tuple(classes), tuple(rows), confusion, sums)

    def measures(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """MEASURES of the whole, or (b,) of clusters taken `weights` (b, c) times."""
        if weights is None:
            return measures_of(self.confusion.sum(0), self.r1.sum())
        flat = weights @ self.confusion.reshape(len(self.clusters), -1)
        return measures_of(flat.reshape(-1, *self.confusion.shape[1:]), weights @ self.r1)

    def resampled(self, resamples: int, seed: int = 0) -> dict[str, np.ndarray]:
        """(b,) MEASURES of bootstrap resamples of the clusters."""
        return self.measures(cluster_weights(len(self.clusters), resamples, seed))

    def micro_f1(self, left_out: str, resamples: int = 1000, seed: int = 0) -> Interval:
        """`micro_f1` without one class, with its 95% interval by conversation."""
        index, k = self.classes.index(left_out), len(self.classes)
        c = len(self.clusters)
        drawn = cluster_weights(c, resamples, seed) @ self.confusion.reshape(c, -1)
        draws = micro_f1(drawn.reshape(-1, k, k + 1), index)
        return percentile_interval(float(micro_f1(self.confusion.sum(0), index)), draws)

    def intervals(self, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """MEASURES with 95% intervals by conversation."""
        draws = self.resampled(resamples, seed)
        return {m: percentile_interval(float(v), draws[m]) for m, v in self.measures().items()}


def average_intervals(
    parts: Sequence[Outcomes], resamples: int = 1000, *, of: Sequence[int] | None = None
) -> dict[str, Interval]:
    """The plain average of MEASURES over data sets (table 1's AVG), or over data sets and trainings.

    Args:
        of: the data set of each part, where some are of one: these are resampled together, by the same
            conversations. Without it each is a data set of its own, resampled on its own.
    """
    points = [p.measures() for p in parts]
    each = range(len(parts)) if of is None else of
    draws = [p.resampled(resamples, seed) for seed, p in zip(each, parts, strict=True)]
    return {
        m: percentile_interval(float(np.mean([p[m] for p in points])), np.mean([d[m] for d in draws], 0))
        for m in MEASURES
    }


def paired_measures(
    a: Outcomes, b: Outcomes, *, resamples: int = 2000, seed: int = 0
) -> dict[str, PairedDifference]:
    """b - a in each of MEASURES on the same observations; see `paired_difference`.

    F1 is no mean over utterances, so each draw of the test swaps the two systems' predictions in half of
    the conversations and computes both scores anew.

    Raises:
        ValueError: the two were not counted over the same conversations and classes.
    """
    return paired_average([(a, b)], resamples=resamples, seed=seed)


def paired_average(
    parts: Sequence[tuple[Outcomes, Outcomes]],
    *,
    of: Sequence[int] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """`paired_measures` of the plain average over data sets (table 1's AVG), or over data sets and trainings.

    Args:
        parts: the two systems (a, b) on each data set; at least one.
        of: the data set of each part, where some are of one: these are resampled and swapped together.
            Without it each is a data set of its own.

    Raises: as `paired_measures`.
    """
    each = range(len(parts)) if of is None else of
    differences = [_paired_draws(a, b, resamples, seed + k) for (a, b), k in zip(parts, each, strict=True)]
    clusters = sum({d: len(a.clusters) for d, (a, _) in zip(each, parts, strict=True)}.values())
    result = {}
    for m in MEASURES:
        value, drawn, null = (np.mean([d[k][m] for d in differences], 0) for k in range(3))
        reached = np.sum(np.abs(null) >= abs(value) - 1e-12)
        result[m] = PairedDifference(
            percentile_interval(float(value), drawn), float((reached + 1) / (resamples + 1)), clusters
        )
    return result


def _paired_draws(a: Outcomes, b: Outcomes, resamples: int, seed: int) -> tuple[dict[str, np.ndarray], ...]:
    """b - a in each of MEASURES: as observed (), over bootstrap resamples (b,), and with the two systems
    swapped at random by cluster (b,)."""
    if a.clusters != b.clusters or a.classes != b.classes:
        raise ValueError("paired_measures needs the same observations for both systems")
    swap = (_flips(len(a.clusters), resamples, seed) < 0).astype(float)
    stacked = Outcomes(
        a.classes, (*a.clusters, *b.clusters), np.concatenate([a.confusion, b.confusion]),
        np.concatenate([a.r1, b.r1]),
    )  # fmt: skip
    null_a = stacked.measures(np.concatenate([1 - swap, swap], 1))
    null_b = stacked.measures(np.concatenate([swap, 1 - swap], 1))
    sides = (
        (a.measures(), b.measures()),
        (a.resampled(resamples, seed), b.resampled(resamples, seed)),
        (null_a, null_b),
    )
    return tuple({m: second[m] - first[m] for m in MEASURES} for first, second in sides)


def class_report(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1, support and predictions of each class, from confusion (k, k + 1); 0/0 is 0."""
    each = zip(
        classes, np.diag(confusion), confusion.sum(1), confusion.sum(0), class_f1(confusion), strict=False
    )
    return {
        e: {
            "precision": float(hits / said) if said else 0.0,
            "recall": float(hits / support) if support else 0.0,
            "f1": float(f1),
            "support": int(support),
            "predicted": int(said),
        }
        for e, hits, support, said, f1 in each
    }


NLL_FLOOR = 0.01
"""Weight of the uniform distribution that is mixed into a predicted one before its logarithm is taken: a
completion names three emotions at the most, and an emotion it leaves out would cost infinity."""
CALIBRATION_BINS = 10


def calibration(
    predicted: Sequence[Mapping[str, float]],
    gold: Sequence[Mapping[str, float]],
    labels: Sequence[Sequence[str]],
    *,
    bins: int = CALIBRATION_BINS,
    floor: float = NLL_FLOOR,
) -> dict[str, Any]:
    """Measure how far predicted weights are probabilities, over the predictions that parsed.

    ece: mean |accuracy - weight| of the top emotion over equal-width bins (lower, upper] of its weight,
    each by its share of the predictions (Guo et al. 2017). brier: mean of sum_e (p_e - y_e)^2, 0 to 2.
    nll: mean of -sum_e y_e log((1 - floor) p_e + floor / k), nats. temperature: the T whose p^(1/T),
    normalised, has the least nll (same source), and nll_tempered that nll: two models with the same one
    differ in how sure they are.

    Args:
        predicted, gold: n distributions each; ties of the top emotion go to the label set's order.
        labels: the label set of each.

    Returns:
        n, ece, brier, nll, nll_floor, temperature, nll_tempered, bins (lower, upper, n, weight, accuracy);
        the measures are None where nothing parsed.
    """
    n = len(predicted)
    logs, golds = log_table(predicted, gold, labels, floor)
    nll = likelihoods(logs, golds)
    top, hit, brier = np.zeros(n), np.zeros(n), np.zeros(n)
    for i, (p, y, names) in enumerate(zip(predicted, gold, labels, strict=True)):
        pv = np.array([p.get(e, 0.0) for e in names])
        yv = np.array([y.get(e, 0.0) for e in names])
        top[i] = pv.max()
        hit[i] = pv.argmax() == yv.argmax()
        brier[i] = ((pv - yv) ** 2).sum()
    # Weights are sums of tenths: rounding keeps 0.3 out of the bin above it.
    where = np.clip(np.ceil(np.round(top * bins, 9)).astype(int) - 1, 0, bins - 1)
    rows, gap = [], 0.0
    for k in range(bins):
        mine = where == k
        row: dict[str, Any] = {"lower": k / bins, "upper": (k + 1) / bins, "n": int(mine.sum())}
        if mine.any():
            row["weight"], row["accuracy"] = float(top[mine].mean()), float(hit[mine].mean())
            gap += abs(row["accuracy"] - row["weight"]) * row["n"] / n
        rows.append(row)
    temperature, tempered = best_temperature(logs, golds) if n else (None, None)
    return {
        "n": n,
        "ece": gap if n else None,
        "brier": float(brier.mean()) if n else None,
        "nll": float(nll.mean()) if n else None,
        "nll_floor": floor,
        "temperature": temperature,
        "nll_tempered": tempered,
        "bins": rows,
    }


def krippendorff_alpha(units: Sequence[Sequence[Hashable | None]]) -> float | None:
    """Agreement of several raters on nominal values, 1 - observed over expected disagreement (Krippendorff).

    Args:
        units: by unit, the value of each rater, None where one gave none; units with fewer than two values
            do not count.

    Returns:
        1 for perfect agreement, 0 for chance, below 0 for less; None where no unit has two values, or all
        values are equal, so that there is nothing to tell apart.
    """
    observed: dict[tuple[Hashable, Hashable], float] = defaultdict(float)
    totals: dict[Hashable, float] = defaultdict(float)
    for unit in units:
        values = [v for v in unit if v is not None]
        for pair in permutations(values, 2):
            observed[pair] += 1 / (len(values) - 1)
    for (a, _), weight in observed.items():
        totals[a] += weight
    if len(totals) < 2:
        return None
    n = sum(totals.values())
    expected = n * n - sum(t * t for t in totals.values())
    disagreed = sum(w for (a, b), w in observed.items() if a != b)
    return 1 - (n - 1) * disagreed / expected

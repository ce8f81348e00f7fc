"""What a free change of a checkpoint would give: no training, and nothing but its stored predictions.

- majority class: the most frequent gold label, for every utterance.
- most probable label: the label with the largest probability, alone. Temperature changes no top label, so
  this is what sharpening gives for nothing; its NLL is at the best temperature.
- prior shift: one bias a label on the log-probabilities, so that the mean probability of each label is its
  share in gold. It is also the bias of maximum likelihood, whose gradient is the difference of the two.

All that is fitted is fitted on one half of the conversations and scored on the other, both ways (two-fold
cross-fit): none of it has seen the labels that it is scored on.

Shapes: n utterances, k labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from selfemo.data.splits import halves
from selfemo.evaluation import metrics
from selfemo.evaluation.predictions import Labels, Rows, distributions, has_beliefs, tops
from selfemo.evaluation.rendering import cell
from selfemo.evaluation.tempered import best_sharpness, best_temperature, likelihoods, log_table, scaled_logs
from selfemo.method.rewards import weighted_iou
from selfemo.method.types import EmotionDistribution, LabelSet

AS_IT_IS, MAJORITY, PROBABLE, SHIFTED = "as it is", "majority class", "most probable label", "prior shift"
FREE = (MAJORITY, PROBABLE, SHIFTED)
SHOWN = ("accuracy", "weighted_f1", "macro_f1", "mean_r1", "nll")
FREE_HEADER = ["checkpoint", "data", "what", "accuracy", "weighted F1", "macro F1", "mean R1", "NLL"]
FREE_NOTE = (
    "The same checkpoint, changed without training. What is fitted is fitted on one half of the "
    "conversations and scored on the other, both ways. A stage that adds no more than these rows taught "
    "nothing that was not there. NLL, in nats, is of the label probabilities: as they are, at the best "
    "temperature, or shifted; of the majority class it is that of the label shares."
)
Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""fit(log-probabilities (n, k), gold (n, k)) gives a function from log-probabilities to changed ones."""


def gold_share(gold: np.ndarray, added: float = 1.0) -> np.ndarray:
    """(k,) share of each label in gold weights (n, k), with something added to each count: none is 0."""
    share: np.ndarray = (gold.sum(0) + added) / (gold.sum() + added * gold.shape[1])
    return share


def _majority(logs: np.ndarray, gold: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    share = np.log(gold_share(gold))
    return lambda other: np.tile(share, (len(other), 1))


def _tempered(logs: np.ndarray, gold: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    temperature, _ = best_temperature(logs, gold)
    return lambda other: scaled_logs(other, 1 / temperature)


def prior_bias(logs: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(k,) the bias whose p exp(bias), normalised, has the mean `share` (k,) over the rows of logs (n, k)."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp, softmax

    def loss(bias: np.ndarray) -> tuple[float, np.ndarray]:  # convex; its gradient is mean - share
        shifted = logs + bias
        value = logsumexp(shifted, axis=1).mean() - share @ bias
        return float(value), softmax(shifted, axis=1).mean(0) - share

    def hessian(bias: np.ndarray) -> np.ndarray:
        p = softmax(logs + bias, axis=1)
        found: np.ndarray = np.diag(p.mean(0)) - p.T @ p / len(p)
        return found

    start, gtol = np.log(share) - np.log(np.exp(logs).mean(0)), {"gtol": 1e-7}
    found: np.ndarray = minimize(loss, start, jac=True, hess=hessian, method="trust-exact", options=gtol).x
    found -= found.mean()  # one constant for all labels changes nothing
    return found


def _shifted(logs: np.ndarray, gold: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    bias = prior_bias(logs, gold_share(gold))
    return lambda other: scaled_logs(other + bias, 1.0)


_FITS: Mapping[str, Fit] = {MAJORITY: _majority, PROBABLE: _tempered, SHIFTED: _shifted}


def free_changes(rows: Rows, labels: Labels, *, resamples: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of one evaluation as it is and after each free change, by data set.

    A changed prediction is one label alone; an utterance without probabilities stays a failure.

    Returns: by data set and name (AS_IT_IS, FREE) the measures SHOWN as [value, low, high]. Without label
        probabilities AS_IT_IS, whose nll is None, and MAJORITY; with a single conversation AS_IT_IS alone.
    """
    result = {}
    for d, label_set in labels.items():
        if not (mine := [r for r in rows if r["dataset"] == d]):
            continue
        known = has_beliefs(mine)
        there = [i for i, r in enumerate(mine) if r["believed"] is not None] if known else []
        logs, gold = distributions([mine[i] for i in there], {d: label_set}, believed=True)
        as_it_is = _scores(
            mine, [tops(r, labels)[1] for r in mine], [r["r1"] for r in mine], labels, resamples
        )
        nll = _nll(mine, there, likelihoods(logs, gold), resamples) if known else None
        result[d] = {AS_IT_IS: {**as_it_is, "nll": nll}}
        if (fold := _fold(mine)) is None:
            continue
        for name in FREE if known else (MAJORITY,):
            if name == MAJORITY:  # needs no probabilities
                where = list(range(len(mine)))
                table = log_table([{}] * len(mine), [json.loads(r["gold"]) for r in mine],
                                  [label_set.labels] * len(mine), 1.0)  # fmt: skip
            else:
                where, table = there, (logs, gold)
            changed = cross_fit(_FITS[name], *table, fold[where])
            result[d][name] = _changed(mine, where, changed, table[1], label_set, resamples)
    return result


def shifted_nll(rows: Rows, labels: LabelSet) -> np.ndarray | None:
    """`nll_after_shift` of n believed rows of one data set; None of one conversation."""
    if (fold := _fold(rows)) is None:
        return None
    logs, gold = distributions(rows, {rows[0]["dataset"]: labels}, believed=True)
    return nll_after_shift(logs, gold, fold)


def nll_after_shift(logs: np.ndarray, gold: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(n,) NLL, nats, of p^(1/T) after a prior shift: whatever a model says most, and however sure it is.

    The bias is fitted on the other fold. T is the best one on all rows, as of NLL at T: one number, which
    half of a small held-out set does not give.

    Args:
        logs: (n, k) log-probabilities of k labels.
        gold: (n, k) weights.
        fold: (n,) bool, the two parts.
    """

    def at(sharpness: float) -> np.ndarray:
        return likelihoods(cross_fit(_shifted, scaled_logs(logs, sharpness), gold, fold), gold)

    return at(best_sharpness(lambda sharpness: float(at(sharpness).mean())))


def _fold(rows: Rows) -> np.ndarray | None:
    """(n,) whether each of n rows of one data set is of the first half of its conversations; None of one."""
    named = [r["conversation"] for r in rows]
    first, second = halves(list(dict.fromkeys(named)), 0, "cross-fit", rows[0]["dataset"])
    return np.isin(named, first) if second else None


def cross_fit(fit: Fit, logs: np.ndarray, gold: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(n, k) changed log-probabilities, each fitted on the rows of the other fold (n,) alone.

    A fold without rows, where no conversation of a half has probabilities, leaves the others as they are.
    """
    changed = logs.copy()
    for part in (fold, ~fold):
        if part.any():
            changed[~part] = fit(logs[part], gold[part])(logs[~part])
    return changed


def _changed(
    rows: Rows, there: Sequence[int], logs: np.ndarray, gold: np.ndarray, label_set: LabelSet, resamples: int
) -> dict[str, Any]:
    """SHOWN where row there[i] is predicted by the largest of logs[i]."""
    top = [metrics.FAILED] * len(rows)
    r1 = [0.0] * len(rows)
    for i, k in zip(there, logs.argmax(1), strict=True):  # the first of equals, in the label set's order
        top[i] = label_set.labels[k]
        target = EmotionDistribution(json.loads(rows[i]["gold"]))
        r1[i] = weighted_iou(EmotionDistribution({top[i]: 1.0}), target)
    scores = _scores(rows, top, r1, {rows[0]["dataset"]: label_set}, resamples)
    return {**scores, "nll": _nll(rows, there, likelihoods(logs, gold), resamples)}


def _scores(
    rows: Rows, top: Sequence[str], r1: Sequence[float], labels: Labels, resamples: int
) -> dict[str, Any]:
    classes = labels[rows[0]["dataset"]].labels
    gold = [tops(r, labels)[0] for r in rows]
    counted = metrics.Outcomes.of(gold, top, r1, [r["conversation"] for r in rows], classes)
    found = counted.intervals(resamples)
    return {m: found[m].as_list() for m in SHOWN if m in found}


def _nll(rows: Rows, there: Sequence[int], values: np.ndarray, resamples: int) -> list[float]:
    clusters = [rows[i]["conversation"] for i in there]
    return metrics.mean_interval(values.tolist(), clusters, resamples=resamples).as_list()


def free_rows(by_checkpoint: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> list[list[str]]:
    """Rows of text of FREE_HEADER, from `free_changes` by checkpoint."""
    return [
        [checkpoint, d, what, *(cell(scores[m]) for m in SHOWN)]
        for checkpoint, by in by_checkpoint.items()
        for d, found in by.items()
        for what, scores in found.items()
    ]

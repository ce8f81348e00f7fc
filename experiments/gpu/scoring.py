"""Scores of predictions on dev, as the results of the queue hold them.

Labels are held as their places in the label set, -1 for a completion without an emotion: a result has them
for each utterance, so that every score, and a paired test of it, can be made anew from the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfemo.evaluation.metrics import FAILED, Outcomes, calibration
from selfemo.evaluation.predictions import Prediction
from selfemo.evaluation.tempered import BELIEF_FLOOR, best_temperature, log_table, nll_at
from selfemo.method.types import Prompt


def said(found: Sequence[Prediction]) -> list[int]:
    """The place in its label set of each prediction's top label; -1 where it failed."""
    tops = ((p.prompt.label_set, p.predicted) for p in found)
    return [-1 if d is None else labels.labels.index(d.top(labels)) for labels, d in tops]


def gold_places(prompts: Sequence[Prompt]) -> list[int]:
    """The place in its label set of each prompt's top gold label."""
    return [p.label_set.labels.index(p.target.top(p.label_set)) for p in prompts if p.target]


def outcomes_of(
    gold: Sequence[int], told: Sequence[int], conversations: Sequence[str], labels: Sequence[str]
) -> Outcomes:
    """Places of gold and predicted labels (`said`) as counts by conversation, without R1."""
    names = [*labels, FAILED]  # -1 is the last
    answers = [[names[k] for k in side] for side in (gold, told)]
    return Outcomes.of(*answers, [0.0] * len(gold), conversations, labels)


def scores_of(outcomes: Outcomes) -> dict[str, float]:
    """Accuracy and F1 of counted predictions."""
    measures = outcomes.measures()
    return {m: float(measures[m]) for m in ("accuracy", "weighted_f1", "macro_f1")}


def scores(found: Sequence[Prediction]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Scores of predictions over one label set; whether each is right (n,), and its NLL at T (n,), nats."""
    prompts, tops = [p.prompt for p in found], said(found)
    labels, gold = prompts[0].label_set, gold_places(prompts)
    outcomes = outcomes_of(gold, tops, [p.conversation_id for p in prompts], labels.labels)
    logs, targets = beliefs(found)
    temperature, _ = best_temperature(logs, targets)
    nll = nll_at(logs, targets, temperature)
    sure = calibration(*_believed(found), floor=BELIEF_FLOOR)
    record = {
        "n": len(found),
        **scores_of(outcomes),
        "temperature": temperature,
        "nll_at_t": float(nll.mean()),
        "calibration": {k: sure[k] for k in ("ece", "brier", "nll")},
        "predicted": {e: tops.count(k) for k, e in enumerate(labels)},
    }
    return record, np.array([g == k for g, k in zip(gold, tops, strict=True)]), nll


def beliefs(found: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """`log_table` of predictions over one label set: log-probabilities (n, k) and gold weights (n, k)."""
    return log_table(*_believed(found), BELIEF_FLOOR)


def _believed(found: Sequence[Prediction]) -> tuple[tuple[Any, ...], tuple[Any, ...], list[Sequence[str]]]:
    """What was believed, gold, and the label set, of each prediction."""
    pairs = [(p.predicted, p.prompt.target) for p in found if p.prompt.target and p.predicted]
    told, gold = zip(*pairs, strict=True)
    return told, gold, [found[0].prompt.label_set.labels] * len(pairs)

"""Predictions and scores made by hand."""

import json
from types import SimpleNamespace
from typing import Any

from selfemo.evaluation.metrics import Interval


def scores(accuracy: float, joy: float) -> SimpleNamespace:
    """Scores of two classes, with intervals of 0.1 on each side."""
    return SimpleNamespace(
        **{
            m: Interval(v, v - 0.1, v + 0.1)
            for m, v in (
                ("accuracy", accuracy), ("weighted_f1", 0.5), ("mean_r1", 0.4), ("parse_rate", 0.9),
            )
        },
        predicted_share={"joy": joy, "anger": 0.25},
        gold_share={"joy": 0.5, "anger": 0.5},
    )  # fmt: skip


def row(
    i: int,
    gold: str,
    said: str | None = "joy",
    *,
    believed: float | None,
    failure: str | None = None,
    dataset: str = "toy",
) -> dict[str, Any]:
    """A stored prediction, alone in its conversation: the label `said`, joy with probability `believed`."""
    told = None if believed is None else json.dumps({"joy": believed, "anger": 1 - believed})
    return {
        "evaluation": "e", "prompt": f"{dataset}{i}/1", "dataset": dataset, "conversation": f"{dataset}{i}",
        "gold": json.dumps({gold: 1.0}), "predicted": said and json.dumps({said: 1.0}),
        "failure": failure if said is None else None, "r1": float(said == gold), "text": "",
        "believed": told,
    }  # fmt: skip

"""Scores made by hand, for figures and reports."""

from types import SimpleNamespace

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

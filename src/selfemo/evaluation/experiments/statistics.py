"""Statistics over the seeds of an experiment: mean, deviation, t interval, paired t-test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """mean, sd (n - 1) and 95% t interval of one value a seed; sd and interval None for one seed."""
    array = np.asarray(values, dtype=np.float64)
    result: dict[str, Any] = {"mean": float(array.mean()), "sd": None, "interval": None}
    if len(array) > 1:
        from scipy import stats

        sd = float(array.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(array) - 1)) * sd / len(array) ** 0.5
        result |= {"sd": sd, "interval": [result["mean"] - half, result["mean"] + half]}
    return result


def paired_over_seeds(full: Sequence[float], arm: Sequence[float]) -> dict[str, Any]:
    """`over_seeds` of arm - full by seed, with the p-value of the paired t-test (None for one seed)."""
    delta = [b - a for a, b in zip(full, arm, strict=True)]
    result = {**over_seeds(delta), "p_value": None}
    if len(delta) > 1:
        if np.ptp(delta) < 1e-12:
            # Without spread there is no t; equal seeds mean equal runs, or a shift that never varies.
            result["p_value"] = 1.0 if abs(delta[0]) < 1e-12 else 0.0
        else:
            from scipy import stats

            result["p_value"] = float(stats.ttest_rel(arm, full).pvalue)
    return result

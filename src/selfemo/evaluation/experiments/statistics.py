"""Statistics over the seeds of an experiment: mean, deviation, t interval, paired t-test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """mean, sd (n - 1) and 95% t interval of one value a seed; sd and interval None for one seed."""
    array = np.asarray(values, dtype=np.float64)
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return {"mean": mean, "sd": None, "interval": None}
    from scipy import stats

    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / n**0.5
    return {"mean": mean, "sd": sd, "interval": [mean - half, mean + half]}


def paired_over_seeds(full: Sequence[float], arm: Sequence[float]) -> dict[str, Any]:
    """`over_seeds` of arm - full by seed, with the p-value of the paired t-test (None for one seed)."""
    delta = [b - a for a, b in zip(full, arm, strict=True)]
    p_value = None
    if len(delta) > 1 and np.ptp(delta) < 1e-12:
        # Without spread there is no t; equal seeds mean equal runs, or a shift that never varies.
        p_value = 1.0 if abs(delta[0]) < 1e-12 else 0.0
    elif len(delta) > 1:
        from scipy import stats

        p_value = float(stats.ttest_rel(arm, full).pvalue)
    return {**over_seeds(delta), "p_value": p_value}

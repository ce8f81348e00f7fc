"""SELF-GRPO: two rewards of a rollout group to one advantage (eqs. 11-13).

    r1 = (R1 - mean) / (std + eps), r2 likewise, each within the group
    A  = (1 - lam) r1 + lam r2,     lam(t) = lam_max * t / T

At the edges: a group of one, or one without variance, gives 0 (verl would pass the raw reward of a group
of one on); lam_max = 0 is vanilla GRPO. The population standard deviation is the default; `ddof=1` is the
sample one that TRL and verl use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def lambda_at(step: int, total: int, lam_max: float = 1.0) -> float:
    """lam(t) of eq. 13; t counts optimiser steps of the RL stage from 0, T is their total.

    Raises:
        ValueError: total is not positive, or step lies outside 0..total.
    """
    if total <= 0 or not 0 <= step <= total:
        raise ValueError(f"step {step} is outside 0..{total}")
    return lam_max * step / total


def normalise(rewards: Sequence[float], eps: float = 1e-6, ddof: int = 0) -> np.ndarray:
    """(R - mean) / (std + eps) within one group; zeros for a group of one or without variance."""
    values = np.asarray(rewards, dtype=np.float64)
    # Differences at the level of rounding are no variance; dividing by them would blow up noise.
    if len(values) < 2 or np.ptp(values) < 1e-12:
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / (values.std(ddof=ddof) + eps))


def advantages(
    r1: Sequence[float], r2: Sequence[float], lam: float, *, eps: float = 1e-6, ddof: int = 0
) -> np.ndarray:
    """A_i of eq. 13 for one group.

    Args:
        r1: primary rewards (G,).
        r2: secondary rewards (G,).
        lam: lam(t) in [0, 1].
        eps: added to the standard deviation.
        ddof: 0 for the population, 1 for the sample standard deviation.
    """
    if len(r1) != len(r2):
        raise ValueError(f"{len(r1)} primary and {len(r2)} secondary rewards")
    return (1 - lam) * normalise(r1, eps, ddof) + lam * normalise(r2, eps, ddof)

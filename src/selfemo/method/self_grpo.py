"""SELF-GRPO: two rewards of a rollout group to one advantage (eqs. 11-13).

    r1 = (R1 - mean) / (std + eps), r2 likewise, each within the group
    A  = (1 - lam) r1 + lam r2,     lam(t) = lam_max * t / T

At the edges: a group of one, or one without variance, gives 0 (verl would pass the raw reward of a group
of one on); lam_max = 0 is vanilla GRPO. The population standard deviation is the default; `ddof=1` is the
sample one that TRL and verl use.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def lambda_at(step: int, total: int, lam_max: float = 1.0) -> float:
    """lam(t) of eq. 13; t counts optimiser steps of RL from 0, T is their total.

    Raises:
        ValueError: total is not positive, or step lies outside 0..total.
    """
    if total <= 0 or not 0 <= step <= total:
        raise ValueError(f"step {step} is outside 0..{total}")
    return lam_max * step / total


def normalise(rewards: ArrayLike, eps: float = 1e-6, ddof: int = 0) -> np.ndarray:
    """(R - mean) / (std + eps) of rewards (..., G) in each row; zeros for one reward or no variance."""
    values = np.asarray(rewards, dtype=np.float64)
    if values.shape[-1] < 2:
        return np.zeros_like(values)
    # Differences at the level of rounding are no variance; dividing by them would blow up noise.
    flat = np.ptp(values, axis=-1, keepdims=True) < 1e-12
    centred = values - values.mean(-1, keepdims=True)
    spread = values.std(-1, ddof=ddof, keepdims=True) + eps
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(values), where=~flat))


def advantages(r1: ArrayLike, r2: ArrayLike, lam: float, *, eps: float = 1e-6, ddof: int = 0) -> np.ndarray:
    """A_i of eq. 13 for each group, from primary and secondary rewards (..., G) and lam(t) in [0, 1].

    Raises:
        ValueError: r1 and r2 are not of one shape.
    """
    if np.shape(r1) != np.shape(r2):
        raise ValueError(f"primary rewards {np.shape(r1)} and secondary rewards {np.shape(r2)}")
    return (1 - lam) * normalise(r1, eps, ddof) + lam * normalise(r2, eps, ddof)

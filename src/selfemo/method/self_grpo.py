"""SELF-GRPO: two rewards of a rollout group to one advantage (eqs. 11-13).

    r1 = (R1 - mean) / (std + eps), r2 likewise, each within the group
    A  = (1 - lam) r1 + lam r2,     lam(t) = lam_max * t / T

At the edges: a group of one, or one without variance, gives 0 (verl would pass the raw reward of a group
of one on); lam_max = 0 is vanilla GRPO. The population standard deviation is the default; `ddof=1` is the
sample one that TRL and verl use.

The paper says only that both rewards are normalised. Besides the deviation ("std", GRPO) there are [ours]
"mean", (R - mean) / mean (MaxRL, arXiv 2602.02710), and "none", R - mean (Dr. GRPO). For a lone label of
probability p the expected weight of its gradient is 1 - (1 - p)^(G - 1) with "mean", nearly that of
cross-entropy; "std" favours what is likely already (.23, .93, 2.09 at p = .1, .5, .9 and G = 8).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Normalise = Literal["std", "mean", "none"]


def lambda_at(step: int, total: int, lam_max: float = 1.0) -> float:
    """lam(t) of eq. 13; t counts optimiser steps of RL from 0, T is their total.

    Raises:
        ValueError: total is not positive, or step lies outside 0..total.
    """
    if total <= 0 or not 0 <= step <= total:
        raise ValueError(f"step {step} is outside 0..{total}")
    return lam_max * step / total


def scale_of(rewards: ArrayLike, how: Normalise = "std", eps: float = 1e-6, ddof: int = 0) -> np.ndarray:
    """(..., 1) divisor of the centred rewards (..., G) of each row; infinite for one reward or no variance.

    Raises:
        ValueError: `how` is "mean" and a reward is negative.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if how == "mean" and (values < 0).any():
        raise ValueError("rewards that are divided by their mean must not be negative")
    if values.shape[-1] < 2:
        return np.full((*values.shape[:-1], 1), np.inf)
    if how == "std":
        scale = values.std(-1, ddof=ddof, keepdims=True) + eps
    else:
        scale = values.mean(-1, keepdims=True) if how == "mean" else np.ones((*values.shape[:-1], 1))
    # Differences at the level of rounding are no variance; dividing by them would blow up noise.
    flat = np.ptp(values, axis=-1, keepdims=True) < 1e-12
    return np.where(flat, np.inf, scale)


def normalise(rewards: ArrayLike, eps: float = 1e-6, ddof: int = 0, how: Normalise = "std") -> np.ndarray:
    """Rewards (..., G) less their mean, over `scale_of` them; zeros for one reward or no variance."""
    values = np.asarray(rewards, dtype=np.float64)
    if values.shape[-1] < 2:
        return np.zeros_like(values)
    centred = values - values.mean(-1, keepdims=True)
    return np.asarray(centred / scale_of(values, how, eps, ddof))


def advantages(
    r1: ArrayLike, r2: ArrayLike, lam: float, *, eps: float = 1e-6, ddof: int = 0, how: Normalise = "std"
) -> np.ndarray:
    """A_i of eq. 13 for each group, from primary and secondary rewards (..., G) and lam(t) in [0, 1].

    Raises:
        ValueError: r1 and r2 are not of one shape.
    """
    if np.shape(r1) != np.shape(r2):
        raise ValueError(f"primary rewards {np.shape(r1)} and secondary rewards {np.shape(r2)}")
    return (1 - lam) * normalise(r1, eps, ddof, how) + lam * normalise(r2, eps, ddof, how)

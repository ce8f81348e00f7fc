"""Negative log-likelihood at a temperature: what a model knows, whatever its sureness (SPEC section 9).

With T the temperature that minimises the negative log-likelihood of gold under p^(1/T), normalised, NLL at T
does not change when all distributions are sharpened by one power.

Shapes: n utterances, k labels of the largest label set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

BELIEF_FLOOR = 1e-9
"""Weight of the uniform distribution mixed into label probabilities: it only keeps their logarithm finite.
More of it would make a sharpened model look as if it knew less."""


def log_table(
    predicted: Sequence[Mapping[str, float]],
    gold: Sequence[Mapping[str, float]],
    labels: Sequence[Sequence[str]],
    floor: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) log((1 - floor) p + floor / labels), -inf where a row has fewer labels; (n, k) gold weights."""
    shape = len(predicted), max(map(len, labels), default=0)
    logs, golds = np.full(shape, -np.inf), np.zeros(shape)
    for i, (p, y, names) in enumerate(zip(predicted, gold, labels, strict=True)):
        weights = np.array([p.get(e, 0.0) for e in names])
        logs[i, : len(names)] = np.log((1 - floor) * weights + floor / len(names))
        golds[i, : len(names)] = [y.get(e, 0.0) for e in names]
    return logs, golds


def scaled_logs(logs: np.ndarray, sharpness: float) -> np.ndarray:
    """(n, k) log-probabilities of p^sharpness, normalised; -inf stays."""
    from scipy.special import log_softmax

    there = np.isfinite(logs)
    scaled: np.ndarray = log_softmax(np.where(there, sharpness * np.where(there, logs, 0), -np.inf), axis=1)
    return scaled


def likelihoods(logs: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(n,) -sum_e y_e log p_e of log-probabilities (n, k) and gold weights (n, k), nats."""
    found: np.ndarray = -(gold * np.where(np.isfinite(logs), logs, 0)).sum(1)
    return found


def nll_at(logs: np.ndarray, gold: np.ndarray, temperature: float) -> np.ndarray:
    """(n,) negative log-likelihood of each utterance under p^(1/T), nats; arguments as of `log_table`."""
    return likelihoods(scaled_logs(logs, 1 / temperature), gold)


def best_temperature(logs: np.ndarray, gold: np.ndarray) -> tuple[float, float]:
    """The temperature, from 0.05 to 20, with the least mean negative log-likelihood (nats), and that.

    Args:
        logs, gold: as of `log_table`; at least one row.
    """

    def nll(sharpness: float) -> float:  # convex in it: one minimum
        return float(likelihoods(scaled_logs(logs, sharpness), gold).mean())

    best = best_sharpness(nll)
    return 1 / best, nll(best)


def best_sharpness(nll: Callable[[float], float]) -> float:
    """1 / T, from 0.05 to 20, with the least nll(1 / T)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-4})
    # The search stops short of its bounds, where the minimum of a model that is mostly wrong, or never, lies.
    return min((float(found.x), 0.05, 1.0, 20.0), key=nll)


def nll_at_best_temperature(
    predicted: np.ndarray, gold: np.ndarray, floor: float = BELIEF_FLOOR
) -> tuple[float, np.ndarray]:
    """The best temperature of probabilities (n, k) over one label set, and (n,) NLL of each at it, nats."""
    logs = np.log((1 - floor) * predicted + floor / predicted.shape[1])
    temperature, _ = best_temperature(logs, gold)
    return temperature, nll_at(logs, gold, temperature)

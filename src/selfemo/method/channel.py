"""The noisy channel: read an utterance by how probable it is after each emotion (SPEC section 9 [ours]).

For a turn r that a speaker says after the history H, with the policy itself as the channel:

    log p(S | H, r) = log p(r | H, S) + log p(S | H) + a constant,    for each S of the label set

Combined with the recogniser's own E it is a product of experts: log-probabilities are added, then normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.method.types import EmotionDistribution, LabelSet


@dataclass(frozen=True, slots=True)
class ChannelScores:
    """Log-probabilities (nats) in the order of the label set.

    Attributes:
        prior: (k,) log p(S | H), not normalised over the set.
        reply: (k,) log p(r | H, S), summed over the tokens of the reply line and the end token.
    """

    prior: tuple[float, ...]
    reply: tuple[float, ...]


def log_weights(distribution: EmotionDistribution, labels: LabelSet) -> list[float]:
    """(k,) log-probabilities; -inf for an absent emotion."""
    return [math.log(p) if p > 0 else -math.inf for p in distribution.vector(labels)]


def product_of_experts(labels: LabelSet, *experts: Sequence[float]) -> EmotionDistribution:
    """p(e) proportional to exp of the sum of the experts' log weights (k,) of e.

    Raises:
        ValueError: each emotion has weight 0 by one of the experts, or a weight is not a number.
    """
    sums = [math.fsum(logs) for logs in zip(*experts, strict=True)]
    largest = max(sums)
    if not math.isfinite(largest):
        raise ValueError("no emotion has a finite weight by all experts")
    return EmotionDistribution({e: math.exp(s - largest) for e, s in zip(labels, sums, strict=True)})

"""Rewards of one completion (R1: eqs. 8-10, fig. 5a) and of a group (R2: eqs. 11, 12), by name.

A new primary reward is one file with a function like `weighted_iou` and one line of `PRIMARY`. A completion
that failed to parse is None here: it scores 0 and adds nothing to the consensus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from selfemo.errors import ConfigError
from selfemo.method.rewards.consensus import consensus
from selfemo.method.rewards.exact import exact_match
from selfemo.method.rewards.iou import weighted_iou
from selfemo.method.types import EmotionDistribution, LabelSet

__all__ = [
    "PRIMARY",
    "SECONDARY",
    "consensus",
    "exact_match",
    "primary_reward",
    "secondary_rewards",
    "weighted_iou",
]

Predicted = EmotionDistribution | None

PRIMARY: dict[str, Callable[[Predicted, EmotionDistribution, LabelSet], float]] = {
    "iou": weighted_iou,
    "exact": exact_match,
}
SECONDARY: dict[str, Callable[[Sequence[Predicted], LabelSet], list[float]]] = {
    "count": consensus,
    "weighted": partial(consensus, weighted=True),
}


def check_name(name: str, known: Mapping[str, object], key: str) -> str:
    """The name, where it is known (ConfigError: it is not; the message has the names that exist)."""
    if name not in known:
        raise ConfigError(f"{key} = {name!r}: there is no such reward; valid are {', '.join(known)}")
    return name


def primary_reward(
    predicted: Predicted, target: EmotionDistribution, labels: LabelSet, kind: str = "iou"
) -> float:
    """R1 of one completion, by a name of `PRIMARY`."""
    return PRIMARY[check_name(kind, PRIMARY, "reward.primary")](predicted, target, labels)


def secondary_rewards(predicted: Sequence[Predicted], labels: LabelSet, kind: str = "count") -> list[float]:
    """R2 of each completion of one group, by a name of `SECONDARY`."""
    return SECONDARY[check_name(kind, SECONDARY, "reward.secondary")](predicted, labels)

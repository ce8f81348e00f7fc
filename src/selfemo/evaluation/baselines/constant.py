"""Two readers of nothing: the most frequent label, and the share of each label, of the training split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfemo.config.base import Section
from selfemo.evaluation.baselines.base import Baseline, Plain, Reader, Task, tops
from selfemo.evaluation.free_changes import gold_share
from selfemo.method.types import Conversation, LabelSet


class ConstantConfig(Section):
    """Nothing can be set."""


class Prior(Baseline[ConstantConfig]):
    kind = ConstantConfig

    @property
    def seeded(self) -> bool:
        return False

    @property
    def reads(self) -> bool:
        return False

    def train(self, task: Task) -> Reader:
        return Shares({labels: self.answer(label_counts(task.train, labels)) for labels in task.label_sets})

    def answer(self, counts: np.ndarray) -> np.ndarray:
        """(k,) probabilities from (k,) counts of labels."""
        return gold_share(counts[None])


class Majority(Prior):
    def answer(self, counts: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.eye(len(counts))[int(counts.argmax())]
        return found


class Shares(Plain):
    """The same probabilities for each turn of a label set."""

    def __init__(self, answers: dict[LabelSet, np.ndarray]):
        self.answers = answers

    def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        return [np.tile(self.answers[c.label_set], (len(c.turns), 1)) for c in conversations]


def label_counts(conversations: Sequence[Conversation], labels: LabelSet) -> np.ndarray:
    """(k,) turns of a label set by their top gold label."""
    gold = [g for c in conversations if c.label_set == labels for g in tops(c) if g >= 0]
    return np.bincount(gold, minlength=len(labels)).astype(float)

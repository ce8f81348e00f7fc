"""What a baseline is: a recipe that is trained on conversations and then reads the emotion of their turns.

A recipe is a file of this package and a line of its registry. Its settings are a pydantic section, its texts,
edges and orders are plain Python, and networks lie in models/classifiers/.

Shapes: t turns of a conversation, k labels of its label set.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np

from selfemo.config.base import Section
from selfemo.evaluation.metrics import FAILED, Outcomes
from selfemo.method.types import Conversation, LabelSet
from selfemo.progress import Reporter, StopRequest

Settings = TypeVar("Settings", bound=Section)


@dataclass(frozen=True)
class Task:
    """One training of a baseline.

    Attributes:
        train: conversations to train on.
        choose: held-out conversations that epochs and settings are chosen on; none of them is scored.
        seed: of all random draws.
        states: a folder for the state of this training, of this seed alone; it is gone when training ends.
        shared: a folder that all seeds share, for what depends on data and settings alone, such as features.
        device: "auto", "cpu" or "cuda".
    """

    train: Sequence[Conversation]
    choose: Sequence[Conversation]
    seed: int
    states: Path
    shared: Path
    device: str
    reporter: Reporter
    stop: StopRequest

    @property
    def label_sets(self) -> list[LabelSet]:
        """The label sets of the training data, in order of appearance."""
        return list(dict.fromkeys(c.label_set for c in self.train))


class Reader(Protocol):
    """A trained baseline."""

    def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        """(t, k) the probability of each label, of each turn of each conversation.

        A baseline that sees the past alone gives a turn the same whatever is said after it.
        """

    def save(self, folder: Path) -> None:
        """Write it into a folder that is there and empty, if it can be used again; else do nothing."""


class Baseline(ABC, Generic[Settings]):
    """A recipe with its settings."""

    kind: ClassVar[type[Section]]
    """The class of its settings."""

    def __init__(self, settings: Settings):
        self.settings = settings

    @property
    def sees_later(self) -> bool:
        """Whether turns after the one that is read are seen (SPEC section 11: such rows are marked)."""
        return False

    @property
    def backbone(self) -> str:
        """The pretrained model under it, as a reference; "" of none."""
        return ""

    @property
    def context(self) -> str:
        """What is seen of a conversation, where it is not merely what was said before; for its name."""
        if self.sees_later:
            return "sees later turns"
        return "the turn alone" if getattr(self.settings, "window", None) == 0 else ""

    @property
    def reads(self) -> bool:
        """Whether it reads turns at all, or gives the same answer to each."""
        return True

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another model."""
        return True

    @property
    def keeps(self) -> bool:
        """Whether its readers can be saved and used again."""
        return False

    def check(self) -> None:
        """Whether all that it needs is there, before anything is begun (SelfEmoError); nothing is loaded."""
        return

    def check_data(self, conversations: Sequence[Conversation]) -> None:
        """Whether all that it needs of these is there, before it trains or reads any (DataError)."""
        return

    @abstractmethod
    def train(self, task: Task) -> Reader:
        """Train it; raises Stopped where task.stop was asked for."""


class OnEncoder(Baseline[Settings]):
    """A recipe on one encoder, which its setting `encoder` names."""

    @property
    def backbone(self) -> str:
        found: str = self.settings.encoder  # type: ignore[attr-defined]
        return found

    def check(self) -> None:
        from selfemo.models.encoders import check_encoder

        check_encoder(self.backbone)


class Plain:
    """A reader that is not kept."""

    def save(self, folder: Path) -> None:
        return None


def tops(conversation: Conversation) -> list[int]:
    """The number of each turn's gold label in the label set; -1 where it has none."""
    labels = conversation.label_set
    return [-1 if t.emotion is None else labels.index(t.emotion.top(labels)) for t in conversation.turns]


def choice_score(reader: Reader, conversations: Sequence[Conversation]) -> float:
    """Weighted F1, 0 to 1, the mean over data sets: what an epoch is chosen by. 0 without a labelled turn."""
    read = reader.read(conversations)
    scores = []
    for name in dict.fromkeys(c.dataset for c in conversations):
        gold: list[str] = []
        said: list[str] = []
        for c, p in zip(conversations, read, strict=True):
            if c.dataset != name:
                continue
            labels = c.label_set.labels
            for top, row in zip(tops(c), p, strict=True):
                if top >= 0:
                    gold.append(labels[top])
                    said.append(labels[int(row.argmax())] if np.isfinite(row).all() else FAILED)
        if gold:
            classes = next(c.label_set.labels for c in conversations if c.dataset == name)
            counted = Outcomes.of(gold, said, [0.0] * len(gold), [0] * len(gold), classes)
            scores.append(float(counted.measures()["weighted_f1"]))
    return float(np.mean(scores)) if scores else 0.0


def digest(conversations: Sequence[Conversation]) -> str:
    """Sixteen characters that stand for conversations with their texts and gold emotions."""
    text = [[c.id, [[t.speaker, t.text, dict(t.emotion or {})] for t in c.turns]] for c in conversations]
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]

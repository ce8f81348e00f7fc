"""Heads over conversations: networks that read the features of turns (features.py), with who speaks which
turn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field

from selfemo.config.base import Positive, PositiveFloat
from selfemo.evaluation.baselines.base import Baseline, Plain, Reader, Task, choice_score, tops
from selfemo.evaluation.baselines.features import Features, FeaturesConfig, check_features, open_features
from selfemo.method.types import Conversation, LabelSet

if TYPE_CHECKING:
    from selfemo.models.classifiers.dialogues import Dialogue, DialogueClassifier, Network

Rate = Annotated[float, Field(ge=0, lt=1)]


class HeadConfig(FeaturesConfig):
    """Training of a head, with a constant learning rate as all four recipes have it.

    [ours]: AdamW, where three of them add the decay to the gradient of Adam; gradients are clipped at a
    norm of 5, as DAG-ERC has it.
    """

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: PositiveFloat = 5.0
    batch_size: Positive = 32
    """Conversations of one optimiser step."""
    class_weights: bool = False
    """Weigh each label by the inverse of its share in the training data."""
    dropout: Rate = 0.5


class TwoWayConfig(HeadConfig):
    bidirectional: bool = False
    """As published: later turns are seen too. Such a model compares with no past-only one."""


Settings = TypeVar("Settings", bound=HeadConfig)


class Head(Baseline[Settings], Generic[Settings]):
    """A recipe that is a network over features.

    Attributes:
        label: of the bar of its training.
    """

    label: ClassVar[str]

    @abstractmethod
    def network(self, features: int) -> Network:
        """The network, untrained, on features of this size."""

    def relations(self, speakers: np.ndarray) -> np.ndarray | None:
        """(t, t) the relation of the edge that brings turn j to turn i, -1 where there is none, from the (t,)
        numbers of speakers; None for a network without edges."""
        return None

    @property
    def sees_later(self) -> bool:
        return isinstance(self.settings, TwoWayConfig) and self.settings.bidirectional

    @property
    def backbone(self) -> str:
        if not self.settings.features:
            return self.settings.fine_tune.encoder
        from selfemo.models.classifiers.reader import kept_settings

        return kept_settings(Path(self.settings.features)).settings.encoder

    def check(self) -> None:
        check_features(self.settings)

    def train(self, task: Task) -> Reader:
        from selfemo.training.dialogue_head import train_head

        features = open_features(self.settings, task)
        features.of([*task.train, *task.choose])

        def reader(model: DialogueClassifier) -> HeadReader:
            return HeadReader(model, lambda cs: self.dialogues(cs, features, task.label_sets))

        members = zip(
            self.dialogues(task.train, features, task.label_sets), map(tops, task.train), strict=True
        )
        model = train_head(
            self.network, self.settings, list(members), task.label_sets,
            lambda model: choice_score(reader(model), task.choose), class_weights=self.settings.class_weights,
            seed=task.seed, states=task.states, label=self.label, device=task.device, reporter=task.reporter,
            stop=task.stop,
        )  # fmt: skip
        return reader(model)

    def dialogues(
        self, conversations: Sequence[Conversation], features: Features, label_sets: Sequence[LabelSet]
    ) -> list[Dialogue]:
        """The conversations as the network sees them."""
        from selfemo.models.classifiers.dialogues import Dialogue

        found = []
        for c, x in zip(conversations, features.of(conversations), strict=True):
            speakers = speaker_numbers(c)
            found.append(Dialogue(x, speakers, self.relations(speakers), list(label_sets).index(c.label_set)))
        return found


class HeadReader(Plain):
    """A trained head."""

    def __init__(
        self, model: DialogueClassifier, dialogues: Callable[[Sequence[Conversation]], list[Dialogue]]
    ):
        self.model, self.dialogues = model, dialogues

    def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        return self.model.read(self.dialogues(conversations))


def speaker_numbers(conversation: Conversation) -> np.ndarray:
    """(t,) the speaker of each turn, numbered by appearance."""
    numbers = {name: i for i, name in enumerate(conversation.speakers)}
    return np.array([numbers[t.speaker] for t in conversation.turns], dtype=np.int64)

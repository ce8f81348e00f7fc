"""Demonstrations: labelled turns of the training split that say something near to a turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from selfemo.errors import EngineError
from selfemo.evaluation.baselines.base import Task
from selfemo.evaluation.baselines.instruction import gold, labelled
from selfemo.files import replacing
from selfemo.method.prompts import clean
from selfemo.method.types import Conversation, LabelSet

Embed = Callable[[Sequence[str]], np.ndarray]
"""embed(texts) gives (n, d) unit vectors."""
_NONE = np.empty((0, 0))


@dataclass(frozen=True)
class Demonstration:
    """A training turn and its label."""

    conversation: str
    text: str
    label: str

    def line(self) -> str:
        return f'"{clean(self.text)}" shows {self.label}'


class Demonstrations:
    """Finds the training turns that are nearest to a turn by the cosine of their texts.

    Of the same label set, and of other conversations than the turn's own: its label and those of its
    neighbours are what the model is to learn. What is found depends on the turn's own text alone.

    Args:
        train: the training conversations.
        embed: a sentence encoder.
        vectors: (n, d) of `texts_of(train)`, where they are known.
    """

    def __init__(self, train: Sequence[Conversation], embed: Embed, vectors: np.ndarray | None = None):
        texts = texts_of(train)
        found = embed(texts) if vectors is None else vectors
        self._embed = embed
        self._known = dict(zip(texts, found, strict=True))
        self._bank: dict[LabelSet, tuple[list[Demonstration], np.ndarray]] = {}
        for labels in dict.fromkeys(c.label_set for c in train):
            turns = labelled([c for c in train if c.label_set == labels])
            shown = [Demonstration(c.id, c.turns[i].text, gold(c, i)) for c, i in turns]
            self._bank[labels] = shown, np.array([self._known[d.text] for d in shown])

    def near(self, conversation: Conversation, turn: int, count: int) -> list[Demonstration]:
        """The `count` nearest ones, the nearest first; equal ones in the order of the data."""
        shown, vectors = self._bank.get(conversation.label_set, ([], _NONE))
        if not shown:
            return []
        text = conversation.turns[turn].text
        if text not in self._known:  # alone: in a batch other texts would change the last bits
            self._known[text] = self._embed([text])[0]
        order = np.argsort(-(vectors @ self._known[text]), kind="stable").tolist()
        others = (shown[k] for k in order if shown[k].conversation != conversation.id)
        return list(islice(others, count))

    @staticmethod
    def of(task: Task, embedder: str) -> Demonstrations:
        """Those of a training; vectors of the training split are kept for other seeds."""
        from selfemo.models.embedding import Embedder

        embed = Embedder(embedder)
        texts = texts_of(task.train)
        key = hashlib.sha256("\x1f".join([embedder, *texts]).encode()).hexdigest()[:16]
        file = task.shared / f"demonstrations-{key}.npy"
        if not file.exists():
            task.reporter.say(f"embedding {len(texts):,} texts, to find demonstrations among them")
            _keep(embed(texts), file)
        return Demonstrations(task.train, embed, np.load(file))


def texts_of(train: Sequence[Conversation]) -> list[str]:
    """The texts of all labelled turns, each once."""
    return list(dict.fromkeys(c.turns[i].text for c, i in labelled(train)))


def _keep(vectors: np.ndarray, file: Path) -> None:
    with replacing(file, EngineError) as staging, staging.open("wb") as out:
        np.save(out, vectors)

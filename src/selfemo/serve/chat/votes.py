"""Votes in the blind comparison of two models."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from selfemo.errors import DataError
from selfemo.serve.chat.session import Session


class Votes:
    """A file of blind votes, one JSON object a line; it only grows."""

    def __init__(self, path: Path, names: Sequence[str]):
        self.path, self.names = path, tuple(names)

    def add(self, session: Session, sides: Sequence[int], answers: Sequence[Session], vote: str) -> str:
        """Keep a vote for "1", "2" or "tie"; returns a message on which model gave which answer.

        `sides` are the models (0, 1) of the two `answers` (DataError: the file cannot be written).
        """
        first, second = models = [self.names[k] for k in sides]
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "turns": [[line.speaker, line.text] for line in session.lines],
            "answers": [a.lines[-1].text for a in answers],
            "models": models,
            "vote": vote,
            "winner": None if vote == "tie" else models[int(vote) - 1],
        }
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as e:
            raise DataError(f"the vote cannot be kept: {e.strerror or e}", self.path) from e
        return f"Answer 1 was {first}, answer 2 was {second}. Thank you."

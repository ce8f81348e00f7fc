"""Votes of the blind comparison of two models."""

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
        """Keep a vote for "1", "2" or "tie"; the result tells the voter which model gave which answer.

        Args:
            sides: which model stood first and second.
            answers: the session with the first model's answer, and with the second's.

        Raises:
            DataError: the file cannot be written.
        """
        winner = None if vote == "tie" else self.names[sides[int(vote) - 1]]
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "turns": [[line.speaker, line.text] for line in session.lines],
            "answers": [a.lines[-1].text for a in answers],
            "models": [self.names[k] for k in sides],
            "vote": vote,
            "winner": winner,
        }
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as e:
            raise DataError(f"the vote cannot be kept: {e.strerror or e}", self.path) from e
        return f"Answer 1 was {self.names[sides[0]]}, answer 2 was {self.names[sides[1]]}. Thank you."

"""Predictions: the emotion that an evaluation read in each held-out utterance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from selfemo.runs.store.base import Database


class PredictionRow(TypedDict):
    """One prediction: `gold`, `predicted` and `believed` are JSON for `read_distribution`.

    `text` is the completion, `predicted` what it names; `believed` has the probability of each label after
    "E:", and is None where it was not taken.
    """

    evaluation: str
    prompt: str
    dataset: str
    conversation: str
    gold: str
    predicted: str | None
    failure: str | None
    r1: float
    text: str
    believed: str | None


class Predictions(Database):
    """Queries on predictions."""

    def add_predictions(self, rows: Iterable[Sequence[Any]]) -> None:
        """(evaluation, prompt, dataset, conversation, gold, predicted, failure, r1, text, believed) each."""
        self.db.executemany("INSERT OR REPLACE INTO predictions VALUES (?,?,?,?,?,?,?,?,?,?)", rows)

    def copy_predictions(self, evaluation: str, to: str) -> None:
        """Give the predictions of one evaluation to another, in place of those that it has."""
        columns = "prompt, dataset, conversation, gold, predicted, failure, r1, text, believed"
        with self.transaction():
            self.db.execute("DELETE FROM predictions WHERE evaluation = ?", (to,))
            self.db.execute(
                f"INSERT INTO predictions (evaluation, {columns}) SELECT ?, {columns} FROM predictions "
                "WHERE evaluation = ?",
                (to, evaluation),
            )

    def predictions(self, evaluation: str) -> list[PredictionRow]:
        """The predictions of one evaluation, by prompt: the order of answers differs between runs."""
        found = self.dicts("SELECT * FROM predictions WHERE evaluation = ? ORDER BY prompt", evaluation)
        for row in found:  # a store of version 1 that is only read has no such column
            row.setdefault("believed", None)
        return found

    def predicted_prompts(self, evaluation: str) -> set[str]:
        """The ids of the prompts that have a prediction."""
        return {p for (p,) in self.stream("SELECT prompt FROM predictions WHERE evaluation = ?", evaluation)}

    def predicted_datasets(self) -> list[str]:
        """The data sets that have predictions, by name."""
        return [d for (d,) in self.stream("SELECT DISTINCT dataset FROM predictions ORDER BY dataset")]

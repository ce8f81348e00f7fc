"""The SFT set: samples from the cold start and from self-play."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

from selfemo.method.types import Place, Prompt
from selfemo.runs.store.prompts import Prompts


class SampleRow(TypedDict):
    """A training pair: its prompt's id, the completion as text, and its origin."""

    id: int
    stage: str
    step: int
    iteration: int
    source: str  # "gold", "file", "label" (E alone) or "selfplay"
    prompt: str
    completion: str
    emotion: str  # the top emotion of E
    reward: float
    fingerprint: str
    used: (
        int  # 0 if the cap on emotions leaves it out (flywheel.refit_on and a rollback may leave out others)
    )


class SampleValue(NamedTuple):
    """The values by which the cap on emotions chooses samples."""

    id: int
    emotion: str
    reward: float


class Samples(Prompts):
    """Queries on the SFT set; `stages.interfaces.Buffer` describes those that stages use."""

    def add_sample(
        self,
        prompt: Prompt,
        completion: str,
        emotion: str,
        reward: float,
        fingerprint: str,
        place: Place,
        source: str,
    ) -> bool:
        done = self.db.execute(
            "INSERT OR IGNORE INTO samples (stage, step, iteration, source, prompt, completion, "
            "emotion, reward, fingerprint) VALUES (?,?,?,?,?,?,?,?,?)",
            (
                place.stage, place.step, place.iteration, source, prompt.id, completion, emotion,
                reward, fingerprint,
            ),
        )  # fmt: skip
        return done.rowcount > 0

    def samples(self) -> list[tuple[SampleRow, Prompt]]:
        """(sample, its prompt) of the samples in use, in order of insertion."""
        rows = self.dicts("SELECT * FROM samples WHERE used = 1 ORDER BY id")
        return [(row, self.prompt(row["prompt"])) for row in rows]

    def given_samples(self) -> set[str]:
        """Ids of the prompts whose samples are not of self-play."""
        return {i for (i,) in self.stream("SELECT prompt FROM samples WHERE source != 'selfplay'")}

    def samples_of_stage(self, stage: str) -> int:
        """How many samples a stage added."""
        return int(self.value("SELECT count(*) FROM samples WHERE stage = ?", stage))

    def selfplay_samples(self, iteration: int) -> list[SampleValue]:
        which = "WHERE source = 'selfplay' AND iteration = ? ORDER BY id"
        rows = self.stream(f"SELECT id, emotion, reward FROM samples {which}", iteration)
        return [SampleValue(*r) for r in rows]

    def mark_used(self, used: Mapping[int, bool]) -> None:
        with self.transaction():
            values = [(int(u), i) for i, u in used.items()]
            self.db.executemany("UPDATE samples SET used = ? WHERE id = ?", values)

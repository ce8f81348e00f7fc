"""The two things that a run gives a stage: a buffer for its results, and a watch over its steps.

`runs.store.Store` is the buffer, `runs.training_state.TrainingState` the watch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from selfemo.method.types import Place, Prompt, RolloutGroup
from selfemo.training.expression import Reply
from selfemo.training.protocol import Trainer


class Pending(NamedTuple):
    """A synthetic prompt without rollouts: its id, and the round in which it was made."""

    id: str
    iteration: int
    step: int


class Buffer(Protocol):
    """Keeps prompts, rollouts and SFT samples with their lineage."""

    def transaction(self) -> AbstractContextManager[None]:
        """A context whose writes happen together or not at all."""

    def add_prompts(self, prompts: Iterable[Prompt], place: Place) -> None:
        """Insert prompts; an existing one stays as it is."""

    def skip(self, prompt_ids: Iterable[str]) -> None:
        """Mark prompts that are not drawn again: too long, or of a rolled-back RL stage."""

    def prompt(self, prompt_id: str) -> Prompt: ...

    def pending(self, after: int = 0) -> tuple[list[Pending], int]:
        """The synthetic prompts without rollouts that were added since the call that gave `after`, oldest
        first, and the value of `after` for the next call."""

    def unanswered(self, made: range, rounds: int) -> int:
        """The number of synthetic prompts without rollouts that were made in some rounds.

        Args:
            made: the rounds, counted over a run of `rounds` an iteration.
        """

    def drawn_originals(self) -> int:
        """The number of draws of original prompts so far, over all stages and rounds."""

    def drawn_synthetic(self, stage: str) -> int:
        """The number of self-play prompts that a stage has sampled for."""

    def add_group(self, group: RolloutGroup, place: Place, best: int, verdict: str) -> None:
        """Insert a scored group; `verdict` is the gate's on member `best`."""

    def add_replies(self, prompt_id: str, replies: Mapping[int, Reply], place: Place) -> None:
        """Insert the replies to a prompt that R3 compares, by their number: where each is that of a whole
        completion, the completion's."""

    def add_sample(
        self,
        prompt: Prompt,
        completion: str,
        emotion: str,
        reward: float,
        fingerprint: str,
        *,
        place: Place,
        source: str,
    ) -> bool:
        """Add a sample to the SFT set; false if an equal one is in it already."""

    def selfplay_samples(self, iteration: int) -> Sequence[tuple[int, str, float]]:
        """(id, emotion, reward) of the self-play samples of an iteration, in order of insertion."""

    def mark_used(self, used: Mapping[int, bool]) -> None:
        """Set for each sample, by id, whether the next refit uses it."""

    def add_metrics(self, place: Place, record: dict[str, Any]) -> None: ...

    def stage_metrics(self, stage: str) -> list[dict[str, Any]]:
        """The metrics of a stage, in order."""

    def verdicts(self, stage: str) -> dict[str, int]:
        """Counts of the gate's verdicts on a stage's best rollouts, the most frequent first."""


class Watch(Protocol):
    """Follows the steps of a training stage: guards, learning rate after rollbacks, saved states."""

    step: int
    """The number of finished steps when the stage starts or continues."""

    def scale(self, step: int) -> float:
        """The factor of a step's learning rate."""

    def look(self, step: int, record: dict[str, Any]) -> None:
        """Check a step's metrics before they are kept, and add alarms to them."""

    def after(self, trainer: Trainer, done: int, total: int) -> None:
        """Act on alarms, save a state when it is due, stop when that was asked for."""

"""What a stage is given by the run: a buffer that keeps what it makes, and a watch over its steps.

`runs.store.Store` is the buffer, `runs.training_state.TrainingState` the watch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from selfemo.method.types import Place, Prompt, RolloutGroup
from selfemo.training.protocol import Trainer


class Buffer(Protocol):
    """Keeps prompts, rollouts and SFT samples with their lineage."""

    def transaction(self) -> AbstractContextManager[None]:
        """All writes inside happen together or not at all."""
        ...

    def add_prompts(self, prompts: Iterable[Prompt], place: Place) -> None:
        """Insert prompts; one that is there already stays as it is."""
        ...

    def skip(self, prompt_ids: Iterable[str]) -> None:
        """Mark prompts that do not fit the length limit; they are not drawn again."""
        ...

    def prompt(self, prompt_id: str) -> Prompt: ...

    def pending(self, limit: int, after: int = 0) -> tuple[list[Prompt], int]:
        """Synthetic prompts that no rollout has answered, oldest first, and the place behind them."""
        ...

    def drawn_originals(self) -> int:
        """How often original prompts were drawn so far, over all stages and rounds."""
        ...

    def drawn_synthetic(self, stage: str) -> int:
        """How many prompts of self-play a stage has sampled for."""
        ...

    def add_group(self, group: RolloutGroup, place: Place, best: int, verdict: str) -> None:
        """Insert a scored group; `verdict` is the gate's on member `best`."""
        ...

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
        """Add to the SFT set; false if an equal sample is in it already."""
        ...

    def selfplay_samples(self, iteration: int) -> Sequence[tuple[int, str, float]]:
        """(id, emotion, reward) of the self-play samples of an iteration, in order of insertion."""
        ...

    def mark_used(self, used: Mapping[int, bool]) -> None:
        """Set which samples, by id, the next refit uses."""
        ...

    def add_metrics(self, place: Place, record: dict[str, Any]) -> None: ...

    def stage_metrics(self, stage: str) -> list[dict[str, Any]]:
        """The metrics of a stage, in order."""
        ...

    def verdicts(self, stage: str) -> dict[str, int]:
        """Verdicts of the gate on the best rollouts of a stage, the most frequent first."""
        ...


class Watch(Protocol):
    """Follows the steps of a training stage: guards, learning rate after rollbacks, saved states."""

    step: int
    """The steps that are done when the stage goes on."""

    def scale(self, step: int) -> float:
        """What the learning rate of a step is multiplied with."""
        ...

    def look(self, step: int, record: dict[str, Any]) -> None:
        """Look at a step's metrics before they are kept; alarms are noted in them."""
        ...

    def after(self, trainer: Trainer, done: int, total: int) -> None:
        """Act on alarms, save where it is time, stop where that was asked for."""
        ...

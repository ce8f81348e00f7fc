"""The state of a training stage: the step that it resumes from, its alarms and its rollbacks."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from selfemo.errors import GuardError, NotFiniteError
from selfemo.runs.folder import RunFolder
from selfemo.training.guards import Alarm, about_silence, alarms, decide, rate_scale, silent
from selfemo.training.protocol import Trainer


class _RolledBack(Exception):
    """The stage must resume from its last saved state, with a lower learning rate."""


class TrainingState:
    """Resume, guards and rollbacks of one stage (`stages.interfaces.Watch`); `step` is the last saved one."""

    def __init__(self, run: RunFolder, trainer: Trainer, stage: str):
        self.run, self.trainer, self.stage = run, trainer, stage
        row = run.store.stage(stage)
        self.step = int(row["step"]) if row is not None else 0
        info = json.loads(row["info"]) if row is not None else {}
        self.rollbacks: list[dict[str, Any]] = info.get("rollbacks", [])
        self.records: list[dict[str, Any]] = []
        self._found: list[Alarm] = []

    @property
    def kept(self) -> int:
        """The number of steps whose metrics are in the store."""
        return self.records[-1]["step"] + 1 if self.records else 0

    def open(self, begin: Callable[[], None]) -> None:
        """Call `begin`, then resume from the last undamaged saved state, or start from step 0."""
        begin()
        recorded = self.step
        self.step = self.trainer.resume(recorded, self.run.reporter.say)
        if recorded and self.step != recorded:
            where = f"goes back to step {self.step}" if self.step else "starts again"
            self.run.reporter.say(f"{self.stage} {where}")
        self.run.store.rewind(self.stage, self.step)
        self.records = self.run.store.stage_metrics(self.stage)

    def scale(self, step: int) -> float:
        return rate_scale(self.rollbacks, step)

    def look(self, step: int, record: dict[str, Any]) -> None:
        self.records.append(record)
        self._found = alarms(self.records, self.run.config.guard)
        if self._found:
            record["alarms"] = [a.kind for a in self._found]

    def after(self, trainer: Trainer, done: int, total: int) -> None:
        """Raises Stopped where that was asked for, or GuardError where an alarm stops the stage."""
        every, stop = self.run.config.save.every_steps, self.run.stop
        action = decide(self._found, self.run.config.guard)
        for alarm in self._found:
            self.run.reporter.say(f"{self.stage}, step {done}: {alarm.reason} ({action})")
        if self._silent_rounds() == 1 and silent(self.records[-1], self.run.config):
            about = about_silence(self.records[-1], self.run.config)
            self.run.reporter.say(f"{self.stage}, round {done} of {total}: {about}")
        if action == "rollback":
            self.roll_back(self._found, done)
        if action == "stop":
            trainer.save_state(done, self._record)
            saved = f"the state after step {done} is saved"
            raise self.stopped(self._found, saved if self.step == done else "the engine's last state is kept")
        if done < total and (stop.asked or (every and done % every == 0)):
            trainer.save_state(done, self._record)
        if done < total:
            stop.check()

    def _record(self, step: int) -> None:
        info = {"rollbacks": self.rollbacks} if self.rollbacks else {}
        self.run.store.set_stage(self.stage, "running", step=step, info=info)
        self.step = step

    def roll_back(self, found: Sequence[Alarm], done: int | None = None) -> NoReturn:
        """Start again from the last saved state with half the learning rate (GuardError: not once more)."""
        if (times := len(self.rollbacks)) >= self.run.config.guard.max_rollbacks:
            kept = f"is kept as it was after step {self.step}"
            raise self.stopped(found, f"it was rolled back {times} times (guard.max_rollbacks) and {kept}")
        self.rollbacks.append({"to": self.step, "at": done, "kinds": [a.kind for a in found]})
        self._record(self.step)
        self.run.reporter.say(
            f"{self.stage} goes back to step {self.step}, with {self.scale(self.step):g} of the "
            "learning rate from there on"
        )
        raise _RolledBack

    def stopped(self, found: Sequence[Alarm], kept: str) -> GuardError:
        kinds = " ".join(f"--set guard.{a.kind}=warn" for a in found)
        return GuardError(
            f"{self.stage}: {'; '.join(a.reason for a in found)}. Stopped; {kept}. To go on all the same: "
            f"selfemo evolve --resume {self.run.path} {kinds} (or =rollback: the next such alarm goes "
            "back to the state saved last and halves the learning rate)"
        )

    def _silent_rounds(self) -> int:
        return sum(silent(r, self.run.config) for r in self.records)

    def say_silence(self) -> None:
        """Say in how many rounds the rewards taught nothing, if it was not the one that was told at once."""
        if (n := self._silent_rounds()) > 1:
            of = sum("r1" in r for r in self.records)
            self.run.reporter.say(
                f"{self.stage}: in {n} of {of} rounds the rewards taught nothing: no completion was better "
                "than another of its prompt (`silent` = 1 in metrics.jsonl)"
            )

    def report(self) -> dict[str, Any]:
        """Alarms by kind and rollbacks of the whole stage, if there were any."""
        counts = Counter(kind for r in self.records for kind in r.get("alarms", ()))
        info: dict[str, Any] = {"alarms": dict(counts)} if counts else {}
        return info | ({"rollbacks": self.rollbacks} if self.rollbacks else {})


def train(
    run: RunFolder, trainer: Trainer, stage: str, attempt: Callable[[TrainingState], dict[str, Any]]
) -> dict[str, Any]:
    """Do a training stage from its last saved state; again after each rollback."""
    while True:
        state = TrainingState(run, trainer, stage)
        try:
            info = attempt(state)
            state.say_silence()
            return info | state.report()
        except _RolledBack:
            continue
        except NotFiniteError as e:
            run.reporter.say(f"{stage}: {e}")
            found = [Alarm("numbers", str(e))]
            if run.config.guard.numbers != "rollback":
                raise state.stopped(found, f"the state after step {state.step} is kept") from e
            with contextlib.suppress(_RolledBack):
                state.roll_back(found)

"""Stages of a run and their metrics; deletes the rows of a stage that is done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

from selfemo.files import write_text
from selfemo.method.types import Place
from selfemo.runs.store.base import Database

_WRITTEN_BY_STAGES = ("replies", "rollouts", "samples", "metrics", "prompts")


class StageRow(TypedDict):
    """A stage of a run."""

    name: str
    status: str  # "running" or "done"
    step: int  # whose state is saved
    checkpoint: str | None  # the name of the one that it wrote
    info: str  # JSON: counts and measures
    seconds: float  # over all processes


class Stages(Database):
    """Queries on stages and their metrics."""

    def stage(self, name: str) -> StageRow | None:
        """One stage, or None before it has begun."""
        return next(iter(self.dicts("SELECT * FROM stages WHERE name = ?", name)), None)

    def stages(self) -> list[StageRow]:
        """All stages in the order they began."""
        return self.dicts("SELECT * FROM stages ORDER BY rowid")

    def trained_stages(self) -> list[tuple[str, str]]:
        """(stage, checkpoint) of the finished stages that wrote a checkpoint, in order."""
        done = (s for s in self.stages() if s["status"] == "done")
        return [(s["name"], s["checkpoint"]) for s in done if s["checkpoint"] is not None]

    def running_stages(self) -> list[str]:
        """Names of the stages that have begun and are not done."""
        return [s["name"] for s in self.stages() if s["status"] == "running"]

    def set_stage(
        self,
        name: str,
        status: str,
        *,
        step: int = 0,
        checkpoint: str | None = None,
        info: dict[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Record the state of a stage; `seconds` are added to those before."""
        # A saved training state may replace an older one only when this row is on the disk.
        self.db.execute("PRAGMA synchronous = EXTRA")
        with self.transaction():
            self.db.execute(
                "INSERT INTO stages VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "status = excluded.status, step = excluded.step, "
                "checkpoint = excluded.checkpoint, info = excluded.info, "
                "seconds = stages.seconds + excluded.seconds",
                (name, status, step, checkpoint, json.dumps(info or {}), seconds),
            )
        self.db.execute(f"PRAGMA synchronous = {self.synchronous}")

    def rewind(self, stage: str, step: int = 0) -> None:
        """Delete what `stage` wrote at or after `step`, so that it can be done again."""
        with self.transaction():
            for table in _WRITTEN_BY_STAGES:
                self.db.execute(f"DELETE FROM {table} WHERE stage = ? AND step >= ?", (stage, step))
            if step == 0:
                self.db.execute("DELETE FROM predictions WHERE evaluation = ?", (stage,))

    def forget(self, stage: str) -> None:
        """Delete an unfinished stage and what it wrote."""
        self.rewind(stage)
        with self.transaction():
            self.db.execute("DELETE FROM stages WHERE name = ?", (stage,))

    def keep_evaluation(self, name: str) -> None:
        """Delete all stages but one evaluation, and what they wrote."""
        with self.transaction():
            self.db.execute("DELETE FROM stages WHERE name != ?", (name,))
            self.db.execute("DELETE FROM predictions WHERE evaluation != ?", (name,))
            for table in _WRITTEN_BY_STAGES:
                self.db.execute(f"DELETE FROM {table}")

    def add_metrics(self, place: Place, record: dict[str, Any]) -> None:
        """Add the measures of one step."""
        self.db.execute(
            "INSERT INTO metrics (stage, step, record) VALUES (?,?,?)",
            (place.stage, place.step, json.dumps(record)),
        )

    def metrics(self) -> list[dict[str, Any]]:
        """The measures of all steps, each with its stage and step, in order of insertion."""
        return [
            {"stage": r["stage"], "step": r["step"], **json.loads(r["record"])}
            for r in self.rows("SELECT * FROM metrics ORDER BY id")
        ]

    def stage_metrics(self, stage: str) -> list[dict[str, Any]]:
        return [m for m in self.metrics() if m["stage"] == stage]

    def write_metrics(self, path: Path) -> None:
        """Replace a file by all metrics as JSONL."""
        write_text(path, "".join(json.dumps(m) + "\n" for m in self.metrics()))

    def identity(self, key: str) -> str | None:
        """The value noted under a key about the whole store."""
        found: str | None = self.value("SELECT value FROM meta WHERE key = ?", key)
        return found

    def set_identity(self, key: str, value: str, *, replace: bool = False) -> None:
        """Note a value under a key about the whole store; the key must be new unless it is to be replaced."""
        how = "INSERT OR REPLACE" if replace else "INSERT"
        with self.transaction():
            self.db.execute(f"{how} INTO meta VALUES (?, ?)", (key, value))

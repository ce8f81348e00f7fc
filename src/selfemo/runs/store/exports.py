"""Tables as streams of rows, for the export of shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from selfemo.errors import StoreError
from selfemo.runs.store.base import Database


class Exports(Database):
    """Streams of rows, as tuples in the order of the columns. Read them inside one `snapshot`."""

    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table in order, each with its SQL type."""
        return {r["name"]: r["type"] for r in self.rows(f"PRAGMA table_info({table})")}

    def rollout_count(self, up_to: int | None = None) -> int:
        """The number of rollouts, of all or of those up to an id."""
        return int(self.value("SELECT count(*) FROM rollouts WHERE ?1 IS NULL OR id <= ?1", up_to))

    def rollout_row(self, rollout: int) -> tuple[Any, ...] | None:
        """One rollout by its id, or None."""
        return next(self.stream("SELECT * FROM rollouts WHERE id = ?", rollout), None)

    def rollout_rows(self, after: int = 0) -> Iterator[tuple[Any, ...]]:
        """The rollouts after an id, in order."""
        return self.stream("SELECT * FROM rollouts WHERE id > ? ORDER BY id", after)

    def prompt_rows(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """The prompts of some ids, in that order (StoreError: one is not in the store)."""
        query = "SELECT * FROM prompts WHERE id IN (SELECT value FROM json_each(?))"
        found = {r[0]: r for r in self.stream(query, json.dumps(ids))}
        if missing := next((i for i in ids if i not in found), None):
            raise StoreError(f"{self.path}: rollouts of prompt {missing!r}, which is not in it")
        return [found[i] for i in ids]

    def unanswered_rows(self) -> Iterator[tuple[Any, ...]]:
        """The prompts without a rollout, in order of insertion."""
        return self.stream(
            "SELECT p.* FROM prompts p WHERE NOT EXISTS "
            "(SELECT 1 FROM rollouts r WHERE r.prompt = p.id) ORDER BY p.rowid"
        )

    def sample_rows(self) -> Iterator[tuple[Any, ...]]:
        """The SFT set, in order of insertion."""
        return self.stream("SELECT * FROM samples ORDER BY id")

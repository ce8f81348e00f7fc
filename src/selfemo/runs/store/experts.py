"""Answers of experts, the personas made from them, and clusters of personas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from typing import Any, NamedTuple, TypedDict

from selfemo.models.generation.chat import Answer
from selfemo.runs.store.base import Database


class Described(NamedTuple):
    """A description of a speaker; `scope` is its conversation, "" for one who recurs over the data set."""

    dataset: str
    scope: str
    speaker: str
    description: str


class ClusterReward(TypedDict):
    """Mean R1 of the rollouts of a stage whose persona is in the cluster `name`."""

    name: str
    stage: str
    rollouts: int
    r1: float


class Experts(Database):
    """Queries on answers, failures, personas, profiles and clusters."""

    def answer(self, key: str) -> Answer | None:
        """An expert's answer to the question of this key, if it was asked."""
        found = self.rows("SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?", key)
        return Answer(*found[0]) if found else None

    def add_answer(self, key: str, answer: Answer, purpose: str, item: str, expert: str, model: str) -> None:
        """Keep an answer; committed at once, since it may have been paid for."""
        with self.transaction():
            self.db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?,?,?,?)",
                (key, purpose, item, expert, model, *astuple(answer)),
            )

    def add_failure(self, purpose: str, item: str, expert: str, kind: str, detail: str, rounds: int) -> None:
        """Record that an item got no usable answer."""
        with self.transaction():
            self.db.execute(
                "INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?)",
                (purpose, item, expert, kind, detail, rounds),
            )

    def clear_failure(self, purpose: str, item: str) -> None:
        """Delete the failure of an item that has an answer now."""
        with self.transaction():
            self.db.execute("DELETE FROM failures WHERE purpose = ? AND item = ?", (purpose, item))

    def failed_rounds(self, purpose: str) -> dict[str, int]:
        """Items that failed, each with its number of rounds of questions."""
        return dict(self.stream("SELECT item, rounds FROM failures WHERE purpose = ?", purpose))

    def add_personas(self, rows: Iterable[Sequence[Any]]) -> None:
        """Insert or replace persona records, in the order of the table's columns."""
        self.db.executemany("INSERT OR REPLACE INTO personas VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)

    def personas(self) -> list[Described]:
        """The records of all segments, by segment and speaker."""
        return self._described("personas", "segment, speaker")

    def profiles(self) -> list[Described]:
        """The profiles, by data set, scope and speaker."""
        return self._described("profiles", "dataset, scope, speaker")

    def _described(self, table: str, order: str) -> list[Described]:
        query = f"SELECT dataset, scope, speaker, description FROM {table} ORDER BY {order}"
        return [Described(*r) for r in self.stream(query)]

    def persona_count(self) -> int:
        """How many persona records there are."""
        return int(self.value("SELECT count(*) FROM personas"))

    def set_profiles(self, rows: Iterable[Sequence[Any]]) -> None:
        """Replace all profiles: (dataset, scope, speaker, description, made_by, segments) each."""
        with self.transaction():
            self.db.execute("DELETE FROM profiles")
            self.db.executemany("INSERT INTO profiles VALUES (?,?,?,?,?,?)", rows)

    def prompt_personas(self) -> list[tuple[str, str]]:
        """(speaker, description) of the personas of all prompts, each once."""
        return list(
            self.stream(
                "SELECT DISTINCT json_extract(persona, '$[0]'), json_extract(persona, '$[1]') "
                "FROM prompts ORDER BY 1, 2"
            )
        )

    def set_clusters(self, rows: Iterable[Sequence[Any]]) -> None:
        """Replace the clusters: (description, cluster or -1 for noise, name, x, y) each."""
        with self.transaction():
            self.db.execute("DELETE FROM persona_clusters")
            self.db.executemany("INSERT INTO persona_clusters VALUES (?,?,?,?,?)", rows)

    def clusters(self) -> list[tuple[Any, ...]]:
        """The rows of `set_clusters`."""
        return list(self.stream("SELECT * FROM persona_clusters"))

    def reward_by_cluster(self) -> list[ClusterReward]:
        """Table 3: mean R1 of rollouts, by their persona's cluster and by stage."""
        return self.dicts(
            "SELECT c.name, r.stage, count(*) AS rollouts, avg(r.r1) AS r1 FROM rollouts r "
            "JOIN prompts p ON p.id = r.prompt "
            "JOIN persona_clusters c ON c.description = json_extract(p.persona, '$[1]') "
            "WHERE c.cluster >= 0 GROUP BY c.cluster, r.stage ORDER BY count(*) DESC, r.stage"
        )

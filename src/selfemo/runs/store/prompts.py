"""Prompts: stored with their lineage, drawn from, and read back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from selfemo.errors import StoreError
from selfemo.method.types import (
    LABEL_SETS,
    EmotionDistribution,
    LabelSet,
    Lineage,
    Persona,
    Place,
    Prompt,
    Utterance,
)
from selfemo.runs.store.base import Database
from selfemo.stages.interfaces import Pending


def write_distribution(distribution: EmotionDistribution | None) -> str | None:
    """The JSON that a distribution is stored as, or None."""
    return None if distribution is None else json.dumps(dict(distribution))


@lru_cache(maxsize=4096)
def read_distribution(text: str | None) -> EmotionDistribution | None:
    """The distribution of its stored JSON, or None."""
    return None if text is None else EmotionDistribution(json.loads(text))


@lru_cache(maxsize=256)
def read_label_set(text: str) -> LabelSet:
    """The label set of its stored JSON; one of LABEL_SETS if it equals that."""
    name, labels = json.loads(text)
    known = LABEL_SETS.get(name)
    return known if known and list(known.labels) == labels else LabelSet(name, tuple(labels))


def read_prompt(row: Any, *, emotions: bool = True) -> Prompt:
    """The prompt of a row of the table: its columns by name.

    Args:
        emotions: also those of the history, which neither format nor fingerprint needs.
    """
    history = tuple(
        Utterance(s, t, EmotionDistribution(e) if emotions and e is not None else None)
        for s, t, e in json.loads(row["history"])
    )
    return Prompt(
        id=row["id"],
        dataset=row["dataset"],
        conversation_id=row["conversation"],
        label_set=read_label_set(row["label_set"]),
        history=history,
        answerer=row["answerer"],
        persona=Persona(*json.loads(row["persona"])),
        target=read_distribution(row["target"]),
        scenario=row["scenario"],
        lineage=Lineage(row["iteration"], row["episode"], row["turn"], row["parent"]),
    )


_UNANSWERED = (
    "parent IS NOT NULL AND skipped = 0 AND NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.prompt = p.id)"
)
"""Condition on a prompt p: of self-play, inside the length limit, without rollouts."""


class Prompts(Database):
    """Queries on prompts; `stages.interfaces.Buffer` describes those that stages use."""

    read_prompt = staticmethod(read_prompt)

    def add_prompts(self, prompts: Iterable[Prompt], place: Place) -> None:
        self.db.executemany(
            "INSERT OR IGNORE INTO prompts VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,0)",
            (
                (
                    p.id, place.stage, place.step, p.lineage.iteration, p.lineage.episode,
                    p.lineage.turn, p.lineage.parent, p.dataset, p.conversation_id,
                    json.dumps([p.label_set.name, list(p.label_set.labels)]), p.answerer,
                    json.dumps([p.persona.speaker, p.persona.description, p.persona.scenario]),
                    p.scenario,
                    json.dumps([[u.speaker, u.text, u.emotion and dict(u.emotion)] for u in p.history]),
                    write_distribution(p.target),
                )
                for p in prompts
            ),
        )  # fmt: skip

    def skip(self, prompt_ids: Iterable[str]) -> None:
        self.db.executemany("UPDATE prompts SET skipped = 1 WHERE id = ?", [(i,) for i in prompt_ids])

    def prompt(self, prompt_id: str) -> Prompt:
        """One prompt (StoreError: the id is not in the store)."""
        found = self.rows("SELECT * FROM prompts WHERE id = ?", prompt_id)
        if not found:
            raise StoreError(f"{self.path}: no prompt {prompt_id!r}")
        return read_prompt(found[0])

    def pending(self, after: int = 0) -> tuple[list[Pending], int]:
        found = self.stream(
            f"SELECT id, iteration, step FROM prompts p WHERE rowid > ? AND {_UNANSWERED} ORDER BY rowid",
            after,
        )
        return [Pending(*row) for row in found], int(self.value("SELECT max(rowid) FROM prompts") or 0)

    def unanswered(self, made: range, rounds: int) -> int:
        round_ = "(iteration - 1) * ? + step"
        query = f"SELECT count(*) FROM prompts p WHERE {_UNANSWERED} AND {round_} >= ? AND {round_} < ?"
        return int(self.value(query, rounds, made.start, rounds, made.stop))

    def drawn_originals(self) -> int:
        return self._drawn("p.parent IS NULL")

    def drawn_synthetic(self, stage: str) -> int:
        return self._drawn("r.stage = ? AND p.parent IS NOT NULL", stage)

    def labels_drawn(self, stage: str = "") -> Counter[tuple[str, str]]:
        """How often a run's RL drew each original prompt with a gold emotion, by (id, its target as JSON).

        Targets that nobody labelled (flywheel.unlabelled) are left out.

        Args:
            stage: that of one stage; "" for all.
        """
        query = (
            "SELECT p.id, p.target, count(*) FROM rollouts r JOIN prompts p ON p.id = r.prompt "
            "WHERE r.member = 0 AND p.parent IS NULL AND json_extract(p.history, '$[#-1][2]') IS NOT NULL "
            "AND r.stage LIKE '%-rl' AND (? = '' OR r.stage = ?) "
            "GROUP BY p.id"
        )
        return Counter({(i, target): n for i, target, n in self.stream(query, stage, stage)})

    def _drawn(self, which: str, *args: str) -> int:
        """How many groups of rollouts (each has one member 0) answer the prompts of a condition."""
        query = "SELECT count(*) FROM rollouts r JOIN prompts p ON p.id = r.prompt WHERE r.member = 0 AND "
        return int(self.value(query + which, *args))

    def label_sets(self) -> dict[str, LabelSet]:
        """The label set of each data set that prompts come from, by name."""
        rows = self.stream("SELECT dataset, label_set FROM prompts GROUP BY 1, 2 ORDER BY 1, 2 DESC")
        return {dataset: read_label_set(text) for dataset, text in rows}

    def main_label_set(self) -> LabelSet | None:
        """The label set that most prompts have; None if there is no prompt."""
        found = self.value("SELECT label_set FROM prompts GROUP BY label_set ORDER BY count(*) DESC LIMIT 1")
        return None if found is None else read_label_set(found)

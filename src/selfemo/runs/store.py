"""The run's SQLite store: prompts, rollouts, rewards, lineage, SFT samples, predictions, metrics.

One file in WAL mode; each training step is one transaction, so a killed run loses at most the step that
it was in, and a resume deletes what an unfinished stage wrote after its last checkpoint. A commit is safe
from a kill at once and from a power failure with the next `set_stage`. The file is checked when it is
opened; `backup` keeps a whole copy beside it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfemo.errors import DamagedStoreError, StoreError
from selfemo.files import need_polars, replacing, write_text
from selfemo.method.types import (
    LABEL_SETS,
    EmotionDistribution,
    LabelSet,
    Lineage,
    Persona,
    Place,
    Prompt,
    RolloutGroup,
    Utterance,
)
from selfemo.models.generation.chat import Answer

SCHEMA_VERSION = 1
STORE_FILE = "store.sqlite"
BACKUP_FILE = "store.backup.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS stages (
    name TEXT PRIMARY KEY, status TEXT NOT NULL, step INTEGER NOT NULL DEFAULT 0,
    checkpoint TEXT, info TEXT NOT NULL DEFAULT '{}', seconds REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS prompts (
    id TEXT PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, iteration INTEGER NOT NULL,
    episode TEXT NOT NULL, turn INTEGER NOT NULL, parent TEXT, dataset TEXT NOT NULL,
    conversation TEXT NOT NULL, label_set TEXT NOT NULL, answerer TEXT NOT NULL,
    persona TEXT NOT NULL, scenario TEXT NOT NULL, history TEXT NOT NULL, target TEXT,
    skipped INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS rollouts (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, iteration INTEGER NOT NULL,
    prompt TEXT NOT NULL REFERENCES prompts(id), member INTEGER NOT NULL, text TEXT NOT NULL,
    tokens INTEGER NOT NULL, failure TEXT, emotion TEXT, self_emotion TEXT, reply TEXT,
    r1 REAL NOT NULL, r2 REAL NOT NULL, advantage REAL NOT NULL, mean_logprob REAL NOT NULL,
    entropy REAL NOT NULL, best INTEGER NOT NULL, gate TEXT
);
CREATE INDEX IF NOT EXISTS rollouts_by_prompt ON rollouts (prompt);
CREATE INDEX IF NOT EXISTS rollouts_by_stage ON rollouts (stage, step);
CREATE TABLE IF NOT EXISTS samples (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, iteration INTEGER NOT NULL,
    source TEXT NOT NULL, prompt TEXT NOT NULL REFERENCES prompts(id), completion TEXT NOT NULL,
    emotion TEXT NOT NULL, reward REAL NOT NULL, fingerprint TEXT NOT NULL UNIQUE,
    used INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS predictions (
    evaluation TEXT NOT NULL, prompt TEXT NOT NULL, dataset TEXT NOT NULL,
    conversation TEXT NOT NULL, gold TEXT NOT NULL, predicted TEXT, failure TEXT, r1 REAL NOT NULL,
    text TEXT NOT NULL, PRIMARY KEY (evaluation, prompt)
);
CREATE TABLE IF NOT EXISTS metrics (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, purpose TEXT NOT NULL, item TEXT NOT NULL, expert TEXT NOT NULL,
    model TEXT NOT NULL, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
);
-- One record a segment and speaker; the tokens are those of the segment's whole exchange.
CREATE TABLE IF NOT EXISTS personas (
    segment TEXT NOT NULL, speaker TEXT NOT NULL, scope TEXT NOT NULL, dataset TEXT NOT NULL,
    conversation TEXT NOT NULL, split TEXT NOT NULL, turns INTEGER NOT NULL,
    description TEXT NOT NULL, scenario TEXT NOT NULL, expert TEXT NOT NULL, model TEXT NOT NULL,
    prompt_version INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, PRIMARY KEY (segment, speaker)
);
CREATE TABLE IF NOT EXISTS failures (
    purpose TEXT NOT NULL, item TEXT NOT NULL, expert TEXT NOT NULL, kind TEXT NOT NULL,
    detail TEXT NOT NULL, rounds INTEGER NOT NULL, PRIMARY KEY (purpose, item)
);
-- scope: the conversation that a speaker belongs to, "" for one who recurs over the whole data set.
CREATE TABLE IF NOT EXISTS profiles (
    dataset TEXT NOT NULL, scope TEXT NOT NULL, speaker TEXT NOT NULL, description TEXT NOT NULL,
    made_by TEXT NOT NULL, segments INTEGER NOT NULL, PRIMARY KEY (dataset, scope, speaker)
);
CREATE TABLE IF NOT EXISTS persona_clusters (
    description TEXT PRIMARY KEY, cluster INTEGER NOT NULL, name TEXT NOT NULL,
    x REAL NOT NULL, y REAL NOT NULL
);
"""


def _dist(distribution: EmotionDistribution | None) -> str | None:
    return None if distribution is None else json.dumps(dict(distribution))


@lru_cache(maxsize=4096)
def read_distribution(text: str | None) -> EmotionDistribution | None:
    """The stored JSON of a distribution, or None."""
    return None if text is None else EmotionDistribution(json.loads(text))


@lru_cache(maxsize=256)
def _label_set(text: str) -> LabelSet:
    name, labels = json.loads(text)
    known = LABEL_SETS.get(name)
    return known if known and list(known.labels) == labels else LabelSet(name, tuple(labels))


class Store:
    """Opens or creates `path`, and checks that its pages are whole.

    Raises:
        StoreError: the file is no store of this version, or cannot be opened.
        DamagedStoreError: the file is damaged.
    """

    def __init__(self, path: Path, *, read_only: bool = False):
        self.path = path
        try:
            if read_only:
                self.db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
                self._check()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.db = sqlite3.connect(path)
                self._check()
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.execute("PRAGMA synchronous = NORMAL")
                self.db.executescript(_SCHEMA)
                self.db.execute(
                    "INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),)
                )
                self.db.commit()
            found = self.db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        except sqlite3.DatabaseError as e:
            self._raise_if_damaged(e)
            raise StoreError(f"{path}: cannot be used as a run's store: {e}") from e
        except (sqlite3.Error, OSError) as e:
            raise StoreError(f"{path}: cannot be used as a run's store: {e}") from e
        if found is None or found[0] != str(SCHEMA_VERSION):
            raise StoreError(f"{path}: store version {found and found[0]}, need {SCHEMA_VERSION}")
        self.db.row_factory = sqlite3.Row

    def _check(self) -> None:
        faults = [r[0] for r in self.db.execute("PRAGMA quick_check(3)")]
        if faults != ["ok"]:
            self.db.close()
            told = "; ".join(" ".join(f.split()) for f in faults)
            raise DamagedStoreError(f"{self.path}: is damaged: {told[:300]}")

    def _raise_if_damaged(self, e: sqlite3.Error) -> None:
        code = getattr(e, "sqlite_errorcode", None)  # errors of the module itself have none
        if code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DamagedStoreError(f"{self.path}: is damaged: {e}") from e

    def backup(self, path: Path) -> None:
        """Write a whole copy to `path`, which is replaced when the copy is on the disk.

        Raises:
            StoreError: the disk is full; the copy before stays.
        """
        fault = "the copy of the store could not be written"
        with replacing(path, also=(sqlite3.Error,), fault=fault) as staging:
            copy = sqlite3.connect(staging)
            try:
                copy.execute("PRAGMA journal_mode = OFF")  # a copy that is cut off is thrown away
                self.db.backup(copy)
            finally:
                copy.close()

    def close(self) -> None:
        self.db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def copy_to(self, path: Path) -> None:
        """A copy of all that is committed, as a store of its own."""
        other = sqlite3.connect(path)
        try:
            self.db.backup(other)
        finally:
            other.close()

    def keep_evaluation(self, name: str) -> None:
        """Forget all stages but one evaluation, and what they wrote."""
        with self.transaction():
            self.db.execute("DELETE FROM stages WHERE name != ?", (name,))
            self.db.execute("DELETE FROM predictions WHERE evaluation != ?", (name,))
            for table in ("rollouts", "samples", "metrics", "prompts"):
                self.db.execute(f"DELETE FROM {table}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside happen together or not at all."""
        try:
            with self.db:
                yield
        except sqlite3.Error as e:
            self._raise_if_damaged(e)
            raise StoreError(f"{self.path}: {e}; what was committed before is kept") from e

    def rows(self, query: str, *args: Any) -> list[sqlite3.Row]:
        try:
            return self.db.execute(query, args).fetchall()
        except sqlite3.Error as e:
            self._raise_if_damaged(e)
            raise StoreError(f"{self.path}: {e}") from e

    # -- stages -----------------------------------------------------------------------------------

    def stage(self, name: str) -> sqlite3.Row | None:
        found = self.rows("SELECT * FROM stages WHERE name = ?", name)
        return found[0] if found else None

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
        # A state that a stage goes on from may replace an older one only when this is on the disk.
        self.db.execute("PRAGMA synchronous = FULL")
        with self.transaction():
            self.db.execute(
                "INSERT INTO stages VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "status = excluded.status, step = excluded.step, "
                "checkpoint = excluded.checkpoint, info = excluded.info, "
                "seconds = stages.seconds + excluded.seconds",
                (name, status, step, checkpoint, json.dumps(info or {}), seconds),
            )
        self.db.execute("PRAGMA synchronous = NORMAL")

    def trained_stages(self) -> list[tuple[str, str]]:
        """(stage, checkpoint) of the finished stages that wrote a checkpoint, in order."""
        rows = self.rows(
            "SELECT * FROM stages WHERE status = 'done' AND checkpoint IS NOT NULL ORDER BY rowid"
        )
        return [(r["name"], r["checkpoint"]) for r in rows]

    def running_stages(self) -> list[str]:
        """Names of the stages that were begun and are not done."""
        return [r["name"] for r in self.rows("SELECT name FROM stages WHERE status = 'running'")]

    def rewind(self, stage: str, step: int = 0) -> None:
        """Forget what `stage` wrote at or after `step`, so that it can be done again."""
        with self.transaction():
            for table in ("rollouts", "samples", "metrics", "prompts"):
                self.db.execute(f"DELETE FROM {table} WHERE stage = ? AND step >= ?", (stage, step))
            if step == 0:
                self.db.execute("DELETE FROM predictions WHERE evaluation = ?", (stage,))

    def forget(self, stage: str) -> None:
        """Forget a stage that is not done, and what it wrote."""
        self.rewind(stage)
        with self.transaction():
            self.db.execute("DELETE FROM stages WHERE name = ?", (stage,))

    # -- prompts ----------------------------------------------------------------------------------

    def add_prompts(self, prompts: Iterable[Prompt], place: Place) -> None:
        """Insert prompts; one that is there already stays as it is."""
        self.db.executemany(
            "INSERT OR IGNORE INTO prompts VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,0)",
            (
                (
                    p.id, place.stage, place.step, p.lineage.iteration, p.lineage.episode, p.lineage.turn,
                    p.lineage.parent, p.dataset, p.conversation_id,
                    json.dumps([p.label_set.name, list(p.label_set.labels)]), p.answerer,
                    json.dumps([p.persona.speaker, p.persona.description, p.persona.scenario]),
                    p.scenario,
                    json.dumps(
                        [
                            [u.speaker, u.text, None if u.emotion is None else dict(u.emotion)]
                            for u in p.history
                        ]
                    ),
                    _dist(p.target),
                )
                for p in prompts
            ),
        )  # fmt: skip

    def skip(self, prompt_ids: Iterable[str]) -> None:
        """Mark prompts that do not fit the length limit; they are not drawn again."""
        self.db.executemany(
            "UPDATE prompts SET skipped = 1 WHERE id = ?", [(i,) for i in prompt_ids]
        )

    @staticmethod
    def read_prompt(row: Any, *, emotions: bool = True) -> Prompt:
        """The prompt of a row of the table: its columns by name.

        Args:
            emotions: also those of the history, which neither the format nor a fingerprint holds.
        """
        history = tuple(
            Utterance(s, t, EmotionDistribution(e) if emotions and e is not None else None)
            for s, t, e in json.loads(row["history"])
        )
        return Prompt(
            id=row["id"],
            dataset=row["dataset"],
            conversation_id=row["conversation"],
            label_set=_label_set(row["label_set"]),
            history=history,
            answerer=row["answerer"],
            persona=Persona(*json.loads(row["persona"])),
            target=read_distribution(row["target"]),
            scenario=row["scenario"],
            lineage=Lineage(row["iteration"], row["episode"], row["turn"], row["parent"]),
        )

    def prompt(self, prompt_id: str) -> Prompt:
        found = self.rows("SELECT * FROM prompts WHERE id = ?", prompt_id)
        if not found:
            raise StoreError(f"{self.path}: no prompt {prompt_id!r}")
        return self.read_prompt(found[0])

    def pending(self, limit: int, after: int = 0) -> tuple[list[Prompt], int]:
        """Synthetic prompts that no rollout has answered, oldest first, and the place behind them.

        Args:
            limit: at most so many.
            after: a place that an earlier call gave; those before it are not looked at again.
        """
        rows = self.rows(
            "SELECT rowid AS place, * FROM prompts p WHERE rowid > ? AND parent IS NOT NULL "
            "AND skipped = 0 AND NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.prompt = p.id) "
            "ORDER BY rowid LIMIT ?",
            after,
            limit,
        )
        return [self.read_prompt(r) for r in rows], (rows[-1]["place"] if rows else after)

    def drawn_originals(self) -> int:
        """How often original prompts were drawn so far, over all stages and rounds."""
        found = self.rows(
            "SELECT count(*) FROM rollouts r JOIN prompts p ON p.id = r.prompt "
            "WHERE p.parent IS NULL AND r.member = 0"
        )
        return int(found[0][0])

    def drawn_synthetic(self, stage: str) -> int:
        """How many prompts of self-play a stage has sampled for."""
        found = self.rows(
            "SELECT count(*) FROM rollouts r JOIN prompts p ON p.id = r.prompt "
            "WHERE r.stage = ? AND p.parent IS NOT NULL AND r.member = 0",
            stage,
        )
        return int(found[0][0])

    def verdicts(self, stage: str) -> dict[str, int]:
        """Verdicts of the gate on the best rollouts of a stage, the most frequent first."""
        rows = self.rows(
            "SELECT gate, count(*) AS n FROM rollouts WHERE stage = ? AND best = 1 "
            "GROUP BY gate ORDER BY n DESC, gate",
            stage,
        )
        return {r["gate"]: r["n"] for r in rows}

    def selfplay_samples(self, iteration: int) -> list[tuple[int, str, float]]:
        """(id, emotion, reward) of the self-play samples of an iteration, in order of insertion."""
        rows = self.rows(
            "SELECT id, emotion, reward FROM samples WHERE source = 'selfplay' AND iteration = ? "
            "ORDER BY id",
            iteration,
        )
        return [(r["id"], r["emotion"], r["reward"]) for r in rows]

    def mark_used(self, used: Mapping[int, bool]) -> None:
        """Set which samples, by id, the next refit uses."""
        with self.transaction():
            self.db.executemany(
                "UPDATE samples SET used = ? WHERE id = ?", [(int(u), i) for i, u in used.items()]
            )

    def stage_metrics(self, stage: str) -> list[dict[str, Any]]:
        """The metrics of a stage, in order."""
        return [m for m in self.metrics() if m["stage"] == stage]

    # -- rollouts and samples ---------------------------------------------------------------------

    def add_group(self, group: RolloutGroup, place: Place, best: int, verdict: str) -> None:
        """Insert a scored group; `verdict` is what the gate said of member `best`."""
        self.add_rollout_rows(
            (
                place.stage, place.step, place.iteration, group.prompt.id, i, r.sample.text,
                len(r.sample.token_ids),
                None if r.completion else f"{r.parsed.kind.value}",  # type: ignore[union-attr]
                _dist(r.completion.emotion if r.completion else None),
                _dist(r.completion.self_emotion if r.completion else None),
                r.completion.reply if r.completion else None,
                r.r1, r.r2, r.advantage, r.sample.mean_logprob, r.sample.mean_entropy,
                int(i == best), verdict if i == best else None,
            )
            for i, r in enumerate(group.rollouts)
        )  # fmt: skip

    def add_rollout_rows(self, rows: Iterable[Sequence[Any]]) -> None:
        """Insert rollouts: all columns but the id, in the table's order."""
        self.db.executemany(
            "INSERT INTO rollouts (stage, step, iteration, prompt, member, text, tokens, failure, "
            "emotion, self_emotion, reply, r1, r2, advantage, mean_logprob, entropy, best, gate) "
            "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            rows,
        )

    def best_of_groups(self, stage: str) -> Iterator[tuple[str, float]]:
        """(prompt, largest R1 of its rollouts) of a stage, as a stream."""
        yield from self.db.execute(
            "SELECT prompt, max(r1) FROM rollouts WHERE stage = ? GROUP BY prompt", (stage,)
        )

    def last_step(self, stage: str) -> int | None:
        """The last step of a stage that wrote rollouts."""
        found = self.rows("SELECT max(step) FROM rollouts WHERE stage = ?", stage)
        return None if found[0][0] is None else int(found[0][0])

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
        """Add to the SFT set; false if an equal sample is in it already."""
        done = self.db.execute(
            "INSERT OR IGNORE INTO samples (stage, step, iteration, source, prompt, completion, "
            "emotion, reward, fingerprint) VALUES (?,?,?,?,?,?,?,?,?)",
            (
                place.stage, place.step, place.iteration, source, prompt.id, completion, emotion,
                reward, fingerprint,
            ),
        )  # fmt: skip
        return done.rowcount > 0

    def samples_of_stage(self, stage: str) -> int:
        """How many SFT samples a stage added."""
        (kept,) = self.rows("SELECT count(*) FROM samples WHERE stage = ?", stage)
        return int(kept[0])

    def samples(self, *, used: bool = True) -> list[tuple[sqlite3.Row, Prompt]]:
        """(sample, its prompt) in order of insertion."""
        return [
            (row, self.prompt(row["prompt"]))
            for row in self.rows(
                f"SELECT * FROM samples {'WHERE used = 1' if used else ''} ORDER BY id"
            )
        ]

    # -- predictions and metrics ------------------------------------------------------------------

    def add_predictions(self, rows: Iterable[Sequence[Any]]) -> None:
        """(evaluation, prompt, dataset, conversation, gold, predicted, failure, r1, text) each."""
        self.db.executemany("INSERT OR REPLACE INTO predictions VALUES (?,?,?,?,?,?,?,?,?)", rows)

    def add_metrics(self, place: Place, record: dict[str, Any]) -> None:
        """Add the measures of one step."""
        self.db.execute(
            "INSERT INTO metrics (stage, step, record) VALUES (?,?,?)",
            (place.stage, place.step, json.dumps(record)),
        )

    def metrics(self) -> list[dict[str, Any]]:
        return [
            {"stage": r["stage"], "step": r["step"], **json.loads(r["record"])}
            for r in self.rows("SELECT * FROM metrics ORDER BY id")
        ]

    def write_metrics(self, path: Path) -> None:
        """All metrics as JSONL, replaced as a whole."""
        write_text(path, "".join(json.dumps(m) + "\n" for m in self.metrics()))

    # -- experts and personas ---------------------------------------------------------------------

    def answer(self, key: str) -> Answer | None:
        """What an expert answered to the question of this key, if it was asked."""
        found = self.rows(
            "SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?", key
        )
        return Answer(*found[0]) if found else None

    def add_answer(
        self, key: str, answer: Answer, purpose: str, item: str, expert: str, model: str
    ) -> None:
        """Keep an answer; committed at once, since it may have been paid for."""
        with self.transaction():
            self.db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?,?,?,?)",
                (
                    key, purpose, item, expert, model, answer.text, answer.prompt_tokens,
                    answer.completion_tokens,
                ),
            )  # fmt: skip

    def add_failure(
        self, purpose: str, item: str, expert: str, kind: str, detail: str, rounds: int
    ) -> None:
        with self.transaction():
            self.db.execute(
                "INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?)",
                (purpose, item, expert, kind, detail, rounds),
            )

    def clear_failure(self, purpose: str, item: str) -> None:
        """Forget a failure that was made good."""
        with self.transaction():
            self.db.execute("DELETE FROM failures WHERE purpose = ? AND item = ?", (purpose, item))

    def failed_rounds(self, purpose: str) -> dict[str, int]:
        """Items that failed, with the rounds of questions each has had."""
        rows = self.rows("SELECT item, rounds FROM failures WHERE purpose = ?", purpose)
        return {r["item"]: r["rounds"] for r in rows}

    def add_personas(self, rows: Iterable[Sequence[Any]]) -> None:
        """Insert or replace persona records, in the order of the table's columns."""
        self.db.executemany(
            "INSERT OR REPLACE INTO personas VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", rows
        )

    def set_profiles(self, rows: Iterable[Sequence[Any]]) -> None:
        """Replace all profiles: (dataset, scope, speaker, description, made_by, segments) each."""
        with self.transaction():
            self.db.execute("DELETE FROM profiles")
            self.db.executemany("INSERT INTO profiles VALUES (?,?,?,?,?,?)", rows)

    def set_clusters(self, rows: Iterable[Sequence[Any]]) -> None:
        """Replace the clusters: (description, cluster or -1 for noise, name, x, y) each."""
        with self.transaction():
            self.db.execute("DELETE FROM persona_clusters")
            self.db.executemany("INSERT INTO persona_clusters VALUES (?,?,?,?,?)", rows)

    def reward_by_cluster(self) -> list[sqlite3.Row]:
        """Table 3: mean R1 of the rollouts by the cluster of their persona, and of each stage.

        Columns: name, stage, rollouts, r1.
        """
        return self.rows(
            "SELECT c.name, r.stage, count(*) AS rollouts, avg(r.r1) AS r1 FROM rollouts r "
            "JOIN prompts p ON p.id = r.prompt "
            "JOIN persona_clusters c ON c.description = json_extract(p.persona, '$[1]') "
            "WHERE c.cluster >= 0 GROUP BY c.cluster, r.stage ORDER BY count(*) DESC, r.stage"
        )

    def export(self, table: str, path: Path) -> int:
        """Write one table to Parquet; returns its rows."""
        if table not in ("prompts", "rollouts", "samples", "predictions", "personas", "profiles"):
            raise StoreError(f"no table {table!r} to export")
        pl = need_polars()
        rows = self.rows(f"SELECT * FROM {table}")
        frame = pl.DataFrame([dict(r) for r in rows], infer_schema_length=None)
        frame.write_parquet(path)
        return len(rows)

    # -- export -----------------------------------------------------------------------------------
    # Streams of rows: tuples in the order of the table's columns. Read them inside one `snapshot`.

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read inside is of one moment, whatever another process writes meanwhile."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.rollback()

    def stream(self, query: str, *args: Any) -> Iterator[tuple[Any, ...]]:
        """The rows of a query one by one, as tuples."""
        cursor = self.db.cursor()
        cursor.row_factory = None
        yield from cursor.execute(query, args)

    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table in order, each with its SQL type."""
        return {r["name"]: r["type"] for r in self.rows(f"PRAGMA table_info({table})")}

    def rollout_count(self, up_to: int | None = None) -> int:
        """How many rollouts there are, of all or of those up to an id."""
        query = "SELECT count(*) FROM rollouts WHERE ?1 IS NULL OR id <= ?1"
        return int(self.rows(query, up_to)[0][0])

    def rollout_row(self, rollout: int) -> tuple[Any, ...] | None:
        """One rollout by its id, or None."""
        return next(self.stream("SELECT * FROM rollouts WHERE id = ?", rollout), None)

    def rollout_rows(self, after: int = 0) -> Iterator[tuple[Any, ...]]:
        """The rollouts behind an id, in order."""
        return self.stream("SELECT * FROM rollouts WHERE id > ? ORDER BY id", after)

    def prompt_rows(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """The prompts of some ids, in that order.

        Raises:
            StoreError: one of them is not there.
        """
        found: dict[str, tuple[Any, ...]] = {}
        for start in range(0, len(ids), 500):  # SQLite takes a limited number of values
            part = ids[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = self.stream(f"SELECT * FROM prompts WHERE id IN ({marks})", *part)
            found.update((r[0], r) for r in rows)
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

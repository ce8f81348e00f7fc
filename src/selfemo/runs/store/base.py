"""The file of a store: opening, checking, transactions, copies."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from selfemo.errors import DamagedStoreError, StoreError
from selfemo.files import replacing
from selfemo.runs.store.schema import SCHEMA, SCHEMA_VERSION, UPGRADES


class Database:
    """An open store file, as a context manager; `db`, `rows` and `stream` are for this package alone."""

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
                self.db.executescript(SCHEMA)
                self.db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
                self.db.commit()
                self._upgrade()
            found = self._version()
        except (sqlite3.Error, OSError) as e:
            self._raise_if_damaged(e)
            raise StoreError(f"{path}: cannot be used as a run's store: {e}") from e
        if found not in {str(v) for v in (SCHEMA_VERSION, *(UPGRADES if read_only else ()))}:
            raise StoreError(f"{path}: store version {found}, need {SCHEMA_VERSION}")
        self.db.row_factory = sqlite3.Row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; uncommitted writes are lost."""
        self.db.close()

    def _check(self) -> None:
        faults = [r[0] for r in self.db.execute("PRAGMA quick_check(3)")]
        if faults != ["ok"]:
            self.db.close()
            told = "; ".join(" ".join(f.split()) for f in faults)
            raise DamagedStoreError(f"{self.path}: is damaged: {told[:300]}")

    def _version(self) -> str | None:
        row = self.db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        return None if row is None else str(row[0])

    def _upgrade(self) -> None:
        """Bring a store of an older version up to date, one version at a time, each as a whole."""
        for old, statement in UPGRADES.items():
            if self._version() == str(old):
                with self.db:
                    self.db.execute("BEGIN IMMEDIATE")
                    self.db.execute(statement)
                    self.db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(old + 1),))

    def _raise_if_damaged(self, e: Exception) -> None:
        code = getattr(e, "sqlite_errorcode", None)  # only errors of the library have one
        if code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DamagedStoreError(f"{self.path}: is damaged: {e}") from e

    @contextmanager
    def _told(self, more: str = "") -> Iterator[None]:
        """Turn an error of SQLite into one that names the file."""
        try:
            yield
        except sqlite3.Error as e:
            self._raise_if_damaged(e)
            raise StoreError(f"{self.path}: {e}{more}") from e

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside happen together or not at all (StoreError: the disk is full, or read-only)."""
        with self._told("; what was committed before is kept"), self.db:
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads inside see the store of one moment, whatever another process writes meanwhile."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.rollback()

    def rows(self, query: str, *args: Any) -> list[sqlite3.Row]:
        """All rows of a query; columns by name or index."""
        with self._told():
            return self.db.execute(query, args).fetchall()

    def stream(self, query: str, *args: Any) -> Iterator[Any]:
        """The rows of a query one by one, as tuples."""
        cursor = self.db.cursor()
        cursor.row_factory = None
        with self._told():
            yield from cursor.execute(query, args)

    def dicts(self, query: str, *args: Any) -> list[Any]:
        """The rows of a query as dicts, for the typed rows of each subject."""
        return [dict(r) for r in self.rows(query, *args)]

    def value(self, query: str, *args: Any) -> Any:
        """The first value of a query's first row, or None if it has no row."""
        found = self.rows(query, *args)
        return found[0][0] if found else None

    def backup(self, path: Path) -> None:
        """Replace `path` by a copy, as a whole (StoreError: the disk is full; the copy before stays)."""
        fault = "the copy of the store could not be written"
        with replacing(path, also=(sqlite3.Error,), fault=fault) as staging:
            self.copy_to(staging, journal=False)  # an incomplete copy is thrown away

    def copy_to(self, path: Path, *, journal: bool = True) -> None:
        """Copy all that is committed into a new store."""
        with closing(sqlite3.connect(path)) as other:
            if not journal:
                other.execute("PRAGMA journal_mode = OFF")
            self.db.backup(other)

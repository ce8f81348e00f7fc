"""The file of a store: opening, checking, transactions, copies."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Self

from selfemo.config import JournalMode
from selfemo.errors import DamagedStoreError, StoreError
from selfemo.files import locks_by_files, replacing
from selfemo.runs.store.schema import SCHEMA, SCHEMA_VERSION, UPGRADES

_WAIT = 300_000
"""Milliseconds that a commit waits for readers, which hold it up unless the journal is WAL."""
_NO_LOCKS = {
    "SQLITE_IOERR_LOCK", "SQLITE_IOERR_RDLOCK", "SQLITE_IOERR_UNLOCK", "SQLITE_IOERR_CHECKRESERVEDLOCK",
    "SQLITE_PERM",
}  # fmt: skip
_NO_WAL = {"SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMMAP", "SQLITE_IOERR_SHMLOCK", "SQLITE_PROTOCOL"}
_BY_FILES = "set the environment variable SELFEMO_LOCKS=file (docs/reliability.md)"


def _advice(e: Exception) -> str:
    """What to do about an error of SQLite that may come of the file system: the end of its message."""
    name = getattr(e, "sqlite_errorname", None) or ""
    if name in _NO_WAL:
        return (
            "; its file system shares no memory, as the journal mode WAL needs: --set "
            f"store.journal_mode=delete, or, for commands without --set, {_BY_FILES}"
        )
    if name in _NO_LOCKS:
        return f"; its file system gives no locks: use a local disk, or {_BY_FILES}"
    if name.startswith("SQLITE_BUSY"):
        return f"; another process uses it, or, where none does, its file system gives no locks: {_BY_FILES}"
    if name == "SQLITE_READONLY_ROLLBACK":
        return (
            "; a process is writing it, or was killed while it wrote: read it later, or resume what wrote it"
        )
    return ""


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection that locks by the system; by nothing where a file locks the folder."""
    uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    return sqlite3.connect(uri + ("&vfs=unix-none" if locks_by_files() else ""), uri=True)


class Database:
    """An open store file, as a context manager; `db`, `rows` and `stream` are for this package alone.

    Args:
        journal: the mode that the file is to have; None leaves it, and gives a new file WAL.
    """

    def __init__(self, path: Path, *, read_only: bool = False, journal: JournalMode | None = None):
        self.path = path
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            elif not locks_by_files():
                self._end_killed_commit()
            with ExitStack() as opened:
                self.db = opened.enter_context(closing(_connect(path, read_only=read_only)))
                self._open(read_only, journal)
                opened.pop_all()  # what fails is closed, so that it locks no more
        except (sqlite3.Error, OSError) as e:
            self._raise_if_damaged(e)
            raise StoreError(f"{path}: cannot be used as a run's store: {e}{_advice(e)}") from e
        self.db.row_factory = sqlite3.Row

    def _open(self, read_only: bool, journal: JournalMode | None) -> None:
        if read_only:
            self._share_nothing(locks_by_files())
            self._check()
        else:
            self._open_journal("delete" if locks_by_files() and journal in (None, "wal") else journal)
            self.db.executescript(SCHEMA)
            self.db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
            self.db.commit()
            self._upgrade()
        found = self._version()
        if found not in {str(v) for v in (SCHEMA_VERSION, *(UPGRADES if read_only else ()))}:
            raise StoreError(f"{self.path}: store version {found}, need {SCHEMA_VERSION}")

    def _share_nothing(self, yes: bool) -> None:
        """Whether the connection has the file for itself: then WAL needs no shared memory."""
        self.db.execute(f"PRAGMA locking_mode = {'EXCLUSIVE' if yes else 'NORMAL'}")

    def _open_journal(self, asked: JournalMode | None) -> None:
        """Check the file and give it a journal mode (StoreError: its file system has no such mode)."""
        # A file in WAL mode that comes to a file system without shared memory can still be converted.
        self._share_nothing(asked not in (None, "wal"))
        self._check()
        (pages,), (found,) = (
            self.db.execute(f"PRAGMA {p}").fetchone() for p in ("page_count", "journal_mode")
        )
        mode = asked or (found if pages else "wal")
        (kept,) = self.db.execute(f"PRAGMA journal_mode = {mode}").fetchone()
        if kept != mode:
            raise StoreError(
                f"{self.path}: SQLite keeps no {mode} journal on this file system, but {kept}: --set "
                f"store.journal_mode={kept}, or, for commands without --set, {_BY_FILES}"
            )
        self._share_nothing(False)
        # Without WAL, NORMAL could leave a damaged file where the power fails.
        self.synchronous = "NORMAL" if mode == "wal" else "FULL"
        self.db.execute(f"PRAGMA synchronous = {self.synchronous}")
        if mode != "wal":
            self.db.execute(f"PRAGMA busy_timeout = {_WAIT}")

    def _end_killed_commit(self) -> None:
        """Undo the commit that a process was killed in, where the journal rolls back: a reader cannot."""
        journal = self.path.with_name(self.path.name + "-journal")
        if not journal.exists() or not os.access(self.path, os.W_OK):
            return
        # Where the process still lives its lock says so, and nothing is undone.
        with closing(_connect(self.path)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()

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
            raise StoreError(f"{self.path}: {e}{_advice(e)}{more}") from e

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
        with closing(_connect(path)) as other:
            if not journal:
                other.execute("PRAGMA journal_mode = OFF")
            self.db.backup(other)

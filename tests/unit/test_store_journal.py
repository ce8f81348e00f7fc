"""The journal of a store: its modes, kills inside a commit, and file systems without WAL or locks."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import pytest

from selfemo.config import JournalMode, load
from selfemo.errors import ConfigError, StoreError
from selfemo.method.types import Place
from selfemo.runs.folder import RunFolder
from selfemo.runs.store import Store

MODES = get_args(JournalMode)
ROLLBACK = [m for m in MODES if m != "wal"]
PLACE = Place("cold-start", 0, 0)
WRITER = """
import sys
import tempfile
from pathlib import Path
from selfemo.method.types import Place
from selfemo.runs.folder import RunFolder
from selfemo.runs.store import Store

store = Store(Path(sys.argv[1]), journal=sys.argv[2])
store.db.execute("PRAGMA cache_size = 5")
with store.transaction():
    for n in range(int(sys.argv[3])):
        store.add_metrics(Place("cold-start", 1, 0), {"unfinished": "x" * 3000})
    print("written", flush=True)
    sys.stdin.readline()
print(len(store.metrics()), flush=True)
"""
"""Writes so many rows; hundreds are more than its cache holds, so that the file itself is changed before the
commit."""


def header(path: Path) -> str:
    """What the file says of its journal: WAL is kept in it, the other modes are those of a connection."""
    return "wal" if path.read_bytes()[18:20] == b"\2\2" else "rollback"


def filled(path: Path, mode: JournalMode | None = None) -> Path:
    with Store(path, journal=mode) as store, store.transaction():
        store.add_metrics(PLACE, {"loss": 1.5})
    return path


def losses(path: Path) -> list[float]:
    with Store(path, read_only=True) as store:
        return [m["loss"] for m in store.metrics()]


def writer(path: Path, mode: str, rows: int = 300) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), mode, str(rows)], stdin=-1, stdout=-1, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("mode", MODES)
def test_a_store_keeps_the_journal_that_is_asked_for(mode: JournalMode, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with Store(path, journal=mode) as store:
        assert store.value("PRAGMA journal_mode") == mode
        # FULL is 2, NORMAL is 1; a stage's own row goes further and leaves the level as it was.
        level = store.value("PRAGMA synchronous")
        assert level == (1 if mode == "wal" else 2)
        store.set_stage("cold-start", "running")
        assert store.value("PRAGMA synchronous") == level
        with store.transaction():
            store.add_metrics(PLACE, {"loss": 0.25})
        assert losses(path) == [0.25], "others read it while it is open"
        store.backup(tmp_path / "copy.sqlite")
    assert losses(path) == losses(tmp_path / "copy.sqlite") == [0.25]
    assert header(path) == header(tmp_path / "copy.sqlite") == ("wal" if mode == "wal" else "rollback")


@pytest.mark.parametrize("after", MODES)
@pytest.mark.parametrize("before", MODES)
def test_a_store_of_another_journal_is_converted_with_all_its_rows(
    before: JournalMode, after: JournalMode, tmp_path: Path
) -> None:
    path = filled(tmp_path / "store.sqlite", before)
    with Store(path, journal=after) as store:
        assert store.value("PRAGMA journal_mode") == after
        assert store.value("PRAGMA locking_mode") == "normal"
    assert losses(path) == [1.5]


def test_a_new_store_has_wal_and_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.sqlite")
    assert header(path) == "wal"
    filled(path, "delete")
    filled(path)
    assert header(path) == "rollback" and losses(path) == [1.5] * 3


def test_a_store_that_is_read_is_not_converted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "store.sqlite")
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k, timeout=0.1))
    with Store(path, read_only=True) as reader, reader.snapshot():
        assert reader.metrics()
        with pytest.raises(StoreError, match=r"database is locked; another process uses it, or"):
            Store(path, journal="delete")
    assert header(path) == "wal"
    with Store(path, journal="delete"):
        pass
    assert header(path) == "rollback"


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_sees_what_was_committed_before_a_commit_that_was_killed(mode: str, tmp_path: Path) -> None:
    path = filled(tmp_path / "store.sqlite")
    process = writer(path, mode, 1)
    assert losses(path) == [1.5], "while it is written"
    assert process.communicate("go\n")[0] == "2\n", "the reader undid nothing of a living process"

    path = filled(tmp_path / "killed.sqlite")
    killed(writer(path, mode))
    if mode != "wal":
        assert (tmp_path / "killed.sqlite-journal").stat().st_size > 512, "it was inside its commit"
    assert losses(path) == [1.5]
    with Store(path, journal=mode) as store:  # type: ignore[arg-type]
        assert len(store.metrics()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of root for a moment")
def test_a_reader_without_the_right_to_undo_says_who_can() -> None:
    with tempfile.TemporaryDirectory() as home:  # pytest's own folder is closed to others
        Path(home).chmod(0o755)
        path = filled(Path(home) / "store.sqlite")
        killed(writer(path, "delete"))
        for file in Path(home).iterdir():
            file.chmod(0o444)
        os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match=r"was killed while it wrote: read it later, or resume"):
                Store(path, read_only=True)
        finally:
            os.seteuid(0)


def test_a_commit_waits_for_a_reader_where_the_journal_rolls_back(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.sqlite", "delete")
    reader = subprocess.Popen(
        [sys.executable, "-c", "import sqlite3, sys, time\ndb = sqlite3.connect(sys.argv[1])\n"
         "db.execute('BEGIN')\ndb.execute('SELECT count(*) FROM metrics').fetchall()\nprint(flush=True)\n"
         "time.sleep(6)\nprint(time.time(), flush=True)\ndb.close()", str(path)], stdout=-1, text=True,
    )  # fmt: skip
    assert reader.stdout is not None
    reader.stdout.readline()
    filled(path, "delete")  # longer than the five seconds that SQLite waits by itself
    reader.communicate()
    assert losses(path) == [1.5, 1.5]


def test_a_file_system_without_wal_is_told_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite3.connect
    # SQLite itself refuses WAL to a connection that can share no memory.
    monkeypatch.setattr(sqlite3, "connect", lambda file, **k: real(f"{file}&nolock=1", **k))
    path = tmp_path / "store.sqlite"
    for mode in (None, "wal"):
        with pytest.raises(StoreError) as told:
            Store(path, journal=mode)
        assert str(told.value) == (
            f"{path}: SQLite keeps no wal journal on this file system, but delete: --set "
            "store.journal_mode=delete, or, for commands without --set, set the environment variable "
            "SELFEMO_LOCKS=file (docs/reliability.md)"
        )
    for mode in ROLLBACK:
        filled(path, mode)
    assert losses(path) == [1.5] * len(ROLLBACK)


class Failing(sqlite3.Connection):
    """A connection on a file system that fails one kind of statement, as SQLite names that failure."""

    name = text = begins = ""

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
        if sql.startswith(self.begins):
            error = sqlite3.OperationalError(self.text)
            error.sqlite_errorname, error.sqlite_errorcode = self.name, 10
            raise error
        return super().execute(sql, *args)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "begins", "advice"),
    [
        ("SQLITE_PROTOCOL", "locking protocol", "PRAGMA journal_mode", "--set store.journal_mode=delete"),
        ("SQLITE_IOERR_SHMMAP", "disk I/O error", "INSERT", "--set store.journal_mode=delete"),
        ("SQLITE_IOERR_SHMLOCK", "disk I/O error", "PRAGMA quick_check", "--set store.journal_mode=delete"),
        ("SQLITE_IOERR_LOCK", "disk I/O error", "PRAGMA quick_check", "SELFEMO_LOCKS=file"),
        ("SQLITE_IOERR_RDLOCK", "disk I/O error", "PRAGMA quick_check", "SELFEMO_LOCKS=file"),
        ("SQLITE_BUSY", "database is locked", "INSERT", "SELFEMO_LOCKS=file"),
        ("SQLITE_IOERR_WRITE", "disk I/O error", "INSERT", ""),
        ("SQLITE_FULL", "database or disk is full", "INSERT", ""),
    ],
)
def test_an_error_that_a_file_system_may_be_the_reason_of_names_the_way_round(
    name: str, text: str, begins: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda file, **k: real(file, **k, factory=Failing))
    monkeypatch.setattr(Failing, "name", name)
    monkeypatch.setattr(Failing, "text", text)
    monkeypatch.setattr(Failing, "begins", begins)
    with pytest.raises(StoreError) as told:
        filled(tmp_path / "store.sqlite")
    said = str(told.value)
    assert text in said and str(tmp_path) in said
    assert advice in said if advice else "store.journal_mode" not in said and "SELFEMO" not in said


def test_where_files_lock_the_store_takes_no_lock_and_needs_no_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "store.sqlite")
    killed(writer(path, "wal"))  # its log is still beside the file
    assert (tmp_path / "store.sqlite-wal").exists()
    (tmp_path / "store.sqlite-shm").unlink()
    monkeypatch.setenv("SELFEMO_LOCKS", "file")
    assert losses(path) == [1.5] and header(path) == "wal"
    other = sqlite3.connect(path)
    with Store(path, journal="wal") as store:
        assert store.value("PRAGMA journal_mode") == "delete" and header(path) == "rollback"
        other.execute("BEGIN EXCLUSIVE")  # would keep out whoever asks the system for locks
        with store.transaction():
            store.add_metrics(PLACE, {"loss": 2.5})
        store.backup(tmp_path / "copy.sqlite")
    other.close()
    assert losses(path) == losses(tmp_path / "copy.sqlite") == [1.5, 2.5]
    assert not (tmp_path / "store.sqlite-wal").exists()
    filled(tmp_path / "new.sqlite")
    assert header(tmp_path / "new.sqlite") == "rollback"
    # Without locks a reader cannot tell a living writer from a killed one, so it does nothing.
    process = writer(path, "delete")
    with pytest.raises(StoreError, match="a process is writing it, or was killed while it wrote"):
        losses(path)
    killed(process)
    with Store(path) as store:
        assert [m["loss"] for m in store.metrics()] == [1.5, 2.5]


def test_the_setting_is_read_and_checked() -> None:
    assert load([], []).store.journal_mode == "wal"
    assert load([], ["store.journal_mode=truncate"]).store.journal_mode == "truncate"
    with pytest.raises(
        ConfigError, match=r"store\.journal_mode: Input should be 'wal', 'delete', 'truncate'"
    ):
        load([], ["store.journal_mode=memory"])


def test_a_copy_of_a_folder_killed_in_a_commit_is_the_same_run(tmp_path: Path) -> None:
    """A copy of the file and its journal, as `cp -r` makes it, is undone like the original."""
    (tmp_path / "a").mkdir()
    path = filled(tmp_path / "a/store.sqlite")
    killed(writer(path, "truncate"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "b/store.sqlite") == losses(path) == [1.5]


def test_a_run_takes_its_journal_from_its_settings_and_may_change_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunFolder(folder, load([], ["store.journal_mode=delete"])) as run:
        assert run.store.value("PRAGMA journal_mode") == "delete"
    with RunFolder(folder) as run:
        assert run.store.value("PRAGMA journal_mode") == "delete"
    with RunFolder(folder, overrides=["store.journal_mode=wal"]) as run:
        assert run.store.value("PRAGMA journal_mode") == "wal"
    with RunFolder(folder) as run:
        assert run.store.value("PRAGMA journal_mode") == "wal"


def test_the_journal_of_a_lost_store_is_put_aside(tmp_path: Path) -> None:
    """It would be rolled back into the copy that takes the store's place."""
    folder = tmp_path / "run"
    with RunFolder(folder, load([], ["store.journal_mode=delete"])) as run, run.store.transaction():
        run.store.add_metrics(PLACE, {"loss": 1.5})
    path = folder / "store.sqlite"
    killed(writer(path, "delete"))
    journal = (folder / "store.sqlite-journal").read_bytes()
    path.unlink()
    filled(folder / "store.backup.sqlite", "delete")
    with RunFolder(folder) as run:
        assert [m["loss"] for m in run.store.metrics()] == [1.5]
    (aside,) = folder.glob("damaged-*-store.sqlite-journal")
    assert aside.read_bytes() == journal

"""Files and folders that are replaced as a whole, or stay as they were."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo import files
from selfemo.errors import ConfigError, DataError, EngineError, InUseError, StoreError
from selfemo.extras import install_command
from selfemo.files import (
    fits_checksum,
    lock_folder,
    replacing,
    replacing_folder,
    sha256,
    write_json,
    write_rows,
    write_text,
)

OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of the bytes "abc" (FIPS 180-2, appendix B.1)."""


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_text_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one \N{GREEK SMALL LETTER ALPHA}")
    write_text(path, "two")
    assert path.read_bytes() == b"two" and names(path.parent) == ["a.txt"]
    write_json(path, {"k": [1, None]})
    assert json.loads(path.read_text()) == {"k": [1, None]}


@pytest.mark.parametrize("kind", [StoreError, DataError, EngineError])
def test_a_full_disk_keeps_the_file_that_was(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sums = tmp_path / "a.bin", tmp_path / "a.sha256"
    with replacing(path, checksum=sums) as staging:
        staging.write_bytes(b"abc")
    monkeypatch.setattr(files, "sync", full)
    with (
        pytest.raises(kind, match=r"a\.bin: cannot be written \(No space left.*before is kept"),
        replacing(path, kind, checksum=sums) as staging,  # type: ignore[arg-type]
    ):
        staging.write_bytes(b"other")
    assert path.read_bytes() == b"abc" and fits_checksum(path, sums)
    assert names(tmp_path) == ["a.bin", "a.sha256"]


def test_nothing_is_said_to_be_kept_of_a_file_that_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sync", full)
    says = r"new: cannot be written \(No space left.*\); nothing was written"
    with pytest.raises(StoreError, match=says):
        write_text(tmp_path / "new", "a")
    with pytest.raises(StoreError, match=says), replacing_folder(tmp_path / "new") as staging:
        (staging / "a").write_text("a")
    assert not names(tmp_path)


def test_an_error_that_is_not_of_the_disk_keeps_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(KeyError), replacing(path) as staging:
        staging.write_text("half")
        raise KeyError("mine")
    with pytest.raises(StoreError, match=r"a\.txt: is full \(mine\); so"):  # noqa: SIM117
        with replacing(path, also=(ValueError,), fault="is full", kept="so"):
            raise ValueError("mine")
    assert path.read_text() == "before" and names(tmp_path) == ["a.txt"]


def test_the_checksum_is_that_of_the_file_as_sha256sum_reads_it(tmp_path: Path) -> None:
    path, sums = tmp_path / "a.bin", tmp_path / "a.bin.sha256"
    with replacing(path, checksum=sums) as staging:
        staging.write_bytes(b"abc")
    assert sha256(path) == OF_ABC
    assert sums.read_text() == f"{OF_ABC}  a.bin\n" and fits_checksum(path, sums)
    path.write_bytes(b"abd")
    assert not fits_checksum(path, sums)
    with replacing(path, checksum=sums) as staging:
        staging.write_bytes(b"abd")
    assert fits_checksum(path, sums)


def test_a_folder_is_replaced_with_its_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "up" / "model"
    for content in (b"old", b"abc"):
        with replacing_folder(folder, checksums="sums.json") as staging:
            assert staging.parent == folder.parent and staging.name.startswith(".model-")
            (staging / content.decode()).write_bytes(content)
    assert names(folder) == ["abc", "sums.json"] and names(folder.parent) == ["model"]
    assert json.loads((folder / "sums.json").read_text()) == {"abc": OF_ABC}


def test_a_folder_that_cannot_be_filled_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    with replacing_folder(folder) as staging:
        (staging / "a").write_text("before")
    with pytest.raises(ZeroDivisionError), replacing_folder(folder):
        raise ZeroDivisionError
    monkeypatch.setattr(files, "sync", full)
    with (
        pytest.raises(EngineError, match=r"model: cannot be written \(No space left"),
        replacing_folder(folder, EngineError) as staging,
    ):
        (staging / "b").write_text("half")
    assert names(folder) == ["a"] and names(tmp_path) == ["model"]
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EngineError, match=r"inside: .*Not a directory|inside: .*exists"),
        replacing_folder(tmp_path / "file" / "inside", EngineError),
    ):
        raise AssertionError("the block must not begin")


def test_a_folder_that_another_process_finished_first_stays(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing_folder(folder, unless="done") as staging:
        (staging / "mine").write_text("")
        folder.mkdir()
        (folder / "done").write_text("theirs")
    assert names(folder) == ["done"] and names(tmp_path) == ["model"]
    (folder / "done").unlink()
    with replacing_folder(folder, unless="done") as staging:
        (staging / "mine").write_text("")
    assert names(folder) == ["mine"]


def test_rows_are_written_in_order_and_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl = pytest.importorskip("polars")
    path, said = tmp_path / "r.parquet", []
    write_rows(path, [{"a": 2, "b": "x"}, {"a": 1, "b": "y"}], ("a",), said.append)
    assert pl.read_parquet(path).rows() == [(1, "y"), (2, "x")] and not said
    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(StoreError, match=r"r\.parquet: cannot be written \(No space left"):
        write_rows(path, [{"a": 3}], ("a",), said.append)
    assert pl.read_parquet(path).height == 2 and names(tmp_path) == ["r.parquet"]
    monkeypatch.setitem(sys.modules, "polars", None)
    write_rows(tmp_path / "s.parquet", [], (), said.append)
    assert said == [f"no s.parquet: it needs polars ({install_command('polars')})"]


@pytest.fixture(params=["system", "file"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of lock in turn."""
    monkeypatch.setenv("SELFEMO_LOCKS", request.param)
    return str(request.param)


ENTER = """
import sys
from pathlib import Path
from selfemo.files import lock_folder

held = lock_folder(Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


def entering(folder: Path) -> subprocess.Popen[str]:
    """Another process that locks a folder, says so by an empty line, and waits."""
    return subprocess.Popen(
        [sys.executable, "-c", ENTER, str(folder)], stdin=-1, stdout=-1, stderr=-1, text=True
    )


def test_one_process_at_a_time_enters_a_folder(locks: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with lock_folder(folder):
        assert "is in use by" in entering(folder).communicate()[1]
        with pytest.raises(InUseError, match="is in use by"):
            lock_folder(folder)
    lock_folder(folder).close()
    assert entering(folder).communicate()[1] == "", "free again"


def test_a_killed_process_locks_no_more(locks: str, tmp_path: Path) -> None:
    holder = entering(tmp_path)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(InUseError) as told:
        lock_folder(tmp_path)
    if locks == "file":
        assert str(told.value) == (
            f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}; if that has ended, "
            f"delete {tmp_path / '.lock.pid'}"
        )
    holder.kill()
    holder.communicate()
    lock_folder(tmp_path).close()


def test_the_file_of_another_host_is_left_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFEMO_LOCKS", "file")
    left = tmp_path / ".lock.pid"
    left.write_text("999999\nanother-node\n")
    with pytest.raises(
        InUseError, match=rf"by process 999999 on another-node; if that has ended, delete {left}"
    ):
        lock_folder(tmp_path)
    left.write_text("")  # of a process that was killed before it wrote its name
    with pytest.raises(InUseError, match=rf"in use by another process; if that has ended, delete {left}"):
        lock_folder(tmp_path)
    left.unlink()
    lock_folder(tmp_path).close()
    assert not left.exists()


@pytest.mark.parametrize("number", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EACCES", "EPERM"])
def test_a_file_system_without_locks_is_not_called_in_use(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = getattr(errno, number)

    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(StoreError) as told:
        lock_folder(tmp_path)
    assert not isinstance(told.value, InUseError)
    assert str(told.value).startswith(f"{tmp_path}: its file system gives no locks ({os.strerror(code)}), ")
    assert "use a folder on a local disk, or set the environment variable SELFEMO_LOCKS=file" in str(
        told.value
    )
    monkeypatch.setenv("SELFEMO_LOCKS", "file")
    lock_folder(tmp_path).close()


def test_a_lock_held_by_another_process_is_called_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: object) -> None:
        raise OSError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))

    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(InUseError, match="is in use by another process"):
        lock_folder(tmp_path)


def test_a_kind_of_lock_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFEMO_LOCKS", "none")
    with pytest.raises(ConfigError, match="SELFEMO_LOCKS is 'none'; valid are system and file"):
        lock_folder(tmp_path)
    monkeypatch.setenv("SELFEMO_LOCKS", "")
    lock_folder(tmp_path).close()


def test_a_folder_that_cannot_be_flushed_is_left_to_its_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failing = os.fsync, {"code": errno.EINVAL}

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(failing["code"], os.strerror(failing["code"]))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a", "one")
    assert (tmp_path / "a").read_text() == "one"
    failing["code"] = errno.EIO
    with pytest.raises(StoreError, match="Input/output error"):
        write_text(tmp_path / "b", "two")

"""Files and folders that are replaced as a whole, or stay as they were."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo import files
from selfemo.errors import DataError, EngineError, StoreError
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


def test_a_locked_folder_keeps_other_processes_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    enter = [sys.executable, "-c", "import sys, pathlib\nfrom selfemo.files import lock_folder\n"
             "lock_folder(pathlib.Path(sys.argv[1]))", str(folder)]  # fmt: skip
    with lock_folder(folder):
        held = subprocess.run(enter, capture_output=True, text=True, check=False)
    assert "is in use by another process" in held.stderr
    assert subprocess.run(enter, check=False).returncode == 0

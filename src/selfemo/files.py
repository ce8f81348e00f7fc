"""Files and folders that appear whole or not at all: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfemo.errors import ConfigError, InUseError, MissingExtraError, SelfEmoError, StoreError
from selfemo.extras import install_command, require


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        # Some network file systems flush no folder: they write its names on their own.
        if e.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fits_checksum(path: Path, checksum: Path) -> bool:
    """Whether `replacing` wrote a file with this checksum file (OSError: one of them cannot be read)."""
    return checksum.read_text(encoding="utf-8", errors="replace").split()[:1] == [sha256(path)]


@contextmanager
def _failures(
    path: Path, error: Callable[[str], SelfEmoError], also: tuple[type[Exception], ...], fault: str, kept: str
) -> Iterator[None]:
    failures: tuple[type[Exception], ...] = (OSError, *also)
    kept = kept or ("what it held before is kept" if os.path.exists(path) else "nothing was written")
    try:
        yield
    except failures as e:
        raise error(f"{path}: {fault} ({getattr(e, 'strerror', None) or e}); {kept}") from e


@contextmanager
def replacing(
    path: Path,
    error: Callable[[str], SelfEmoError] = StoreError,
    *,
    checksum: Path | None = None,
    also: tuple[type[Exception], ...] = (),
    fault: str = "cannot be written",
    kept: str = "",
) -> Iterator[Path]:
    """Replace a file as a whole: the block writes the path it is given, which is then renamed to `path`.

    Where the block or the disk fails, `path` stays as it was and nothing is left beside it.

    Args:
        error: the type of error for a failure of the disk.
        checksum: a file that shall hold the SHA-256, as `sha256sum -c` reads it.
        also: further exceptions that mean a failure of the disk.
        fault, kept: the words of the message: "PATH: FAULT (REASON); KEPT". Without `kept` it says whether
            something was there that is kept.

    Raises:
        SelfEmoError: of the type `error`; the disk is full, or the folder cannot be written.
    """
    staging, *sums = [p.with_name(p.name + ".tmp") for p in (path, checksum) if p is not None]
    with _failures(path, error, also, fault, kept):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staging.unlink(missing_ok=True)
            yield staging
            sync(staging)
            if checksum is not None:
                sums[0].write_text(f"{sha256(staging)}  {path.name}\n", encoding="utf-8")
                sync(sums[0])
                # Without a checksum for a moment, rather than with that of another file.
                checksum.unlink(missing_ok=True)
            staging.replace(path)
            if checksum is not None:
                sums[0].replace(checksum)
            sync(path.parent)
        finally:
            for left in (staging, *sums):
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)


@contextmanager
def replacing_folder(
    folder: Path,
    error: Callable[[str], SelfEmoError] = StoreError,
    *,
    checksums: str | None = None,
    unless: str | None = None,
    also: tuple[type[Exception], ...] = (),
    fault: str = "cannot be written",
    kept: str = "",
) -> Iterator[Path]:
    """Replace a folder as a whole: the block fills the folder it is given, which is then renamed.

    Args:
        checksums: the name of a JSON file, in the folder, that shall hold the SHA-256 of each other file.
        unless: the name of a file; a folder that holds it by the end, of another process, stays.
        error, also, fault, kept: as for `replacing`.

    Raises:
        SelfEmoError: of the type `error`; the disk is full, or the folder above cannot be written.
    """
    with _failures(folder, error, also, fault, kept), contextlib.ExitStack() as stack:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        yield staging
        if checksums is not None:
            sums = {f.name: sha256(f) for f in sorted(staging.iterdir()) if f.is_file()}
            (staging / checksums).write_text(json.dumps(sums, indent=1))
        for file in staging.iterdir():
            sync(file)
        if unless is None or not (folder / unless).exists():
            if folder.exists():
                shutil.rmtree(folder)
            staging.rename(folder)
            sync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text, as a whole (StoreError: the disk is full, or it cannot be written)."""
    with replacing(path) as staging:
        staging.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def need_polars() -> Any:
    """The polars module (MissingExtraError: it is not installed)."""
    require("reading and writing Parquet", "polars")
    import polars

    return polars


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], sort: Sequence[str], say: Callable[[str], None]
) -> None:
    """Write rows as Parquet, sorted by some columns, as a whole; without polars, say so and write nothing."""
    try:
        pl = need_polars()
    except MissingExtraError:
        say(f"no {path.name}: it needs polars ({install_command('polars')})")
        return
    frame = pl.DataFrame(rows, infer_schema_length=None)
    with replacing(path) as staging:
        (frame.sort(sort) if rows else frame).write_parquet(staging)


def locks_by_files() -> bool:
    """Whether $SELFEMO_LOCKS is "file": lock files take the place of the system's locks.

    Raises: ConfigError: it is neither "file" nor "system", the default.
    """
    asked = os.environ.get("SELFEMO_LOCKS") or "system"
    if asked not in ("system", "file"):
        raise ConfigError(f"the environment variable SELFEMO_LOCKS is {asked!r}; valid are system and file")
    return asked == "file"


def lock_folder(folder: Path) -> contextlib.ExitStack:
    """Make a folder and lock it until what is returned is closed, as a context manager closes it.

    Raises:
        InUseError: another process has locked it.
        StoreError: it cannot be made or written, or its file system has no locks.
        ConfigError: see `locks_by_files`.
    """
    held = contextlib.ExitStack()
    by_file = locks_by_files()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (_lock_by_file if by_file else _lock_by_system)(folder, held)
    except FileExistsError:
        raise StoreError(f"{folder} is a file; give a folder, which may be new") from None
    except OSError as e:
        raise StoreError(f"{folder}: cannot be used as a run folder: {e}") from e
    return held


def _lock_by_system(folder: Path, held: contextlib.ExitStack) -> None:
    """Lock a folder by its file .lock; the system frees it when the process ends, however it does."""
    import fcntl  # not on Windows, where the command line says so

    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        lock.close()
        if e.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise InUseError(f"{folder} is in use by another process") from None
        raise StoreError(
            f"{folder}: its file system gives no locks ({e.strerror}), as NFS and Lustre may be mounted; use "
            "a folder on a local disk, or set the environment variable SELFEMO_LOCKS=file, which locks by "
            "files (docs/reliability.md)"
        ) from None
    held.enter_context(lock)


def _lock_by_file(folder: Path, held: contextlib.ExitStack) -> None:
    """Lock a folder by a file that must not exist yet, or is of a process of this host that has ended."""
    from filelock import SoftFileLock, Timeout

    path = folder / ".lock.pid"
    try:
        held.enter_context(SoftFileLock(path, timeout=1, thread_local=False))
    except Timeout:
        found: list[str] = []
        with contextlib.suppress(OSError):  # it may be free by now
            found = path.read_text(encoding="utf-8", errors="replace").split()
        by = f"process {found[0]} on {found[1]}" if len(found) > 1 else "another process"
        raise InUseError(f"{folder} is in use by {by}; if that has ended, delete {path}") from None

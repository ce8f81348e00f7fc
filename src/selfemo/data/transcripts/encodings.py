"""The encoding of a text file: its byte order mark, else what was asked for, else UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from selfemo.errors import DataError

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def encoding_of(path: Path, asked: str = "") -> str:
    """The codec of a file (DataError: it cannot be read, or there is no such encoding)."""
    try:
        with path.open("rb") as f:
            head = f.read(4)
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}", path) from e
    if marked := next((codec for mark, codec in _MARKS if head.startswith(mark)), None):
        return marked
    try:
        return codecs.lookup(asked or "utf-8").name
    except LookupError:
        raise DataError(f"no such encoding: {asked}", path) from None


@contextmanager
def opened(path: Path, encoding: str) -> Iterator[IO[str]]:
    """A text file with its line ends as they are (DataError: unreadable, or of another encoding)."""
    try:
        with path.open(encoding=encoding, newline="") as f:
            yield f
    except UnicodeDecodeError as e:
        raise DataError(
            f"is not {encoding.removesuffix('-sig')} text (a byte 0x{e.object[e.start]:02x}); "
            "name its encoding by --encoding, for example cp1252",
            path,
        ) from None
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}", path) from e

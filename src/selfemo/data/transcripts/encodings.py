"""The encoding of a text file: its byte order mark, else what was asked for, else UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from selfemo.data.base import archive_kind
from selfemo.errors import DataError

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_AS_CSV = "save it as CSV UTF-8 in the program that made it"
_AS_TEXT = "save it as text (UTF-8) in the program that made it"
_BINARY = (
    (b"%PDF", f"a PDF; {_AS_TEXT}"), (b"{\\rtf", f"an RTF document; {_AS_TEXT}"),
    (b"\xd0\xcf\x11\xe0", f"an old Excel or Word file; {_AS_CSV}, or as text"),
    (b"SQLite format 3\0", "a database (SQLite); export a table as CSV"),
    (b"PAR1", "a Parquet file; write it as CSV or JSON lines"),
)  # fmt: skip
# What a zip archive of an office program has inside.
_OFFICE = (
    ("xl/", f"an Excel workbook (.xlsx); {_AS_CSV}"), ("word/", f"a Word document (.docx); {_AS_TEXT}"),
    ("content.xml", f"an OpenDocument file; {_AS_CSV}, or as text"),
)  # fmt: skip
# The usual encodings, in the order that settles between those that fit alike: a text of a western language
# is often valid in several.
_LIKELY = (
    "cp1252", "cp1250", "cp1251", "cp1254", "cp1253", "cp1255", "cp1256", "cp932", "gb18030", "cp949",
    "big5", "euc_jp", "koi8_r", "mac_roman",
)  # fmt: skip
# Codecs of Python for other ends than files.
_NO_TEXT = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7")
_HEAD = 4096
_SAMPLE = 20_000
_NAMED = 3
_SHOWN = 50
_FEW = 0.02
"""Share of zero bytes that a text may have by accident."""
_SAME = 0.02
"""Difference of two measures of disorder that counts for nothing."""


def encoding_of(path: Path, asked: str = "") -> str:
    """The codec of a file.

    Raises:
        DataError: it cannot be read, is no text, or is UTF-16 without a mark; there is no such encoding.
    """
    try:
        with path.open("rb") as f:
            head = f.read(_HEAD)
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}", path) from e
    if marked := next((codec for mark, codec in _MARKS if head.startswith(mark)), None):
        return marked
    if kind := _binary_kind(path, head):
        raise DataError(f"is no text but {kind}", path)
    if not asked and (wide := _wide(head)):
        raise DataError(f"looks like {wide} without a byte order mark: give --encoding {wide}", path)
    try:
        name = codecs.lookup(asked or "utf-8").name
        "".encode(name)  # refuses base64 and the like
    except (LookupError, UnicodeError):
        name = ""
    if not name or name in _NO_TEXT:
        raise DataError(f"no such encoding of text: {asked}", path)
    if name in ("utf-16", "utf-32"):
        raise DataError(f"has no byte order mark; give --encoding {name}-le or {name}-be", path)
    return name


def _binary_kind(path: Path, head: bytes) -> str:
    """What a file is that is no text, with what to do; "" for what may be text."""
    if kind := next((says for magic, says in _BINARY if head.startswith(magic)), ""):
        return kind
    archive = archive_kind(head)
    if archive == "zip":
        inside = _names_inside(path)
        office = next((says for part, says in _OFFICE if any(n.startswith(part) for n in inside)), "")
        if office:
            return office
    return f"a {archive} archive; unpack it and name what was inside" if archive else ""


def _names_inside(path: Path) -> list[str]:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _wide(head: bytes) -> str:
    """The encoding of text of two or four bytes a character, by where its zero bytes are; "" for other."""
    whole = head[: len(head) // 4 * 4]
    zeros = [whole[n::4].count(0) / max(len(whole) // 4, 1) for n in range(4)]
    for order, high, low in (("le", (3, 2, 1), 0), ("be", (0, 1, 2), 3)):
        if zeros[low] < _FEW and zeros[high[0]] > 0.9 and zeros[high[1]] > 0.9:
            return f"utf-32-{order}"
        # Blanks, digits and line ends have a zero byte in every script.
        if max(zeros[low], zeros[high[1]]) < _FEW < min(zeros[high[0]], zeros[high[2]]):
            return f"utf-16-{order}"
    return ""


@contextmanager
def opened(path: Path, encoding: str) -> Iterator[IO[str]]:
    """A text file with its line ends as they are (DataError: unreadable, or of another encoding)."""
    try:
        with path.open(encoding=encoding, newline="") as f:
            yield f
    except UnicodeError:
        try:
            error = _undecoded(path, encoding)
        except UnicodeError:  # an encoding that cannot go on behind a wrong byte
            error = DataError(f"is not {encoding} text; name its encoding by --encoding", path)
        raise error from None
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}", path) from e


def _undecoded(path: Path, encoding: str) -> DataError:
    """The error of a file in another encoding: its first such line, and what it is likely to be in."""
    name = encoding.removesuffix("-sig")
    several = name.startswith(("utf-16", "utf-32"))
    first, bad, good, sample = 0, b"", 0, bytearray()
    wrong = 0
    with path.open(encoding=encoding, errors="replace" if several else "surrogateescape", newline="") as f:
        for number, line in enumerate(f, 1):
            if several:
                if "\ufffd" in line:
                    return DataError(f"is not {name} text", path, number)
                continue
            if line.isascii():
                continue
            raw = line.encode(name, "surrogateescape")
            if not any("\udc80" <= ch <= "\udcff" for ch in line):
                good += 1
            else:
                wrong += 1
                first, bad = first or number, bad or raw
            sample += raw[: _SAMPLE - len(sample)]
            if len(sample) >= _SAMPLE:
                break
    if name == "utf-8" and good > wrong:
        shown = bad.decode("utf-8", "replace").strip()[:_SHOWN]
        told = f"is not UTF-8 here, though {good} other lines are: {shown!r}; mend this line"
        return DataError(told, path, first)
    likely = _likely(bytes(sample), bad)
    if not likely:
        return DataError(
            f"is not {name} text; name its encoding by --encoding, for example cp1252", path, first
        )
    looks = " or ".join(f"{codec} ({text!r})" for codec, text in likely)
    advice = f"give --encoding {likely[0][0]}"
    if len(likely) > 1:
        advice += f", or the one that reads right: {', '.join(codec for codec, _ in likely[1:])}"
    return DataError(f"is not {name} text; it looks like {looks}: {advice}", path, first)


def _likely(sample: bytes, line: bytes) -> list[tuple[str, str]]:
    """(encoding, the line in it) of the likeliest encodings of a sample, where they read it differently."""
    from charset_normalizer import from_bytes  # only where a file is in another encoding

    found = list(from_bytes(sample, cp_isolation=list(_LIKELY)))
    best = min((m.chaos for m in found), default=0)
    fit = {codec for m in found if m.chaos <= best + _SAME for codec in m.could_be_from_charset}
    if len(fit) > 1:
        fit.discard("mac_roman")  # nearly any bytes are text in it
    likely: dict[str, str] = {}
    for codec in (c for c in _LIKELY if c in fit):
        text = line.decode(codec, "replace").strip()[:_SHOWN]
        likely.setdefault(text, codec)
    return [(codec, text) for text, codec in likely.items()][:_NAMED]

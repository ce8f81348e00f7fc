"""Text transcripts: `Name: text` lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.date_stamps import end_of_stamp, is_date
from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn
from selfemo.errors import DataError

_NAMED = re.compile(r"(?P<name>[^\s:][^:]{0,59}?)\s*:(?!//)\s*")


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    source, number = reading.source(path), 1
    speaker, said, any_yet = "", list[str](), False

    def turn() -> Iterator[SourceTurn]:
        nonlocal any_yet
        text = source.clean(" ".join(said))
        if speaker and not text:
            raise DataError(f"{speaker} says nothing", path, line - 1)
        if text:
            any_yet = True
            yield SourceTurn(f"{path.stem}-{number}", speaker, text)
        said.clear()

    for line, raw in enumerate(chain(f, [""]), 1):  # the blank line at the end closes the last turn
        if not raw.strip():
            yield from turn()
            speaker = ""
            number += any_yet
            any_yet = False
        elif raw[0] in " \t" and speaker:
            said.append(raw)
        else:
            start = end_of_stamp(raw)
            found = _NAMED.match(raw, start)
            if found is None or is_date(found["name"], raw[found.end("name") :]):
                raise DataError(_no_name(raw, dated=bool(start or found)), path, line)
            yield from turn()
            speaker = source.clean(found["name"], line)
            said.append(raw[found.end() :])


def _no_name(line: str, dated: bool) -> str:
    if dated:
        return (
            f"is no `Name: text`: {line.strip()[:40]!r} has a date or a time where the name should be; write "
            "it in figures before the name (2022-12-31 21:15 Ann: ...), or remove it"
        )
    return "is no `Name: text`; a line that goes on with the one before starts with a blank"


FORMS = (Form("lines", "lines of `Name: text`", (".txt",), lambda head: True, _read),)

"""Tables: CSV and TSV files with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from selfemo.data.base import first_row, further_rows
from selfemo.data.transcripts.reading import SPEAKER, Form, Reading, ReadSettings, SourceTurn
from selfemo.errors import DataError

_TEXT = ("text", "utterance", "message", "line", "sentence", "content")
_SPEAKER = ("speaker", "name", "character", "role", "author", "sender")
_CONVERSATION = (
    "conversation", "conversation_id", "dialogue", "dialogue_id", "dialog_id", "thread", "ticket",
)  # fmt: skip


def _header(f: IO[str], path: Path) -> tuple[Any, list[str]]:
    first = f.readline()
    f.seek(0)
    counts = {d: first.count(d) for d in ("\t", ";", ",")}
    comma = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=lambda d: counts[d])
    reader = csv.reader(f, delimiter=comma, strict=True)
    header = [name.strip() for name in first_row(reader, path)]
    twice = next((n for n in header if header.count(n) > 1), None)
    if twice is not None:
        raise DataError(f"has two columns {twice!r}; rename one", path, 1)
    return reader, header


def _column(header: Sequence[str], asked: str, usual: Sequence[str], path: Path) -> str | None:
    if asked:
        if asked not in header:
            raise DataError(f"has no column {asked!r}; it has {', '.join(header)}", path, 1)
        return asked
    by_name = {name.lower(): name for name in reversed(header)}
    return next((by_name[u] for u in usual if u in by_name), None)


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    reader, header = _header(f, path)
    text = _column(header, settings.text, _TEXT, path)
    speaker = _column(header, settings.speaker, _SPEAKER, path)
    conversation = _column(header, settings.conversation, _CONVERSATION, path)
    if text is None:
        raise DataError(
            f"has no text column (looked for {', '.join(_TEXT)}); it has {', '.join(header)}: name it by "
            "--text-column",
            path,
            1,
        )
    source, seen, current = reading.source(path), set[int](), None
    for line, row, unclosed in further_rows(reader, source):
        if len(row) != len(header):
            raise DataError(f"has {len(row)} fields, the header {len(header)}{unclosed}", path, line)
        fields = dict(zip(header, row, strict=True))
        key = fields[conversation].strip() if conversation else path.stem
        if key != current:
            if hash(key) in seen:
                raise DataError(
                    f"conversation {key!r} goes on here after another one; sort the rows by {conversation}",
                    path,
                    line,
                )
            seen.add(hash(key))
            current = key
        said = source.clean(fields[text], line)
        who = source.clean(fields[speaker], line) if speaker else SPEAKER
        if not said:
            raise DataError(f"column {text} is empty", path, line)
        yield SourceTurn(key, who or SPEAKER, said, fields=fields)


FORMS = (
    Form("csv", "a table (CSV)", (".csv",), lambda head: True, _read),
    Form("tsv", "a table (TSV)", (".tsv",), lambda head: True, _read),
)

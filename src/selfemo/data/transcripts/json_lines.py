"""JSON lines: a conversation a line, in the project's form (data/jsonl.py) or another, or a turn a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.json_files import JsonTurns, read_whole, values_of
from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn
from selfemo.errors import DataError


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    turns, first = JsonTurns(path, settings, reading), True
    for line, raw in enumerate(f, 1):
        if not raw.strip():
            continue
        try:
            values = [value for _, value in values_of(raw.rstrip())]
        except json.JSONDecodeError as e:
            # A value over several lines breaks in its first.
            if first and e.pos >= len(raw.rstrip()):
                reading.form = "JSON over several lines"
                yield from read_whole(f, path, settings, reading)
                return
            raise DataError(
                f"broken JSON: {e.msg} (column {e.colno}); each line must be one whole object, alone",
                path,
                line,
            ) from None
        except ValueError as e:
            raise DataError(str(e), path, line) from None
        if len(values) > 1:
            raise DataError("has several JSON values; write each on a line of its own", path, line)
        yield from turns.of(values[0], line, str(line))
        first = False
    turns.finish()


FORMS = (Form("jsonl", "JSON lines", (".jsonl", ".ndjson"), lambda head: True, _read, columns=True),)

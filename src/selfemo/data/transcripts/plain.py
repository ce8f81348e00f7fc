"""Text without names: each line is a turn, if the user asks for that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn
from selfemo.data.transcripts.turn_lines import Head, Style, read_style

_LINES = Style("lines without names", lambda raw, before: Head("", 0), lambda raw: "")


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    yield from read_style(f, path, _LINES, reading)


FORMS = (Form("plain", _LINES.says, (".txt",), lambda head: False, _read),)

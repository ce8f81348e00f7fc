"""Dialogues of one line each, whose utterances end in `__eou__` (DailyDialog's plain text).

    Hey , are you in ? __eou__ Sure , come up . __eou__

The speakers are not named there: two take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn

MARKS = "marks between utterances"
_MARK = "__eou__"
_TWO = ("A", "B")


def _knows(head: list[str]) -> bool:
    lines = [line for line in head if line.strip()]
    return sum(_MARK in line for line in lines) * 2 > len(lines)


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    source = reading.source(path)
    for line, raw in enumerate(f, 1):
        *ended, last = (source.clean(part, line) for part in raw.split(_MARK))
        if ended:
            reading.leave_out(MARKS, " ".join([_MARK] * len(ended)), line)
        for place, text in enumerate([*ended, *([last] if last else [])]):
            if text:
                yield SourceTurn(f"{path.stem}-{line}", _TWO[place % 2], text)
            else:
                source.blemish("utterance without words", line)


FORMS = (Form("eou", "dialogues of one line, two speakers in turn (__eou__)", (".txt",), _knows, _read),)

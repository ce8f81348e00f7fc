"""Dialogues of one line each, whose utterances end in `__eou__` (DailyDialog's plain text).

    Hey , are you in ? __eou__ Sure , come up . __eou__

The speakers are not named there: two take turns, after each utterance or, where a line has one, after
`__eot__`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn

MARKS = "marks between utterances"
_MARK = re.compile(r"(__eo[ut]__)", re.IGNORECASE)
_END_OF_TURN = "__eot__"
_TWO = ("A", "B")


def _knows(head: list[str]) -> bool:
    lines = [line for line in head if line.strip()]
    return sum(_MARK.search(line) is not None for line in lines) * 2 > len(lines)


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    source = reading.source(path)
    for line, raw in enumerate(f, 1):
        parts = _MARK.split(raw)
        texts, marks = [source.clean(part, line) for part in parts[::2]], parts[1::2]
        if marks:
            reading.leave_out(MARKS, " ".join(marks), line)
        by_turn = any(mark.casefold() == _END_OF_TURN for mark in marks)
        place = 0
        for text, mark in zip_longest(texts, marks, fillvalue=""):
            ends_turn = mark.casefold() == _END_OF_TURN
            if text:
                yield SourceTurn(f"{path.stem}-{line}", _TWO[place % 2], text)
            elif mark and not ends_turn:
                source.blemish("utterance without words", line)
            place += ends_turn if by_turn else bool(mark)


FORMS = (Form("eou", "dialogues of one line, two speakers in turn (__eou__)", (".txt",), _knows, _read),)

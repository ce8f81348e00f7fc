"""The input of `selfemo predict` and `selfemo data preview`: a transcript, or a data set by its name."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfemo.counting import counted
from selfemo.data import ADAPTERS, load
from selfemo.data.transcripts import read_turns, turns_of
from selfemo.data.transcripts.reading import Reading, ReadSettings, SourceTurn
from selfemo.errors import DataError

_NAMED = 10
"""Most speakers that are named."""
_HEAD = 1 << 20


class Source:
    """The input, read once at the start: a mistake (DataError, with file and line) is told before any work.

    Args:
        limit: take the first conversations alone; 0 takes all.

    Attributes:
        is_file: the input is a transcript, not a data set.
        reading: how a transcript was read.
        speakers: how many turns each has, in the order of their first one.
        count: of turns, `silent` of them without text; `conversations`: how many there are.
        fields: names in `SourceTurn.fields`, in the order of their first turn.
    """

    def __init__(self, name: str, settings: ReadSettings | None = None, limit: int = 0):
        self.name, self.settings, self.limit = name, settings or ReadSettings(), limit
        self.path = Path(os.path.expanduser(name))
        self.is_file = self.path.is_file() and (bool(self.settings.form) or not _of_a_data_set(self.path))
        self.reading, self.speakers = Reading(), Counter[str]()
        self.conversations = self.silent = 0
        self.fields: dict[str, None] = {}
        last = None
        for turn in self.turns(self.reading):
            self.speakers[turn.speaker] += 1
            self.silent += not turn.text
            self.fields |= dict.fromkeys(turn.fields)
            self.conversations += turn.conversation != last
            last = turn.conversation
        self.count = self.speakers.total()
        if self.count == self.silent:
            told = "".join(f"; {line}" for line in self._lost())
            raise DataError(f"holds no turn with text{told}", self.path if self.is_file else name)

    @property
    def has_gaps(self) -> bool:
        """Whether silences part conversations: the input is subtitles."""
        return self.is_file and "start" in self.fields

    def turns(self, reading: Reading | None = None) -> Iterator[SourceTurn]:
        """The turns in order; `reading` is filled with how the file was read."""
        if self.is_file:
            found = read_turns(self.path, self.settings, reading)
        else:
            found = turns_of(load(self.name).conversations)
        if not self.limit:
            return found
        by_conversation = itertools.groupby(found, key=lambda t: t.conversation)
        return (turn for _, turns in itertools.islice(by_conversation, self.limit) for turn in turns)

    def read_as(self) -> list[str]:
        """How the input was read, in lines: form, counts, speakers, columns, what was left out and why."""
        read = self.reading
        form = f"{read.form}, {read.encoding}" if self.is_file else "a data set"
        lines = [
            f"{self.name}: {form}; {counted(self.count, 'turns')} in "
            f"{counted(self.conversations, 'conversations')}",
            f"{counted(len(self.speakers), 'speakers')}: {self._who()}",
        ]
        if read.columns:
            lines.append(f"columns: {self._columns()}")
        if kept := self.carried():
            lines.append(f"kept beside the text: {', '.join(kept)}")
        if self.silent:
            lines.append(f"without text, kept in the output: {counted(self.silent, 'turns')}")
        return lines + self._lost()

    def _who(self) -> str:
        named = [f"{name} ({n})" for name, n in itertools.islice(self.speakers.items(), _NAMED)]
        more = len(self.speakers) - len(named)
        return ", ".join(named) + (f", and {more} more" if more else "")

    def _columns(self) -> str:
        taken = self.reading.columns
        said = [
            f"{role} from {taken[role]!r}" for role in ("text", "speaker", "conversation") if role in taken
        ]
        missing = [role for role in ("speaker", "conversation") if role not in taken]
        said += [f"no {role} (--{role}-column names one)" for role in missing]
        return "; ".join(said)

    def carried(self) -> list[str]:
        """The fields that are no column of text, speaker or conversation; the output keeps them."""
        taken = set(self.reading.columns.values())
        return [name for name in self.fields if name not in taken]

    def _lost(self) -> list[str]:
        read, lines = self.reading, []
        for kind, n in read.left_out.items():
            line, text = read.examples.get(kind, [(0, "")])[0]
            place = f", line {line}: {text!r}" if text else f", line {line}" if line else ""
            lines.append(f"left out: {kind} ({n}{place})")
        for kind, n in read.report.blemishes.items():
            lines.append(f"noted: {n} x {kind} (for example {', '.join(read.report.examples[kind])})")
        return lines

    def as_record(self, first: int) -> dict[str, Any]:
        """The facts of `read_as` for programs, with the first turns."""
        read = self.reading
        return {
            "input": self.name, "form": read.form or "a data set", "encoding": read.encoding,
            "columns": read.columns, "kept": self.carried(), "conversations": self.conversations,
            "turns": self.count, "without_text": self.silent, "speakers": dict(self.speakers),
            "left_out": {
                kind: {"count": n, "examples": [{"line": at, "text": text} for at, text in examples]}
                for kind, n in read.left_out.items()
                for examples in [read.examples.get(kind, [])]
            },
            "noted": dict(read.report.blemishes),
            "first": [
                {"conversation": t.conversation, "speaker": t.speaker, "text": t.text, **t.fields}
                for t in itertools.islice(self.turns(), first)
            ],
        }  # fmt: skip

    def identity(self) -> str:
        """A text that differs between inputs, to resume only the same one."""
        part = f", the first {counted(self.limit, 'conversations')}" if self.limit else ""
        if not self.path.is_file():
            return f"{self.name}, {counted(self.count, 'turns')}{part}"
        with self.path.open("rb") as f:
            head = hashlib.sha256(f.read(_HEAD)).hexdigest()[:16]
        return f"{self.path.name}, {self.path.stat().st_size} bytes ({head}){part}"


def _of_a_data_set(path: Path) -> bool:
    """Whether a file is of a known data set's own JSON; any table or text is read as a transcript.

    A table is read by its columns, also one that looks like MELD's: labelling needs its text alone, and
    `meld:FILE` names the data set.
    """
    if path.suffix.lower() != ".json":
        return False
    return any(a.matches(path) for name, a in ADAPTERS.items() if name not in ("jsonl", "sample"))

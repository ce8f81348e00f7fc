"""What the readers of transcripts share: a turn, the settings, and the record of how it was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from selfemo.data.base import LoadReport, SourceFile
from selfemo.method.types import LabelSet

SPEAKER = "Speaker"
"""The speaker of text without a name."""
OTHER_SPEAKER = "Other speaker"
"""The speaker of the second of two lines with dashes."""
_EXAMPLES = 3
_EXAMPLE_CHARS = 60


@dataclass(frozen=True, slots=True)
class SourceTurn:
    """One turn as a file has it.

    Attributes:
        text: "" for a row without text, which stays in the output and is not asked about.
        labels: the label set that the file asks for, if it does.
        fields: what else the file says of the turn, kept in the output: columns, keys, times.
    """

    conversation: str
    speaker: str
    text: str
    scene: str = ""
    labels: LabelSet | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadSettings:
    """How to read a file; "" looks for the form, the encoding and the usual column names.

    Attributes:
        form: a name in `FORMS`.
        text, speaker, conversation: columns of a table, or keys of JSON; `conversation` may be several,
            with commas between, or "none" for a file of one conversation.
        encoding: of the text; a byte order mark goes before it.
        gap: seconds of silence that part two scenes of subtitles (0: never).
    """

    form: str = ""
    text: str = ""
    speaker: str = ""
    conversation: str = ""
    encoding: str = ""
    gap: float = 30.0

    @property
    def columns(self) -> str:
        """The first option that names a column, as on the command line; "" without any."""
        given = {"text": self.text, "speaker": self.speaker, "conversation": self.conversation}
        return next((f"--{role}-column {name}" for role, name in given.items() if name), "")


class Reading:
    """How a file was read, filled while it is read: nothing of a file is guessed or left out untold.

    Args:
        on_left_out: called with (kind, text, line) for all that is left out, parts of turns too.

    Attributes:
        form: what the form is, in words.
        encoding: of the text.
        columns: the column or key that was taken for the text, the speaker and the conversation.
        report: what was mended, by kind (`report.blemishes`).
        left_out: what is in no turn, by kind; `examples` has the first (line, text) of each kind.
    """

    def __init__(self, on_left_out: Callable[[str, str, int], None] | None = None):
        self.form = self.encoding = ""
        self.columns: dict[str, str] = {}
        self.report = LoadReport("")
        self.left_out: Counter[str] = Counter()
        self.examples: dict[str, list[tuple[int, str]]] = {}
        self._on_left_out = on_left_out

    def source(self, path: Path) -> SourceFile:
        """The file, for texts that are cleaned into this record."""
        return SourceFile(self.report, path)

    def leave_out(self, kind: str, text: str, line: int) -> None:
        """Count what is in no turn; `kind` is a plural in plain words ("lines of the system")."""
        self.left_out[kind] += 1
        known = self.examples.setdefault(kind, [])
        if len(known) < _EXAMPLES:
            known.append((line, " ".join(text.split())[:_EXAMPLE_CHARS]))
        if self._on_left_out:
            self._on_left_out(kind, text, line)


@dataclass(frozen=True)
class Form:
    """A form of transcripts.

    Attributes:
        name: as `--form` names it.
        says: what it is, in words ("subtitles (SubRip)").
        suffixes: of its files; the first form of a suffix whose `knows` accepts the file is taken.
        knows: whether the first lines of a file (at most `HEAD` of them) are of this form.
        read: the turns in order, from an open file that can be read again by `seek(0)`.
        columns: it has columns or keys that settings may name.
    """

    name: str
    says: str
    suffixes: tuple[str, ...]
    knows: Callable[[list[str]], bool]
    read: Callable[[IO[str], Path, ReadSettings, Reading], Iterator[SourceTurn]]
    columns: bool = False


HEAD = 200
"""Lines that a form is known by."""

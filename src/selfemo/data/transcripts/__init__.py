"""Conversations of other people's files, one turn at a time, so that a file may be larger than memory.

A form is a file of this folder and a line of `FORMS`; a file is known by its suffix and its first lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from selfemo.data.base import must_exist
from selfemo.data.transcripts import (
    blocks,
    irc,
    json_files,
    json_lines,
    plain,
    subtitles,
    tables,
    text,
    utterances,
    whatsapp,
)
from selfemo.data.transcripts.encodings import encoding_of, opened
from selfemo.data.transcripts.reading import (
    HEAD,
    OTHER_SPEAKER,
    SPEAKER,
    Form,
    Reading,
    ReadSettings,
    SourceTurn,
)
from selfemo.errors import ConfigError, DataError
from selfemo.method.types import Conversation

__all__ = [
    "FORMS", "OTHER_SPEAKER", "SPEAKER", "SUFFIXES", "ReadSettings", "Reading", "SourceTurn", "read_turns",
    "turns_of",
]  # fmt: skip

FORMS: dict[str, Form] = {
    form.name: form
    for module in (tables, json_lines, json_files, irc, blocks, whatsapp, utterances, plain, text, subtitles)
    for form in module.FORMS
}
"""By their names; of a suffix, the first that knows a file is taken."""
SUFFIXES = tuple(dict.fromkeys(s for form in FORMS.values() for s in form.suffixes))

_AS_CSV = "save it as CSV UTF-8 in the program that made it"
_AS_TEXT = "save it as text (UTF-8) in the program that made it"
_OTHERS = {
    ".xlsx": _AS_CSV, ".xls": _AS_CSV, ".ods": _AS_CSV, ".numbers": _AS_CSV,
    ".docx": _AS_TEXT, ".doc": _AS_TEXT, ".odt": _AS_TEXT, ".rtf": _AS_TEXT, ".pdf": _AS_TEXT,
    ".ass": "convert the subtitles to SRT", ".ssa": "convert the subtitles to SRT",
    ".sub": "convert the subtitles to SRT", ".ttml": "convert the subtitles to SRT",
    ".zip": "unpack it and name the file inside (WhatsApp exports a chat so)",
    ".gz": "unpack it and name the file inside",
    ".html": "export the chat as JSON or text", ".htm": "export the chat as JSON or text",
    ".parquet": "write it as CSV or JSON lines",
}  # fmt: skip
"""What to do with a file of a suffix that is not read."""


def read_turns(
    path: Path, settings: ReadSettings | None = None, reading: Reading | None = None
) -> Iterator[SourceTurn]:
    """The turns of a file in order; conversations stand one after the other.

    Args:
        reading: filled with how the file was read.

    Raises:
        DataError: the file is missing, of an unknown form, or broken; the message names the line.
        ConfigError: there is no form of the name that is asked for.
    """
    settings, reading = settings or ReadSettings(), reading or Reading()
    if settings.form and settings.form not in FORMS:
        raise ConfigError(f"--form {settings.form}: valid are {', '.join(FORMS)}")
    must_exist(path)
    forms = [f for f in FORMS.values() if path.suffix.lower() in f.suffixes]
    if not forms and not settings.form:
        advice = _OTHERS.get(path.suffix.lower(), f"name the form by --form ({', '.join(FORMS)})")
        raise DataError(f"of no known form; there are {', '.join(SUFFIXES)}; {advice}", path)
    encoding = encoding_of(path, settings.encoding)
    reading.encoding = encoding.removesuffix("-sig")
    with opened(path, encoding) as f:
        if settings.form:
            form = FORMS[settings.form]
        else:
            head = list(islice(f, HEAD))
            f.seek(0)
            form = next((form for form in forms if form.knows(head)), forms[-1])
        if not form.columns and (named := settings.columns):
            raise ConfigError(
                f"{named}: {path.name} is read as {form.says}, which has no columns; leave it out"
            )
        reading.form = form.says
        yield from form.read(f, path, settings, reading)


def turns_of(conversations: Sequence[Conversation]) -> Iterator[SourceTurn]:
    """The turns of loaded conversations."""
    for c in conversations:
        for t in c.turns:
            yield SourceTurn(c.id, t.speaker, t.text, c.scenario, c.label_set)

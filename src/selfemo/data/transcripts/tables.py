"""Tables with a header: CSV and TSV files.

A file is surveyed before its turns are read: how it separates and quotes, what its columns hold, and whether
each row can be read. One row is held at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from selfemo.data.base import LoadReport, SourceFile
from selfemo.data.transcripts.columns import (
    USUAL_TEXTS,
    Columns,
    Conversations,
    check_columns,
    find_columns,
    speaker_of,
)
from selfemo.data.transcripts.csv_rows import SEPARATORS, Row, Style, rows, style_of, unquoted
from selfemo.data.transcripts.reading import SPEAKER, Form, Reading, ReadSettings, SourceTurn
from selfemo.errors import DataError

_KNOWN = 1000
"""Speakers that are remembered, to know a row inside of a text."""
_NAME_CHARS = 40
_NUMBER = re.compile(r"[\d\s.,:+-]*")
_DIALOGUE = (
    "column {!r} holds a whole dialogue here: write one turn a row, or each dialogue as a line of a .txt "
    "file with `__eou__` behind each utterance; another column is named by --text-column"
)


@dataclass(frozen=True)
class _Table:
    """What a file is: its style, the names of all its columns, and those that are taken.

    Attributes:
        line: of the header.
        names: of all columns; one without a name is "column 3".
        kept: the positions of the columns that are carried: those with a name or a value.
    """

    style: Style
    line: int
    names: list[str]
    columns: Columns
    kept: tuple[int, ...] = ()

    def rows(self, f: IO[str], source: SourceFile) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of each row below the header, as wide as it; no cells for an empty row.

        Raises:
            DataError: a row that is wider or lacks its text, or whose quotation marks cannot be read.
        """
        width, text = len(self.names), self.names.index(self.columns.text or "")
        speaker = self.names.index(self.columns.speaker) if self.columns.speaker else None
        known = set[str]()
        for n, row in enumerate(rows(f, self.style, source, width)):
            if row.further:
                source.blemish("texts over several lines", row.line)
            if n == 0:
                continue
            cells = row.fields
            if not any(map(str.strip, cells)):
                yield row.line, []
                continue
            while len(cells) > width and not cells[-1].strip():
                del cells[-1]
            if len(cells) > width or (len(cells) < width and not self._short(cells, text)):
                raise DataError(self._misfit(row, text), source.path, row.line)
            if len(cells) < width:
                source.blemish("rows with fewer fields than the header", row.line)
                cells += [""] * (width - len(cells))
            if speaker is not None and cells[speaker] and len(known) < _KNOWN:
                known.add(cells[speaker])
            self._no_row_inside(row, known, speaker, source)
            yield row.line, cells

    def _short(self, cells: Sequence[str], text: int) -> bool:
        """Whether a row that is too short can be filled up: it has its text, which is no part of one."""
        parts = not self.style.quotes and any('"' in c for c in cells)
        return len(cells) > text and bool(cells[text].strip()) and not parts

    def _misfit(self, row: Row, text: int) -> str:
        cells, width = row.fields, len(self.names)
        marks = SEPARATORS.get(self.style.comma, repr(self.style.comma))
        told = f"has {len(cells)} fields, the header {width} (separated by {marks})"
        if row.further:
            return f"{told}; a quotation mark opens here and closes on line {row.line + len(row.further)}"
        if len(cells) < width and not self.style.quotes and any('"' in c for c in cells):
            return f"{told} and a quotation mark; texts over several lines are read from a CSV (UTF-8) file"
        if len(cells) < width:
            missing = "" if len(cells) > text and cells[text].strip() else "; its text is missing"
            return f"{told}{missing}; a row has all its separators, also where fields are empty"
        if not self.style.quotes:
            return f"{told}; a text must not hold a tab"
        return f'{told}; put a text that holds a separator in quotation marks: "Well, yes"'

    def _no_row_inside(self, row: Row, known: set[str], speaker: int | None, source: SourceFile) -> None:
        """Refuse a text over several lines of which one is a whole row of a known speaker."""
        if speaker is None or len(self.names) < 2:
            return
        for n, line in enumerate(row.further, row.line + 1):
            cells = line.rstrip("\r\n").split(self.style.comma)
            # "Hi\nAnn, are you there?" goes on in a text; a row has no blank behind the separator.
            spaced = any(c.startswith(" ") for c in cells)
            if len(cells) == len(self.names) and cells[speaker] in known and not spaced:
                raise DataError(
                    f"line {n} looks like a row of its own, but stands in a text whose quotation mark opens "
                    "before it; close that, or write a quotation mark that quotes nothing twice",
                    source.path,
                    row.line,
                )


def _survey(f: IO[str], path: Path, settings: ReadSettings) -> _Table:
    """What a table is (DataError: no text column, or a row that cannot be read)."""
    scratch = SourceFile(LoadReport(""), path)
    style = style_of(f, scratch, lambda names: find_columns(names, settings).text is not None)
    table = _header(f, scratch, style, settings)
    try:
        return _survey_rows(f, scratch, table, bool(settings.text))
    except DataError:
        if not style.quotes:
            raise
        try:
            table = replace(table, style=replace(style, backslash=True))
            return _survey_rows(f, scratch, table, bool(settings.text))
        except DataError:
            pass
        raise


def _header(f: IO[str], source: SourceFile, style: Style, settings: ReadSettings) -> _Table:
    first = next(rows(f, style, source))
    cells = [" ".join(c.split()) for c in first.fields]
    if all(unquoted(c) != c for c in cells):
        cells = [unquoted(c) for c in cells]
    names = list[str]()
    for n, cell in enumerate(cells, 1):
        name = base = cell or f"column {n}"
        number = 2
        while name in names:
            name, number = f"{base} ({number})", number + 1
        names.append(name)
    named = [c for c in dict.fromkeys(cells) if c]
    try:
        check_columns(named, settings)
    except ValueError as e:
        raise DataError(str(e), source.path, first.line) from None
    columns = find_columns(named, settings)
    if columns.text is None:
        raise DataError(_no_text(named), source.path, first.line)
    for taken in (columns.text, columns.speaker, *columns.conversation):
        if taken and cells.count(taken) > 1:
            raise DataError(f"has two columns {taken!r}; rename one", source.path, first.line)
    return _Table(style, first.line, names, columns, tuple(n for n, c in enumerate(cells) if c))


def _no_text(named: Sequence[str]) -> str:
    shown = [n if len(n) <= _NAME_CHARS else f"{n[:_NAME_CHARS]}..." for n in named]
    looked = f"looked for {', '.join(USUAL_TEXTS)}, ..."
    if len(shown) == 1:
        return (
            f"has no text column ({looked}), but one column {shown[0]!r} (between commas, semicolons, tabs "
            "or vertical bars): if that is its name, give it by --text-column; if it is a text, write a line "
            "`text` above it"
        )
    return (
        f"has no text column ({looked}); it has {', '.join(shown)}: name it by --text-column. The first line "
        "must name the columns: if it is a turn already, write a line such as `speaker,text` above it"
    )


def _survey_rows(f: IO[str], source: SourceFile, table: _Table, asked: bool) -> _Table:
    """The table with the columns that hold something; each row is checked."""
    text = table.names.index(table.columns.text or "")
    kept, count, texts, words = set(table.kept), 0, 0, 0
    unnamed = set(range(len(table.names))) - kept
    for line, cells in table.rows(f, source):
        if cells:
            if _is_dialogue(cells[text]):
                raise DataError(_DIALOGUE.format(table.columns.text), source.path, line)
            count += 1
            texts += bool(cells[text].strip())
            words += not _NUMBER.fullmatch(cells[text])
            kept |= {n for n in unnamed if cells[n].strip()}
    if (count and not texts) or (texts and not words and not asked):
        held = "holds only numbers" if texts else "is empty in all rows"
        raise DataError(
            f"column {table.columns.text!r} {held}; name the text by --text-column: the columns "
            f"are {', '.join(table.names[n] for n in sorted(kept))}",
            source.path,
            table.line,
        )
    return replace(table, kept=tuple(sorted(kept)))


def _is_dialogue(text: str) -> bool:
    """Whether a text is a whole dialogue: utterances with `__eou__` between them, or a list of them."""
    if text.rstrip().removesuffix("__eou__").find("__eou__") >= 0:
        return True
    listed = text[:2] in ("['", '["') and text[-2:] in ("']", '"]')
    return listed and re.search(r"['\"],?\s+['\"]", text) is not None


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    table = _survey(f, path, settings)
    columns, names, source = table.columns, table.names, reading.source(path)
    reading.form, reading.columns = _says(table.style), columns.by_role()
    conversations = Conversations(source, path.stem)
    for line, cells in table.rows(f, source):
        if not cells:
            reading.leave_out("empty rows", "", line)
            continue
        by_name = dict(zip(names, cells, strict=True))
        said = source.clean(by_name[columns.text or ""], line)
        parts = [by_name[c] for c in columns.conversation]
        conversation = conversations.of(columns.conversation, parts, line, told=bool(said))
        who = speaker_of(source.clean(by_name[columns.speaker], line)) if columns.speaker else SPEAKER
        if not who:
            source.blemish("rows without a speaker", line)
        fields = {names[n]: cells[n] for n in table.kept}
        yield SourceTurn(conversation, who or SPEAKER, said, fields=fields)


def _says(style: Style) -> str:
    if style.comma == "\t":
        return "a table (TSV)" if style.quotes else "a table (TSV, each line a row)"
    marks = SEPARATORS.get(style.comma, repr(style.comma))
    return "a table (CSV)" if style.comma == "," else f"a table (CSV with {marks})"


FORMS = (
    Form("csv", "a table (CSV)", (".csv",), lambda head: True, _read, columns=True),
    Form("tsv", "a table (TSV)", (".tsv",), lambda head: True, _read, columns=True),
)

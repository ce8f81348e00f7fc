"""The rows of CSV and TSV as people and programs write them: separators, quotation marks, several lines."""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from selfemo.data.base import MAX_FIELD_CHARS, SourceFile
from selfemo.errors import DataError

SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "vertical bars"}
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_BACKSLASHED = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
_NEEDS_QUOTES = re.compile(r'[\t,;|"]|^\s|\s$')
_EMPTY = ' \t\r\n,;|"'
_SAMPLE = 60
"""Rows that the separator is told by."""


@dataclass(frozen=True)
class Style:
    """How rows are written.

    Attributes:
        comma: what separates fields.
        quotes: a field in quotation marks may hold the separator and line ends; else a line is a row and
            a quotation mark is a character.
        backslash: a quotation mark inside of a quoted field is written `\\"`, not twice.
        blanks: a blank behind a separator is no part of the field.
        skip: lines before the header.
    """

    comma: str
    quotes: bool = True
    backslash: bool = False
    blanks: bool = False
    skip: int = 0


@dataclass(frozen=True)
class Row:
    """One row: the line that it starts on, its fields, and its further lines where it has some."""

    line: int
    fields: list[str]
    further: list[str] = field(default_factory=list)


class _Lines:
    """The lines of a file, with those of the row under way."""

    def __init__(self, f: IO[str], style: Style):
        f.seek(0)
        self._file, self._backslash = f, style.backslash
        self.number, self.row = style.skip, list[str]()
        for _ in range(style.skip):
            next(f)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        if self._backslash:
            line = _BACKSLASHED.sub(r'\1""', line)
        self.number += 1
        self.row.append(line)
        return line


def rows(f: IO[str], style: Style, source: SourceFile, width: int = 0) -> Iterator[Row]:
    """The rows from the header on; a blank line has no fields.

    Args:
        width: fields of the header, to read a line with stray quotation marks; 0 refuses such a line.

    Raises:
        DataError: quotation marks that cannot be read; the line is the one where a quoted field opens.
    """
    lines = _Lines(f, style)
    if not style.quotes:
        for raw in lines:
            lines.row.clear()
            bare = raw.rstrip("\r\n")
            yield Row(lines.number, bare.split(style.comma) if bare else [])
        return
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(lines, delimiter=style.comma, strict=True, skipinitialspace=style.blanks)
    while True:
        lines.row.clear()
        start = lines.number + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            stray = None if "limit" in str(e) else _stray_quotes(lines.row, style, width)
            if stray is None:
                raise _broken(lines.row, start, style, source.path, str(e)) from None
            source.blemish("quotation marks in a field that is not quoted", start)
            fields = stray
        yield Row(start, fields, lines.row[1:])


def _stray_quotes(row: Sequence[str], style: Style, width: int) -> list[str] | None:
    """The fields of a line such as `Ann,"Go" he said`, if its separators alone tell them."""
    cells = row[0].rstrip("\r\n").split(style.comma) if len(row) == 1 else []
    if style.blanks:
        cells = [c.lstrip(" ") for c in cells]
    opened = any(c.startswith('"') and c.count('"') < 2 for c in cells)
    if not width or len(cells) != width or opened:
        return None
    return [unquoted(c) for c in cells]


def unquoted(cell: str) -> str:
    """A cell without the quotation marks around it, if it has them."""
    return cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell


def _broken(row: Sequence[str], start: int, style: Style, path: Path, why: str) -> DataError:
    """The error of quotation marks that cannot be read, at the line where the last quoted field opens."""
    opening, inside, closed, previous = 0, False, False, style.comma
    for n, line in enumerate(row):
        for ch in line:
            if ch == '"' and (inside or closed):
                inside, closed = closed, inside  # a doubled one opens the same field again
            elif ch == '"' and previous in (style.comma, "\n", "\r"):
                inside, opening = True, n
            else:
                closed = False
            if not (style.blanks and ch == " "):
                previous = ch
    if "limit" in why:
        problem = f"a field has more than {MAX_FIELD_CHARS:,} characters"
    elif "end of data" in why:
        problem = "a quotation mark opens here and is not closed"
    elif len(row) > opening + 1:
        end = start + len(row) - 1
        problem = f"a quotation mark opens here, and the next one, on line {end}, does not close it"
    else:
        problem = "a quotation mark stands inside a quoted field"
    problem += '; write a quotation mark of a quoted text twice (""), and remove one that quotes nothing'
    return DataError(f"broken CSV: {problem}", path, start + opening)


def style_of(f: IO[str], source: SourceFile, names_text: Callable[[Sequence[str]], bool]) -> Style:
    """How the rows of a file are written.

    Args:
        names_text: whether these names of columns have one for the text.

    Raises:
        DataError: the file is empty.
    """
    f.seek(0)
    skip, asked, head = 0, "", list[str]()
    for raw in f:
        if head or raw.strip(_EMPTY):
            found = None if asked or head else _SEP_LINE.fullmatch(raw)
            if found is None:
                head.append(raw)
                if len(head) == _SAMPLE:
                    break
                continue
            asked = found[1]
        skip += 1
    if not head:
        raise DataError("is empty: it has no header line", source.path)
    comma = asked or _separator(head, source.path, names_text)
    if comma == "\t":
        return _tab_style(f, Style(comma, skip=skip), source)
    return Style(comma, blanks=bool(re.search(rf"{re.escape(comma)} +\S", head[0])), skip=skip)


def _separator(head: Sequence[str], path: Path, names_text: Callable[[Sequence[str]], bool]) -> str:
    """The separator that gives the header a text column and most rows the width of the header."""
    best, found = (False, 0.0, 0), "\t" if path.suffix.lower() == ".tsv" else ","
    for comma in SEPARATORS:
        table = list[list[str]]()
        # Not strict: a stray quotation mark must not hide the separator.
        with contextlib.suppress(csv.Error):
            table.extend(csv.reader(head, delimiter=comma))
        if table and len(table[0]) > 1:
            width = len(table[0])
            share = sum(len(r) == width for r in table) / len(table)
            rank = (names_text([n.strip() for n in table[0]]), share, width)
            if rank > best:
                best, found = rank, comma
    return found


def _tab_style(f: IO[str], quoted: Style, source: SourceFile) -> Style:
    """Whether a TSV quotes its fields, as spreadsheets do, or has a row a line, as corpora do.

    It quotes if quotation marks stand around whole fields alone, and there only where they must or around
    each field of a column. Texts over several lines are read if that gives each row the width of the header,
    which the lines have not.
    """
    plain = replace(quoted, quotes=False)
    columns: dict[int, Counter[str]] = {}
    widths, kinds = set[int](), Counter[str]()
    for number, row in enumerate(rows(f, plain, source)):
        widths.add(len(row.fields) or len(columns))
        for n, cell in enumerate(row.fields):
            if _QUOTED.fullmatch(cell):
                kind = "must" if _NEEDS_QUOTES.search(cell[1:-1]) else "quoted"
            else:
                kind = "open" if cell[:1] == '"' else "stray" if '"' in cell else "plain" if cell else "empty"
            kinds[kind] += 1
            if number:
                columns.setdefault(n, Counter())[kind] += 1
    if kinds["open"]:
        return quoted if len(widths) > 1 and _fits(f, quoted, source) else plain
    whole = not any(c["quoted"] and c["plain"] for c in columns.values())
    return quoted if kinds["must"] + kinds["quoted"] and not kinds["stray"] and whole else plain


def _fits(f: IO[str], quoted: Style, source: SourceFile) -> bool:
    """Whether all rows have the width of the header, and no text over several lines holds a separator."""
    width = 0
    try:
        for row in rows(f, quoted, source):
            width = width or len(row.fields)
            held = bool(row.further) and any(quoted.comma in cell for cell in row.fields)
            if held or len(row.fields) not in (0, width):
                return False
    except DataError:
        return False
    return True

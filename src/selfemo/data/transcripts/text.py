"""Text transcripts: lines of `Name: text`, with dates, times, bullets or numbers beside the name.

    Ada: hi                      [00:12] Ada: hi             Ada (9:15 PM): hi
    **Ada:** hi                  Mar 1, 2024 9:15 PM - Ada: hi
    12. Ada: hi                  09:15:02 From Ada to Everyone: hi

Whether words before a colon are a name is decided by the whole file (names.py). A line without one goes on
with the turn before. Other signs than a colon are taken where all of a file has them (`separated.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.date_stamps import MARK, is_stamp, stamp_before, stamp_behind
from selfemo.data.transcripts.names import Names, could_be_name, ends_sentence
from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn
from selfemo.data.transcripts.separated import separated_style
from selfemo.data.transcripts.turn_lines import (
    FROM_TO,
    HEADINGS,
    SYSTEM,
    Head,
    Layout,
    Style,
    layout,
    stage_direction,
    turns,
)
from selfemo.errors import DataError

_SPARSE = 25
"""Lines a name, at most: a text with fewer is no transcript."""
_LONGEST = 60
_NARROWEST, _WIDEST = 50, 140
"""Characters of the longest line of a file whose lines are broken to a width."""

_BULLET = re.compile(
    rf"(?:\s|{MARK})*(?:(?:[-*+>\u2022\u2023\u25e6]\s+|\d{{1,4}}[.)]\s+|\d{{1,5}}(?:\t|[ ]{{2,}}))(?=\S))?"
)
_BOLD = re.compile(r"[^\w*]{0,40}?(?:\[?[\d:. ]{4,24}\]?\s*)?(?:\*{1,3}|_{1,3})(?=[^\s*_])")
_ANY_NAME = re.compile(rf"(?P<name>[^\s:\uff1a][^:\uff1a]{{0,{_LONGEST - 1}}}?)\s*(?::(?=\s|$)|\uff1a)")
_COURT = re.compile(r"(?P<name>[QA])(?:\.\s*|\s{2,}|\t\s*)(?=\S)")
_BY = re.compile(r"\s*(?:\d+\s+)?BY (?:MR|MS|MRS|DR|THE)\b[^:]*:?\s*")
_EVENT = re.compile(
    r"\s*(?:(?:\*{3}|-!-)\s+\S.*|Meeting ended after [\d:]+\W*|Transcription ended after [\d:]+\W*)"
)
_COLUMNS = frozenset({
    "text", "utterance", "message", "content", "speaker", "name", "author", "sender", "user", "role", "id",
    "time", "date", "timestamp", "start", "end", "conversation", "dialogue", "dialogue_id", "conversation_id",
    "label", "emotion",
})  # fmt: skip
_NUMBER = re.compile(r"\s*\d{1,5}(?:\t|[ ]{2,}|[ ]*$)")
_HOUR = re.compile(r"(?:.*[\s(\[T,])?(?:[01]?\d|2[0-3])")
_CLOCK = re.compile(r"\d:\d\d")
_LABEL = re.compile(
    r"(?i:title|date|time|start(?:ed)?|end(?:ed)?|attendees|participants|present|absent|subject|topic|agenda|"
    r"chat (?:started|ended|id)|visitor (?:id|email)|location|place|venue|duration|length|meeting|transcript|"
    r"transcribed by|recording|recorded|file|language|"
    r"titel|datum|uhrzeit|teilnehmer(?:innen)?|anwesend|thema|ort|dauer|sprache|titre|heure|objet|lieu|durée|"
    r"présents|langue|título|fecha|hora|asistentes|participantes|asunto|lugar|duración|titolo|data|ora|"
    r"partecipanti|oggetto|luogo|durata|local|duração|assunto)"
)

_NO_NAMES = (
    "no line here begins with a speaker's name: write the name and a colon before each turn (Ann: Hi), or "
    "take each line as a turn without a name by --form plain"
)
_TABLE = "has the header of a table; give it a name that ends in .csv or .tsv"
_SUBTITLES = "has the times of subtitles; give it a name that ends in .srt or .vtt"
_DATED = (
    "has a date or a time where the name should be: write the name behind it (2022-12-31 21:15 Ann: ...), or "
    "take each line as a turn without a name by --form plain"
)


class _Line:
    """A line, taken apart as far as its form tells.

    Attributes:
        stamp: the date or time before the name.
        said: from the name on, without marks of bold type.
        name: where a time stands behind it, or Zoom's "From ... to ...:" around it (then it is `sure`).
        behind: the time behind the name.
    """

    def __init__(self, raw: str):
        self._places: list[int] | None = None
        text = raw
        if _BOLD.match(raw):
            near = min(len(raw), 200)
            head = [k for k in range(near) if not _is_bold(raw, k)]
            self._places = [*head, *range(near, len(raw) + 1)]
            text = "".join(raw[k] for k in head) + raw[near:]
        begin = _BULLET.match(text)
        start = begin.end() if begin else 0
        self.stamp = stamp_before(text) or stamp_before(text, start)
        self.start = self.stamp.end if self.stamp else start
        self.said = text[self.start :]
        self.name, self.behind, self.sure, self._end = "", "", False, 0
        if self.stamp and (found := FROM_TO.match(self.said)):
            self.name, self.sure, self._end = found["name"].strip(), True, found.end()
        elif not self.stamp and (behind := stamp_behind(self.said)) and behind.colon:
            self.name, self.behind, self._end = behind.name, behind.text, behind.end
            self.said = self.said[behind.end :]

    @property
    def end_of_name(self) -> int:
        """Where the words begin behind `name`."""
        return self.place(self._end)

    def place(self, k: int) -> int:
        """Where in the line the k-th character from the name on stands."""
        return self.start + k if self._places is None else self._places[self.start + k]


def _is_bold(raw: str, k: int) -> bool:
    """Whether a character is a mark of bold type, not one inside a name (SPEAKER_00)."""
    inside = raw[k : k + 1] == "_" and raw[max(k - 1, 0)].isalnum() and raw[k + 1 : k + 2].isalnum()
    return raw[k] in "*_" and not inside and not (k == 0 and raw[1:2] == " ")


def _is_cut_time(name: str, rest: str) -> bool:
    """Whether the colon is inside a time: "at 9" before "15"."""
    return _HOUR.fullmatch(name) is not None and re.match(r"[0-5]\d(?!\d)", rest) is not None


def _is_phrase(name: str) -> bool:
    """Whether a name would be several words that begin with a small letter."""
    return name[:1].islower() and " " in name


def _is_label(name: str) -> bool:
    return _LABEL.fullmatch(name) is not None


@dataclass(frozen=True)
class _Settled:
    """What a file is like.

    Attributes:
        timed: turns begin with a time.
        court: they are of a court, `Q.` and `A.`.
        titled: a name that comes again has a capital letter; `capitals`: two of three have.
        indented: turns begin with blanks.
        wrapped: lines are broken to a width.
        trusting: nothing looks like a name, though most lines have a colon.
        dense: three of four lines begin with words that may be a name.
        unnamed: lines have times, and no names.
    """

    timed: bool
    court: bool
    titled: bool
    capitals: bool
    indented: bool
    wrapped: bool
    trusting: bool
    dense: bool
    unnamed: bool


class _Colons:
    """Where turns begin in one file, by what all of it says; `see` each line before the first `head`."""

    def __init__(self) -> None:
        self.lines = self.flush = 0
        self._names = Names()
        self._plain, self._stamped = Counter[str](), Counter[str]()
        self._numbers = self._stamps = self._indented = self._flush = self._bare = self._width = 0
        self._court: Counter[str] = Counter()
        self._settled: _Settled | None = None

    def see(self, raw: str) -> None:
        if stage_direction(raw):
            return
        self.lines += 1
        self.flush += raw[0] not in " \t"
        self._numbers += _NUMBER.match(raw) is not None
        line = _Line(raw)
        self._stamps += line.stamp is not None
        self._names.see([f"{line.name}: {line.said}" if line.name else line.said])
        if not line.stamp and (court := _COURT.match(line.said)):
            self._court[court["name"]] += 1
        elif found := _ANY_NAME.match(f"{line.name}: " if line.name else line.said):
            (self._stamped if line.stamp else self._plain)[found["name"]] += 1
            self._indented += raw[0] in " \t"
            self._flush += raw[0] not in " \t"
        elif not line.stamp:
            self._bare += 1
        self._width = max(self._width, len(raw.rstrip()))

    @property
    def _file(self) -> _Settled:
        if self._settled is None:
            stamped = sum(
                n for name, n in self._stamped.items() if could_be_name(name) and not _is_phrase(name)
            )
            plain = {
                name: n for name, n in self._plain.items() if could_be_name(name) and not _is_label(name)
            }
            both, upper = min(self._court["Q"], self._court["A"]), sum(name[:1].isupper() for name in plain)
            self._settled = _Settled(
                timed=stamped > 2 * sum(plain.values()) and stamped > 1,
                court=both > 1 or (both == 1 and self._court.total() * 2 >= self.lines),
                titled=any(name[:1].isupper() and n > 1 for name, n in plain.items()),
                capitals=upper * 3 >= 2 * (len(plain) - 1) > 0,
                trusting=sum(plain.values()) * 2 >= self.lines
                and not any(self._names.at(f"{name}: hi") for name in plain),
                dense=sum(plain.values()) * 4 >= 3 * self.lines,
                indented=self._indented > self._flush,
                wrapped=self._bare * 5 >= self.lines and _NARROWEST <= self._width <= _WIDEST,
                unnamed=self._stamps * 5 > self.lines * 4 and stamped * 10 < self._stamps,
            )
        return self._settled

    @property
    def numbered(self) -> bool:
        """Whether lines begin with their numbers."""
        return self.lines > 1 and self._numbers * 5 >= self.lines * 4

    @property
    def unnamed(self) -> bool:
        """Whether lines have times, and no names behind them."""
        return self._file.unnamed

    def head(self, raw: str, before: str) -> Head | None:
        """The start of a turn in a line that follows `before`."""
        if raw[0] in " \t" and not self._file.indented:
            return None
        line = _Line(raw)
        time = line.stamp.text if line.stamp else ""
        if line.sure:
            return Head(line.name, line.end_of_name, time)
        if line.name:
            sure = self._names.at(f"{line.name}: {line.said}") or self._has_role(line.name)
            return Head(line.name, line.end_of_name, line.behind) if sure else None
        if self._file.court and (court := _COURT.match(line.said)):
            return Head(court["name"], line.place(court.end()))
        if self._file.timed and line.stamp is None:
            return None
        found = self._named(line, time)
        if found and not time and self._plain[found.name] < 2 and self._is_inside(raw, before):
            return None
        return found

    def _has_role(self, name: str) -> bool:
        """Whether words with a comma come again, and are a name and a role ("Max, chair")."""
        return "," in name and self._plain[name] + self._stamped[name] > 1 and could_be_name(name)

    def _is_often(self, name: str) -> bool:
        """Whether a single word that is ordinary too ("June", "Will") comes before colons again."""
        one = name[:1].isupper() and name.isalpha()
        return one and self._plain[name] > 1 and self._plain[name] * 20 >= self.lines

    def _is_inside(self, raw: str, before: str) -> bool:
        """Whether a line goes on in a sentence that was broken to fit the width of the file."""
        full = len(before.rstrip()) + 1 + len(raw.split(maxsplit=1)[0]) > self._width
        return self._file.wrapped and full and not ends_sentence(before)

    def _named(self, line: _Line, time: str) -> Head | None:
        said = line.said
        found = self._names.at(said)
        name, end = (found.name, found.end) if found and said[found.end - 1] in ":\uff1a\ufe55" else ("", 0)
        if not name and (other := _ANY_NAME.match(said)):
            # Behind a time, and where nothing looks like a name, the words need be no sentence alone.
            name, end = other["name"], other.end()
            if not (self._has_role(name) or self._is_often(name)):
                if not ((time and self._file.timed) or self._file.trusting or self._file.dense):
                    return None
                if not could_be_name(name) and self._stamped[name] < 3:
                    return None
        if not name or _CLOCK.search(name) or "\t" in said[:end].rstrip() or _is_cut_time(name, said[end:]):
            return None
        once = not time and self._plain[name] < 2
        if once and (_is_label(name) or (name[:1].islower() and self._file.capitals)):
            return None
        if _is_phrase(name) and (said[:1] in "([" or (not time and self._file.titled)):
            return None
        return Head(name, line.place(end), time)

    def wrong(self, raw: str) -> str:
        """Why a line without a head is refused: a colon stands right behind its date or time."""
        line = _Line(raw)
        colon = line.stamp and raw[: line.start].rstrip().endswith((":", "\uff1a")) and line.said.strip()
        return _DATED if colon and raw[0] not in " \t" and not _ANY_NAME.match(line.said) else ""

    def aside(self, raw: str) -> str:
        """The kind of a line that is no speech."""
        if kind := stage_direction(raw):
            return kind
        if _EVENT.fullmatch(raw.rstrip()):
            return SYSTEM
        if self._file.court and _BY.fullmatch(raw.rstrip()):
            return HEADINGS
        return SYSTEM if self._file.timed and _Line(raw).stamp else ""


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    colons, first, wrong, spans = _Colons(), 0, 0, 0
    for line, raw in enumerate(f, 1):
        if raw.strip():
            first = first or line
            colons.see(raw)
            if line == first and _COLUMNS.issuperset(_cells(raw)):
                raise DataError(_TABLE, path, line)
            spans += "-->" in raw and is_stamp(raw)
            if spans > 1:
                raise DataError(_SUBTITLES, path, line)
            if not wrong and colons.wrong(raw):
                wrong = line
    f.seek(0)
    if not first:
        raise DataError("is empty", path)
    if colons.unnamed and not wrong:
        style = Style("lines with times, without names", _timed, stage_direction)
        yield from turns(f, path, style, Layout(timed=True), reading)
        return
    style = Style("lines of `Name: text`", colons.head, colons.aside, wrong=colons.wrong)
    if colons.numbered:
        style = replace(style, number=_NUMBER)
    stand = layout(f, style)
    f.seek(0)
    if stand.turns * 10 < 9 * colons.flush and (other := separated_style(f)):
        f.seek(0)
        style, stand = other, layout(f, other)
    elif wrong and not stand.turns:
        raise DataError(_DATED, path, wrong)
    elif not stand.turns or (not settings.form and stand.turns * _SPARSE < colons.lines):
        raise DataError(_NO_NAMES, path, first)
    f.seek(0)
    yield from turns(f, path, style, stand, reading)


def _cells(raw: str) -> set[str]:
    """The names of a table's columns, or nothing that is one."""
    cells = {cell.strip(' "\r\n\ufeff').lower() for cell in re.split(r"[,;\t|]", raw)}
    return cells if len(cells) > 1 else {""}


def _timed(raw: str, before: str) -> Head | None:
    stamp = stamp_before(raw)
    return Head("", stamp.end, stamp.text) if stamp else None


FORMS = (Form("lines", "lines of `Name: text`", (".txt",), lambda head: True, _read),)

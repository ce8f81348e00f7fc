"""Lines of text as turns: what the forms of text transcripts share.

A form says where a turn begins (its `Head`); here the lines behind it are put together, blank lines part
conversations or only turns, and what is no speech is left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from selfemo.data.transcripts.date_stamps import MARK, is_stamp
from selfemo.data.transcripts.reading import SPEAKER, Reading, SourceTurn
from selfemo.errors import DataError

BEFORE, SILENT = "lines before the first speaker", "speakers without words"
DIRECTIONS, TIMES = "stage directions", "times on a line of their own"
HEADINGS, SYSTEM, NUMBERS = "headings", "lines of the system", "numbers of lines"
GOES_ON = "lines that go on with the one before"

FROM_TO = re.compile(
    r"\s*(?i:from|von|de|da|van)\s+(?P<name>\S.{0,79}?)"
    r"(?:\s+(?i:to|an|à|a|aan|para)\s+(?P<to>[^\s:][^:]{0,79}?))?(?:\s*\((?P<how>[^()]*)\))?\s*:(?=\s|$)\s*"
)
"""Zoom's saved chat: "From Ada to Everyone:", in several languages."""
_RULE = re.compile(r"[-=_*~#\u2010-\u2015\u2500-\u257f\s]{3,}")
_DIRECTION = re.compile(
    r"[*_]*(?:\[[^\[\]]*\]|\([^()]*\)|\{[^{}]*\}|\uff08[^\uff08\uff09]*\uff09|\u3010[^\u3010\u3011]*\u3011)[*_.!]*"
)
_PAGE = re.compile(r"\W*(?:page|seite|p\.)\s*\d+(?:\s*(?:of|/|von)\s*\d+)?\W*", re.IGNORECASE)
_HEADING = re.compile(r"#{1,6}\s+\S.*|\W*\d{1,4}\W*")
_CLOCK_ALONE = re.compile(r"\W*\d{1,2}:\d\d(?::\d\d)?(?:\s?[AP]M)?\W*", re.IGNORECASE)
_DASH_ALONE = re.compile(r"\s*[-\u2010-\u2015]\s*")
_WORD = re.compile(r"[^\W_]+")
_CLOSED = re.compile(r"[.!?,;:\u2026\u3002\uff01\uff1f\"\u201d\u00bb)]\s*$")


class Head(NamedTuple):
    """The start of a turn in a line.

    Attributes:
        name: the speaker; "" for a line that names none.
        end: where the words begin.
        time: the date or time beside the name, as it is written.
    """

    name: str
    end: int
    time: str = ""


@dataclass(frozen=True)
class Style:
    """How a file writes turns.

    Attributes:
        says: in words.
        head: the start of a turn in a line, if there is one; called with the line and the one before it
            ("" after a blank line).
        aside: the kind of a line that is no speech, "" if it may be some.
        flowing: lines without a head are the rule: they go on with the turn before.
        wrong: why a line without a head is refused, "" if it is not.
        paired: whether two lines are one, the start of a turn: a time, and under it a name.
        number: the number of the line that begins a line without a head, where all lines have one.
    """

    says: str
    head: Callable[[str, str], Head | None]
    aside: Callable[[str], str]
    flowing: bool = False
    wrong: Callable[[str], str] = lambda raw: ""
    paired: Callable[[str, str], bool] | None = None
    number: re.Pattern[str] | None = None


@dataclass
class Layout:
    """How the turns of a whole file stand.

    Attributes:
        gaps: how many turns follow the one before after 0, 1, ... blank lines.
        turns: how many there are.
        timed: whether a turn has a time, `wordy` whether one has other words beside its name.
    """

    gaps: Counter[int] = field(default_factory=Counter)
    turns: int = 0
    timed: bool = False
    wordy: bool = False

    @property
    def usual_gap(self) -> int:
        """The blank lines that part turns alone; more begin a new conversation."""
        total, so_far = self.gaps.total(), 0
        for gap in sorted(self.gaps):
            so_far += self.gaps[gap]
            # One turn in ten that follows at once is a slip in a file of parted turns.
            if so_far * 10 > total:
                return gap
        return 0


def stage_direction(line: str) -> str:
    """The kind of a line of a transcript that is no speech, "" if it may be some."""
    text = line.strip()
    if is_stamp(text):
        return TIMES
    return DIRECTIONS if _DIRECTION.fullmatch(text) else ""


def numbered(lines: Iterable[str], style: Style) -> Iterator[tuple[int, str]]:
    """The lines with their numbers from 1; of two that are one, the first one's."""
    held: tuple[int, str] | None = None
    for line, raw in enumerate(lines, 1):
        if held and style.paired and _DASH_ALONE.fullmatch(raw):
            held = held[0], f"{held[1].rstrip()} {raw.strip()}\n"  # Discord: a name, a dash and a time
        elif held and style.paired and style.paired(held[1], raw):
            yield held[0], f"{held[1].rstrip()} {raw.lstrip()}"
            held = None
        else:
            if held:
                yield held
            held = line, raw
    if held:
        yield held


def layout(lines: Iterable[str], style: Style) -> Layout:
    """How the turns of a whole file stand; reads all lines."""
    found, gap, run, before, joined = Layout(), 0, 0, "", False
    for _, raw in numbered(lines, style):
        if _parts(raw):
            run, before = run + 1, ""
            continue
        gap, run = max(gap, run), 0
        head, before = style.head(raw, before), raw
        if head:
            if found.turns:
                found.gaps[0 if joined else gap] += 1
            found.turns += 1
            found.timed |= bool(head.time)
            found.wordy |= _is_wordy(raw, head)
        elif style.aside(raw):
            joined |= _CLOCK_ALONE.fullmatch(raw) is not None
            continue
        gap, joined = 0, False
    return found


def read_style(f: IO[str], path: Path, style: Style, reading: Reading) -> Iterator[SourceTurn]:
    """The turns of a file of one style."""
    stand = layout(f, style)
    f.seek(0)
    return turns(f, path, style, stand, reading)


def turns(
    lines: Iterable[str], path: Path, style: Style, stand: Layout, reading: Reading
) -> Iterator[SourceTurn]:
    """The turns of lines in order; each word is in one of them, or left out and counted."""
    source, usual = reading.source(path), stand.usual_gap
    reading.form = style.says + ("", ", a blank line after each", ", blank lines after each")[min(usual, 2)]
    conversation, any_yet, gap, run = 1, False, 0, 0
    joined = False  # a time between the lines of one conversation parts nothing
    head: Head | None = None
    began, line_of_head, said, before = "", 0, list[str](), ""

    def turn() -> Iterator[SourceTurn]:
        nonlocal any_yet
        if head is None:
            return
        text = source.clean(" ".join(said), line_of_head)
        if not text:
            reading.leave_out(SILENT, began, line_of_head)
            return
        any_yet = True
        fields = {"time": source.clean(head.time)} if stand.timed else {}
        if stand.wordy:
            fields["head"] = source.clean(began[: head.end]) if _is_wordy(began, head) else ""
        who = source.clean(head.name, line_of_head) or SPEAKER
        yield SourceTurn(f"{path.stem}-{conversation}", who, text, fields=fields)

    for line, raw in numbered(lines, style):
        if _parts(raw):
            run, before = run + 1, ""
            continue
        gap, run = max(gap, run), 0
        new, before = style.head(raw, before), raw
        if new:
            yield from turn()
            if gap > usual and any_yet and not joined:
                conversation, any_yet = conversation + 1, False
            head, began, line_of_head, said, gap = new, raw, line, [raw[new.end :]], 0
            joined = False
        elif reason := style.wrong(raw):
            raise DataError(reason, path, line)
        elif kind := style.aside(raw) or _heading(raw, head, gap, usual, style):
            reading.leave_out(kind, raw.strip(), line)
            joined |= _CLOCK_ALONE.fullmatch(raw) is not None
        else:
            if raw[0] not in " \t" and not style.flowing and any(s.strip() for s in said):
                source.blemish(GOES_ON, line)
            number = style.number.match(raw) if style.number else None
            if number:
                reading.leave_out(NUMBERS, number[0].strip(), line)
            said.append(raw[number.end() :] if number else raw)
            gap, joined = 0, False
    yield from turn()


def _heading(raw: str, head: Head | None, gap: int, usual: int, style: Style) -> str:
    """The kind of a line that stands before a turn and belongs to none."""
    if head is None:
        return BEFORE
    text = raw.strip()
    if _PAGE.fullmatch(text) or (gap and _HEADING.fullmatch(text)):
        return HEADINGS
    # A short line after the blank lines that part conversations is the title of the next one.
    short = len(text.split()) <= 6 and not _CLOSED.search(text)
    return HEADINGS if gap > usual and short and not style.flowing else ""


def _parts(raw: str) -> bool:
    """Whether a line is blank, or a rule (`---`)."""
    text = re.sub(MARK, "", raw).strip()
    return not text or _RULE.fullmatch(text) is not None


def _is_wordy(raw: str, head: Head) -> bool:
    """Whether words stand beside the name and the time: "From Ada to Everyone:", "12. Ada:"."""
    words = Counter(_WORD.findall(raw[: head.end]))
    words.subtract(_WORD.findall(f"{head.name} {head.time}"))
    return any(n > 0 for n in words.values())

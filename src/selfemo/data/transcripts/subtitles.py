"""Subtitles: SubRip (.srt), WebVTT (.vtt) and YouTube's .sbv, as people have them.

A line of times begins a subtitle; blank lines, numbers and the rest of the form are often missing or wrong in
files that players show all the same, and the libraries at hand drop words there without telling. A file is
read three times: for its layout, for its speakers' names, and for its turns.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.cue_turns import Shown, cue_turns, has_word_times, is_credit, shown
from selfemo.data.transcripts.names import Names
from selfemo.data.transcripts.reading import OTHER_SPEAKER, SPEAKER, Form, Reading, ReadSettings, SourceTurn
from selfemo.errors import DataError

# 1:02:03.456, 02:03,4, 01:02:03 or, with frames, 01:02:03:12.
_STAMP = r"-?(?:(?:\d+:){2}\d{1,2}[:;]\d{1,3}|(?:\d+\s?:\s?){1,2}\d{1,2}(?:\s?[.,]\s?\d{1,9})?)"
_FULL = r"\d+:\d{1,2}:\d{1,2}[.,]\d{1,9}"
_HEADS = r"[\u2192\u21d2\u27f6\u2794\u2799\u279c\u27a1]\ufe0f?"
_ARROW = rf"(?:-(?:\s?-){{0,2}}\s?(?:>|&gt;)|[=~]>|[\u2010-\u2015\u2212]+\s?>|{_HEADS})"
_TIMES = re.compile(
    rf"\s*(?:(?P<number>\d{{1,9}})\s+)?[\[(]?\s*(?P<start>{_STAMP})\s*{_ARROW}\s*(?P<end>{_STAMP})(?![\w.,:;])"
    r"[\])]?(?P<rest>.*)"
)
_PAIR = re.compile(rf"\s*(?P<start>{_FULL})[\s,;|/\u2013\u2014-]{{1,5}}(?P<end>{_FULL})\s*")
_BROKEN = re.compile(
    rf"^\W*\d+\s?:\s?\d[\d\s:.,;]*{_ARROW}|\d\W{{0,9}}-->|-->\W{{0,9}}\d"
    r"|^\s*(?:\d+:\d{1,2}:\d{1,2}[.,]\d|\d{1,2}:\d\d[.,]\d{3}\s*(?:-|$))"
)
_NUMBER = re.compile(r"\s*#?\s*(?P<n>\d{1,9})\s*[.:)]?\s*")
_COMMENT = re.compile(r"(?:NOTE|STYLE|REGION|WEBVTT)(?:\s.*|$)")
_SETTING = re.compile(r"(?<!\S)(?:align|position|line|size|vertical|region|[XY][12]):[^\s<>]*", re.I)
# Characters of a line whose white space is folded, so that no pattern has to look through it again and again.
_LONG = 1000
_TOUCHING = 0.1
_INSTANT = 0.05


@dataclass(frozen=True)
class _Layout:
    """How a file's subtitles are parted.

    Attributes:
        web: WebVTT, where only an empty line is a blank one.
        numbered: most lines of times have a number before them.
        spaced: there is a blank line between the number and the times.
        blanks: there is one before the number.
        first: the first line that is not blank, 0 in an empty file.
        cues: how many lines of times there are.
    """

    web: bool
    numbered: bool = False
    spaced: bool = False
    blanks: bool = True
    first: int = 0
    cues: int = 0

    def is_blank(self, line: str) -> bool:
        return not line if self.web else not line.strip()


@dataclass
class _Cue:
    """A subtitle as the file has it.

    Attributes:
        line: of its times.
        start, end: as written.
        body: its lines and their numbers, blank ones too.
        fresh: of rolling captions, the lines that were not shown before; else all that are shown.
    """

    line: int
    start: str
    end: str
    number: str = ""
    body: list[tuple[int, str]] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        return [text for _, text in self.body]


LeaveOut = Callable[[str, str, int], None]


def _no_one(kind: str, text: str, line: int) -> None:
    """What is left out is told once, in the last reading."""


def _numbered(f: Iterable[str]) -> Iterator[tuple[int, str]]:
    for line, raw in enumerate(f, 1):
        text = raw.rstrip("\r\n").strip("\ufeff")
        yield line, text if len(text) < _LONG else " ".join(text.split())


def _times(text: str) -> re.Match[str] | None:
    return _TIMES.fullmatch(text) or _PAIR.fullmatch(text)


def _seconds(stamp: str) -> float:
    """Of 1:02:03.5, 02:03,5 or 01:02:03:12 (frames, which count as a fraction)."""
    sign = -1 if stamp.startswith("-") else 1
    parts = re.split(r"[:;]", stamp.lstrip("-").replace(",", "."))
    if len(parts) == 4:
        parts = [*parts[:2], f"{parts[2]}.{parts[3]}"]
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + float(part)
    return sign * seconds


def _layout(f: IO[str], web: bool) -> _Layout:
    """Look at the lines before each line of times."""
    found: Counter[str] = Counter()
    is_blank = _Layout(web).is_blank
    tail: deque[str] = deque(maxlen=3)  # "t" times, "b" blank, "n" number, "w" words
    first = 0
    for line, text in _numbered(f):
        if is_blank(text):
            tail.append("b")
            continue
        first = first or line
        if _times(text):
            before = "".join(tail)
            found["cues"] += 1
            found["adjacent"] += before.endswith("n") and not before.endswith("tn")
            found["spaced"] += before.endswith(("bnb", "nbb")) or before == "nb"
            found["blank"] += before.endswith("bn") or before == "n"
            tail.append("t")
        else:
            tail.append("n" if _NUMBER.fullmatch(text) else "w")
    numbers = found["adjacent"] + found["spaced"]
    return _Layout(
        web,
        numbered=numbers * 2 >= found["cues"],
        spaced=found["spaced"] > found["adjacent"],
        blanks=found["blank"] * 2 >= found["adjacent"],
        first=first,
        cues=found["cues"],
    )


def _cues(f: IO[str], path: Path, layout: _Layout, leave_out: LeaveOut) -> Iterator[_Cue]:
    """The subtitles in the order of the file.

    Raises:
        DataError: a line of times is broken.
    """
    cue: _Cue | None = None
    body: list[tuple[int, str]] = []
    comment: list[str] = []
    broken = (0, "")
    last: int | None = None
    f.seek(0)
    for line, text in _numbered(f):
        if broken[0] and text.strip():
            raise DataError(f"these are no times: {broken[1].strip()[:60]}", path, broken[0])
        if times := _times(text):
            number, last = _take_number(body, layout, last, cue is None)
            if comment:
                comment.insert(0, number)
                _hand_over(comment, line - 1, leave_out)
            if layout.web and not number:
                _take_identifier(body, leave_out)
            if cue:
                cue.body = body
                yield cue
            else:
                _header(body, layout, leave_out)
            start, end = (re.sub(r"\s", "", times[k]) for k in ("start", "end"))
            cue, body = _Cue(line, start, end, number), []
            named = times.groupdict()
            cue.number = named.get("number") or number
            if rest := _without_settings(named.get("rest") or "", line, leave_out):
                body.append((line, rest))
        elif _BROKEN.search(text):
            broken = line, text
        elif comment:
            if layout.is_blank(text):
                _hand_over(comment, line - 1, leave_out)
                body.append((line, text))
            else:
                comment.append(text)
        elif layout.web and cue and _COMMENT.fullmatch(text) and body and not body[-1][1]:
            comment.append(text)
        else:
            body.append((line, text))
    _hand_over(comment, line if layout.first else 0, leave_out)
    cut = _cut_off(body, layout, last, broken[0] > 0) + [broken] * (broken[0] > 0)
    if cut:
        leave_out("subtitles that are cut off", "\n".join(said for _, said in cut), cut[0][0])
    if cue:
        cue.body = body
        yield cue
    elif layout.first:
        _header(body, layout, leave_out)


def _take_number(
    body: list[tuple[int, str]], layout: _Layout, last: int | None, first: bool
) -> tuple[str, int | None]:
    """Take the number of the next subtitle from the end of a body; also the last number now.

    A subtitle's own text may be a number too: there the place, the number before and the habit of the file
    decide.
    """
    end = len(body)
    while end and layout.is_blank(body[end - 1][1]):
        end -= 1
    found = _NUMBER.fullmatch(body[end - 1][1]) if end else None
    if found is None or not layout.numbered:
        return "", last
    number, blanks = int(found["n"]), len(body) - end
    follows = last is not None and number == last + 1
    alone = layout.is_blank(body[end - 2][1]) if end > 1 else first
    usual = (alone and layout.spaced) if blanks else (alone or (not layout.blanks and end > 1))
    if not ((follows and (alone or not blanks)) or usual):
        return "", last
    text = body[end - 1][1].strip()
    del body[end - 1 :]
    return text, number


def _cut_off(
    body: list[tuple[int, str]], layout: _Layout, last: int | None, times: bool
) -> list[tuple[int, str]]:
    """Take the number of a subtitle that the end of the file cuts off, after it or in its times."""
    kept = list(body)
    _, number = _take_number(body, layout, last, False)
    if times or (last is not None and number == last + 1):
        return [(line, text) for line, text in kept[len(body) :] if text.strip()]
    body[:] = kept
    return []


def _take_identifier(body: list[tuple[int, str]], leave_out: LeaveOut) -> None:
    """Take the name of the next cue, a line of its own before the times, from the end of a body."""
    if (
        body
        and body[-1][1].strip()
        and (len(body) == 1 or not body[-2][1])
        and not _COMMENT.match(body[-1][1])
    ):
        line, text = body.pop()
        leave_out("names of cues", text, line)


def _header(body: list[tuple[int, str]], layout: _Layout, leave_out: LeaveOut) -> None:
    """Hand over what stands before the first subtitle."""
    for line, text in body:
        said = re.sub(r"^WEBVTT\b", "", text) if layout.web else text
        if said.strip():
            leave_out("lines before the first subtitle", said, line)


def _hand_over(comment: list[str], line: int, leave_out: LeaveOut) -> None:
    if comment:
        leave_out("comments and styles", "\n".join(comment), line - len(comment) + 1)
        comment.clear()


def _without_settings(rest: str, line: int, leave_out: LeaveOut) -> str:
    """What stands behind the times, without where to show it."""
    if settings := " ".join(_SETTING.findall(rest)):
        leave_out("display settings", settings, line)
    # A tag parts what it follows from the settings.
    return _SETTING.sub("", rest.replace("<", " <")).strip()


def _repeated(before: Sequence[Shown], now: Sequence[Shown]) -> int:
    """How many of the last lines begin the new ones."""
    was, is_now = [line.key for line in before], [line.key for line in now]
    return next((k for k in range(min(len(was), len(is_now)), 0, -1) if was[-k:] == is_now[:k]), 0)


def _grown(before: Sequence[Shown], now: Sequence[Shown]) -> int:
    """How many of the last lines begin the new ones, where words were put to the last of them."""
    was, is_now = [line.key for line in before], [line.key for line in now]
    for k in range(min(len(was), len(is_now)), 0, -1):
        if was[-k:-1] == is_now[: k - 1] and is_now[k - 1].startswith(f"{was[-1]} "):
            return k
    return 0


def _look(cues: Iterable[_Cue]) -> tuple[Names, bool, bool]:
    """The names of a file, and whether its captions roll: each line is shown again above the next one, and
    whether they grow: a line is shown again with more words.

    People repeat words too. Captions that roll show lines again without a pause, most of the time, and with
    new lines below them, for an instant only, or with a time for each word. Captions that grow do so twice,
    and as a rule.
    """
    names, last, above, timed = Names(), None, list[Shown](), False
    touching = signs = sure = grown = 0
    for cue in cues:
        lines = shown(cue.lines)
        words = has_word_times(cue.lines)
        again = 0
        if last and lines and above and _touches(last, cue):
            touching += 1
            if again := _repeated(above, lines):
                instant = any(_seconds(c.end) - _seconds(c.start) <= _INSTANT for c in (last, cue))
                signs += len(lines) > again or instant or words or timed
                sure += instant or words or timed
            else:
                grown += _grown(above, lines) > 0
        if lines[again:]:
            names.see([line.text for line in lines[again:]])
        if lines:
            last, above, timed = cue, lines, words
    grows = grown > 1 and (grown + signs) * 2 >= touching
    return names, (signs > 1 or sure > 0) and signs * 2 >= touching, grows


def _touches(last: _Cue, cue: _Cue) -> bool:
    return _seconds(last.start) <= _seconds(cue.start) <= _seconds(last.end) + _TOUCHING


def _unrolled(cues: Iterable[_Cue], rolls: bool, grows: bool, leave_out: LeaveOut) -> Iterator[_Cue]:
    """The subtitles with their fresh lines; of captions that roll or grow each line once and whole, with the
    times from its first to its last appearance."""
    waiting: deque[_Cue] = deque()
    above: list[tuple[Shown, _Cue]] = []
    last: _Cue | None = None
    for cue in cues:
        lines = shown(cue.lines)
        if not (rolls or grows) or not lines:
            cue.fresh = cue.lines
            waiting.append(cue)
        else:
            shown_now = [line for line, _ in above] if last and _touches(last, cue) else []
            again = _repeated(shown_now, lines)
            longer = _grown(shown_now, lines) if grows and not again else 0
            again = again or longer
            above = above[len(above) - again :]
            for line, owner in above:
                owner.end = cue.end
                leave_out("repeated lines of rolling captions", line.key, cue.line)
            if longer:
                whole, owner = lines[again - 1], above[-1][1]
                owner.fresh[-1], above[-1] = whole.raw, (whole, owner)
            above += [(line, cue) for line in lines[again:]]
            last = _Cue(cue.line, cue.start, cue.end)
            if again < len(lines):
                cue.fresh = [line.raw for line in lines[again:]]
                waiting.append(cue)
        owners = {id(owner) for _, owner in above}
        while waiting and id(waiting[0]) not in owners:
            yield waiting.popleft()
    yield from waiting


def _read(
    f: IO[str], path: Path, settings: ReadSettings, reading: Reading, web: bool = False
) -> Iterator[SourceTurn]:
    source = reading.source(path)
    f.seek(0)
    layout = _layout(f, web)
    names, rolls, grows = _look(_cues(f, path, layout, _no_one))
    if not layout.cues and layout.first and not (web and _is_header_alone(f)):
        raise DataError("a subtitle needs its times (00:00:01,000 --> 00:00:02,500)", path, layout.first)
    number, any_yet, last_start, last_end = 1, False, 0.0, 0.0
    shown_once = _unrolled(_cues(f, path, layout, reading.leave_out), rolls, grows, reading.leave_out)
    for cue in shown_once:
        start, end = _seconds(cue.start), _seconds(cue.end)
        if (
            settings.gap
            and any_yet
            and (start - last_end > settings.gap or last_start - start > settings.gap)
        ):
            number, any_yet, last_end = number + 1, False, end
        if start < last_start:
            source.blemish("subtitle that starts before the one above it", cue.line)
        last_start, last_end = start, max(last_end, end)
        for turn in _turns(cue, names, reading, source.blemish):
            text, who = source.clean(turn[1], cue.line), source.clean(turn[0], cue.line)
            if text:
                any_yet = True
                fields = {"start": cue.start, "end": cue.end}
                if aside := source.clean(turn[2], cue.line):
                    fields["aside"] = aside
                yield SourceTurn(f"{path.stem}-{number}", who or SPEAKER, text, fields=fields)


def _turns(
    cue: _Cue, names: Names, reading: Reading, blemish: Callable[[str, int | None], None]
) -> list[tuple[str, str, str]]:
    """(speaker, text, aside) of each turn of a subtitle."""
    left = sum(reading.left_out.values())
    if is_credit([line.text for line in shown(cue.fresh)]):
        reading.leave_out("credits of the subtitles", "\n".join(cue.fresh), cue.line)
        return []
    turns, others = [], 0
    for turn in cue_turns(
        cue.fresh,
        names,
        lambda kind, text: reading.leave_out(kind, text, cue.line),
        lambda: blemish("colon that may end a name, kept in the text", cue.line),
    ):
        speaker = turn.speaker
        if not speaker:
            speaker = OTHER_SPEAKER if others % 2 else SPEAKER
            others += 1
        turns.append((speaker, turn.text, turn.aside))
    if not turns and left == sum(reading.left_out.values()):
        text = f"{cue.number} {cue.start} --> {cue.end} {' '.join(cue.fresh)}"
        reading.leave_out("subtitles without text", text.strip(), cue.line)
    return turns


def _is_header_alone(f: IO[str]) -> bool:
    """Whether a WebVTT file without cues has nothing but its header and comments."""
    f.seek(0)
    inside = False
    for _, text in _numbered(f):
        if text and not inside and not _COMMENT.fullmatch(text):
            return False
        inside = bool(text)
    return True


def _is_web(head: list[str]) -> bool:
    first = next((text for _, text in _numbered(head) if text.strip()), "")
    return re.match(r"\s*WEBVTT(?:\s|$)", first) is not None


def _is_sbv(head: list[str]) -> bool:
    first = next((text for _, text in _numbered(head) if text.strip()), "")
    return _PAIR.fullmatch(first) is not None


_SUFFIXES = (".srt", ".vtt", ".sbv")
# By their first lines, whatever the suffix says.
FORMS = (
    Form("vtt", "subtitles (WebVTT)", _SUFFIXES, _is_web, partial(_read, web=True)),
    Form("sbv", "subtitles (YouTube's .sbv)", _SUFFIXES, _is_sbv, _read),
    Form("srt", "subtitles (SubRip)", _SUFFIXES, lambda head: True, _read),
)

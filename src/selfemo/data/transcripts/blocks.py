"""Transcripts and chats in blocks: a line with the speaker, and under it what they say.

    Ada Gray  0:03               [9:15 AM] Ada Gray     0:0:0.0 --> 0:0:2.1     ADA
    Hello.                       Hello.                 Ada Gray                Hello.
                                                        Hello.
    Ada, [1 Mar 2024 at 09:15]:  ada — Today at 9:15 AM Ada Gray: [00:03]

So write Otter, Rev, Zoom and Teams; copies of Slack, Discord, Teams and Telegram; screenplays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.date_stamps import MARK, is_stamp, stamp_before, stamp_behind
from selfemo.data.transcripts.names import could_be_name, parted
from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn
from selfemo.data.transcripts.turn_lines import (
    DIRECTIONS,
    FROM_TO,
    SYSTEM,
    TIMES,
    Head,
    Style,
    numbered,
    read_style,
)
from selfemo.errors import DataError

_HELD = 2_000
"""Lines that a style is known by."""
_NOTE = re.compile(r"\s*(?:\[[^\[\]]*\]|\{[^{}]*\})\s*")
_SAID = re.compile(r"(?P<name>[^\s:][^:\n]{0,59}?):\s+\S")
_ALONE = re.compile(rf"(?:\s|{MARK})*(?P<name>[^\s:][^:\n]{{0,79}}?)\s*:?\s*")
_COLON_TIME = re.compile(r"\s*(?P<name>[^\s:][^:\n]{0,59}?)\s*:\s+(?P<time>\S.*)")

_WITH_ASIDE = re.compile(r"(?P<name>[^()\n:]{0,60}?[^()\s.!?,;:\u2026])(?:\s*\([^()]*\))*")
_OF_THE_PROGRAM = re.compile(
    r"Exported [\d,]+ message\(s\)|Transcribed by https?://\S+"
    r"|(?!(?:I|You|He|She|We|They|It)\b)[^.!?:]{1,80} (?:started|stopped) (?:transcription|recording)"
)

Split = Callable[[str], Head | None]
Paired = Callable[[str, str], bool] | None


def _name_time(raw: str) -> Head | None:
    """`Ada Gray  0:03`, `Ada, [1 Mar 2024 at 09:15]:`"""
    found = stamp_behind(raw.rstrip())
    if found is None or found.end < len(raw.rstrip()) or is_stamp(raw) or is_stamp(found.name):
        return None
    return Head(parted(found.name)[0] or found.name, len(raw), found.text)


def _time_name(raw: str) -> Head | None:
    """`[9:15 AM] Ada Gray`, with a colon or without."""
    stamp = stamp_before(raw)
    if stamp is None or FROM_TO.match(raw, stamp.end):
        return None
    found = _ALONE.fullmatch(raw, stamp.end)
    return Head(found["name"], len(raw), stamp.text) if found else None


def _name_colon_time(raw: str) -> Head | None:
    """`Ada Gray: [00:03]`"""
    found = _COLON_TIME.fullmatch(raw.rstrip())
    return (
        Head(found["name"], len(raw), found["time"].strip("[]() "))
        if found and is_stamp(found["time"])
        else None
    )


def _is_alone(raw: str) -> bool:
    found = _ALONE.fullmatch(raw.rstrip())
    return found is not None and _is_name(parted(found["name"])[0])


def _is_name(words: str) -> bool:
    return (
        could_be_name(words)
        and (words.startswith("+") or any(map(str.isalpha, words)))
        and not is_stamp(words)
    )


def _behind_stamp(raw: str) -> str:
    stamp = stamp_before(raw)
    return raw[stamp.end :] if stamp else raw


def _time_over_name(first: str, second: str) -> bool:
    return is_stamp(first) and _is_alone(second)


def _name_over_time(first: str, second: str) -> bool:
    return _is_alone(first.rstrip(" \t\r\n-\u2013\u2014")) and is_stamp(second)


_SHAPES: tuple[tuple[str, Split, Paired], ...] = (
    ("blocks under a name and a time", _name_time, None),
    ("blocks under a time and a name", _time_name, None),
    ("blocks under `Name: [time]`", _name_colon_time, None),
    ("blocks under a time and, in the next line, a name", _time_name, _time_over_name),
    ("blocks under a name and, in the next line, a time", _name_time, _name_over_time),
)


def _sign(raw: str, head: Head) -> str:
    """What parts name and time: files write it in one way, and speech that ends in a time in another."""
    at = raw.rfind(head.time)
    if at <= raw.find(head.name):
        return "before"
    sign = re.sub(r"^(?:\]|\s*\([^()]*\))+", "", raw[raw.find(head.name) + len(head.name) : at])
    return "wide" if re.fullmatch(r"\s{2,}|\t", sign) else sign.strip() or "one"


class _Blocks:
    """A style in blocks of one file, by its first lines."""

    def __init__(self, lines: Sequence[str], says: str, split: Split, paired: Paired):
        self.style = Style(says, self.head, _aside, flowing=True, paired=paired)
        self._split, self._in_one_line = split, paired is None
        self._count, signs = Counter[str](), Counter[str]()
        whole = [raw for _, raw in numbered(lines, self.style)]
        found = [split(raw) if raw.strip() else None for raw in whole]
        for raw, head in zip(whole, found, strict=True):
            if head:
                signs[_sign(raw, head)] += 1
        self._usual = signs.most_common(1)[0][0] if signs else ""
        for raw, head in zip(whole, found, strict=True):
            if head and _sign(raw, head) == self._usual:
                self._count[head.name] += 1
        said, before, heads = [raw for raw in whole if raw.strip()], "", list[bool]()
        for raw in whole:
            if raw.strip():
                heads.append(self.head(raw, before) is not None)
            before = raw if raw.strip() else ""
        self.heads = sum(heads)
        self.followed = sum(this and not following for this, following in pairwise(heads))
        self.first = bool(heads and heads[0])
        self.others = sum(
            not h and (m := _SAID.match(_behind_stamp(raw))) is not None and could_be_name(m["name"])
            for h, raw in zip(heads, said, strict=True)
        )

    def head(self, raw: str, before: str) -> Head | None:
        head = self._split(raw)
        if head is None or raw[0] in " \t":
            return None
        again = self._count[head.name] > 1
        if _sign(raw, head) != self._usual and not again:
            return None
        if self._usual == "one" and self._in_one_line and not again and before:
            return None
        return head if _is_name(head.name) or self._count[head.name] > 2 else None

    @property
    def fits(self) -> bool:
        """Whether the file is of this style."""
        enough = self.heads > 1 or (self.heads == 1 and self.first)
        return enough and self.followed * 10 >= 7 * self.heads and self.heads > self.others


class _Script:
    """Names alone on a line over what they say, as screenplays and some chats have it."""

    def __init__(self, lines: Sequence[str]):
        self.style = Style("blocks under a name", self.head, self.aside, flowing=True)
        self._count, blocks, before = Counter[str](), 0, ""
        self._silent = False
        starts: list[tuple[str, str]] = []
        for raw, after in pairwise([*lines, ""]):
            if raw.strip() and not before.strip():
                blocks += 1
                if after.strip() and (name := self._name(raw)):
                    starts.append((raw, name))
                    self._count[name] += 1
            before = raw
        known = sum(n for n in self._count.values() if n > 1)
        self._capitals = bool(starts) and all(name.isupper() for _, name in starts if self._count[name] > 1)
        often = sum(n > 1 for n in self._count.values()) > 1
        most = known * 10 >= 9 * blocks or (self._capitals and known * 3 >= blocks)
        self.fits = often and most

    def _name(self, raw: str) -> str:
        found = _WITH_ASIDE.fullmatch(raw.strip())
        return found["name"] if found and _is_name(found["name"]) else ""

    def head(self, raw: str, before: str) -> Head | None:
        name = "" if before else self._name(raw)
        head = Head(name, len(raw)) if name and self._count[name] > 1 else None
        if not before:
            self._silent = head is None and self._capitals
        return head

    def aside(self, raw: str) -> str:
        if self._silent:
            return DIRECTIONS
        return DIRECTIONS if re.fullmatch(r"\s*\([^()]*\)\s*", raw) else _aside(raw)


def _aside(raw: str) -> str:
    if is_stamp(raw):
        return TIMES
    if _OF_THE_PROGRAM.fullmatch(raw.strip()):
        return SYSTEM
    return DIRECTIONS if _NOTE.fullmatch(raw) else ""


def _style_of(lines: Sequence[str]) -> Style | None:
    found = [b for b in (_Blocks(lines, *shape) for shape in _SHAPES) if b.fits]
    if found:
        return max(found, key=lambda b: b.heads).style
    script = _Script(lines)
    return script.style if script.fits else None


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    style = _style_of(list(islice(f, _HELD)))
    f.seek(0)
    if style is None:
        raise DataError("no line here is a speaker's name over what they say", path)
    yield from read_style(f, path, style, reading)


FORMS = (Form("blocks", "blocks under a name", (".txt",), lambda head: _style_of(head) is not None, _read),)

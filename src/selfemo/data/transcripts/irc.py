"""Logs of IRC and of chats in its manner: mIRC, irssi, HexChat, WeeChat.

    [09:15:02] <ada> hello: anyone?        09:15 <@ada> hello
    2024-03-01 09:15:02<tab>ada<tab>hello  09:15:02  ada | hello

What `*` and `-!-` begin (actions, who came and went) is left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.date_stamps import is_stamp, stamp_before
from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn
from selfemo.data.transcripts.turn_lines import SYSTEM, TIMES, Head, Style, read_style

ACTIONS = "actions"

_MODE = r"[ @%&~!]{0,2}(?:\+(?=[^\d\s]))?"
_NICK = re.compile(rf"\s*<{_MODE}(?P<name>[^\s<>/][^<>\n]{{0,39}})>(?:\s+|$)")
_COLUMN = re.compile(
    rf"{_MODE}(?P<name>[^\s|<>*\u2502-](?:[^\t\n|<>\u2502]{{0,38}}[^\s|<>\u2502])?)"
    r"(?: *\t| +[|\u2502](?: |$))[ \t]*"
)
_ACTION = re.compile(r"\s*(?:\*|\u2022)(?:\s+[|\u2502])?\s+\S")
_SYSTEM = re.compile(
    r"\s*(?:-!-|\*{3}|-->|<--|<->|--|=!=|=-=|==|!|-[^\s-]+(?:\([^)]*\))?-)(?:\s|$)|"
    r"\s*--- \S|Session (?:Start|Close|Ident|Time)"
)
_CAME_OR_WENT = re.compile(
    r"\s*\*\s+(?:Joins|Parts|Quits|Disconnected|Now talking)\b|\s*\*\s+\S+ (?:\([^)]*\) )?"
    r"(?:has (?:joined|left|quit)|sets mode|is now known as|changes topic|gives|removes)\b"
)


def _style(says: str, nick: re.Pattern[str], stamped: bool) -> Style:
    def head(raw: str, before: str) -> Head | None:
        stamp = stamp_before(raw)
        if stamp is None and stamped:
            return None
        found = None if _aside(raw) else nick.match(raw, stamp.end if stamp else 0)
        return Head(found["name"].strip(), found.end(), stamp.text if stamp else "") if found else None

    return Style(says, head, _aside)


def _aside(raw: str) -> str:
    if is_stamp(raw):
        return TIMES
    stamp = stamp_before(raw)
    start = stamp.end if stamp else 0
    if _SYSTEM.match(raw, start) or _CAME_OR_WENT.match(raw, start):
        return SYSTEM
    return ACTIONS if _ACTION.match(raw, start) else ""


_NICKS = _style("a log of IRC", _NICK, stamped=False)
_COLUMNS = _style("columns of time, name and text", _COLUMN, stamped=True)


def _style_of(head: list[str]) -> Style | None:
    lines = [line for line in head if line.strip()]
    asides = sum(bool(_aside(line)) for line in lines)
    for style in (_NICKS, _COLUMNS):
        said = sum(style.head(line, "") is not None for line in lines)
        if said and (said + asides) * 10 >= 7 * len(lines):
            return style
    return None


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    style = _style_of(f.readlines(1 << 16)) or _NICKS
    f.seek(0)
    yield from read_style(f, path, style, reading)


FORMS = (Form("irc", "a log of IRC", (".txt",), lambda head: _style_of(head) is not None, _read),)

"""WhatsApp's export of a chat, of Android and of iPhones, in any order of day and month.

    12/31/22, 9:15 PM - Ada: Are you coming?
    [31.12.22, 21:15:04] Ada: Are you coming?

A line without a date goes on with the message before. Left out, and counted: lines of the system, which have
no name, and messages that are nothing but media.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from selfemo.data.date_stamps import stamp_of_export

SYSTEM, MEDIA = "lines of the system", "messages without text"

_MESSAGE = re.compile(r"(?P<name>[^:\n\"\u201c\u201e\u00ab]{1,60}): (?P<text>.*)", re.DOTALL)
_PLACEHOLDER = re.compile(r"<[^<>]+>|\u200e.*")


class Message(NamedTuple):
    """A message: the line that it begins in, from 1; its sender; its text, in one line or several."""

    line: int
    name: str
    text: str


def is_export(line: str) -> bool:
    """Whether a first line is that of an export."""
    return stamp_of_export(line) is not None


def messages(lines: Iterable[str], left_out: Counter[str]) -> Iterator[Message]:
    """The messages of an export in order; what is left out is counted by SYSTEM and MEDIA."""
    begun, parts = 0, list[str]()

    def whole() -> Iterator[Message]:
        if not parts:
            return
        found = _MESSAGE.fullmatch("\n".join(parts))
        if found is None:
            left_out[SYSTEM] += 1
        elif _PLACEHOLDER.fullmatch(found["text"].strip()) or not found["text"].strip():
            left_out[MEDIA] += 1
        else:
            yield Message(begun, found["name"].strip(), found["text"].strip())

    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\r\n").lstrip("\ufeff")
        if stamp := stamp_of_export(line):
            yield from whole()
            begun, parts = number, [line[stamp.end() :]]
        elif begun:
            parts.append(line)
    yield from whole()

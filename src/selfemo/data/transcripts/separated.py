"""Other signs than a colon between name and text, taken where (nearly) all lines of a file have them.

[Ada] hi    (Ada) hi    Ada>> hi    Ada<tab>hi    Ada | hi    Ada - hi    ADA. Hi    Ada [00:12] hi
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import IO

from selfemo.data.transcripts.date_stamps import is_stamp, stamp_before, stamp_behind
from selfemo.data.transcripts.names import could_be_name, parted
from selfemo.data.transcripts.turn_lines import Head, Style, stage_direction

_NAME = r"(?P<name>[^\s\[\]()<>|:\t](?:[^\[\]()<>|:\t\n]{0,48}[^\s\[\]()<>|:\t])?)"
_WITH_ASIDE = r"(?P<name>[^\s\[\]()<>|:\t](?:[^\[\]<>|:\t\n]{0,48}[^\s\[\]<>|:\t])?)"
_SIGNS = {
    "`[Name] text`": re.compile(rf"\[{_NAME}\]\s*[:,-]?\s*(?=\S)"),
    "`(Name) text`": re.compile(rf"\({_NAME}\)\s*(?=\S)"),
    "`Name>> text`": re.compile(rf"{_WITH_ASIDE}\s*>{{1,3}}\s*(?=\S)"),
    "`Name | text`": re.compile(rf"{_WITH_ASIDE}\s*\|\s*(?=\S)"),
    "`Name\u300ctext\u300d`": re.compile(
        r"(?P<name>[^\s:\uff1a\u300c\u300d][^:\uff1a\u300c\u300d\n]{0,20}?)(?=\u300c)"
    ),
    "name, tab and text": re.compile(rf"{_WITH_ASIDE} *\t\s*(?=\S)"),
    "`Name - text`": re.compile(
        r"(?P<name>[^\s:](?:[^:\n]{0,38}?[^\s:])?)(?:\s+[-\u2010-\u2015]{1,2}\s+|\s*[\u2013\u2014]\s*)(?=\S)"
    ),
    "`NAME. Text`": re.compile(r"(?P<name>(?:(?:MR|MRS|MS|DR)\.\s)?[^\W\d_a-z][^a-z.:\n]{0,38})\.\s+(?=\S)"),
}
_HELD = 2_000
"""Lines that a sign is known by."""

Split = Callable[[str], Head | None]


def separated_style(f: IO[str]) -> Style | None:
    """The sign that parts names from text in a file, if there is one; reads its first lines."""
    lines = [raw for raw in islice(f, _HELD) if raw.strip() and raw[0] not in " \t"]
    lines = [raw for raw in lines if not stage_direction(raw)]
    for says, sign in _SIGNS.items():
        if style := _style(lines, f"lines of {says}", partial(_at_sign, sign)):
            return style
    return _style(lines, "lines of `Name time text`", _at_time)


def _at_sign(sign: re.Pattern[str], raw: str) -> Head | None:
    stamp = stamp_before(raw)
    found = sign.match(raw, stamp.end if stamp else 0)
    if found is None:
        return None
    # KakaoTalk: [Ada] [9:15 PM] hi
    if stamp is None and (behind := stamp_before(raw, found.end())):
        return Head(found["name"], behind.end, behind.text)
    return Head(found["name"], found.end(), stamp.text if stamp else "")


def _at_time(raw: str) -> Head | None:
    found = stamp_behind(raw, inside=True)
    if found is None or is_stamp(found.name):
        return None
    return Head(found.name.strip("[]"), found.end, found.text)


def _style(lines: list[str], says: str, split: Split) -> Style | None:
    """A style of this split, if all lines have it, or nine of ten and names come again."""
    heads = [found for raw in lines if (found := split(raw))]
    if not heads or len(heads) * 10 < 9 * len(lines):
        return None
    count = Counter(found.name for found in heads)

    def head(raw: str, before: str = "") -> Head | None:
        found = None if raw[0] in " \t" else split(raw)
        return found if found and could_be_name(parted(found.name)[0]) else None

    sure = sum(head(raw) is not None for raw in lines)
    again = sum(n for n in count.values() if n > 1) * 2 > len(heads)
    if sure == len(lines) or (again and sure * 10 >= 9 * len(lines)):
        return Style(says, head, stage_direction)
    return None

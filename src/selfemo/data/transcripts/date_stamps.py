"""Dates and times at the start of a line: those of WhatsApp's exports, and those that other transcripts have.

A phone writes them in the way of its language and settings. What is known is the form, not the words:

    12/31/22, 9:15 PM - Ada: hi        31/12/2022 à 21:15 - Ada: salut
    [31.12.22, 21:15:04] Ada: hallo    2022/12/31 午後9:15 - Ada: ...
"""

from __future__ import annotations

import re

MARK = "[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
"""Characters that are not seen: they tell the direction of writing."""

# The spaces of `\s` are also those that do not break (U+00A0, U+202F).
_GAP = rf"(?:\s|{MARK})"
_DASH = "[-\u2010-\u2015]"


def _date(separator: str) -> str:
    part = rf"{MARK}*{separator}{_GAP}?"
    return rf"(?:\d{{4}}{part}\d{{1,2}}{part}\d{{1,2}}|\d{{1,2}}{part}\d{{1,2}}{part}(?:\d{{4}}|\d{{1,2}}))"


# One separator throughout, and no further number: 01.23.45.67.89 is a telephone.
_DATES = "|".join(_date(separator) for separator in ("/", "[.]", "[-\u2010\u2011]"))
_DATE = rf"(?:{_DATES})(?:\.(?=\s))?(?![\d/]|[.-]\d)"
# A word between date and time ("um", "à", "klo", "午後"), or after the time ("PM", "p. m.", "nachm.").
_WORD = rf"(?:(?!{MARK})[^\s\d\[\]()<>{{}}\"/:;,\u060c\u2010-\u2015-]){{1,12}}"
_BETWEEN = rf"[,\u060c]?{_GAP}+(?:{_WORD},?{_GAP}*){{0,2}}"
_CLOCK = r"\d{1,2}(?:[:.]|[\s\u202f]?h[\s\u202f]?)\d\d(?:[:.]\d\d)?"
_AFTER = rf"(?:{_GAP}?{_WORD}){{0,2}}"
_WHEN = rf"{_DATE}{_BETWEEN}{_CLOCK}{_AFTER}"
# Old iPhones wrote a colon after the seconds; there only a name after it tells an export.
_STAMP = re.compile(
    rf"{MARK}*(?:\[{_WHEN}{_GAP}*\]{_GAP}|{_WHEN}(?:{_GAP}+{_DASH}{_GAP}|:\s(?=[^:\n]{{1,60}}:\s))){MARK}*"
)

_NOON = rf"(?:{_GAP}?[AaPp]\.?{_GAP}?[Mm]\b\.?)"
_TIME = (
    rf"(?:\d{{1,2}}:\d\d(?::\d\d)?(?:[.,]\d+)?{_NOON}?(?:Z|[+-]\d\d:?\d\d)?|\d{{1,2}}\.\d\d(?=\s*{_DASH}\s))"
)
_BEFORE_NAME = re.compile(
    rf"{MARK}*[\[(]?(?:{_DATE}(?:(?:T|[,\u060c]?\s*){_TIME})?|{_TIME})[\])]?\s*{_DASH}?\s*"
)
_YEAR = r"(?:19|20)\d\d\b"
_OF_DATE = re.compile(
    rf"[\[(]?(?:{_DATE}|\d{{1,2}}\.?\s[^\W\d_]{{3,12}}\.?,?\s{_YEAR}|[^\W\d_]{{3,12}}\.?\s\d{{1,2}},?\s{_YEAR})"
)
_HOUR = re.compile(r"(?:.*[\s(\[T,])?(?:[01]?\d|2[0-3])")
_MINUTES = re.compile(r":[0-5]\d(?!\d)")


def stamp_of_export(line: str) -> re.Match[str] | None:
    """The date and time that begin a message of an export, with all up to the name."""
    return _STAMP.match(line)


def end_of_stamp(line: str) -> int:
    """Where a line goes on behind its date, its time or both; 0 where it has neither."""
    found = _STAMP.match(line) or _BEFORE_NAME.match(line)
    return found.end() if found else 0


def is_date(name: str, rest: str) -> bool:
    """Whether what seems a name begins with a date, or ends inside a time ("at 9" before ":15")."""
    if _OF_DATE.match(name):
        return True
    return _HOUR.fullmatch(name) is not None and _MINUTES.match(rest) is not None

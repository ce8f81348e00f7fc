"""Dates and times at the start of a line: those of WhatsApp's exports, and those that other transcripts have.

A phone writes them in the way of its language and settings. What is known is the form, not the words:

    12/31/22, 9:15 PM - Ada: hi        31/12/2022 à 21:15 - Ada: salut
    [31.12.22, 21:15:04] Ada: hallo    2022/12/31 午後9:15 - Ada: ...
"""

from __future__ import annotations

import re
from typing import NamedTuple

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
    rf"{MARK}*(?:\[{_WHEN}{_GAP}*\]{_GAP}|{_WHEN}{_GAP}+{_DASH}{_GAP}|"
    rf"{_DATE}{_BETWEEN}{_CLOCK}(?:{_GAP}?[AaPp]\.?{_GAP}?[Mm]\.?)?:\s(?=[^:\n]{{1,60}}:\s)){MARK}*"
)

# Words of dates, as the transcripts and chats of the most usual languages write them.
_MONTH = (
    r"(?:jan(?:uary|uar|vier|uari)?|feb(?:ruary|ruar|ruari)?|f[eé]vr?(?:ier)?|mar(?:ch|s|zo)?|m[aä]rz|mrt|maart|"
    r"apr(?:il|ile)?|avr(?:il)?|abr(?:il)?|may|mai|mayo|mei|mag(?:gio)?|maio|june?|juni|juin|giu(?:gno)?|junio|"
    r"jul(?:y|i|io)?|juil(?:let)?|lug(?:lio)?|julho|junho|aug(?:ust|ustus)?|ao[uû]t|ago(?:sto)?|"
    r"sept?(?:ember|embre)?|set(?:tembre|embro)?|oct(?:ober|obre)?|okt(?:ober)?|ott(?:obre)?|out(?:ubro)?|"
    r"nov(?:ember|embre|embro)?|dec(?:ember)?|dez(?:ember|embro)?|d[eé]c(?:embre)?|dic(?:embre|iembre)?|"
    r"enero|gen(?:naio)?|febrero|febbraio|janeiro|fevereiro|mar[cç]o|septiembre|noviembre)"
)
_DAY = (
    r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?|"
    r"(?:mo|di|do|fr|sa|so)(?=[.,])|(?:mon|diens|donners|frei|sams|sonn)tag|mittwoch|sonnabend|"
    r"(?:lun|mar|mercre|jeu|vendre|same)di|dimanche|lunes|martes|mi[eé]rcoles|jueves|viernes|s[aá]bado|domingo|"
    r"(?:luned|marted|mercoled|gioved|venerd)[iì]|sabato|domenica|"
    r"(?:segunda|ter[cç]a|quarta|quinta|sexta)(?:-feira)?|(?:maan|dins|woens|donder|vrij|zater|zon)dag)"
)
_NEAR = r"(?:today|yesterday|heute|gestern|aujourd['\u2019]hui|hier|hoy|ayer|oggi|ieri|hoje|ontem)"
_OF = r"(?:de\s|di\s)?"
_YEAR = r"(?:19|20)\d\d\b"
# A month needs no name that is known where a year stands beside it.
_IN_WORDS = (
    rf"(?:\d{{1,2}}(?:st|nd|rd|th|\.|º)?\s{_OF}(?:{_MONTH}\b\.?,?(?:\s{_OF}{_YEAR})?|[^\W\d_]{{3,12}}\.?,?\s{_OF}{_YEAR})|"
    rf"(?:{_MONTH}\b\.?\s\d{{1,2}}(?:st|nd|rd|th)?\b(?!:)(?:,?\s{_YEAR})?|[^\W\d_]{{3,12}}\.?\s\d{{1,2}}(?:st|nd|rd|th)?,?\s{_YEAR})|"
    r"\d{1,2}-[^\W\d_]{3,4}-\d{2,4}\b|\d{4}\s?[年년]\s?\d{1,2}\s?[月월]\s?\d{1,2}\s?[日일])"
)
_NOON = r"(?:[\s\u202f]?(?:[AaPp]\.?\s?[Mm]\b\.?|Uhr\b))"
_ZONE = r"(?:\s?(?:Z|UTC|GMT|BST|CES?T|[ECMP][SD]T)\b)?(?:\s?[+-]\d\d:?\d\d\b)?"
_TIME = (
    r"(?:(?:[上下]午|午[前後]|오[전후])\s?)?"
    rf"(?:\d{{1,3}}:\d\d(?::\d\d){{0,2}}(?:[.,]\d+)?(?!\d|:\d)|\d{{1,2}}:\d{{1,2}}:\d{{1,2}}(?:[.,]\d+)?(?!\d|:\d)|\d{{1,2}}(?={_NOON})|"
    rf"\d{{1,2}}h\d\d\b|\d{{1,2}}\.\d\d(?:\.\d\d)?(?=\s*{_DASH}\s)){_NOON}?{_ZONE}"
)
_DATED = re.compile(rf"(?:{_DAY}\b[.,]*\s)?(?:{_DATE}|{_IN_WORDS})", re.IGNORECASE)
_TIMED = re.compile(_TIME, re.IGNORECASE)
_NEAR_DAY = re.compile(rf"(?:{_DAY}|{_NEAR})\b\.?", re.IGNORECASE)
_AT = re.compile(
    r"\s?[,\u060c]?\s{1,3}(?:(?:at|um|à|às|a las|alle|om|kl\.?|klo|[-\u2013|@])\s)?|[,\u060cT_]",
    re.IGNORECASE,
)
_GAP_OF_DATE = re.compile(r",?\s")
_TO = re.compile(r"\s*(?:-{1,2}>|[-\u2010-\u2015\u2192]|to|bis)\s*")
_SECONDS = re.compile(r"\d+(?:\.\d+)?\s?s?\s*-->\s*\d+(?:\.\d+)?\s?s?")
_LEAD = re.compile(rf"(?:\s|{MARK})*")
_BEHIND_STAMP = re.compile(rf"(?:\s*(?:{_DASH}+|[|·•]|:(?=\s))(?=\s)|,(?=\s))?(?:\s|{MARK})*")
_BEHIND_NAME = re.compile(rf"\s*[,\u060c]\s*|\s+(?:{_DASH}{{1,2}}|@)\s*|\s+|(?=[\[(])")
_END_OF_HEAD = re.compile(r"\s*[:\uff1a](?!\d)\s*|\s*$")
_WEEKDAY_IN_BRACKETS = re.compile(r"\s?\(?\w{1,2}(?:曜日|요일|\))")
_DAY_HEADING = re.compile(rf"[\W_]{{2,}}(?:{_DAY}|{_NEAR})[\W_]{{2,}}", re.IGNORECASE)
_DIGIT_NEAR = re.compile(r"\D{0,30}\d")
_LONGEST_HEAD = 120
_BRACKETS = {"[": "]", "(": ")"}


class Stamp(NamedTuple):
    """A date, a time, both or a span of times in a line.

    Attributes:
        text: as it is written, without brackets.
        name: what stands before it, "" where it begins the line.
        end: where the line goes on.
        colon: whether a colon stands behind it.
    """

    text: str
    name: str
    end: int
    colon: bool = False


def stamp_of_export(line: str) -> re.Match[str] | None:
    """The date and time that begin a message of an export, with all up to the name."""
    return _STAMP.match(line)


def stamp_before(line: str, start: int = 0) -> Stamp | None:
    """The date, the time or both that stand before a name."""
    lead = _end(_LEAD, line, start)
    if not _DIGIT_NEAR.match(line, lead):
        return None
    if found := _stamp_at(line, lead):
        text, end = found
        return Stamp(text, "", _end(_BEHIND_STAMP, line, end))
    if exported := _STAMP.match(line, start):
        text = re.sub(rf"{MARK}|[\[\]]", "", exported[0])
        return Stamp(re.sub(rf"^\s+|[\s:]*{_DASH}?\s*$", "", text), "", exported.end())
    return None


def stamp_behind(line: str, inside: bool = False) -> Stamp | None:
    """The date or time between a name and its colon, or the end of the line: `Ann (21:15): Hi`.

    Args:
        inside: the text follows without a colon: `Ann 21:15 Hi`.
    """
    near = line[:_LONGEST_HEAD]
    if not any(map(str.isdigit, near)):
        return None
    colon = near.find(":")
    # A time has a colon of its own, so the name ends before the first one.
    for gap in _BEHIND_NAME.finditer(near, 1, colon if colon > 0 else len(near)):
        if not (found := _stamp_at(line, gap.end())) or not line[: gap.start()].strip():
            continue
        text, end = found
        name = line[: gap.start()].strip()
        if inside:
            rest = _end(_LEAD, line, end)
            return Stamp(text, name, rest) if end < rest < len(line) else None
        if head := _END_OF_HEAD.match(line, end):
            return Stamp(text, name, head.end(), bool(head[0].strip()))
    return None


def is_stamp(line: str) -> bool:
    """Whether a line is nothing but a date or a time."""
    text = line.strip()
    if len(text) > _LONGEST_HEAD:
        return False
    start = next((k for k, c in enumerate(text) if c.isalnum() or c in "[("), 0)
    for at in {start, start + (text[start : start + 1] in ("[", "("))}:
        if found := _stamp_at(text, at):
            end = found[1]
            if weekday := _WEEKDAY_IN_BRACKETS.match(text, end):
                end = weekday.end()
            if not any(map(str.isalnum, text[end:])):
                return True
    return _DAY_HEADING.fullmatch(text) is not None


def _end(pattern: re.Pattern[str], line: str, start: int) -> int:
    found = pattern.match(line, start)
    return found.end() if found else start


def _stamp_at(line: str, start: int) -> tuple[str, int] | None:
    """A date or time, or a span of times, as it is written, and where it ends; brackets may be around it."""
    closing = _BRACKETS.get(line[start : start + 1], "")
    begin = _end(_LEAD, line, start + 1) if closing else start
    if (end := _span(line, begin)) is None:
        return None
    if not closing:
        return None if line[end : end + 1].isalnum() else (line[begin:end], end)
    close = _end(_LEAD, line, end)
    return (line[begin:end], close + 1) if line.startswith(closing, close) else None


def _span(line: str, start: int) -> int | None:
    if seconds := _SECONDS.match(line, start):
        return seconds.end()
    if (end := _moment(line, start)) is None:
        return None
    if (to := _TO.match(line, end)) and (last := _moment(line, to.end())):
        return last
    return end


def _moment(line: str, start: int) -> int | None:
    """Where a date, a time or both end that begin here."""
    if not _DIGIT_NEAR.match(line, start):
        return None
    if dated := _DATED.match(line, start):
        at = _AT.match(line, dated.end())
        timed = at and _TIMED.match(line, at.end())
        return timed.end() if timed else dated.end()
    if timed := _TIMED.match(line, start):
        gap = _GAP_OF_DATE.match(line, timed.end())
        dated = gap and _DATED.match(line, gap.end())
        return dated.end() if dated else timed.end()
    if near := _NEAR_DAY.match(line, start):
        at = _AT.match(line, near.end())
        timed = at and _TIMED.match(line, at.end())
        return timed.end() if timed else None
    return None

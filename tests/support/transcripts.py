"""Reads transcripts as `predict` does, and finds the words of a file that got lost on the way.

The invariant of all readers: each word of the input is in a turn, or was handed to `Reading.leave_out`, or
the file is refused.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfemo.data.base import LoadReport, SourceFile
from selfemo.data.transcripts import OTHER_SPEAKER, SPEAKER, Reading, ReadSettings, SourceTurn, read_turns

_LINES = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Heard:
    """A file as it was read; `left` has what was handed over: (kind, text, line)."""

    turns: list[SourceTurn]
    reading: Reading
    left: list[tuple[str, str, int]]

    def said(self) -> list[tuple[str, str]]:
        return [(t.speaker, t.text) for t in self.turns]

    def kinds(self) -> dict[str, list[str]]:
        """What was left out, by kind."""
        found: dict[str, list[str]] = {}
        for kind, text, _ in self.left:
            found.setdefault(kind, []).append(text)
        return found


def hear(path: Path, content: str | bytes, settings: ReadSettings | None = None) -> Heard:
    """Write a file and read it (DataError: as `read_turns`)."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    left: list[tuple[str, str, int]] = []
    reading = Reading(lambda *told: left.append(told))
    return Heard(list(read_turns(path, settings, reading)), reading, left)


def words(text: str) -> Counter[str]:
    """The runs of letters and digits, as they are after the cleaning of texts."""
    source = SourceFile(LoadReport(""), Path("x"))
    return Counter(w for line in _LINES.split(text) for w in re.findall(r"[^\W_]+", source.clean(line)))


def lost_words(text: str, heard: Heard, path: Path, plain: Callable[[str], str] = str) -> Counter[str]:
    """The words of a file that are in no turn and were not handed over.

    Args:
        text: the decoded file.
        plain: takes away what carries no words in this form (tags, cue times).
    """
    found: Counter[str] = Counter()
    conversations = set()
    for turn in heard.turns:
        # The names that the readers make up themselves are no words of the file.
        parts = [turn.text, turn.scene] + [turn.speaker] * (turn.speaker not in (SPEAKER, OTHER_SPEAKER))
        if turn.conversation not in conversations:
            conversations.add(turn.conversation)
            if not re.fullmatch(re.escape(path.stem) + r"(-\d+)?", turn.conversation):
                parts.append(turn.conversation)
        counted = [words(p) for p in parts]
        # A table's fields hold the text and the speaker once more.
        others = {k: v for k, v in turn.fields.items() if k not in ("time", "head")}
        counted += [w for w in map(words, _strings(others)) if w not in counted]
        # What text transcripts have beside a name may be said again in the text.
        counted += [words(turn.fields[k]) for k in ("time", "head") if turn.fields.get(k)]
        for c in counted:
            found += c
    for _, left, _ in heard.left:
        found += words(plain(left)) | words(left)
    return words(plain(text)) - found


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        for v in value.values():
            yield from _strings(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _strings(v)
    elif value is not None:
        yield str(value)


def lost_subtitle_words(text: str, heard: Heard, path: Path) -> Counter[str]:
    """`lost_words` of subtitles; times and cue numbers are no words."""
    turns = [
        replace(t, fields={k: v for k, v in t.fields.items() if k not in ("start", "end")})
        for t in heard.turns
    ]
    return lost_words(text, replace(heard, turns=turns), path, subtitle_words)


_STAMP = r"-?(?:(?:\d+:){2}\d{1,2}[:;]\d{1,3}|(?:\d+\s?:\s?){1,2}\d{1,2}(?:\s?[.,]\s?\d{1,9})?)"
_BETWEEN = r"(?:\s*(?:[-=~\u2010-\u2015\u2212\s]*(?:>|&gt;)|\u2192)\s*|[\s,;|/\u2013\u2014-]+)"
_TIMES = re.compile(rf"^\s*(?:\d+\s+)?[\[(]?\s*{_STAMP}{_BETWEEN}{_STAMP}(?![\w.,:;])")
_TAG = re.compile(
    r"<\s?/?\s?(?:[ibus]|c|em|strong|font|span|lang|ruby|rt)(?:\.[\w.]+)?(?:\s[^<>]*=[^<>]*)?\s*/?>"
    r"|<lang\s+[\w-]+>|<\d[\d:.,]*>|\{\\[^{}\s]*\}",
    re.I,
)
_ENTITY = re.compile(r"&#?[a-zA-Z0-9]{2,32};")


def subtitle_words(text: str) -> str:
    """A subtitle file without what carries no words: tags, times, cue numbers, the word WEBVTT.

    Numbers alone in a line that a line of times follows are cue numbers.
    """
    lines = [line.strip("\ufeff") for line in _LINES.split(text)]
    kept, times_follow = [], False
    for line in reversed(lines):
        stamps = _TIMES.match(line)
        if stamps:
            line = line[stamps.end() :].replace("<", " <")
        if times_follow and re.fullmatch(r"\s*#?\s*\d{1,9}\s*[.:)]?\s*", line):
            line = ""
        times_follow = bool(stamps) or (times_follow and not line.strip())
        line = re.sub(r"^\s*WEBVTT\b", " ", re.sub(r"\\[Nn]|<br ?/?>|\[br\]", " ", line, flags=re.I))
        line = re.sub(r"</v\s*>", " ", line, flags=re.I)
        line = re.sub(r"<v(?:\.[^\s<>]*)?(\s[^<>]*)?>", r" \1 ", line, flags=re.I)
        line = _TAG.sub("", _ENTITY.sub(lambda e: html.unescape(e[0]), _TAG.sub("", line)))
        kept.append(line)
    return "\n".join(reversed(kept))

"""Completion text to a typed completion or a typed failure; the inverse of prompts.py.

Model output is hostile input: every string gives a result, and no string raises an exception.
"""

from __future__ import annotations

import math
import re

from selfemo.method.types import (
    MAX_EMOTIONS,
    Completion,
    EmotionDistribution,
    FailureKind,
    LabelSet,
    Parsed,
    ParseFailure,
)

_FIELD = re.compile(r"^[ \t]*([TESR])[ \t]*:[ \t]*", re.MULTILINE)
_EMOTION = re.compile(
    r"""(?P<name>[^\W\d_](?:[^\W\d_]|[ '-])*?)
        (?:\s*[:=(]?\s*(?P<weight>[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?
        |[-+]?(?:nan|inf(?:inity)?)\b)\s*[%)]?)?""",
    re.VERBOSE | re.IGNORECASE,
)
_DETAIL = 80


def _failure(kind: FailureKind, detail: str = "") -> ParseFailure:
    return ParseFailure(kind, detail[:_DETAIL])


def parse_emotions(text: str, labels: LabelSet) -> EmotionDistribution | ParseFailure:
    """Read `joy 7, surprise 3` or `joy`; an emotion without a number weighs 1.

    Fails on an emotion outside the label set, a repeated one, more than K, a weight that is negative or
    not finite, or weights that are all zero (SPEC section 2).
    """
    raw: dict[str, float] = {}
    parts = text.strip().rstrip(".").split(",", MAX_EMOTIONS)
    if len(parts) > MAX_EMOTIONS:
        return _failure(FailureKind.TOO_MANY_EMOTIONS, text)
    for part in parts:
        match = _EMOTION.fullmatch(part.strip()[: 2 * _DETAIL])
        name = match["name"].strip().lower() if match else part.strip()
        if match is None or name not in labels:
            return _failure(FailureKind.UNKNOWN_EMOTION, name)
        if name in raw:
            return _failure(FailureKind.REPEATED_EMOTION, name)
        weight = float(match["weight"]) if match["weight"] else 1.0
        if not math.isfinite(weight) or weight < 0:
            return _failure(FailureKind.BAD_WEIGHT, part.strip())
        raw[name] = weight
    if not any(raw.values()):
        return _failure(FailureKind.ZERO_WEIGHT, text)
    return EmotionDistribution(raw)


def field_spans(text: str) -> list[tuple[str, int, int]]:
    """(letter, start, end) of each field in order: its content, without the marker and outer blanks."""
    marks = list(_FIELD.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)] * bool(marks)
    spans = []
    for mark, end in zip(marks, ends, strict=True):
        inside = text[mark.end() : end]
        start = mark.end() + len(inside) - len(inside.lstrip())
        spans.append((mark[1], start, max(start, mark.end() + len(inside.rstrip()))))
    return spans


def emotion_line(text: str) -> tuple[int, int]:
    """(start, end) of the E line of a completion, its marker included; (0, 0) where there is none.

    An "E:" inside the reasoning or the reply is text, not a field.
    """
    for letter, start, end in field_spans(text):
        if letter == "E":
            return text.rfind("\n", 0, start) + 1, end
    return 0, 0


def reply_line(text: str) -> int:
    """Where the R line of a completion starts, its marker included; the text's end where there is none."""
    return next((m.start() for m in _FIELD.finditer(text) if m[1] == "R"), len(text))


def split_fields(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text before the first field, then (letter, content) of each field in order."""
    first = _FIELD.search(text)
    if first is None:
        return text.strip(), []
    return text[: first.start()].strip(), [(f, text[a:b]) for f, a, b in field_spans(text)]


def parse(text: str, labels: LabelSet, *, finished: bool = True) -> Parsed:
    """Read a whole completion: optional reasoning, E, S, reply, in this order and nothing else.

    One that is not `finished`, without its end token, fails as truncated.
    """
    if not text.strip():
        return _failure(FailureKind.EMPTY)
    if not finished:
        return _failure(FailureKind.TRUNCATED, text[-_DETAIL:])
    before, fields = split_fields(text)
    if before:
        return _failure(FailureKind.EXTRA_TEXT, before)
    reasoning = fields.pop(0)[1] if fields[0][0] == "T" else ""
    if not fields or fields[0][0] != "E":
        return _failure(FailureKind.NO_EMOTION, text)
    emotion = parse_emotions(fields[0][1], labels)
    if isinstance(emotion, ParseFailure):
        return emotion
    if len(fields) < 2 or fields[1][0] != "S":
        return _failure(FailureKind.NO_SELF_EMOTION, text)
    self_emotion = parse_emotions(fields[1][1], labels)
    if isinstance(self_emotion, ParseFailure):
        return self_emotion
    reply = fields[2][1] if len(fields) > 2 and fields[2][0] == "R" else ""
    # Blanks, control characters and halves of surrogate pairs alone are no reply.
    if not any(c.isprintable() and not c.isspace() for c in reply):
        return _failure(FailureKind.NO_REPLY, text)
    if len(fields) > 3:
        return _failure(FailureKind.EXTRA_TEXT, ": ".join(fields[3]))
    return Completion(emotion, self_emotion, " ".join(reply.split()), reasoning)


def parse_recognition(text: str, labels: LabelSet) -> EmotionDistribution | ParseFailure:
    """Read the emotion span alone (SPEC section 7); the rest may be missing or cut."""
    if not text.strip():
        return _failure(FailureKind.EMPTY)
    before, fields = split_fields(text)
    if before:
        return _failure(FailureKind.EXTRA_TEXT, before)
    if fields[0][0] == "T":
        del fields[0]
    if not fields or fields[0][0] != "E":
        return _failure(FailureKind.NO_EMOTION, text)
    return parse_emotions(fields[0][1], labels)

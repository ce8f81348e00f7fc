"""Subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO

from selfemo.data.transcripts.reading import OTHER_SPEAKER, SPEAKER, Form, Reading, ReadSettings, SourceTurn
from selfemo.errors import DataError

_TIMES = re.compile(
    r"\s*(?P<start>(?:\d+:)?\d{1,2}:\d\d[.,]\d{1,3})\s*-->\s*(?P<end>(?:\d+:)?\d{1,2}:\d\d[.,]\d{1,3})(?:\s.*)?"
)
_TAG = re.compile(r"</?[a-zA-Z][^>]*>|<\d[\d:.]*>|\{\\[^}]*\}")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+(?P<name>[^>]+)>")
_CAPTION_NAME = re.compile(r"(?P<name>[A-Z][\w.'\u2019 -]{0,39}?)\s*:\s+")
_DASH = re.compile(r"[-\u2010-\u2014]\s*(?=\S)")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": " ", "&lrm;": "", "&rlm;": ""}


def _seconds(stamp: str) -> float:
    *hours, minutes, seconds = stamp.replace(",", ".").split(":")
    return 3600 * float(hours[0] if hours else 0) + 60 * float(minutes) + float(seconds)


def _blocks(f: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number of the first, lines) of each block between blank lines."""
    texts = ((line, raw.strip("\r\n").strip("\ufeff")) for line, raw in enumerate(f, 1))
    for said, block in groupby(texts, key=lambda numbered: bool(numbered[1].strip())):
        if said:
            lines = list(block)
            yield lines[0][0], [text for _, text in lines]


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    source, number, last_end = reading.source(path), 1, 0.0
    web = path.suffix.lower() == ".vtt"
    first, told = True, ""
    for line, block in _blocks(f):
        if web and first:
            first = False
            if not block[0].startswith("WEBVTT"):
                raise DataError("is no WebVTT: its first line must be WEBVTT", path, 1)
            block = block[1:]
            if not any(_TIMES.fullmatch(b) for b in block[:2]):
                continue
            line += 1
        if web and re.match(r"(NOTE|STYLE|REGION)(\s|$)", block[0]):
            continue
        at = next((k for k, b in enumerate(block[:2]) if "-->" in b), None)
        if at is None:
            if told and not web:
                continue  # a blank line inside a subtitle; its rest carries no time of its own
            raise DataError(
                "a subtitle needs its times on the first or second line (00:00:01,000 --> 00:00:02,500)",
                path,
                line,
            )
        times = _TIMES.fullmatch(block[at])
        if times is None:
            raise DataError(f"these are no times: {block[at][:60]}", path, line + at)
        told = times["start"]
        if settings.gap and last_end and _seconds(times["start"]) - last_end > settings.gap:
            number += 1
        last_end = _seconds(times["end"])
        fields = {"start": times["start"], "end": times["end"]}
        for speaker, raw in _voices(block[at + 1 :]):
            if text := source.clean(raw, line):
                who = source.clean(speaker, line) or SPEAKER
                yield SourceTurn(f"{path.stem}-{number}", who, text, fields=fields)


def _voices(lines: Sequence[str]) -> list[tuple[str, str]]:
    """(speaker, text) of one subtitle: one, or one for each line with a voice, a name or a dash."""
    found: list[tuple[str, str]] = []
    dashes = sum(bool(_DASH.match(_TAG.sub("", b).strip())) for b in lines)
    for raw in lines:
        voice = _VOICE.search(raw)
        plain = _TAG.sub("", raw).strip()
        for entity, character in _ENTITIES.items():
            plain = plain.replace(entity, character)
        if dash := _DASH.match(plain):
            plain = plain[dash.end() :]
        named = _CAPTION_NAME.match(plain)
        if voice:
            found.append((voice["name"], plain))
        elif named:
            found.append((named["name"], plain[named.end() :]))
        elif dash and dashes > 1:
            others = sum(s in (SPEAKER, OTHER_SPEAKER) for s, _ in found)
            found.append((OTHER_SPEAKER if others % 2 else SPEAKER, plain))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {plain}")
        else:
            found.append(("", plain))
    return found


FORMS = (
    Form("srt", "subtitles (SubRip)", (".srt",), lambda head: True, _read),
    Form("vtt", "subtitles (WebVTT)", (".vtt",), lambda head: True, _read),
)

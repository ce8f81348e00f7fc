"""Conversations of other people's files, one turn at a time, so that a file may be larger than memory.

| suffix | what is read |
| --- | --- |
| .csv, .tsv | a header with a text column, and a speaker and a conversation column if there are some |
| .jsonl, .ndjson | conversations of the project's own form (data/jsonl.py) |
| .txt | `Name: text` lines, a time left out; a blank line parts conversations, an indented line goes on |
| .txt | WhatsApp's export of a chat (data/chat_exports.py) |
| .srt, .vtt | subtitles; `Name:`, `<v Name>` and dashes tell speakers, a long silence parts scenes |
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any

from selfemo.data.base import LoadReport, SourceFile, first_row, further_rows, must_exist
from selfemo.data.chat_exports import MEDIA, is_export, messages, senders
from selfemo.data.date_stamps import end_of_stamp, is_date
from selfemo.data.jsonl import Jsonl
from selfemo.errors import DataError
from selfemo.method.types import Conversation, LabelSet

SPEAKER = "Speaker"
"""The speaker of text without a name."""
OTHER_SPEAKER = "Other speaker"
"""The speaker of the second of two lines with dashes."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".srt", ".vtt")
_TEXT = ("text", "utterance", "message", "line", "sentence", "content")
_SPEAKER = ("speaker", "name", "character", "role", "author", "sender")
_CONVERSATION = (
    "conversation", "conversation_id", "dialogue", "dialogue_id", "dialog_id", "thread", "ticket",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceTurn:
    """One turn as a file has it.

    Attributes:
        fields: kept in the output: the whole CSV row, or the times of a subtitle.
        labels: the label set that the file asks for, if it does.
    """

    conversation: str
    speaker: str
    text: str
    scene: str = ""
    labels: LabelSet | None = None
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadSettings:
    """Column names ("" looks for the usual ones), file encoding, and seconds of silence that part two
    scenes of subtitles (0: never)."""

    text: str = ""
    speaker: str = ""
    conversation: str = ""
    encoding: str = "utf-8-sig"
    gap: float = 30.0


def read_turns(
    path: Path, settings: ReadSettings | None = None, left_out: Counter[str] | None = None
) -> Iterator[SourceTurn]:
    """The turns of a file in order; conversations stand one after the other.

    Args:
        left_out: counts what is no turn, by kind.

    Raises:
        DataError: the file is missing, of an unknown form, or broken; the message names the line.
    """
    settings = settings or ReadSettings()
    must_exist(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"of no known form; there are {', '.join(SUFFIXES)}", path)
    with _opened(path, settings) as f:
        if path.suffix.lower() == ".txt":
            head = next((line for line in f if line.strip()), "")
            f.seek(0)
            if is_export(head):
                yield from _export(f, path, Counter() if left_out is None else left_out)
                return
        yield from reader(f, path, settings)


@contextmanager
def _opened(path: Path, settings: ReadSettings) -> Iterator[IO[str]]:
    try:
        with path.open(encoding=settings.encoding, newline="") as f:
            yield f
    except UnicodeDecodeError as e:
        raise DataError(
            f"is not {settings.encoding.removesuffix('-sig')} text (a byte 0x{e.object[e.start]:02x}); "
            "name its encoding by --encoding, for example cp1252",
            path,
        ) from None
    except LookupError:
        raise DataError(f"no such encoding: {settings.encoding}", path) from None
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}", path) from e


def turns_of(conversations: Sequence[Conversation]) -> Iterator[SourceTurn]:
    """The turns of loaded conversations."""
    for c in conversations:
        for t in c.turns:
            yield SourceTurn(c.id, t.speaker, t.text, c.scenario, c.label_set)


def csv_columns(path: Path, settings: ReadSettings) -> list[str]:
    """The columns of a CSV file; errors as of `read_turns`."""
    must_exist(path)
    with _opened(path, settings) as f:
        return _header(f, path)[1]


def _header(f: IO[str], path: Path) -> tuple[Any, list[str]]:
    first = f.readline()
    f.seek(0)
    counts = {d: first.count(d) for d in ("\t", ";", ",")}
    comma = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=lambda d: counts[d])
    reader = csv.reader(f, delimiter=comma, strict=True)
    header = [name.strip() for name in first_row(reader, path)]
    twice = next((n for n in header if header.count(n) > 1), None)
    if twice is not None:
        raise DataError(f"has two columns {twice!r}; rename one", path, 1)
    return reader, header


def _column(header: Sequence[str], asked: str, usual: Sequence[str], path: Path) -> str | None:
    if asked:
        if asked not in header:
            raise DataError(f"has no column {asked!r}; it has {', '.join(header)}", path, 1)
        return asked
    by_name = {name.lower(): name for name in reversed(header)}
    return next((by_name[u] for u in usual if u in by_name), None)


def _csv(f: IO[str], path: Path, settings: ReadSettings) -> Iterator[SourceTurn]:
    reader, header = _header(f, path)
    text = _column(header, settings.text, _TEXT, path)
    speaker = _column(header, settings.speaker, _SPEAKER, path)
    conversation = _column(header, settings.conversation, _CONVERSATION, path)
    if text is None:
        raise DataError(
            f"has no text column (looked for {', '.join(_TEXT)}); it has {', '.join(header)}: name it by "
            "--text-column",
            path,
            1,
        )
    source, seen, current = SourceFile(LoadReport(path.name), path), set[int](), None
    for line, row, unclosed in further_rows(reader, source):
        if len(row) != len(header):
            raise DataError(f"has {len(row)} fields, the header {len(header)}{unclosed}", path, line)
        fields = dict(zip(header, row, strict=True))
        key = fields[conversation].strip() if conversation else path.stem
        if key != current:
            if hash(key) in seen:
                raise DataError(
                    f"conversation {key!r} goes on here after another one; sort the rows by {conversation}",
                    path,
                    line,
                )
            seen.add(hash(key))
            current = key
        said = source.clean(fields[text], line)
        who = source.clean(fields[speaker], line) if speaker else SPEAKER
        if not said:
            raise DataError(f"column {text} is empty", path, line)
        yield SourceTurn(key, who or SPEAKER, said, fields=fields)


def _jsonl(f: IO[str], path: Path, settings: ReadSettings) -> Iterator[SourceTurn]:
    adapter = Jsonl()
    for _, c in adapter.read_lines(SourceFile(LoadReport(path.name), path), f):
        labels = None if c.label_set is adapter.label_set else c.label_set
        for t in c.turns:
            yield SourceTurn(c.id, t.speaker, t.text, c.scenario, labels)


_NAMED = re.compile(r"(?P<name>[^\s:][^:]{0,59}?)\s*:(?!//)\s*")


def _plain(f: IO[str], path: Path, settings: ReadSettings) -> Iterator[SourceTurn]:
    source, number = SourceFile(LoadReport(path.name), path), 1
    speaker, said, any_yet = "", list[str](), False

    def turn() -> Iterator[SourceTurn]:
        nonlocal any_yet
        text = source.clean(" ".join(said))
        if speaker and not text:
            raise DataError(f"{speaker} says nothing", path, line - 1)
        if text:
            any_yet = True
            yield SourceTurn(f"{path.stem}-{number}", speaker, text)
        said.clear()

    for line, raw in enumerate(chain(f, [""]), 1):  # the blank line at the end closes the last turn
        if not raw.strip():
            yield from turn()
            speaker = ""
            number += any_yet
            any_yet = False
        elif raw[0] in " \t" and speaker:
            said.append(raw)
        else:
            start = end_of_stamp(raw)
            found = _NAMED.match(raw, start)
            if found is None or is_date(found["name"], raw[found.end("name") :]):
                raise DataError(_no_name(raw, dated=bool(start or found)), path, line)
            yield from turn()
            speaker = source.clean(found["name"], line)
            said.append(raw[found.end() :])


def _no_name(line: str, dated: bool) -> str:
    if dated:
        return (
            f"is no `Name: text`: {line.strip()[:40]!r} has a date or a time where the name should be; write "
            "it in figures before the name (2022-12-31 21:15 Ann: ...), or remove it"
        )
    return "is no `Name: text`; a line that goes on with the one before starts with a blank"


def _export(f: IO[str], path: Path, left_out: Counter[str]) -> Iterator[SourceTurn]:
    source = SourceFile(LoadReport(path.name), path)
    names = senders(f)
    f.seek(0)
    for m in messages(f, left_out, names):
        name, text = source.clean(m.name, m.line), source.clean(m.text, m.line)
        if name and text:
            yield SourceTurn(path.stem, name, text)
        else:
            left_out[MEDIA] += 1


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


def _subtitles(f: IO[str], path: Path, settings: ReadSettings) -> Iterator[SourceTurn]:
    source, number, last_end = SourceFile(LoadReport(path.name), path), 1, 0.0
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


_READERS = {
    **dict.fromkeys((".csv", ".tsv"), _csv),
    **dict.fromkeys((".jsonl", ".ndjson"), _jsonl),
    ".txt": _plain,
    **dict.fromkeys((".srt", ".vtt"), _subtitles),
}

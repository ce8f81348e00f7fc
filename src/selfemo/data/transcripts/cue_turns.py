"""The turns of one subtitle: its lines without tags, parted by voices, names, dashes and ">>"."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from selfemo.data.transcripts.names import MAX_NAME_CHARS, Names, ends_sentence, parted

_BREAK = re.compile(r"<br ?/?>|(?<!:)\\[Nn]|\[br\]", re.I)
# The tags of SubRip and WebVTT alone: "<laughs>" and "2 < 3" are text.
_TAG = re.compile(
    r"<\s?/?\s?(?:[ibus]|em|strong|ruby|rt|c|lang|font|span|p|div)(?:\.[^\s<>]*)?"
    r"(?:\s+[\w-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?>"
    r"|<lang\s+[\w-]+>|<\d[\d:.,]*>|\{\\[^{}\s]*\}|\{[yYcCfFsSpP]:[^{}\s]*\}",
    re.I,
)
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?(?:\s+(?P<name>[^<>]*))?>|</v\s*>", re.I)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_MARKS = "\ufeff\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_NOTES = "\u266a\u266b\u266c\u2669\U0001f3b5\U0001f3b6"
_CHANGE = re.compile(r"(?:^|(?<=\s))>{2,3}\s*")
_DASH = re.compile(r"[-\u2010-\u2015](?![-\u2010-\u2015>])\s*(?=\S)")
_INNER = re.compile(r"(?<=[.?!\u2026\"\u201d\u2019')\]\u266a])\s+(?=\S)")
_OPEN, _CLOSE = r"\[({\uff08\uff3b\u3010", r"\])}\uff09\uff3d\u3011"
_BRACKETED = re.compile(rf"[{_OPEN}][^{_OPEN}{_CLOSE}]*[{_CLOSE}]")
_EDGES = re.compile(r"^[\s.,!?:;\u2026\"'\u2010-\u2015-]+|[\s.,!?:;\u2026\"'\u2010-\u2015-]+$")
_STARRED = re.compile(r"\*{1,2}[^*]+\*{1,2}")
_SUNG = re.compile(r"#\s+\D.*#", re.S)
_SAID = re.compile(
    r"\b(?:i|i'm|i'll|i've|you|you're|we|me|my|your|our|us|ich|du|wir|mir|mich|je|tu|nous|vous|yo|"
    r"t\u00fa|\u044f|\u0442\u044b|\u043c\u044b|\u0432\u044b)\b",
    re.I,
)
_CREDIT = re.compile(
    r"(?:https?://|www\.|\b)(?:opensubtitles|addic7ed|podnapisi|subscene|tvsubtitles|yts|yify-?subtitles|amara)\."
    r"(?:org|com|net|tv|mx|am|lt|ag)|\bosdb\.link\b|"
    r"^\W*(?:(?:english |sdh )?(?:subtitles?|captions?|closed captions?|captioned|subtitled|subs|synced|sync)"
    r"(?: (?:and|&|,) ?(?:corrected|synced|corrections))*|resync(?:ed)?|ripped|transcripts?|transcribed|"
    r"captioning made possible|untertitel(?:ung)?|sous-titres|"
    r"subt\u00edtulos|sottotitoli|legendas|ondertiteling|\u0441\u0443\u0431\u0442\u0438\u0442\u0440\u044b)"
    r"(?: (?:edited|created|made|provided|translated|synchronized|realizados))?"
    r"(?: (?:by|von|des|par|por|di|a cura di|door|im auftrag)\b|\s*:)",
    re.I,
)


class CueTurn(NamedTuple):
    """What one speaker says in a subtitle; `speaker` is "" without a name."""

    speaker: str
    aside: str
    text: str


LeaveOut = Callable[[str, str], None]
"""Called with (kind, text)."""


class Shown(NamedTuple):
    """A line of a subtitle: as the file has it, without formatting, and without voices too."""

    raw: str
    key: str
    text: str


def shown(raw: Sequence[str]) -> list[Shown]:
    """A subtitle's lines that are not empty."""
    lines = [Shown(line, _plain(line), _plain(_VOICE.sub(" ", line))) for line in _broken(raw)]
    return [line for line in lines if line.key]


def has_word_times(raw: Sequence[str]) -> bool:
    """Whether a time stands inside the text, as in automatic captions."""
    return any(re.search(r"<\d[\d:.]*>", line) for line in raw)


def is_credit(lines: Sequence[str]) -> bool:
    """Whether a subtitle tells who made the subtitles, or where they are from."""
    return _CREDIT.search(" ".join(lines)) is not None


@dataclass
class _Piece:
    """A line or a part of one. `voice` is the name of a `<v>`, None outside of one; `opens` it here."""

    text: str
    voice: str | None = None
    opens: bool = False
    closed: bool = False
    changes: bool = False


@dataclass
class _Turn:
    speaker: str
    aside: str = ""
    change: bool = False
    voiced: bool = False
    parts: list[str] = field(default_factory=list)


def cue_turns(
    raw: Sequence[str], names: Names, leave_out: LeaveOut, doubt: Callable[[], None]
) -> list[CueTurn]:
    """The turns of one subtitle in order.

    Args:
        raw: its lines as the file has them.
        leave_out: told of all words that are in no turn.
        doubt: told of each colon that may end a name and was left in the text.
    """
    turns: list[_Turn] = []
    before = ""
    pieces = list(_parted(_joined(_pieces(raw)), names))
    # Where the first line has a dash, each dash tells of a speaker ("-yes" / "-no").
    after = [p.text[d.end() :] for p in pieces if (d := _DASH.match(p.text))]
    dashed = len(after) > 1 and not all(a[0].isdigit() for a in after) and bool(_DASH.match(pieces[0].text))
    for piece in pieces:
        _add(piece, before, turns, names, doubt, dashed)
        before = piece.text
    return list(_without_sounds(turns, leave_out))


def _pieces(raw: Sequence[str]) -> list[_Piece]:
    """Lines without tags, parted where a voice begins or ends."""
    found: list[_Piece] = []
    voice: str | None = None
    closed = False
    for line in _broken(raw):
        at, opens = 0, False
        for tag in _VOICE.finditer(line):
            found.append(_Piece(_plain(line[at : tag.start()]), voice, opens, closed))
            closed = tag["name"] is None and tag[0].startswith("</")
            voice = None if closed else _plain(tag["name"] or "")
            at, opens = tag.end(), not closed
        found.append(_Piece(_plain(line[at:]), voice, opens, closed))
    return [p for p in found if p.text or p.opens]


def _broken(raw: Sequence[str]) -> list[str]:
    """Lines, parted at breaks that are written as tags."""
    return _BREAK.sub("\n", "\n".join(raw)).split("\n")


def _plain(text: str) -> str:
    # Tools write tags as entities too ("&lt;i&gt;").
    return " ".join(_TAG.sub("", _unescaped(_TAG.sub("", text))).strip(_MARKS).split()).strip(_MARKS)


def _unescaped(text: str) -> str:
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


def _joined(pieces: list[_Piece]) -> list[_Piece]:
    """Lines whose bracket is closed on a later line are one."""
    found: list[_Piece] = []
    k = 0
    while k < len(pieces):
        piece, last = pieces[k], k
        if (opened := re.search(r"[\[(\uff08\u3010][^\])\uff09\u3011]*$", piece.text)) and not piece.opens:
            close = {"[": "]", "(": ")", "\uff08": "\uff09", "\u3010": "\u3011"}[opened[0][0]]
            for j in range(k + 1, min(k + 4, len(pieces))):
                if pieces[j].opens or opened[0][0] in pieces[j].text.split(close)[0]:
                    break
                if close in pieces[j].text:
                    last = j
                    break
        if last > k:
            whole = " ".join(p.text for p in pieces[k : last + 1])
            piece = _Piece(whole, piece.voice, piece.opens, piece.closed)
        found.append(piece)
        k = last + 1
    return found


def _parted(pieces: Sequence[_Piece], names: Names) -> Iterator[_Piece]:
    """Lines parted where another speaker begins inside one: at ">>", a dash, or a known name."""
    for piece in pieces:
        if piece.voice is not None:
            yield piece
            continue
        text, start, changes = piece.text, 0, False
        if mark := _CHANGE.match(text):
            start, changes = mark.end(), True
        dash = _DASH.match(text, start)
        spoken = dash.end() if dash else start
        head = names.at(text[spoken:])
        at = spoken + head.end if head else start
        mark = _CHANGE.search(text, at)
        while True:
            if mark and mark.start() < at:
                mark = _CHANGE.search(text, at)
            cut = _inner(text, at, mark.start() if mark else len(text), names) or mark
            if cut is None:
                break
            yield _Piece(text[start : cut.start()].strip(), closed=piece.closed, changes=changes)
            changes, start, at = cut[0].strip().startswith(">>"), cut.end(), cut.end()
        yield _Piece(text[start:].strip(), closed=piece.closed, changes=changes)


def _inner(text: str, at: int, end: int, names: Names) -> re.Match[str] | None:
    """The blank behind the end of a sentence where a dash or a name begins another speaker's."""
    for blank in _INNER.finditer(text, at, end):
        rest = text[blank.end() : blank.end() + 2 * MAX_NAME_CHARS]
        dash = _DASH.match(rest)
        if dash and _begins_speech(rest[dash.end() :]):
            return blank
        if not dash and names.at(rest, before="so"):
            return blank
    return None


def _begins_speech(text: str) -> bool:
    """Whether a sentence begins here rather than goes on: no small letter and no figure."""
    first = text.lstrip("\"'\u201c\u2018\u00ab\u00bf\u00a1\u2026.")[:1]
    return not first.islower() and not first.isdigit() and bool(first)


def _add(
    piece: _Piece, before: str, turns: list[_Turn], names: Names, doubt: Callable[[], None], dashed: bool
) -> None:
    """Put a piece to the turns: begin one, or go on with the last."""
    if piece.voice is not None:
        if piece.opens or not turns or not turns[-1].voiced:
            name, aside = parted(piece.voice)
            if not any(map(str.isalnum, name)):
                name = ""
            turns.append(_Turn(name, aside, voiced=True))
        text = piece.text
        if (dash := _DASH.match(text)) and _begins_speech(text[dash.end() :]) and not turns[-1].parts:
            text = text[dash.end() :]
        turns[-1].parts.append(text)
        return
    text, last = piece.text, turns[-1] if turns else None
    dash = _DASH.match(text)
    speaks = dash is not None and (dashed or _speaks(text, dash.end(), before, not turns))
    if dash and speaks:
        text = text[dash.end() :]
    changes = piece.changes or speaks
    fresh = changes or (last is not None and last.voiced)
    head = names.at(text, "" if fresh else before)
    if head is None and fresh and last and last.speaker and not last.parts and not last.voiced:
        last.parts.append(text)  # behind a name on a line of its own
    elif head:
        rest = text[head.end :].strip()
        if (inner := _DASH.match(rest)) and _begins_speech(rest[inner.end() :]):
            rest = rest[inner.end() :]
        turns.append(_Turn(head.name, head.aside, changes, parts=[rest] if rest else []))
    elif last is None or changes or (last.voiced and piece.closed and any(map(str.isalnum, text))):
        turns.append(_Turn("", change=changes, parts=[text]))
    else:
        last.parts.append(text)
    if head is None and names.doubtful(text):
        doubt()


def _speaks(text: str, end: int, before: str, first: bool) -> bool:
    """Whether a dash at the start of a line tells of a speaker, rather than of a number, a word that goes on,
    or speech that was broken off."""
    rest, blank = text[end:], text[end - 1] == " "
    if _begins_speech(rest):
        return True
    if first or rest[:1].isdigit():
        return blank
    return ends_sentence(before) and before[-1:] not in "-\u2010\u2011\u2012\u2013\u2014\u2015\u2026,"


def _without_sounds(turns: Sequence[_Turn], leave_out: LeaveOut) -> Iterator[CueTurn]:
    """The turns with speech; lines of sounds and songs alone are handed over."""
    for turn in turns:
        label = " ".join(filter(None, (turn.speaker, turn.aside)))
        whole = " ".join(turn.parts)
        if not _EDGES.sub("", whole) and not re.search(r"[.?!\u2026]", whole):
            whole = ""
        if not whole:
            leave_out("names without speech", label)
            continue
        if kind := _sound_kind(whole):
            leave_out(kind, f"{label} {whole}".strip())
            continue
        said = []
        for part in turn.parts:
            if kind := _sound_kind(part):
                leave_out(kind, part)
            else:
                said.append(part)
        if said:
            yield CueTurn(turn.speaker, turn.aside, " ".join(said))
        elif label:
            leave_out("names without speech", label)


def _sound_kind(text: str) -> str:
    """What a text is that tells of sounds alone; "" of speech."""
    bare = _EDGES.sub("", text)
    if not bare:
        return ""
    if all(c in _NOTES or c in " .,-" for c in bare):
        return "sound cues"
    runs = len(re.findall(f"[{_NOTES}]+", bare))
    begins, ends = bare[0] in _NOTES, bare[-1] in _NOTES
    if runs and ((begins and ends) or (runs == 1 and (begins or ends))):
        return "lines of songs"
    if _SUNG.fullmatch(bare):
        return "lines of songs"
    if _STARRED.fullmatch(bare):
        return "sound cues"
    if _BRACKETED.search(bare) and not any(map(str.isalnum, _BRACKETED.sub("", bare))):
        spoken = bare[0] in "(\uff08" and _SAID.search(bare) and re.search(r"[.?!\u2026]\W*$", bare[1:])
        return "" if spoken else "sound cues"
    return ""

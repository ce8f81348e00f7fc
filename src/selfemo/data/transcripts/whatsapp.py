"""WhatsApp's export of a chat, of Android and of iPhones, in any order of day and month.

    12/31/22, 9:15 PM - Ada: Are you coming?
    [31.12.22, 21:15:04] Ada: Are you coming?

A line without a date goes on with the message before. Left out, and counted: lines of the system, messages
that are nothing but media, files beside a caption, and messages that were deleted. What could be either is
kept as what was said.

iPhones write some lines of the system as messages of a person or of the group. They put a mark of direction
(U+200E) before what the app says, and before the whole line if it stands for a file. Android puts that mark
before some words too, so there it tells nothing by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from selfemo.data.transcripts import whatsapp_words as app
from selfemo.data.transcripts.date_stamps import MARK, stamp_of_export
from selfemo.data.transcripts.names import could_be_name
from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn

SYSTEM, MEDIA = "lines of the system", "messages without text"
FILES, TAKEN_BACK = "files beside a text", "deleted messages"
EDITS, POLLS = "marks of an edit", "words around a poll"

LeaveOut = Callable[[str, str, int], None]
"""Takes (kind, text, line) of what is left out, as `Reading.leave_out`."""

_APP = "\u200e"
# Between two letters a mark stays: without it they would be one word.
_OF_POLL = re.compile(r"[^\W\d_]{3,15}\s?:")
_MARKS = re.compile(rf"(?<![^\W_])(?:{MARK})+|(?:{MARK})+(?![^\W_])")
# A name ends at the first colon before a space: "Mum :): hi" is of "Mum :)".
_SENDER = re.compile(r"(?P<name>[^\n]{1,100}?):(?=\s|$)")
_AROUND = "[] :-\u2010\u2011\u2012\u2013\u2014\u2015\u202f\xa0"
"""What stands around a date and its time."""
_LONGEST = 60
"""A name of more characters must occur twice."""
_QUOTES = (("\u201c", "\u201d"), ("\u201e", "\u201c"), ("\u201e", "\u201d"), ("\u00ab", "\u00bb"))
# Names that WhatsApp gives to files: IMG-20221231-WA0001.jpg, 00000012-PHOTO-2022-12-31.jpg.
_FILE_NAME = r"(?:[A-Z]{3}-\d{8}-WA\d+|\d{5,8}-[A-Z]+[-\d]*)\.\w{1,5}"
_FILE_ANDROID = re.compile(rf"{MARK}*(?P<file>\S.*\.\w{{1,5}}) \((?P<words>[^()]{{1,40}})\){MARK}*\s*")
_FILE_IPHONE = re.compile(rf"(?P<mark>{MARK}*)<(?P<words>[^<>:\n]{{1,30}}): ?(?P<file>[^<>\n]*\.\w{{1,5}})>")
_DOCUMENT = re.compile(rf".*\.\w{{1,5}} \u2022 {MARK}*\d+ .*")
_IN_BRACKETS = re.compile(rf"{MARK}*<(?P<words>[^<>\n]{{2,80}})>{MARK}*\s*")
_SUFFIX = re.compile(rf"\s*{MARK}*<(?P<words>[^<>\n]{{2,80}})>{MARK}*\s*$")


class Message(NamedTuple):
    """A message: the line that it begins in, from 1; its sender; its text, in one line or several; when."""

    line: int
    name: str
    text: str
    time: str = ""


@dataclass
class Senders:
    """The names before a colon in an export.

    Attributes:
        count: how often each occurs.
        talking: those that have a text without the mark of the app.
        chats: those in whose name an iPhone says that the chat is encrypted: a group, or the other person.
    """

    count: Counter[str] = field(default_factory=Counter)
    talking: set[str] = field(default_factory=set)
    chats: set[str] = field(default_factory=set)

    def is_one(self, name: str) -> bool:
        """Whether messages are sent under this name, which is no event."""
        return name in self.count and not app.EVENT.search(f" {name}")

    def subject(self, text: str) -> str:
        """The sender, or the "you", whose name begins a text that goes on behind it; "" if there is none."""
        if (you := text.split(maxsplit=1)) and you[0].lower() in app.YOU and len(you) > 1:
            return you[0]
        ends = [m.start() for m in re.finditer(r"\s", text[: _LONGEST + 1])]
        # The longest name: of Ann and Ann Lee, "Ann Lee added Dr: Who" is about Ann Lee.
        return next((text[:end] for end in reversed(ends) if self.is_one(text[:end])), "")


@dataclass
class _Entry:
    """All that stands behind one date: `marked` with the app's mark before the date, `iphone` in brackets."""

    line: int
    stamp: str
    marked: bool
    iphone: bool
    parts: list[str]

    @property
    def whole(self) -> str:
        return self.stamp + "\n".join(self.parts)


def is_export(line: str) -> bool:
    """Whether a first line is that of an export."""
    return stamp_of_export(line) is not None


def senders(lines: Iterable[str]) -> Senders:
    """The names of a whole export: they tell a sender from a line of the system."""
    found = Senders()
    for raw in lines:
        if (stamp := stamp_of_export(raw)) and (named := _SENDER.match(raw, stamp.end())):
            name = _plain(named["name"])
            found.count[name] += 1
            text = raw[named.end() :].lstrip()
            if not text.startswith(_APP):
                found.talking.add(name)
            elif app.ENCRYPTED.search(text):
                found.chats.add(name)
    return found


def messages(lines: Iterable[str], leave_out: LeaveOut, names: Senders | None = None) -> Iterator[Message]:
    """The messages of an export in order.

    Args:
        leave_out: takes what is left out: SYSTEM, MEDIA, FILES, TAKEN_BACK, EDITS and POLLS.
        names: `senders` of the same lines; None holds all lines to find them.
    """
    if names is None:
        lines = list(lines)
        names = senders(lines)
    for entry in _entries(lines, leave_out):
        name, text = _sender_and_text(entry, names)
        reason = _no_message(name, text, entry, names)
        if reason is None:
            unedited, edit = _without_edited(text)
            said, files = _without_files(unedited, entry)
            if said:
                if edit:
                    leave_out(EDITS, edit, entry.line)
                for kind, cut in _by_kind(files):
                    leave_out(kind, "\n".join(cut), entry.line)
                yield Message(entry.line, name, said, _plain(entry.stamp).strip(_AROUND))
                continue
            reason = MEDIA
        leave_out(reason, entry.whole, entry.line)


def _by_kind(cut: list[str]) -> list[tuple[str, list[str]]]:
    """What was cut from a message: the app's words around a poll ("OPTION: Tea (2 votes)"), and files."""
    polls = [part for part in cut if _is_of_poll(part)]
    files = [part for part in cut if part not in polls]
    return [(kind, parts) for kind, parts in ((POLLS, polls), (FILES, files)) if parts]


def _is_of_poll(words: str) -> bool:
    """Whether words of the app belong to a poll: a word in capitals and a colon begin them."""
    found = _OF_POLL.match(_plain(words))
    return found is not None and found[0].isupper()


def _entries(lines: Iterable[str], leave_out: LeaveOut) -> Iterator[_Entry]:
    entry: _Entry | None = None
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\r\n")
        if stamp := stamp_of_export(line):
            if entry:
                yield entry
            marks, bracket, _ = stamp[0].partition("[")
            marked = bool(bracket) and _APP in marks
            entry = _Entry(number, stamp[0], marked, bool(bracket), [line[stamp.end() :]])
        elif entry:
            entry.parts.append(line)
        elif _plain(line):
            leave_out(SYSTEM, line, number)
    if entry:
        yield entry


def _plain(text: str) -> str:
    """The text without marks of direction, which no one sees."""
    return _MARKS.sub("", text).strip()


def _sender_and_text(entry: _Entry, names: Senders) -> tuple[str, str]:
    """The name and the text of an entry; the name is "" for a line of the system."""
    text = "\n".join(entry.parts)
    found = _SENDER.match(text)
    if found is None:
        return "", text
    name, said = _plain(found["name"]), text[found.end() :].lstrip(" ")
    once, subject = names.count[name] < 2, names.subject(name)
    event = (
        app.EVENT.search(name)
        or (once and len(name) > _LONGEST)
        or (once and subject and app.WEAK_EVENT.match(name[len(subject) :]))
        or ((once or subject) and _ends_quote(name, said))
    )
    return ("", text) if event else (name, said)


def _ends_quote(name: str, said: str) -> bool:
    """Whether a quotation begins in what seems a name and ends in the text: `Ada named it "Trip: Rome"`."""
    if name.count('"') % 2 and said.count('"') % 2:
        return True
    return any(name.rfind(a) > name.rfind(b) and b in said for a, b in _QUOTES)


def _no_message(name: str, text: str, entry: _Entry, names: Senders) -> str | None:
    """Why an entry is no message, by its words; None if it is one."""
    words = _plain(text)
    if not name or words.startswith("Messages and calls are end-to-end encrypted."):
        return SYSTEM
    if not words:
        return MEDIA
    if app.DELETED.fullmatch(words.rstrip(".\u3002")):
        return TAKEN_BACK
    if entry.iphone and text.startswith(_APP) and _is_event(name, words, names):
        return SYSTEM
    return None


def _is_event(name: str, words: str, names: Senders) -> bool:
    """Whether words that an iPhone marks are of the system, although they stand behind a name."""
    silent = name not in names.talking
    if app.ENCRYPTED.search(words) or app.NOTICE.match(words) or (silent and name in names.chats):
        return True
    subject = names.subject(words)
    event = words[len(subject) :]
    # "Ada: You added Ada" is of the system; what a person says of others may be their own words.
    own = subject == name or words.rstrip(".").endswith(f" {name}")
    return subject != "" and bool(
        ((silent or own) and app.EVENT.match(event)) or (own and app.WEAK_EVENT.match(event))
    )


def _without_edited(text: str) -> tuple[str, str]:
    """A text without the mark of an edit, and that mark."""
    found = _SUFFIX.search(text)
    edited = found is not None and app.EDITED.search(found["words"])
    return (text[: found.start()], found[0]) if found and edited else (text, "")


def _is_notice(words: str) -> bool:
    """Whether words in `<...>` are more than the one that people write there (<grin>)."""
    return " " in words.strip() or not words.isascii()


def _without_files(text: str, entry: _Entry) -> tuple[str, list[str]]:
    """A text without the names of files and what stands for them, and what was cut off."""
    if app.NOTHING.fullmatch(_plain(text).rstrip(".")) or (entry.iphone and _is_call(text)):
        return "", [text]
    lines, cut = text.split("\n"), list[str]()
    if _is_file(lines[0]):
        cut.append(lines[0])
        kept = [""]
    else:
        kept = [_without_named(lines[0], cut)]
    kept += [_without_named(line, cut) for line in lines[1:]]
    if entry.iphone:
        # Beside a file that is named, marked words are its caption.
        marked = entry.marked and kept == lines
        kept = [_without_omitted(line, marked, cut) for line in kept]
    return _plain("\n".join(kept)), cut


def _is_call(text: str) -> bool:
    """Whether the app, by its mark, says that there was a call, and perhaps how it went."""
    before, _, words = text.partition(_APP)
    return not before and app.CALL.fullmatch(re.split(rf"[.,]? *{_APP}", words)[0].rstrip(".")) is not None


def _without_named(line: str, cut: list[str]) -> str:
    """A line of an iPhone without the files that it names in `<...>`, which are added to `cut`."""

    def without(file: re.Match[str]) -> str:
        known = file["mark"] or app.ATTACHED.search(file["words"]) or re.fullmatch(_FILE_NAME, file["file"])
        if known:
            cut.append(file[0])
        # Words on both sides stay two.
        return " " if known else file[0]

    return _FILE_IPHONE.sub(without, line)


def _is_file(line: str) -> bool:
    """Whether a message's first line is a file of Android, exported beside the chat or not."""
    if bracketed := _IN_BRACKETS.fullmatch(line):
        words = bracketed["words"]
        return _is_notice(words) and bool(app.MEDIA.search(words) or app.OMITTED.search(words))
    if app.KIND_OMITTED.fullmatch(_plain(line)):
        return True
    file = _FILE_ANDROID.fullmatch(line)
    return file is not None and bool(
        app.ATTACHED.search(file["words"]) or line.startswith(_APP) or re.fullmatch(_FILE_NAME, file["file"])
    )


def _without_omitted(line: str, marked: bool, cut: list[str]) -> str:
    """A line of an iPhone without the words at its end that stand for a file ("image omitted")."""
    words = _plain(line)
    if app.KIND_OMITTED.fullmatch(words):
        cut.append(line)
        return ""
    before, mark, notice = line.rpartition(_APP)
    short = len(notice.split()) <= 5 and len(notice) <= 40
    known = marked or app.OMITTED.search(notice) or _is_of_poll(notice)
    if not (mark and notice.strip() and short and known):
        return line
    document = _DOCUMENT.fullmatch(before)
    cut.append(line if document else notice)
    return "" if document else before


def _knows(head: list[str]) -> bool:
    first = next((line for line in head if line.strip()), "")
    if not is_export(first):
        return False
    # Lines of other recorders begin with a time in brackets too; those of a chat have names.
    named = (could_be_name(name) and not name[:1].islower() for name in senders(head).count)
    return "[" not in first[:3] or any(named)


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    source = reading.source(path)
    names = senders(f)
    f.seek(0)
    for m in messages(f, reading.leave_out, names):
        name, text = source.clean(m.name, m.line), source.clean(m.text, m.line)
        if name and text:
            yield SourceTurn(path.stem, name, text, fields={"time": source.clean(m.time, m.line)})
        else:
            reading.leave_out(MEDIA, f"{m.time} {m.name} {m.text}", m.line)


FORMS = (Form("whatsapp", "a chat as WhatsApp and Skype export it", (".txt",), _knows, _read),)

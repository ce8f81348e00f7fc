"""The base of all adapters: how files are found and read, the load report, text cleaning, row errors."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from selfemo.errors import DataError
from selfemo.method.types import SPLITS, Conversation, EmotionDistribution, LabelSet, Split, Utterance

K = TypeVar("K", bound=Hashable)
MAX_FIELD_CHARS = 100_000
MAX_FILE_BYTES = 1 << 30
_ARCHIVES = {
    b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2",
    b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_EXAMPLES = 3
_HEAD_CHARS = 4000
# A lone surrogate (JSON can spell one) cannot be written as UTF-8 later, U+FFFD is a lost character.
_UNREADABLE = re.compile(r"[\ud800-\udfff\ufffd]")
_CONTROL = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|{_UNREADABLE.pattern}")
# The bytes 80 to BF of UTF-8 as cp1252 shows them, and those that it does not have as controls.
_TAIL = "".join(bytes([b]).decode("cp1252", errors="ignore") or chr(b) for b in range(0x80, 0xC0))
_TAIL = re.escape(_TAIL + "".join(map(chr, range(0x80, 0xA0))))
# UTF-8 that was read as cp1252 and written again: sequences that no language writes. A word in capitals may
# end so before a mark («AMANHÃ»), so that the short ones count only behind another character.
_TWICE = re.compile(rf"(?<![A-ZÀ-Þ])[ÂÃ][\u00a0-\u00bf]|â[{_TAIL}]{{2}}|ð[\u0178\x9f][{_TAIL}]{{2}}")
_SPACES = re.compile(r"[\u00a0\u2007\u202f]")
_SPLIT_WORDS = (
    re.compile("tr(ai)?n(ing)?(set|data)?"),
    re.compile("(dev(elopment)?|val(id(ation)?)?)(set|data)?"),
    re.compile("te?st(ing)?(set|data)?"),
)


@dataclass(frozen=True)
class LoadReport:
    """The findings of a load. Counts are by split; a blemish was mended or is harmless, a skipped row or
    file was left out.

    Attributes:
        conversations, utterances, labels: counts; `labels` are by top emotion, "(none)" without gold.
        blemishes: how often each kind occurred, with up to three places ("file:line") in `examples`.
        skipped: (path, line or None, reason) of each row left out, where `lenient`, and of each file
            of a folder that has another form.
        official: published utterance counts of the form that was read, where it has its own.
        files: the file each split was read from, in data sets of one file a split.
        ids: hashes of the conversations' ids so far, in data sets that give them.
        without_split: ids of the conversations whose file names no split.
    """

    dataset: str
    conversations: Counter[str] = field(default_factory=Counter)
    utterances: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    blemishes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[tuple[str, int | None, str]] = field(default_factory=list)
    official: dict[Split, int] = field(default_factory=dict)
    files: dict[Split, str] = field(default_factory=dict)
    ids: set[int] = field(default_factory=set)
    without_split: set[str] = field(default_factory=set)

    def count(self, conversations: Sequence[Conversation]) -> None:
        for c in conversations:
            self.conversations[c.split] += 1
            self.utterances[c.split] += len(c.turns)
            labels = self.labels.setdefault(c.split, Counter())
            for t in c.turns:
                labels["(none)" if t.emotion is None else t.emotion.top(c.label_set)] += 1


@dataclass(frozen=True)
class LoadResult:
    """The conversations of a source, with the report of how they were read."""

    conversations: tuple[Conversation, ...]
    report: LoadReport


class SourceFile:
    """One file under way: its blemishes, and its broken rows if `lenient`, go into the report of the load."""

    def __init__(self, report: LoadReport, path: Path, lenient: bool = False):
        self.report, self.path, self.lenient = report, path, lenient

    def fail(self, line: int | None, reason: str) -> None:
        """Raise DataError(reason) at the line, or with `lenient` note the row as skipped."""
        if not self.lenient:
            raise DataError(reason, self.path, line)
        self.report.skipped.append((str(self.path), line, reason))

    def blemish(self, kind: str, line: int | None = None) -> None:
        self.report.blemishes[kind] += 1
        places = self.report.examples.setdefault(kind, [])
        if len(places) < _EXAMPLES:
            places.append(self.path.name if line is None else f"{self.path.name}:{line}")

    def clean(self, text: str, line: int | None = None) -> str:
        """One line of plain text.

        UTF-8 that was read as cp1252 and encoded again (an apostrophe as three characters), and Windows
        punctuation that was decoded as C1 control codes (a right quote as U+0092), become what they were;
        other control characters and unreadable ones are dropped; white space is folded. Each is counted as a
        blemish.
        """

        def mend(match: re.Match[str]) -> str:
            ch = match[0]
            if "\x80" <= ch <= "\x9f":
                self.blemish("cp1252 character as control code", line)
                return bytes([ord(ch)]).decode("cp1252", errors="ignore")
            self.blemish("unreadable character" if _UNREADABLE.match(ch) else "control character", line)
            # Form feeds and the like part words.
            return " " if ch.isspace() else ""

        text = self._decoded_once(_CONTROL.sub(mend, self._decoded_once(text, line)), line)
        if _SPACES.search(text):
            self.blemish("non-breaking space", line)
        return " ".join(text.split())

    def _decoded_once(self, text: str, line: int | None) -> str:
        def decode(match: re.Match[str]) -> str:
            raw = b"".join(ch.encode("latin-1") if ord(ch) < 256 else ch.encode("cp1252") for ch in match[0])
            try:
                once = raw.decode("utf-8")
            except UnicodeDecodeError:
                return match[0]
            self.blemish("doubly encoded text", line)
            return once

        while (once := _TWICE.sub(decode, text)) != text:
            text = once  # what is mended may complete another sequence
        return text

    def text(self) -> str:
        """The file's text: UTF-8 (with or without BOM), else cp1252, noted as a blemish.

        Raises:
            DataError: the file is missing, unreadable, or neither encoding fits.
        """
        try:
            must_be_text(self.path)
            raw = self.path.read_bytes()
        except OSError as e:
            raise DataError(f"cannot be read: {e.strerror or e}", self.path) from None
        if raw.startswith(b"\xef\xbb\xbf"):
            self.blemish("byte order mark")
            raw = raw[3:]
        if b"\r" in raw:
            self.blemish("Windows line ends")
            raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode("utf-8")
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError as e:
            raise DataError(
                f"is neither UTF-8 nor cp1252 text (byte {e.start}); save it as UTF-8", self.path
            ) from None
        self.blemish("cp1252 file")
        return text


class Adapter:
    """One data set, in files of their own or in a folder.

    Attributes:
        suffixes: of the files that are read from a folder.
        official: published utterance counts by split, where it has any.
        recurring_speakers: a speaker's name means the same person in all conversations.
        named_speakers: speakers have names, which are not merely those of their places in a conversation.
        same_utterances: name of a data set that holds the same utterances, or "".
    """

    name: str
    label_set: LabelSet
    looks_for: str
    suffixes: tuple[str, ...] = ()
    official: dict[Split, int] | None = None
    recurring_speakers = False
    named_speakers = True
    same_utterances = ""

    def knows(self, file: Path) -> bool:
        """Whether a file looks like this data set; reads the first characters only."""
        raise NotImplementedError

    def read(self, source: SourceFile) -> list[Conversation]:
        """The conversations of one file (DataError: another form; a broken row, unless lenient)."""
        raise NotImplementedError

    def matches(self, path: Path) -> bool:
        """Whether a file, or one in a folder, looks like this data set (DataError: an unreadable folder)."""
        return any(map(self.knows, data_files(path, self.suffixes)))

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        """All conversations under a path: the file, or the folder's files of this form in sorted order.

        Args:
            lenient: count broken rows in `report.skipped` instead of raising at the first.

        Raises:
            DataError: the path does not exist, or holds no file or no conversation of this data set; a
                file without a conversation or a broken row, unless `lenient`.
        """
        must_exist(path)
        report = LoadReport(self.name)
        files = []
        for file in data_files(path, self.suffixes):
            if file == path or self.knows(file):
                files.append(file)
            else:
                report.skipped.append((str(file), None, f"file left out: it is not in {self.name}'s form"))
        if not files:
            raise DataError(f"holds no {self.name} file; looked for {self.looks_for}", path)
        return load_result(path, (SourceFile(report, file, lenient) for file in files), self.read)


def load_result(
    path: Path, sources: Iterable[SourceFile], read: Callable[[SourceFile], list[Conversation]]
) -> LoadResult:
    """What the files below a path hold (DataError: one, or all of them, hold no conversation)."""
    conversations: list[Conversation] = []
    for source in sources:
        found, report = read(source), source.report
        if not found:
            source.fail(None, "holds no conversation")
        conversations += found
    if not conversations:
        raise DataError("holds no conversation", path)
    report.count(conversations)
    return LoadResult(tuple(conversations), report)


def must_be_text(path: Path) -> None:
    """Raises: DataError for devices and pipes, which may never end, for archives, and for huge files."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return  # reading it says so
    if not stat.S_ISREG(status.st_mode):
        raise DataError("is no regular file", path)
    if status.st_size > MAX_FILE_BYTES:
        raise DataError(
            f"is larger than {MAX_FILE_BYTES >> 20} MiB, more than any conversation data set; split it "
            "into files of a folder",
            path,
        )
    with path.open("rb") as f:
        head = f.read(max(map(len, _ARCHIVES)))
    if kind := archive_kind(head):
        raise DataError(f"is a {kind} archive; unpack it and name what was inside", path)


def archive_kind(head: bytes) -> str:
    """The kind of archive that the first bytes of a file tell ("zip"); "" for others."""
    return next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), "")


def must_stay_inside(folder: Path, files: Iterable[Path]) -> None:
    """Raises: DataError for a link in a data folder that leads out of it."""
    home = os.path.realpath(folder)
    for file in files:
        if os.path.commonpath([home, os.path.realpath(file)]) != home:
            raise DataError(
                "leads out of its folder by a symbolic link; name the place that it leads to", file
            )


def one_hot(label: str, labels: LabelSet) -> EmotionDistribution:
    """The distribution of a single gold label, whatever its case (ValueError: it is not in the set)."""
    name = label.strip().lower()
    if name not in labels:
        raise ValueError(f"unknown label {label[:60]!r}; valid are {', '.join(labels.labels)}")
    return EmotionDistribution({name: 1.0})


def voted(votes: Mapping[str, float], winner: str) -> EmotionDistribution:
    """The distribution of votes for emotions, with the emotion that the release gives the turn on top.

    The class of a turn is the top of its distribution everywhere. Where another emotion has as many votes as
    the release's own or more, its own counts as the largest number of them and a millionth more.
    """
    most = max(votes.values(), default=0.0)
    others = max((w for e, w in votes.items() if e != winner), default=0.0)
    if others and votes.get(winner, 0.0) <= others:
        votes = {**votes, winner: most * (1 + 1e-6)}
    return EmotionDistribution(votes or {winner: 1.0})


def labelled_turn(speaker: str, text: str, label: str, labels: LabelSet) -> Utterance:
    """A turn of clean texts with its gold label (ValueError: empty, or the label is not in the set)."""
    if not text or not speaker:
        raise ValueError("the utterance or its speaker is empty")
    return Utterance(speaker, text, one_hot(label, labels))


def head_of(path: Path) -> str:
    """The first characters of a file, to detect its form; "" for a folder or a file that cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""  # a pipe would be waited for
        with open(path, encoding="utf-8-sig", errors="replace") as f:
            return f.read(_HEAD_CHARS)
    except (OSError, ValueError):
        return ""


def csv_header(path: Path) -> list[str]:
    """The column names of a CSV file, if it has a header."""
    try:
        return next(csv.reader(head_of(path).splitlines()[:1]), [])
    except csv.Error:
        return []


def first_row(reader: Any, path: Path) -> list[str]:
    """The header of a csv.reader (DataError: the text is empty or no CSV)."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        header: list[str] = next(reader, [])
    except csv.Error as e:
        raise DataError(f"broken CSV: {e}", path, 1) from None
    if not header:
        raise DataError("is empty: it has no header line", path)
    return header


def further_rows(reader: Any, source: SourceFile) -> Iterator[tuple[int, list[str], str]]:
    """(line, fields, hint) of the rows below the header: the line that a row starts on, and a guess at an
    unclosed quote where it goes over several lines.

    Not csv.DictReader: it passes over blank lines without telling, so line numbers would be off.
    """
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            source.fail(line, f"broken CSV: {e}")
            continue
        if fields:
            several = reader.line_num > line
            yield line, fields, f"; an unclosed quote up to line {reader.line_num}?" if several else ""


def csv_turns(
    source: SourceFile,
    columns: Sequence[str],
    read: Callable[[int, dict[str, str]], tuple[K, int, Utterance]],
    hint: str = "",
) -> dict[K, tuple[Utterance, ...]]:
    """The turns of each conversation of a CSV file, by their number; gaps and the like are blemishes.

    Args:
        columns: those that must be there, else DataError with `hint` added.
        read: (line, row) to (conversation, number, turn); ValueError for a broken row.
    """
    reader = csv.reader(io.StringIO(source.text(), newline=""))
    header = first_row(reader, source.path)
    if missing := [c for c in columns if c not in header]:
        raise DataError(f"has no column {', '.join(missing)}{hint}", source.path, 1)
    needed = 1 + max(header.index(c) for c in columns)
    groups: dict[K, list[tuple[int, int, Utterance]]] = {}
    for line, fields, unclosed in further_rows(reader, source):
        if not needed <= len(fields) <= len(header):
            source.fail(line, f"has too {'few' if len(fields) < needed else 'many'} fields{unclosed}")
            continue
        if unclosed:
            source.blemish("line break inside a row", line)
        try:
            key, number, turn = read(line, dict(zip(header, fields, strict=False)))
        except ValueError as e:
            source.fail(line, str(e))
        else:
            groups.setdefault(key, []).append((number, line, turn))
    return {key: ordered_turns(members, source) for key, members in groups.items()}


def ordered_turns(members: list[tuple[int, int, Utterance]], source: SourceFile) -> tuple[Utterance, ...]:
    """The turns of (number, line, turn) by their number; disorder, repeats and gaps are blemishes."""
    by_number = sorted(members, key=lambda m: m[:2])
    if [n for n, _, _ in by_number] != [n for n, _, _ in members]:
        source.blemish("utterances out of order", members[0][1])
    for (a, _, _), (b, line, _) in pairwise(by_number):
        if b == a:
            source.blemish("repeated utterance number", line)
        elif b > a + 1:
            source.blemish("gap in utterance numbers", line)
    return tuple(u for _, _, u in by_number)


def split_of(name: str) -> Split | None:
    """The split that a word of a file name says, or None (as for "latest.csv")."""
    for word in re.findall("[a-z]+", name.lower()):
        for split, says in zip(SPLITS, _SPLIT_WORDS, strict=True):
            if says.fullmatch(word):
                return split
    return None


def claim_split(source: SourceFile) -> Split:
    """The split of a whole file by its name; "test", with a blemish, where the name says none.

    Raises: DataError: another file of this load has the split already, so turns would count twice.
    """
    split = split_of(source.path.name)
    if split is None:
        source.blemish("no split in the file name, taken as test")
        split = "test"
    if (other := source.report.files.setdefault(split, source.path.name)) != source.path.name:
        raise DataError(
            f"holds the {split} split, as {other} does; name one of them alone (a file name says its "
            "split as train, dev or test)",
            source.path,
        )
    return split


def must_exist(path: Path) -> None:
    """Raises DataError, with the nearest name that is there, unless there is such a file or folder."""
    # os.path: pathlib lets a name too long or a forbidden folder through as OSError.
    if os.path.exists(path):
        return
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    except (OSError, ValueError):
        near = []
    raise DataError(
        "no such file or folder" + (f"; did you mean {path.with_name(near[0])}?" if near else ""), path
    )


def data_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The file itself, or the folder's visible files with one of the suffixes, sorted."""
    if not os.path.isdir(path):
        return [path]
    try:
        inside = sorted(path.iterdir())
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}", path) from None
    found = [f for f in inside if f.suffix.lower() in suffixes and not f.name.startswith(".")]
    must_stay_inside(path, found)
    return found

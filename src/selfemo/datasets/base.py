"""What all adapters share: the adapter's interface, the load report, text cleaning, row errors."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from selfemo.errors import DataError
from selfemo.types import Conversation, EmotionDistribution, LabelSet, Split

MAX_FIELD_CHARS = 100_000
_EXAMPLES = 3
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
_SPACES = re.compile(r"[\u00a0\u2007\u202f]")


@dataclass
class LoadReport:
    """What a load found. Counts are by split; a blemish was mended, a skipped row was left out."""

    dataset: str
    conversations: Counter[str] = field(default_factory=Counter)
    utterances: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    blemishes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[tuple[str, int | None, str]] = field(default_factory=list)

    def blemish(self, kind: str, path: Path | str, line: int | None = None) -> None:
        self.blemishes[kind] += 1
        places = self.examples.setdefault(kind, [])
        if len(places) < _EXAMPLES:
            name = Path(path).name
            places.append(name if line is None else f"{name}:{line}")

    def count(self, conversations: Sequence[Conversation]) -> None:
        for c in conversations:
            self.conversations[c.split] += 1
            self.utterances[c.split] += len(c.turns)
            labels = self.labels.setdefault(c.split, Counter())
            for t in c.turns:
                labels["(none)" if t.emotion is None else t.emotion.top(c.label_set)] += 1


@dataclass(frozen=True)
class LoadResult:
    conversations: tuple[Conversation, ...]
    report: LoadReport


class Adapter(Protocol):
    """One data set. `official` are its published utterance counts by split, where it has any."""

    name: str
    label_set: LabelSet
    official: dict[Split, int] | None
    looks_for: str

    def matches(self, path: Path) -> bool:
        """Whether a file or folder looks like this data set; reads little, raises nothing."""

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        """All conversations under a path.

        Raises:
            DataError: the path is missing or of another form; a broken row, unless `lenient`, which
                counts it in `report.skipped` instead.
        """


class Rows:
    """Collects row errors: raised at once, or with `lenient` kept in the report."""

    def __init__(self, report: LoadReport, path: Path, lenient: bool):
        self.report, self.path, self.lenient = report, path, lenient

    def fail(self, line: int | None, reason: str) -> None:
        if not self.lenient:
            raise DataError(reason, self.path, line)
        self.report.skipped.append((str(self.path), line, reason))


def read_text(path: Path, report: LoadReport) -> str:
    """A file's text: UTF-8 (with or without BOM), else cp1252, noted as a blemish.

    Raises:
        DataError: the file is missing, unreadable, or neither encoding fits.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}", path) from None
    if raw.startswith(b"\xef\xbb\xbf"):
        report.blemish("byte order mark", path)
        raw = raw[3:]
    if b"\r" in raw:
        report.blemish("Windows line ends", path)
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError as e:
        raise DataError(
            f"is neither UTF-8 nor cp1252 text (byte {e.start}); save it as UTF-8", path
        ) from None
    report.blemish("cp1252 file", path)
    return text


def clean_text(text: str, report: LoadReport, path: Path, line: int | None = None) -> str:
    """One line of plain text.

    Windows punctuation that was decoded as C1 control codes (a right quote as U+0092) becomes what it
    was; other control characters are dropped; white space is folded. Each is counted as a blemish.
    """
    if _CONTROL.search(text):
        mended = []
        for ch in text:
            if "\x80" <= ch <= "\x9f":
                report.blemish("cp1252 character as control code", path, line)
                ch = bytes([ord(ch)]).decode("cp1252", errors="ignore")
            elif _CONTROL.match(ch):
                report.blemish("control character", path, line)
                ch = " "
            mended.append(ch)
        text = "".join(mended)
    if _SPACES.search(text):
        report.blemish("non-breaking space", path, line)
    return " ".join(text.split())


def one_hot(label: str, labels: LabelSet) -> EmotionDistribution:
    """The distribution of a single gold label, whatever its case.

    Raises:
        ValueError: the label is not in the set; the message names the valid ones.
    """
    name = label.strip().lower()
    if name not in labels:
        raise ValueError(f"unknown label {label!r}; valid are {', '.join(labels.labels)}")
    return EmotionDistribution({name: 1.0})


def csv_rows(
    path: Path, required: Sequence[str], rows: Rows, other: str = ""
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file with a header.

    Raises:
        DataError: a required column is missing, or the text is no CSV.
    """
    text = read_text(path, rows.report)
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=False)
    header = reader.fieldnames
    if not header:
        raise DataError("is empty: it has no header line", path)
    missing = [c for c in required if c not in header]
    if missing:
        raise DataError(f"has no column {', '.join(missing)}{other}", path, 1)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            rows.fail(line, f"broken CSV: {e}")
            continue
        if None in row or any(row[c] is None for c in required):
            rows.fail(line, f"has {'too many' if None in row else 'too few'} fields")
            continue
        yield line, row


def split_of(name: str) -> Split | None:
    """The split that a file name says, or None."""
    lowered = name.lower()
    for split, words in (
        ("train", ("train", "trn")),
        ("dev", ("dev", "val")),
        ("test", ("test", "tst")),
    ):
        if any(w in lowered for w in words):
            return split  # type: ignore[return-value]
    return None


def load_files(
    adapter: Adapter,
    path: Path,
    patterns: Sequence[str],
    read: Callable[[Path, LoadReport, bool], list[Conversation]],
    lenient: bool,
) -> LoadResult:
    """Load a file, or the files of a folder that `adapter` knows, one after another in sorted order.

    Raises:
        DataError: the path does not exist, or holds no file or no conversation of this data set.
    """
    if not path.exists():
        raise DataError("no such file or folder", path)
    files = [path]
    if path.is_dir():
        files = sorted(f for p in patterns for f in path.glob(p) if adapter.matches(f))
    if not files:
        raise DataError(f"holds no {adapter.name} file; looked for {adapter.looks_for}", path)
    report = LoadReport(adapter.name)
    conversations = [c for f in files for c in read(f, report, lenient)]
    if not conversations:
        raise DataError("holds no conversation", path)
    report.count(conversations)
    return LoadResult(tuple(conversations), report)


def check_lines(result: LoadResult, adapter: Adapter) -> list[str]:
    """What `selfemo data check` prints: counts, comparison with the official ones, blemishes."""
    report = result.report
    lines = [f"data set: {report.dataset} (labels: {', '.join(adapter.label_set.labels)})"]
    for split in ("train", "dev", "test"):
        if not report.conversations[split]:
            if adapter.official:
                lines.append(f"{split}: absent")
            continue
        counts = report.utterances[split]
        line = f"{split}: {report.conversations[split]} conversations, {counts} utterances"
        official = adapter.official.get(split) if adapter.official else None
        if official is not None:
            off = counts - official
            line += f" (official {official}: {'ok' if off == 0 else f'differs by {off:+d}'})"
        lines.append(line)
        labels = report.labels.get(split, Counter())
        lines.append("  " + ", ".join(f"{e} {n}" for e, n in labels.most_common()))
    for kind, n in report.blemishes.most_common():
        lines.append(f"mended: {n} x {kind} (for example {', '.join(report.examples[kind])})")
    for path, at, reason in report.skipped[:20]:
        lines.append(f"skipped: {path}{'' if at is None else f':{at}'}: {reason}")
    if len(report.skipped) > 20:
        lines.append(f"skipped: {len(report.skipped) - 20} more rows")
    return lines

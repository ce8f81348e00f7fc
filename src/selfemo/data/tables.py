"""Any table of conversations, by a description of its columns (`config.tables`): Parquet, JSONL, JSON or CSV
files, of one's own or of the Hugging Face Hub."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfemo.config.tables import TableConfig, load_table
from selfemo.data.base import (
    Adapter,
    LoadReport,
    LoadResult,
    SourceFile,
    head_of,
    must_exist,
    must_stay_inside,
    ordered_turns,
    split_of,
)
from selfemo.data.table_files import KINDS, Table, read_table, value_of
from selfemo.errors import ConfigError, DataError
from selfemo.extras import require
from selfemo.method.types import (
    LABEL_SETS,
    Conversation,
    EmotionDistribution,
    LabelSet,
    Split,
    Utterance,
    label_set_of,
)

_DESCRIBES = re.compile(r"^\s*text\s*=", re.MULTILINE)
_SHOWN = 30
Numbered = tuple[int, int, Utterance]
"""The number of a turn in its conversation, its line and the turn."""


class Tables(Adapter):
    """A table that a TOML file describes; its data set has the name of that file, or its own.

    Args:
        reserved: names of other data sets, which a table must not have.
    """

    name = "table"
    label_set = LABEL_SETS["meld"]
    looks_for = 'a .toml file that describes a table (docs/data.md): path = "...", text = "COLUMN", ...'
    suffixes = (".toml",)

    def __init__(self, reserved: Sequence[str] = ()):
        self._reserved = reserved

    def knows(self, file: Path) -> bool:
        return file.suffix.lower() in self.suffixes and bool(_DESCRIBES.search(head_of(file)))

    def matches(self, path: Path) -> bool:
        return not os.path.isdir(path) and self.knows(path)

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        must_exist(path)
        config = load_table(path)
        name = config.name or path.stem
        if name in self._reserved:
            raise ConfigError(f"{path}: name: {name!r} is another data set's; name it otherwise (name = ...)")
        report = LoadReport(name)
        place = _from_hub(config, path) if config.hub else path.parent / os.path.expanduser(config.path)
        reading = _Reading(config, path, name)
        files = _files(place, config.files, report)
        if not config.hub and place.is_dir():  # the Hub's cache is made of links
            must_stay_inside(place, files)
        for file in files:
            reading.add(SourceFile(report, file, lenient))
        conversations = reading.conversations()
        if not conversations:
            raise DataError("holds no conversation", place)
        report.count(conversations)
        return LoadResult(conversations, report)


class _Reading:
    """The conversations of a table under way."""

    def __init__(self, config: TableConfig, described: Path, name: str):
        self.config, self.described, self.name = config, described, name
        self.labels: LabelSet | None = label_set_of(config.labels) if config.labels else None
        self.groups: dict[tuple[Split | None, str], list[Numbered]] = {}
        self.rows = Counter[tuple[Split | None, str]]()
        self.source: SourceFile | None = None

    def add(self, source: SourceFile) -> None:
        """Read one file (DataError: columns are missing, or a row is broken)."""
        table = read_table(source)
        self._check_columns(table, source.path)
        if self.config.emotion and self.labels is None:
            self.labels = self._labels_of(table)
        own = split_of(source.path.stem)
        self.source = source
        for line, row in table.rows:
            try:
                self._add_row(source, line, row, own)
            except ValueError as e:
                source.fail(line, str(e))

    def _check_columns(self, table: Table, file: Path) -> None:
        missing = []
        for key, column in self.config.columns().items():
            if column not in table.columns:
                near = difflib.get_close_matches(column, table.columns, n=1)
                missing.append(f"{key} = {column!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        if missing:
            raise DataError(
                f"{file} has no column for {', '.join(missing)}; its columns are {', '.join(table.columns)}",
                self.described,
            )

    def _labels_of(self, table: Table) -> LabelSet:
        if names := table.class_names.get(self.config.emotion):
            try:
                return label_set_of(names)
            except ValueError:
                raise DataError(
                    f"{self.config.emotion!r} names its classes {', '.join(names)}, which are no labels of "
                    "their own; name them as labels = [...]",
                    self.described,
                ) from None
        values: Counter[str] = Counter()
        for _, row in table.rows:
            values.update(str(v) for v in _flat(value_of(row, self.config.emotion)) if v is not None)
        there = ", ".join(f'"{v}"' for v, _ in values.most_common(_SHOWN))
        more = ", ..." if len(values) > _SHOWN else ""
        raise DataError(
            "does not name its emotions; write them as labels = [...], in the order of their numbers where "
            f"the column holds numbers. {self.config.emotion!r} holds {there}{more}",
            self.described,
        )

    def _add_row(self, source: SourceFile, line: int, row: dict[str, Any], own: Split | None) -> None:
        config = self.config
        split = own
        if config.split:
            value = value_of(row, config.split)
            if (split := split_of(str(value))) is None:
                raise ValueError(f"split {str(value)[:60]!r} is none of train, dev (validation), test")
        said = value_of(row, config.text)
        if isinstance(said, list) and config.conversation:
            raise ValueError(f"{config.text!r} holds a list, a whole conversation: leave conversation out")
        if not isinstance(said, list) and not config.conversation:
            raise ValueError(f"{config.text!r} holds one turn: name its conversation's column (conversation)")
        who = value_of(row, config.speaker) if config.speaker else None
        felt = value_of(row, config.emotion) if config.emotion else None
        if config.conversation:
            value = value_of(row, config.conversation)
            key = "" if value is None else source.clean(str(value), line)
            if not key:
                raise ValueError(f"names no conversation ({config.conversation!r} is empty)")
            row_number = self.rows[split, key]
            self.rows[split, key] += 1  # a row that is left out counts: others keep their speakers
            number = _whole(value_of(row, config.turn)) if config.turn else row_number
            turn = self._turn(source, line, who, said, felt)
            self.groups.setdefault((split, key), []).append((number, line, turn))
            return
        key = str(self.rows[split, ""])
        self.rows[split, ""] += 1
        turns = self._turns(source, line, said, who, felt)
        self.groups[split, key] = [(n, line, turn) for n, turn in enumerate(turns)]

    def _turns(self, source: SourceFile, line: int, said: list[Any], who: Any, felt: Any) -> list[Utterance]:
        if not said:
            raise ValueError("the conversation is empty")
        for key, value in (("speaker", who), ("emotion", felt)):
            if value is not None and (not isinstance(value, list) or len(value) != len(said)):
                found = f"{len(value)} values" if isinstance(value, list) else "one value"
                raise ValueError(f"text has {len(said)} turns, and {key} {found}")
        return [
            self._turn(source, line, None if who is None else who[n], text, None if felt is None else felt[n])
            for n, text in enumerate(said)
        ]

    def _turn(self, source: SourceFile, line: int, speaker: Any, text: Any, felt: Any) -> Utterance:
        if not isinstance(text, str):
            raise ValueError(f"the text is no text but {str(text)[:60]!r}")
        # Speakers who take turns are known once all turns of the conversation are.
        named = self.config.speakers[0] if self.config.speakers else "" if speaker is None else str(speaker)
        name, words = source.clean(named, line), source.clean(text, line)
        if not name or not words:
            raise ValueError("the utterance or its speaker is empty")
        return Utterance(name, words, self._emotion(felt))

    def _emotion(self, value: Any) -> EmotionDistribution | None:
        """One label weighs 1; several share it."""
        found = [self._label(v) for v in _flat(value)]
        labels = [e for e in found if e is not None]
        return EmotionDistribution(dict.fromkeys(labels, 1.0)) if labels else None

    def _label(self, value: Any) -> str | None:
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if value is None or not text or text in self.config.none:
            return None
        assert self.labels is not None
        if text.lower() in self.labels:
            return text.lower()
        if text.isascii() and text.isdigit() and int(text) < len(self.labels):
            return self.labels.labels[int(text)]
        raise ValueError(
            f"unknown label {text[:60]!r}; valid are {', '.join(self.labels)}; one that means no emotion "
            "belongs into none = [...]"
        )

    def conversations(self) -> tuple[Conversation, ...]:
        """All conversations so far, in the order of the files."""
        found = []
        for (split, key), members in self.groups.items():
            assert self.source is not None
            if names := self.config.speakers:
                first = min(m[0] for m in members)
                members = [
                    (n, at, replace(t, speaker=names[(n - first) % len(names)])) for n, at, t in members
                ]
            turns = ordered_turns(members, self.source) if self.config.turn else tuple(m[2] for m in members)
            identity = f"{self.name}-{split}-{key}" if split else f"{self.name}-{key}"
            if split is None:
                self.source.report.without_split.add(identity)
            labels = self.labels or LABEL_SETS["meld"]
            found.append(Conversation(identity, self.name, split or "test", turns, labels))
        return tuple(found)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for inside in value:
            yield from _flat(inside)
    else:
        yield value


def _whole(value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"turn {str(value)[:60]!r} is no whole number") from None


def _files(place: Path, pattern: str, report: LoadReport) -> list[Path]:
    """The file, or the folder's visible files of the pattern or of the first kind that there is."""
    must_exist(place)
    if not place.is_dir():
        return [place]
    inside = [
        f
        for f in sorted(place.glob(pattern or "**/*"))
        if f.is_file() and not any(part.startswith(".") for part in f.relative_to(place).parts)
    ]
    of_kind = [[f for f in inside if f.suffix.lower() in suffixes] for suffixes in KINDS]
    found = inside if pattern else next(filter(None, of_kind), [])
    if not found:
        looked = f"of {pattern!r}" if pattern else "of Parquet, JSONL, JSON or CSV"
        raise DataError(f"holds no file {looked}", place)
    for file in (f for files in of_kind for f in files if f not in found):
        report.skipped.append((str(file), None, f"file left out: the {found[0].suffix} files are read"))
    return found


def _from_hub(config: TableConfig, described: Path) -> Path:
    """The folder that a data set of the Hub was downloaded to (DataError: it cannot be had)."""
    require(f"hub = {config.hub!r} in {described}", "huggingface-hub")
    from huggingface_hub import snapshot_download

    patterns = [config.files] if config.files else [f"*{suffix}" for kind in KINDS for suffix in kind]
    try:
        folder = snapshot_download(
            config.hub, repo_type="dataset", revision=config.revision or None, allow_patterns=patterns
        )
    except Exception as e:  # the client raises its own errors, those of HTTP and of the operating system
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise DataError(
            f"hub = {config.hub!r} cannot be had: {reason}. Is the name right, and the network there? Or "
            "download its files yourself and name their folder as path",
            described,
        ) from None
    return Path(folder)

"""DailyDialog: one dialogue a line, with "__eou__" behind each utterance, and its labels in a file beside.

The release holds all dialogues (dialogues_text.txt, dialogues_emotion.txt) and, in folders of their own,
those of each split (train/dialogues_train.txt, train/dialogues_emotion_train.txt, and so on). Where there are
splits, they are read, since they hold the same dialogues. The two speakers take turns; they have no names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from selfemo.data.base import (
    Adapter,
    LoadReport,
    LoadResult,
    SourceFile,
    head_of,
    load_result,
    must_exist,
    must_stay_inside,
    one_hot,
)
from selfemo.errors import DataError
from selfemo.method.types import LABEL_SETS, Conversation, Split, Utterance

_END = "__eou__"
_SPLITS: dict[str, Split] = {"train": "train", "validation": "dev", "test": "test"}
_NAME = re.compile(rf"dialogues_(text|{'|'.join(_SPLITS)})\.txt")
_ALL = 102_979
_SPEAKERS = ("A", "B")


class DailyDialog(Adapter):
    """The release's folder, the folder of one split, or one text file with its labels beside it."""

    name = "dailydialog"
    label_set = LABEL_SETS["dailydialog"]
    official: dict[Split, int] | None = {"train": 87170, "dev": 8069, "test": 7740}
    looks_for = f"dialogues_train.txt or dialogues_text.txt with {_END} behind each utterance"
    suffixes = (".txt",)
    named_speakers = False

    def knows(self, file: Path) -> bool:
        return _END in head_of(file)

    def matches(self, path: Path) -> bool:
        return bool(_texts(path)) if os.path.isdir(path) else self.knows(path)

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        must_exist(path)
        report = LoadReport(self.name)
        files = _texts(path) if os.path.isdir(path) else [path]
        if not files:
            raise DataError(f"is not DailyDialog's release; looked for {self.looks_for}", path)
        labels = [_labels_of(file) for file in files]
        if os.path.isdir(path):
            must_stay_inside(path, [f for f in [*files, *labels] if f.exists()])
            whole = path / "dialogues_text.txt"
            if whole not in files and whole.exists():
                report.skipped.append((str(whole), None, "file left out: the splits hold its dialogues"))
        return load_result(path, (SourceFile(report, file, lenient) for file in files), self.read)

    def read(self, source: SourceFile) -> list[Conversation]:
        beside = SourceFile(source.report, _labels_of(source.path), source.lenient)
        part = _part_of(source.path)
        if not beside.path.exists():
            raise DataError(
                f"has no labels: there is no {beside.path.name} beside it, which training and evaluation "
                "need; `selfemo predict` labels the text alone",
                source.path,
            )
        texts, labels = (s.text().rstrip("\n").split("\n") for s in (source, beside))
        if len(texts) != len(labels):
            raise DataError(
                f"has {len(texts)} dialogues, and {beside.path.name} labels of {len(labels)}", source.path
            )
        split, found = _SPLITS.get(part, "test"), []
        for line, (text, ids) in enumerate(zip(texts, labels, strict=True), 1):
            try:
                turns = self._turns(source, line, text, ids.split(), beside.path.name)
            except ValueError as e:
                source.fail(line, str(e))
                continue
            identity = f"{self.name}-{split if part in _SPLITS else 'all'}-{line - 1}"
            found.append(Conversation(identity, self.name, split, turns, self.label_set))
        if part not in _SPLITS:
            source.report.without_split.update(c.id for c in found)
            source.report.official["test"] = _ALL
        return found

    def _turns(
        self, source: SourceFile, line: int, text: str, ids: list[str], beside: str
    ) -> tuple[Utterance, ...]:
        said = [source.clean(u, line) for u in text.split(_END)]
        if not said[-1]:
            said.pop()
        if not said:
            raise ValueError("the dialogue is empty")
        if not all(said):
            raise ValueError(f"utterance {said.index('') + 1} is empty")
        if len(said) != len(ids):
            raise ValueError(f"has {len(said)} utterances, and {beside}:{line} labels of {len(ids)}")
        turns = []
        for n, (words, number) in enumerate(zip(said, ids, strict=True)):
            if not (number.isascii() and number.isdigit() and int(number) < len(self.label_set)):
                last = len(self.label_set) - 1
                raise ValueError(f"{beside}:{line}: label {number[:20]!r} is not one of 0 to {last}")
            label = one_hot(self.label_set.labels[int(number)], self.label_set)
            turns.append(Utterance(_SPEAKERS[n % 2], words, label))
        return tuple(turns)


def _texts(folder: Path) -> list[Path]:
    """The text file of each split, in the folder or in one of the split's name (or in one more of that name,
    as unpacking makes them); where there is none, the one of all dialogues."""
    found = []
    for name in _SPLITS:
        file = f"dialogues_{name}.txt"
        places = (folder / file, folder / name / file, folder / name / name / file)
        found += [p for p in places if p.is_file()][:1]
    whole = folder / "dialogues_text.txt"
    return found or ([whole] if whole.is_file() else [])


def _part_of(file: Path) -> str:
    """The split's word of a text file's name, or "text" (DataError: it is none of the release's names)."""
    name = _NAME.fullmatch(file.name)
    if name is None:
        raise DataError(
            f"is a text of {_END} lines whose labels cannot be told by its name; name it as in the release: "
            "dialogues_train.txt with dialogues_emotion_train.txt beside it, or dialogues_text.txt with "
            "dialogues_emotion.txt",
            file,
        )
    return name[1]


def _labels_of(file: Path) -> Path:
    """The file of labels that belongs to a text file."""
    part = _part_of(file)
    return file.with_name("dialogues_emotion.txt" if part == "text" else f"dialogues_emotion_{part}.txt")

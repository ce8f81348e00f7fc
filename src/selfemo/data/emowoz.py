"""EmoWOZ: task-oriented dialogues (MultiWOZ, DialMAGE); emotions of the user's turns alone.

A turn's label is the release's own, the last item of its `emotion` list (by majority, or resolved by
hand); the annotators' items before it are not read. The splits are those of data-split.json.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from selfemo.data.base import (
    Adapter,
    LoadReport,
    LoadResult,
    SourceFile,
    must_exist,
    must_stay_inside,
    one_hot,
)
from selfemo.data.jsonl import whole_json
from selfemo.errors import DataError
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, Split, Utterance

_NAME = re.compile(r"emowoz-(multiwoz|dialmage)\.json")
_SPLIT_FILE = "data-split.json"
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_SPEAKERS = ("User", "System")


class EmoWoz(Adapter):
    """The release's JSON files, emowoz-multiwoz.json and emowoz-dialmage.json, beside data-split.json."""

    name = "emowoz"
    label_set = LABEL_SETS["emowoz"]
    looks_for = "emowoz-multiwoz.json or emowoz-dialmage.json, with data-split.json beside"
    suffixes = (".json",)
    named_speakers = False

    def knows(self, file: Path) -> bool:
        return bool(_NAME.fullmatch(file.name)) and file.is_file()

    def matches(self, path: Path) -> bool:
        return any(map(self.knows, _files(path)))

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        must_exist(path)
        files = [f for f in _files(path) if self.knows(f)]
        if not files:
            raise DataError(f"is not EmoWOZ's release; looked for {self.looks_for}", path)
        report = LoadReport(self.name)
        beside = files[0].with_name(_SPLIT_FILE)
        if not beside.exists():
            raise DataError(f"has no {_SPLIT_FILE} beside it, which says the splits", files[0])
        must_stay_inside(beside.parent, [*files, beside])
        splits = _splits(SourceFile(report, beside, lenient))
        conversations: list[Conversation] = []
        for file in files:
            conversations += self._read(SourceFile(report, file, lenient), splits)
        if not conversations:
            raise DataError("holds no conversation", path)
        report.count(conversations)
        # The release counts the user's turns, which have a label.
        for name in report.utterances:
            report.utterances[name] -= report.labels[name]["(none)"]
        return LoadResult(tuple(conversations), report)

    def _read(self, source: SourceFile, splits: dict[str, Split]) -> list[Conversation]:
        raw = source.text()
        found = []
        for identity, dialogue in _object(source, raw).items():
            try:
                if identity not in splits:
                    raise ValueError(f"is in no split of {_SPLIT_FILE}")
                turns = self._turns(source, dialogue)
            except ValueError as e:
                at = raw.find(json.dumps(identity))
                source.fail(raw.count("\n", 0, at) + 1 if at >= 0 else None, f"dialogue {identity[:60]}: {e}")
                continue
            split = splits[identity]
            name = f"{self.name}-{split}-{source.clean(identity.removesuffix('.json'))}"
            found.append(Conversation(name, self.name, split, turns, self.label_set))
        return found

    def _turns(self, source: SourceFile, dialogue: Any) -> tuple[Utterance, ...]:
        log = dialogue.get("log") if isinstance(dialogue, dict) else None
        if not isinstance(log, list) or not log:
            raise ValueError("has no turns (log)")
        turns = []
        for n, item in enumerate(log):
            text = item.get("text") if isinstance(item, dict) else None
            if not isinstance(text, str) or not (words := source.clean(text)):
                raise ValueError(f"log[{n}] has no text")
            felt = item.get("emotion") or []
            try:
                turns.append(Utterance(_SPEAKERS[n % 2], words, self._emotion(felt)))
            except ValueError as e:
                raise ValueError(f"log[{n}]: {e}") from None
        return tuple(turns)

    def _emotion(self, felt: Any) -> EmotionDistribution | None:
        if not felt:
            return None
        last = felt[-1] if isinstance(felt, list) else None
        number = last.get("emotion") if isinstance(last, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError("the last item of its emotion has no whole number as emotion")
        if not 0 <= number < len(self.label_set):
            raise ValueError(f"label {number} is not one of 0 to {len(self.label_set) - 1}")
        return one_hot(self.label_set.labels[number], self.label_set)


def _files(path: Path) -> list[Path]:
    """The file, or the two of the release that the folder may hold."""
    if not os.path.isdir(path):
        return [path]
    return [path / f"emowoz-{part}.json" for part in ("multiwoz", "dialmage")]


def _object(source: SourceFile, raw: str) -> dict[str, Any]:
    item = whole_json(raw, source.path)
    if not isinstance(item, dict):
        raise DataError("must be a JSON object", source.path)
    return item


def _splits(source: SourceFile) -> dict[str, Split]:
    """The split of each dialogue by its id (DataError: the file is not of EmoWOZ's form)."""
    parts = _object(source, source.text())
    found: dict[str, Split] = {}
    for split in _SPLITS:
        named = parts.get(split)
        lists = list(named.values()) if isinstance(named, dict) else [named]
        for ids in lists:
            if not isinstance(ids, list):
                raise DataError(f"{split!r} must map multiwoz and dialmage to lists of ids", source.path)
            found |= {str(i): split for i in ids}
    return found

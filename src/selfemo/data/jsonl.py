"""Conversations of the project's own form: one JSON object a line.

    {"id": "c1", "split": "train", "dataset": "desk", "scene": "...", "labels": ["calm", "upset"],
     "personas": {"Ann": "..."},
     "turns": [{"speaker": "Ann", "text": "...", "emotion": "calm"},
               {"speaker": "Bo", "text": "...", "emotion": {"upset": 0.7, "calm": 0.3}}]}

Only `id` and `turns` must be there; `labels` are MELD's seven where missing, `split` is "test", `dataset`,
by which scores are divided, is "jsonl"; an emotion may be null. Any other key, or a key that occurs twice,
is an error.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from selfemo.data.base import Adapter, SourceFile, head_of, one_hot
from selfemo.errors import DataError
from selfemo.method.types import (
    LABEL_SETS,
    SPLITS,
    Conversation,
    EmotionDistribution,
    LabelSet,
    Persona,
    Utterance,
    label_set_of,
)

_KEYS = ("id", "split", "dataset", "scene", "labels", "personas", "turns")
_TURN_KEYS = ("speaker", "text", "emotion")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; json.loads alone would keep the last of two and say nothing."""
    item = dict(pairs)
    if len(item) < len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return item


def whole_json(raw: str, path: Path) -> Any:
    """The value of a whole JSON file (DataError: broken, nested too deep, or a key occurs twice)."""
    try:
        return json.loads(raw, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as e:
        raise DataError(f"broken JSON: {e.msg}", path, e.lineno) from None
    except RecursionError:
        raise DataError("JSON is nested too deep", path) from None
    except ValueError as e:  # a number of thousands of digits, or a key that occurs twice
        raise DataError(f"broken JSON: {e}", path) from None


def _check_keys(item: dict[str, Any], valid: tuple[str, ...], required: tuple[str, ...]) -> None:
    for key in item:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(valid)}"
            raise ValueError(f"unknown key {key!r}; {hint}")
    for key in required:
        if key not in item:
            raise ValueError(f"key {key!r} is missing")


class Jsonl(Adapter):
    """JSON lines; `label_set` is the default, each conversation carries its own."""

    name = "jsonl"
    label_set = LABEL_SETS["meld"]
    looks_for = 'a .jsonl file with one {"id": ..., "turns": [...]} a line'
    suffixes = (".jsonl", ".ndjson")

    def knows(self, file: Path) -> bool:
        # By name too: a broken first line is best told as this adapter's error.
        head = head_of(file)
        return file.suffix.lower() in self.suffixes or (head.lstrip().startswith("{") and '"turns"' in head)

    def read(self, source: SourceFile) -> list[Conversation]:
        return [c for _, c in self.read_lines(source, source.text().split("\n"))]

    def read_lines(self, source: SourceFile, lines: Iterable[str]) -> Iterator[tuple[int, Conversation]]:
        """(line, conversation) of each line that is not blank; an id may occur once in a load."""
        seen = source.report.ids
        for line, raw in enumerate(lines, 1):
            if not raw.strip():
                continue
            try:
                conversation, named = self._read_line(raw, source, line)
                if hash(conversation.id) in seen:
                    raise ValueError(f"id {conversation.id!r} occurs twice")
            except ValueError as e:
                source.fail(line, str(e))
            else:
                seen.add(hash(conversation.id))
                if not named:
                    source.report.without_split.add(conversation.id)
                yield line, conversation

    def _read_line(self, raw: str, source: SourceFile, line: int) -> tuple[Conversation, bool]:
        """A line's conversation, and whether it names its split."""
        try:
            item = json.loads(raw, object_pairs_hook=unique_keys)
        except json.JSONDecodeError as e:
            raise ValueError(f"broken JSON: {e.msg} (column {e.colno})") from None
        except RecursionError:
            raise ValueError("JSON is nested too deep") from None
        if not isinstance(item, dict):
            raise ValueError("a line must be one JSON object")
        _check_keys(item, _KEYS, ("id", "turns"))

        def clean(text: str) -> str:
            return source.clean(text, line)

        number = item["id"]
        if not isinstance(number, str | int) or isinstance(number, bool):
            raise ValueError("id must be text or a whole number")
        identity = clean(str(number))
        if not identity:
            raise ValueError("id must not be empty")
        labels = self._labels(item.get("labels"), clean)
        split = item.get("split", "test")
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        dataset = item.get("dataset", self.name)
        if not isinstance(dataset, str) or not (dataset := clean(dataset)):
            raise ValueError("dataset must be the name of a data set")
        raw_turns = item["turns"]
        if not isinstance(raw_turns, list) or not raw_turns:
            raise ValueError("the conversation is empty: turns must be a list with at least one turn")
        turns = []
        for n, turn in enumerate(raw_turns):
            try:
                turns.append(_turn(turn, labels, clean))
            except ValueError as e:
                raise ValueError(f"turns[{n}]: {e}") from None
        raw_scene = "" if item.get("scene") is None else item["scene"]
        if not isinstance(raw_scene, str):
            raise ValueError("scene must be text")
        scene = clean(raw_scene)
        personas = {} if item.get("personas") is None else item["personas"]
        if not isinstance(personas, dict) or not all(isinstance(d, str) for d in personas.values()):
            raise ValueError("personas must map speakers to descriptions")
        cleaned = {clean(s): clean(d) for s, d in personas.items()}
        if not all(cleaned.values()):
            raise ValueError("personas must not be empty: leave out a speaker without one")
        if set(cleaned) - {t.speaker for t in turns}:
            source.blemish("persona of a speaker without a turn", line)
        described = {s: Persona(s, d, scene) for s, d in cleaned.items()}
        found = Conversation(identity, dataset, split, tuple(turns), labels, scene, described)
        return found, "split" in item

    def _labels(self, given: Any, clean: Callable[[str], str]) -> LabelSet:
        if given is None:
            return self.label_set
        if not isinstance(given, list) or not all(isinstance(e, str) and e.strip() for e in given):
            raise ValueError("labels must be a list of emotion names")
        return label_set_of([clean(e) for e in given])


def _turn(turn: Any, labels: LabelSet, clean: Callable[[str], str]) -> Utterance:
    if not isinstance(turn, dict):
        raise ValueError("a turn must be a JSON object")
    _check_keys(turn, _TURN_KEYS, ("speaker", "text"))
    if not isinstance(turn["speaker"], str) or not isinstance(turn["text"], str):
        raise ValueError("speaker and text must be strings")
    speaker, text = clean(turn["speaker"]), clean(turn["text"])
    if not speaker or not text:
        raise ValueError("speaker and text must not be empty")
    emotion = turn.get("emotion")
    if emotion is None:
        return Utterance(speaker, text)
    if isinstance(emotion, str):
        return Utterance(speaker, text, one_hot(emotion, labels))
    if not isinstance(emotion, dict) or not all(
        isinstance(w, int | float) and not isinstance(w, bool) for w in emotion.values()
    ):
        raise ValueError("emotion must be a label, a map of labels to weights, or null")
    weights: dict[str, float] = {}
    for label, weight in emotion.items():
        (name,) = one_hot(label, labels)
        if name in weights:
            raise ValueError(f"emotion {name!r} occurs twice")
        try:
            weights[name] = float(weight)
        except OverflowError:
            raise ValueError("emotion weights must be finite and not negative") from None
    return Utterance(speaker, text, EmotionDistribution(weights))

"""Conversations of one's own: one JSON object a line.

    {"id": "c1", "split": "train", "scene": "...", "labels": ["calm", "upset"],
     "personas": {"Ann": "..."},
     "turns": [{"speaker": "Ann", "text": "...", "emotion": "calm"},
               {"speaker": "Bo", "text": "...", "emotion": {"upset": 0.7, "calm": 0.3}}]}

Only `id` and `turns` must be there; `labels` are MELD's seven where missing, `split` is "test", an
emotion may be null. A key that is none of these, or occurs twice, is an error.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from selfemo.data.base import (
    LoadReport,
    LoadResult,
    Rows,
    clean_text,
    data_files,
    head_of,
    load_files,
    one_hot,
    read_text,
)
from selfemo.method.types import (
    LABEL_SETS,
    SPLITS,
    Conversation,
    EmotionDistribution,
    LabelSet,
    Persona,
    Split,
    Utterance,
)

_KEYS = ("id", "split", "scene", "labels", "personas", "turns")
_TURN_KEYS = ("speaker", "text", "emotion")
_SUFFIXES = (".jsonl", ".ndjson")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; json.loads alone would keep the last of two and say nothing."""
    item = dict(pairs)
    if len(item) < len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return item


def _check_keys(item: dict[str, Any], valid: tuple[str, ...], required: tuple[str, ...]) -> None:
    for key in item:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(valid)}"
            raise ValueError(f"unknown key {key!r}; {hint}")
    for key in required:
        if key not in item:
            raise ValueError(f"key {key!r} is missing")


class Jsonl:
    """JSON lines of one's own; `label_set` is the default, each conversation carries its own."""

    name = "jsonl"
    label_set = LABEL_SETS["meld"]
    official: dict[Split, int] | None = None
    looks_for = 'a .jsonl file with one {"id": ..., "turns": [...]} a line'
    recurring_speakers = False

    def __init__(self, name: str = "jsonl"):
        self.name = name

    def matches(self, path: Path) -> bool:
        # By name too: a broken first line is best told as this adapter's error.
        return any(
            f.suffix.lower() in _SUFFIXES
            or ((head := head_of(f)).lstrip().startswith("{") and '"turns"' in head)
            for f in data_files(path, _SUFFIXES)
        )

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        seen: set[str] = set()

        def read(file: Path, report: LoadReport, lenient: bool) -> list[Conversation]:
            return self._file(file, report, lenient, seen)

        return load_files(self, path, _SUFFIXES, read, lenient)

    def _file(self, path: Path, report: LoadReport, lenient: bool, seen: set[str]) -> list[Conversation]:
        rows = Rows(report, path, lenient)
        conversations = []
        for line, raw in enumerate(read_text(path, report).split("\n"), 1):
            if not raw.strip():
                continue
            try:
                conversation = self.read_line(raw, report, path, line)
                if conversation.id in seen:
                    raise ValueError(f"id {conversation.id!r} occurs twice")
            except ValueError as e:
                rows.fail(line, str(e))
            else:
                seen.add(conversation.id)
                conversations.append(conversation)
        return conversations

    def read_line(self, raw: str, report: LoadReport, path: Path, line: int | None = None) -> Conversation:
        """The conversation of one line.

        Raises:
            ValueError: it is none; the message says why.
        """
        try:
            item = json.loads(raw, object_pairs_hook=_unique)
        except json.JSONDecodeError as e:
            raise ValueError(f"broken JSON: {e.msg} (column {e.colno})") from None
        except RecursionError:
            raise ValueError("JSON is nested too deep") from None
        return self._conversation(item, report, path, line)

    def _conversation(self, item: Any, report: LoadReport, path: Path, line: int | None) -> Conversation:
        if not isinstance(item, dict):
            raise ValueError("a line must be one JSON object")
        _check_keys(item, _KEYS, ("id", "turns"))
        number = item["id"]
        if not isinstance(number, str | int) or isinstance(number, bool):
            raise ValueError("id must be text or a whole number")
        identity = clean_text(str(number), report, path, line)
        if not identity:
            raise ValueError("id must not be empty")
        labels = self.label_set
        if (own := item.get("labels")) is not None:
            if not isinstance(own, list) or not all(isinstance(e, str) and e.strip() for e in own):
                raise ValueError("labels must be a list of emotion names")
            names = tuple(clean_text(e, report, path, line).lower() for e in own)
            known = next((s for s in LABEL_SETS.values() if s.labels == names), None)
            labels = known or LabelSet("own:" + ",".join(names), names)
        split = item.get("split", "test")
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        raw_turns = item["turns"]
        if not isinstance(raw_turns, list) or not raw_turns:
            raise ValueError("the conversation is empty: turns must be a list with at least one turn")
        turns = []
        for n, turn in enumerate(raw_turns):
            try:
                turns.append(self._turn(turn, labels, report, path, line))
            except ValueError as e:
                raise ValueError(f"turns[{n}]: {e}") from None
        raw_scene = "" if item.get("scene") is None else item["scene"]
        if not isinstance(raw_scene, str):
            raise ValueError("scene must be text")
        scene = clean_text(raw_scene, report, path, line)
        personas = {} if item.get("personas") is None else item["personas"]
        if not isinstance(personas, dict) or not all(isinstance(d, str) for d in personas.values()):
            raise ValueError("personas must map speakers to descriptions")
        cleaned = {
            clean_text(s, report, path, line): clean_text(d, report, path, line) for s, d in personas.items()
        }
        if not all(cleaned.values()):
            raise ValueError("personas must not be empty: leave out a speaker without one")
        if set(cleaned) - {t.speaker for t in turns}:
            report.blemish("persona of a speaker without a turn", path, line)
        return Conversation(
            id=identity,
            dataset=self.name,
            split=split,
            turns=tuple(turns),
            label_set=labels,
            scenario=scene,
            personas={s: Persona(s, d, scene) for s, d in cleaned.items()},
        )

    def _turn(
        self, turn: Any, labels: LabelSet, report: LoadReport, path: Path, line: int | None
    ) -> Utterance:
        if not isinstance(turn, dict):
            raise ValueError("a turn must be a JSON object")
        _check_keys(turn, _TURN_KEYS, ("speaker", "text"))
        if not isinstance(turn["speaker"], str) or not isinstance(turn["text"], str):
            raise ValueError("speaker and text must be strings")
        speaker = clean_text(turn["speaker"], report, path, line)
        text = clean_text(turn["text"], report, path, line)
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

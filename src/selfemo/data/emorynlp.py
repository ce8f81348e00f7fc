"""EmoryNLP: the CSV with Scene_ID, and the original JSON by season, episode and scene.

The benchmark's counts (SPEC section 7) are those of the CSV; the original release in JSON holds more
utterances, so it is compared with the table in its own README (emorynlp/emotion-detection).
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from selfemo.data.base import (
    LoadReport,
    LoadResult,
    Rows,
    claim_split,
    clean_text,
    csv_header,
    csv_rows,
    data_files,
    head_of,
    labelled_turn,
    load_files,
    read_text,
)
from selfemo.data.meld import ordered
from selfemo.errors import DataError
from selfemo.method.types import LABEL_SETS, Conversation, Split, Utterance

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")
_SUFFIXES = (".csv", ".json")
_JSON_OFFICIAL: dict[Split, int] = {"train": 9934, "dev": 1344, "test": 1328}
_UTTERANCE_KEYS = {"speakers", "transcript", "emotion"}
_JSON_ID = re.compile(r'"(?:utterance|scene)_id"\s*:\s*"([^"]*)"')


class EmoryNlp:
    """Both forms of EmoryNLP; the split is the file name's word train/trn, dev or test/tst."""

    name = "emorynlp"
    label_set = LABEL_SETS["emorynlp"]
    official: dict[Split, int] | None = {"train": 7551, "dev": 954, "test": 984}
    looks_for = "CSV with a Scene_ID column, or JSON with episodes, scenes and utterances"
    recurring_speakers = True

    def matches(self, path: Path) -> bool:
        return any("Scene_ID" in csv_header(f) or _is_json(head_of(f)) for f in data_files(path, _SUFFIXES))

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        return load_files(self, path, _SUFFIXES, self._file, lenient)

    def _file(self, path: Path, report: LoadReport, lenient: bool) -> list[Conversation]:
        split, rows = claim_split(path, report), Rows(report, path, lenient)
        as_json = path.suffix.lower() == ".json" or head_of(path).lstrip().startswith("{")
        return (self._json if as_json else self._csv)(split, rows)

    def _turn(self, rows: Rows, line: int | None, speakers: Any, text: Any, emotion: Any) -> Utterance:
        """One turn of either form; ValueError where it is broken."""
        report, path = rows.report, rows.path
        if not isinstance(speakers, list) or not speakers or not all(isinstance(s, str) for s in speakers):
            raise ValueError(f"Speaker must be a list of names, not {str(speakers)[:60]!r}")
        if not isinstance(text, str) or not isinstance(emotion, str):
            raise ValueError("the utterance and its emotion must be text")
        names = [clean_text(s, report, path, line) for s in speakers]
        if len(names) > 1:
            report.blemish("several speakers in a list", path, line)
        return labelled_turn(
            " and ".join(n for n in names if n), clean_text(text, report, path, line), emotion, self.label_set
        )

    def _csv(self, split: Split, rows: Rows) -> list[Conversation]:
        report, path = rows.report, rows.path
        scenes: dict[tuple[int, int, int], list[tuple[int, int, Utterance]]] = {}
        hint = "; a MELD file has Dialogue_ID instead"
        for line, row in csv_rows(path, _COLUMNS, rows, hint):
            try:
                scene = (int(row["Season"]), int(row["Episode"]), int(row["Scene_ID"]))
                number = int(row["Utterance_ID"])
            except ValueError:
                rows.fail(line, "Season, Episode, Scene_ID and Utterance_ID must be whole numbers")
                continue
            try:
                speakers = ast.literal_eval(row["Speaker"])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                speakers = row["Speaker"]
            try:
                said = self._turn(rows, line, speakers, row["Utterance"], row["Emotion"])
            except ValueError as e:
                rows.fail(line, str(e))
                continue
            scenes.setdefault(scene, []).append((number, line, said))
        return [
            Conversation(
                f"{self.name}-{split}-s{s:02d}e{e:02d}c{c:02d}",
                self.name,
                split,
                ordered(members, report, path),
                self.label_set,
            )
            for (s, e, c), members in scenes.items()
        ]

    def _json(self, split: Split, rows: Rows) -> list[Conversation]:
        report, path = rows.report, rows.path
        raw = read_text(path, report)
        try:
            scenes = [s for e in json.loads(raw)["episodes"] for s in e["scenes"]]
        except json.JSONDecodeError as e:
            raise DataError(f"broken JSON: {e.msg}", path, e.lineno) from None
        except (KeyError, TypeError, ValueError, RecursionError) as e:
            raise DataError(f"is not EmoryNLP's JSON: {e!r}", path) from None
        report.official[split] = _JSON_OFFICIAL[split]
        # json.loads tells no lines; the ids are unique, so the text does.
        lines: dict[str, int] = {}
        for n, text in enumerate(raw.split("\n"), 1):
            for found in _JSON_ID.finditer(text):
                lines.setdefault(found[1], n)
        conversations: dict[str, Conversation] = {}
        for number, scene in enumerate(scenes):
            given = scene.get("scene_id") if isinstance(scene, dict) else None
            place = clean_text(given, report, path, lines.get(given)) if isinstance(given, str) else ""
            if not place or place in conversations:
                rows.fail(None, f"scenes[{number}] has no scene_id of its own")
                continue
            items = scene.get("utterances")
            turns = []
            for n, u in enumerate(items if isinstance(items, list) else []):
                line = lines.get(str(u.get("utterance_id"))) if isinstance(u, dict) else None
                try:
                    if not isinstance(u, dict) or not set(u) >= _UTTERANCE_KEYS:
                        raise ValueError("an utterance lacks speakers, transcript or emotion")
                    turns.append(self._turn(rows, line, u["speakers"], u["transcript"], u["emotion"]))
                except ValueError as e:
                    rows.fail(line, f"scene {place}, utterances[{n}]: {e}")
            if not turns:
                rows.fail(lines.get(str(given)), f"scene {place} has no utterance")
                continue
            conversations[place] = Conversation(
                f"{self.name}-{split}-{place}", self.name, split, tuple(turns), self.label_set
            )
        return list(conversations.values())


def _is_json(head: str) -> bool:
    return head.lstrip().startswith("{") and '"episodes"' in head and '"scene' in head

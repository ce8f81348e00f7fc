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

from selfemo.data.base import Adapter, SourceFile, claim_split, csv_header, csv_turns, head_of, labelled_turn
from selfemo.errors import DataError
from selfemo.method.types import LABEL_SETS, Conversation, Split, Utterance

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")
_JSON_OFFICIAL: dict[Split, int] = {"train": 9934, "dev": 1344, "test": 1328}
_UTTERANCE_KEYS = {"speakers", "transcript", "emotion"}
_JSON_ID = re.compile(r'"(?:utterance|scene)_id"\s*:\s*"([^"]*)"')


class EmoryNlp(Adapter):
    """Both forms of EmoryNLP; the split is the file name's word train/trn, dev or test/tst."""

    name = "emorynlp"
    label_set = LABEL_SETS["emorynlp"]
    official: dict[Split, int] | None = {"train": 7551, "dev": 954, "test": 984}
    looks_for = "CSV with a Scene_ID column, or JSON with episodes, scenes and utterances"
    suffixes = (".csv", ".json")
    recurring_speakers = True

    def knows(self, file: Path) -> bool:
        head = head_of(file)
        as_json = head.lstrip().startswith("{") and '"episodes"' in head and '"scene' in head
        return as_json or "Scene_ID" in csv_header(file)

    def read(self, source: SourceFile) -> list[Conversation]:
        split, path = claim_split(source), source.path
        as_json = path.suffix.lower() == ".json" or head_of(path).lstrip().startswith("{")
        found = (self._json if as_json else self._csv)(split, source)
        return [
            Conversation(f"{self.name}-{split}-{scene}", self.name, split, turns, self.label_set)
            for scene, turns in found.items()
        ]

    def _turn(
        self, source: SourceFile, line: int | None, speakers: Any, text: Any, emotion: Any
    ) -> Utterance:
        """One turn of either form; ValueError where it is broken."""
        if not isinstance(speakers, list) or not speakers or not all(isinstance(s, str) for s in speakers):
            raise ValueError(f"Speaker must be a list of names, not {str(speakers)[:60]!r}")
        if not isinstance(text, str) or not isinstance(emotion, str):
            raise ValueError("the utterance and its emotion must be text")
        names = [source.clean(s, line) for s in speakers]
        if len(names) > 1:
            source.blemish("several speakers in a list", line)
        speaker = " and ".join(filter(None, names))
        return labelled_turn(speaker, source.clean(text, line), emotion, self.label_set)

    def _csv(self, split: Split, source: SourceFile) -> dict[str, tuple[Utterance, ...]]:
        def turn(line: int, row: dict[str, str]) -> tuple[str, int, Utterance]:
            try:
                season, episode, scene = int(row["Season"]), int(row["Episode"]), int(row["Scene_ID"])
                number = int(row["Utterance_ID"])
            except ValueError:
                raise ValueError("Season, Episode, Scene_ID and Utterance_ID must be whole numbers") from None
            try:
                speakers = ast.literal_eval(row["Speaker"])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                speakers = row["Speaker"]
            said = self._turn(source, line, speakers, row["Utterance"], row["Emotion"])
            return f"s{season:02d}e{episode:02d}c{scene:02d}", number, said

        return csv_turns(source, _COLUMNS, turn, "; a MELD file has Dialogue_ID instead")

    def _json(self, split: Split, source: SourceFile) -> dict[str, tuple[Utterance, ...]]:
        path, raw = source.path, source.text()
        try:
            scenes = [s for e in json.loads(raw)["episodes"] for s in e["scenes"]]
        except json.JSONDecodeError as e:
            raise DataError(f"broken JSON: {e.msg}", path, e.lineno) from None
        except (KeyError, TypeError, ValueError, RecursionError) as e:
            raise DataError(f"is not EmoryNLP's JSON: {e!r}", path) from None
        source.report.official[split] = _JSON_OFFICIAL[split]
        # json.loads tells no lines; the ids are unique, so the text does.
        lines: dict[str, int] = {}
        for n, text in enumerate(raw.split("\n"), 1):
            for mark in _JSON_ID.finditer(text):
                lines.setdefault(mark[1], n)
        found: dict[str, tuple[Utterance, ...]] = {}
        for number, scene in enumerate(scenes):
            given = scene.get("scene_id") if isinstance(scene, dict) else None
            name = source.clean(given, lines.get(given)) if isinstance(given, str) else ""
            if not name or name in found:
                source.fail(None, f"scenes[{number}] has no scene_id of its own")
                continue
            items = scene.get("utterances")
            turns = []
            for n, u in enumerate(items if isinstance(items, list) else []):
                line = lines.get(str(u.get("utterance_id"))) if isinstance(u, dict) else None
                try:
                    if not isinstance(u, dict) or not set(u) >= _UTTERANCE_KEYS:
                        raise ValueError("an utterance lacks speakers, transcript or emotion")
                    turns.append(self._turn(source, line, u["speakers"], u["transcript"], u["emotion"]))
                except ValueError as e:
                    source.fail(line, f"scene {name}, utterances[{n}]: {e}")
            if not turns:
                source.fail(lines.get(str(given)), f"scene {name} has no utterance")
                continue
            found[name] = tuple(turns)
        return found

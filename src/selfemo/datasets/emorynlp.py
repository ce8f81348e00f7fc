"""EmoryNLP: the CSV with Scene_ID, and the original JSON by season, episode and scene."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfemo.datasets.base import (
    LoadReport,
    LoadResult,
    Rows,
    clean_text,
    csv_rows,
    load_files,
    one_hot,
    read_text,
    split_of,
)
from selfemo.datasets.meld import ordered
from selfemo.errors import DataError
from selfemo.types import LABEL_SETS, Conversation, Split, Utterance

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")


class EmoryNlp:
    name = "emorynlp"
    label_set = LABEL_SETS["emorynlp"]
    official: dict[Split, int] | None = {"train": 7551, "dev": 954, "test": 984}
    looks_for = "CSV with a Scene_ID column, or JSON with episodes, scenes and utterances"

    def matches(self, path: Path) -> bool:
        if path.is_dir():
            return any(self.matches(f) for f in (*path.glob("*.csv"), *path.glob("*.json")))
        try:
            with path.open(encoding="utf-8-sig", errors="replace") as f:
                head = f.read(4000)
        except OSError:
            return False
        if path.suffix == ".csv":
            return all(c in head.split("\n", 1)[0] for c in _COLUMNS)
        return path.suffix == ".json" and '"episodes"' in head and '"scene' in head

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        return load_files(self, path, ("*.csv", "*.json"), self._file, lenient)

    def _file(self, path: Path, report: LoadReport, lenient: bool) -> list[Conversation]:
        return (self._json if path.suffix == ".json" else self._csv)(path, report, lenient)

    def _utterance(
        self, rows: Rows, line: int | None, speakers: Sequence[Any], text: Any, emotion: Any
    ) -> Utterance | None:
        report, path = rows.report, rows.path
        names = [clean_text(str(s), report, path, line) for s in speakers]
        if len(names) > 1:
            report.blemish("several speakers in a list", path, line)
        words = clean_text(str(text or ""), report, path, line)
        if not words or not any(names):
            rows.fail(line, "the utterance or its speaker is empty")
            return None
        try:
            label = one_hot(str(emotion), self.label_set)
        except ValueError as e:
            rows.fail(line, str(e))
            return None
        return Utterance(" and ".join(n for n in names if n), words, label)

    def _csv(self, path: Path, report: LoadReport, lenient: bool) -> list[Conversation]:
        split = split_of(path.name) or "test"
        rows = Rows(report, path, lenient)
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
                speakers = None
            if not isinstance(speakers, list) or not speakers:
                rows.fail(line, f"Speaker must be a list of names, not {row['Speaker'][:60]!r}")
                continue
            said = self._utterance(rows, line, speakers, row["Utterance"], row["Emotion"])
            if said is not None:
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

    def _json(self, path: Path, report: LoadReport, lenient: bool) -> list[Conversation]:
        split = split_of(path.name) or "test"
        rows = Rows(report, path, lenient)
        try:
            content = json.loads(read_text(path, report))
            episodes = content["episodes"]
            scenes = [(e, s) for e in episodes for s in e["scenes"]]
        except json.JSONDecodeError as e:
            raise DataError(f"broken JSON: {e.msg}", path, e.lineno) from None
        except (KeyError, TypeError, RecursionError) as e:
            raise DataError(f"is not EmoryNLP's JSON: {e!r}", path) from None
        conversations = []
        for _, scene in scenes:
            place = scene.get("scene_id", "?") if isinstance(scene, dict) else "?"
            turns = []
            for u in scene.get("utterances", []) if isinstance(scene, dict) else []:
                try:
                    fields = (u["speakers"], u["transcript"], u["emotion"])
                except (KeyError, TypeError):
                    rows.fail(
                        None, f"scene {place}: an utterance lacks speakers, transcript or emotion"
                    )
                    continue
                said = self._utterance(rows, None, *fields)
                if said is not None:
                    turns.append(said)
            if not turns:
                rows.fail(None, f"scene {place} has no utterance")
                continue
            conversations.append(
                Conversation(
                    f"{self.name}-{split}-{place}", self.name, split, tuple(turns), self.label_set
                )
            )
        return conversations

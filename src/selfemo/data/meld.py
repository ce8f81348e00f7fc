"""MELD: the official CSV files (train_sent_emo.csv and so on), one file or their folder."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from selfemo.data.base import (
    LoadReport,
    LoadResult,
    Rows,
    claim_split,
    clean_text,
    csv_header,
    csv_rows,
    data_files,
    labelled_turn,
    load_files,
)
from selfemo.method.types import LABEL_SETS, Conversation, Split, Utterance

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_SUFFIXES = (".csv",)


class Meld:
    """MELD's CSV form; the split is the file name's word train, dev or test."""

    name = "meld"
    label_set = LABEL_SETS["meld"]
    official: dict[Split, int] | None = {"train": 9989, "dev": 1109, "test": 2610}
    looks_for = "CSV with columns Utterance, Speaker, Emotion, Dialogue_ID, Utterance_ID"
    recurring_speakers = True

    def matches(self, path: Path) -> bool:
        # By one column alone, so that a file without another is told which it lacks.
        return any("Dialogue_ID" in csv_header(f) for f in data_files(path, _SUFFIXES))

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        return load_files(self, path, _SUFFIXES, self._file, lenient)

    def _file(self, path: Path, report: LoadReport, lenient: bool) -> list[Conversation]:
        split = claim_split(path, report)
        rows = Rows(report, path, lenient)
        hint = "; an EmoryNLP file has Scene_ID instead" if "emory" in path.name.lower() else ""
        turns: dict[int, list[tuple[int, int, Utterance]]] = {}
        for line, row in csv_rows(path, _COLUMNS, rows, hint):
            try:
                dialogue, number = int(row["Dialogue_ID"]), int(row["Utterance_ID"])
            except ValueError:
                rows.fail(line, "Dialogue_ID and Utterance_ID must be whole numbers")
                continue
            text = clean_text(row["Utterance"], report, path, line)
            speaker = clean_text(row["Speaker"], report, path, line)
            try:
                turn = labelled_turn(speaker, text, row["Emotion"], self.label_set)
            except ValueError as e:
                rows.fail(line, str(e))
                continue
            turns.setdefault(dialogue, []).append((number, line, turn))
        return [
            Conversation(
                f"{self.name}-{split}-{dialogue}",
                self.name,
                split,
                ordered(members, report, path),
                self.label_set,
            )
            for dialogue, members in turns.items()
        ]


def ordered(
    members: list[tuple[int, int, Utterance]], report: LoadReport, path: Path
) -> tuple[Utterance, ...]:
    """Turns by their number; gaps, repeats and wrong order are noted as blemishes."""
    numbers = [n for n, _, _ in members]
    if numbers != sorted(numbers):
        report.blemish("utterances out of order", path, members[0][1])
    by_number = sorted(members, key=lambda m: m[:2])
    for (a, _, _), (b, line, _) in pairwise(by_number):
        if b == a:
            report.blemish("repeated utterance number", path, line)
        elif b > a + 1:
            report.blemish("gap in utterance numbers", path, line)
    return tuple(u for _, _, u in by_number)

"""MEISD: one CSV of all utterances (MEISD_text.csv), each with up to three emotions and their intensities.

Gold is the distribution of the intensities, 1 to 3, over the emotions that are named; where two are as
strong, the one named first is the class. An empty intensity counts 1.

The file names no speakers, so all turns are of one, `Speaker`, and no splits. Its few misspelt emotions
are mended and told, as is what is left out: a further emotion or an intensity that cannot be read.
"""

from __future__ import annotations

from pathlib import Path

from selfemo.data.base import Adapter, SourceFile, csv_header, csv_turns, split_of, voted
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, Utterance

_EMOTIONS = (("emotion", "intensity"), ("emotion2", "intensity2"), ("emotion3", "intensity3"))
_COLUMNS = ("Utterances", "dialog_ids", "uttr_ids", *(c for pair in _EMOTIONS for c in pair))
_MISSPELT = {"digust": "disgust", "faer": "fear", "fera": "fear"}
_INTENSITIES = ("1", "2", "3")
_SPEAKER = "Speaker"


class Meisd(Adapter):
    """The text file of MEISD; a file's split is the word of its name, if there is one."""

    name = "meisd"
    label_set = LABEL_SETS["meisd"]
    looks_for = "CSV with columns Utterances, dialog_ids, uttr_ids, emotion, intensity, emotion2, ..."
    suffixes = (".csv",)
    named_speakers = False

    def knows(self, file: Path) -> bool:
        return {"dialog_ids", "uttr_ids"} <= set(csv_header(file))

    def read(self, source: SourceFile) -> list[Conversation]:
        def turn(line: int, row: dict[str, str]) -> tuple[int, int, Utterance]:
            try:
                dialogue, number = int(row["dialog_ids"]), int(row["uttr_ids"])
            except ValueError:
                raise ValueError("dialog_ids and uttr_ids must be whole numbers") from None
            if not (text := source.clean(row["Utterances"], line)):
                raise ValueError("the utterance is empty")
            return dialogue, number, Utterance(_SPEAKER, text, self._gold(source, line, row))

        split = split_of(source.path.name)
        source.blemish("no speakers in the file: all turns are of one")
        found = [
            Conversation(
                f"{self.name}-{split or 'all'}-{dialogue}", self.name, split or "test", turns, self.label_set
            )
            for dialogue, turns in csv_turns(source, _COLUMNS, turn).items()
        ]
        if split is None:
            source.report.without_split.update(c.id for c in found)
        return found

    def _gold(self, source: SourceFile, line: int, row: dict[str, str]) -> EmotionDistribution:
        weights: dict[str, float] = {}
        for emotion, intensity in _EMOTIONS:
            name, strength = row[emotion].strip().lower(), row[intensity].strip()
            if not name and weights:
                continue
            if name in _MISSPELT:
                source.blemish("misspelt emotion", line)
                name = _MISSPELT[name]
            if name not in self.label_set:
                if not weights:
                    raise ValueError(f"unknown label {name[:60]!r}; valid are {', '.join(self.label_set)}")
                source.blemish("unknown further emotion, left out", line)
                continue
            if strength and strength not in _INTENSITIES:
                source.blemish("unreadable intensity, taken as 1", line)
                strength = ""
            weights[name] = max(weights.get(name, 0.0), float(strength or 1))
        return voted(weights, max(weights, key=lambda e: weights[e]))

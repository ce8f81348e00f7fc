"""MELD, and its dyadic variant: the official CSV files (train_sent_emo.csv and so on), or their folder.

The variant (train_sent_emo_dya.csv and so on) cuts the same utterances into dialogues of two speakers, some
of them into several. The paper counts none of them: its official counts are the rows of the release's files.
"""

from __future__ import annotations

from pathlib import Path

from selfemo.data.base import Adapter, SourceFile, claim_split, csv_header, csv_turns, labelled_turn
from selfemo.method.types import LABEL_SETS, Conversation, Split, Utterance

_DYADIC = "Old_Dialogue_ID"
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


class Meld(Adapter):
    """MELD's CSV form; the split is the file name's word train, dev or test."""

    name = "meld"
    label_set = LABEL_SETS["meld"]
    official: dict[Split, int] | None = {"train": 9989, "dev": 1109, "test": 2610}
    looks_for = "CSV with columns Utterance, Speaker, Emotion, Dialogue_ID, Utterance_ID"
    suffixes = (".csv",)
    recurring_speakers = True

    def knows(self, file: Path) -> bool:
        # By one column alone, so that a file without another is told which it lacks; and none that tells
        # another data set which has it too.
        header = csv_header(file)
        return "Dialogue_ID" in header and not {_DYADIC, "TV_ID"} & set(header)

    def read(self, source: SourceFile) -> list[Conversation]:
        split = claim_split(source)

        def turn(line: int, row: dict[str, str]) -> tuple[int, int, Utterance]:
            try:
                dialogue, number = int(row["Dialogue_ID"]), int(row["Utterance_ID"])
            except ValueError:
                raise ValueError("Dialogue_ID and Utterance_ID must be whole numbers") from None
            text, speaker = source.clean(row["Utterance"], line), source.clean(row["Speaker"], line)
            return dialogue, number, labelled_turn(speaker, text, row["Emotion"], self.label_set)

        hint = "; an EmoryNLP file has Scene_ID instead" if "emory" in source.path.name.lower() else ""
        return [
            Conversation(f"{self.name}-{split}-{dialogue}", self.name, split, turns, self.label_set)
            for dialogue, turns in csv_turns(source, _COLUMNS, turn, hint).items()
        ]


class MeldDyadic(Meld):
    """MELD's dyadic variant, which has the dialogue and number of each utterance in MELD besides its own."""

    name = "meld-dyadic"
    official: dict[Split, int] | None = {"train": 12840, "dev": 1462, "test": 3400}
    looks_for = f"CSV with MELD's columns and {_DYADIC}"
    same_utterances = "meld"

    def knows(self, file: Path) -> bool:
        return {"Dialogue_ID", _DYADIC} <= set(csv_header(file))

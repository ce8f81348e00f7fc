"""CPED: Chinese dialogues of television series, 13 emotions (train_split.csv and so on).

The release says of each speaker gender, age and which of the Big Five are high or low. That becomes the
persona of the speaker: it is an annotation of the character, not of what is said in the conversation. A
speaker of whom all is unknown has none. A name means one character within a series; others may use it
too.
"""

from __future__ import annotations

from pathlib import Path

from selfemo.data.base import Adapter, SourceFile, claim_split, csv_header, csv_turns, labelled_turn
from selfemo.method.types import LABEL_SETS, Conversation, Persona, Split, Utterance

_TRAITS = {
    "Neuroticism": ("easily upset", "emotionally stable"),
    "Extraversion": ("outgoing", "reserved"),
    "Openness": ("open to new things", "conventional"),
    "Agreeableness": ("warm and cooperative", "critical and competitive"),
    "Conscientiousness": ("conscientious", "careless"),
}
"""What high and low say of a person, by column."""
_PERSON = ("Gender", "Age")
_COLUMNS = ("Dialogue_ID", "Utterance_ID", "Speaker", *_PERSON, *_TRAITS, "Emotion", "Utterance")
_UNKNOWN = "unknown"


class Cped(Adapter):
    """The release's CSV files; the split is the word train, valid or test of their names."""

    name = "cped"
    label_set = LABEL_SETS["cped"]
    official: dict[Split, int] | None = {"train": 94187, "dev": 11137, "test": 27438}
    looks_for = "CSV with columns TV_ID, Dialogue_ID, Utterance_ID, Speaker, Neuroticism, Emotion, Utterance"
    suffixes = (".csv",)

    def knows(self, file: Path) -> bool:
        return {"TV_ID", "Dialogue_ID"} <= set(csv_header(file))

    def read(self, source: SourceFile) -> list[Conversation]:
        split = claim_split(source)
        described: dict[str, dict[str, Persona]] = {}

        def turn(line: int, row: dict[str, str]) -> tuple[str, int, Utterance]:
            dialogue, number = (
                source.clean(row["Dialogue_ID"], line),
                row["Utterance_ID"].strip().rpartition("_")[2],
            )
            if not dialogue or not (number.isascii() and number.isdigit()):
                raise ValueError(
                    "Dialogue_ID must be there, and Utterance_ID end with a number, as 01_002_003"
                )
            speaker = source.clean(row["Speaker"], line)
            said = labelled_turn(
                speaker, source.clean(row["Utterance"], line), row["Emotion"], self.label_set
            )
            if description := _persona(row):
                described.setdefault(dialogue, {})[speaker] = Persona(speaker, description)
            return dialogue, int(number), said

        found = csv_turns(source, _COLUMNS, turn)
        return [
            Conversation(
                f"{self.name}-{split}-{dialogue}", self.name, split, turns, self.label_set,
                personas=described.get(dialogue, {}),
            )
            for dialogue, turns in found.items()
        ]  # fmt: skip


def _persona(row: dict[str, str]) -> str:
    """The description of a row's speaker, as "Female, young; outgoing, careless."; "" where all is unknown.

    Raises: ValueError: a trait is neither high, low nor unknown.
    """
    person = [v for c in _PERSON if (v := row[c].strip().lower()) not in ("", _UNKNOWN)]
    traits = []
    for column, (high, low) in _TRAITS.items():
        value = row[column].strip().lower()
        if value not in ("high", "low", _UNKNOWN, ""):
            raise ValueError(f"{column} is {value[:20]!r}, and must be high, low or unknown")
        traits += [high] * (value == "high") + [low] * (value == "low")
    parts = [", ".join(part) for part in (person, traits) if part]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""

"""A plain persona per speaker from the statistics of the training split, without any model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from selfemo.method.types import Conversation, LabelSet, Persona, Utterance

_MIN_TURNS = 5
_LIFT = 1.15
_PSEUDO = 10
_HESITATION = re.compile(r"\b(uh|um|er|well|maybe|i guess|i mean|y'know|you know)\b|\.\.\.|-$", re.I)
_WORDS = {
    "joy": "joyful", "surprise": "easily surprised", "anger": "quick to anger",
    "sadness": "prone to sadness", "disgust": "quick to disgust", "fear": "anxious",
    "joyful": "joyful", "peaceful": "calm and warm",
    "powerful": "confident and proud", "scared": "anxious", "mad": "quick to anger",
    "sad": "prone to sadness", "happy": "happy", "angry": "quick to anger",
    "excited": "excitable", "frustrated": "easily frustrated",
}  # fmt: skip


def _rates(
    turns: Sequence[Utterance], labels: LabelSet, prior: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Habits per turn and share of each emotion, shrunk towards `prior` by its pseudo-counts."""
    n = len(turns)
    rates = {
        "words": sum(len(t.text.split()) for t in turns) / n,
        "questions": sum("?" in t.text for t in turns) / n,
        "exclaims": sum("!" in t.text for t in turns) / n,
        "hesitates": sum(bool(_HESITATION.search(t.text)) for t in turns) / n,
    }
    tops = Counter(t.emotion.top(labels) for t in turns if t.emotion is not None)
    total = sum(tops.values())
    for label in labels.labels:
        key = f"emotion {label}"
        # Without shrinking, one rare emotion of a quiet speaker would look like a trait.
        extra = _PSEUDO * prior[key] if prior else 0.0
        rates[key] = (tops[label] + extra) / max(1.0, total + (_PSEUDO if prior else 0))
    return rates


def _describe(own: Mapping[str, float], mean: Mapping[str, float], labels: LabelSet) -> str:
    def over(key: str) -> float:
        return own[key] / mean[key] if mean[key] else 1.0

    length = "long" if over("words") > _LIFT else "short" if over("words") < 1 / _LIFT else "medium"
    parts = [f"Talks in {length} lines"]
    habits = {"questions": "asks many questions", "exclaims": "exclaims", "hesitates": "hesitates"}
    parts += [text for key, text in habits.items() if over(key) > _LIFT][:2]
    lifts = sorted(labels.labels, key=lambda e: -over(f"emotion {e}"))
    strong = [e for e in lifts if over(f"emotion {e}") > _LIFT and e != "neutral"][:2]
    mood = " and ".join(_WORDS.get(e, f"often {e}") for e in strong) or (
        "even-tempered" if "neutral" in labels and over("emotion neutral") > _LIFT else "no mood stands out"
    )
    return f"{', '.join(parts)}; {mood}."


def describe_speakers(conversations: Sequence[Conversation], label_set: LabelSet) -> dict[str, Persona]:
    """Describe each speaker of the training split relative to the average of its data set.

    Length of lines, questions, exclamations, hesitation, and the one or two emotions shown most above
    average. Speakers with fewer than five training turns get no description.
    """
    turns: dict[str, list[Utterance]] = {}
    for c in conversations:
        if c.split == "train":
            for t in c.turns:
                turns.setdefault(t.speaker, []).append(t)
    everything = [t for said in turns.values() for t in said]
    if not everything:
        return {}
    mean = _rates(everything, label_set)
    return {
        speaker: Persona(speaker, _describe(_rates(said, label_set, mean), mean, label_set))
        for speaker, said in turns.items()
        if len(said) >= _MIN_TURNS
    }


def with_personas(
    conversations: Sequence[Conversation], personas: Mapping[str, Persona]
) -> list[Conversation]:
    """Attach personas to speakers that have none of their own."""
    result = []
    for c in conversations:
        known = {s: replace(personas[s], scenario=c.scenario) for s in c.speakers if s in personas}
        result.append(replace(c, personas={**known, **c.personas}))
    return result

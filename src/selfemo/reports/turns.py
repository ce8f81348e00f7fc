"""What a run said and read, turn by turn: self-play dialogues, and the best and worst held-out turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfemo.method.types import LabelSet, Prompt
from selfemo.reports.palette import UNKNOWN, emotion_colours
from selfemo.runs.dialogues import Episode
from selfemo.runs.store import PredictionRow, read_distribution

_TEXT = 600
"""Characters of a completion that are shown."""
Weights = list[tuple[str, str, int]]
"""(emotion, colour, per cent) of a distribution."""


def weights(distribution: Mapping[str, float] | None, labels: LabelSet) -> Weights:
    """The emotions of a distribution that have half a per cent or more, the strongest first."""
    colours = emotion_colours(labels.labels)
    found = sorted((distribution or {}).items(), key=lambda x: -x[1])
    return [(e, colours.get(e, UNKNOWN), round(100 * v)) for e, v in found if v >= 0.005]


def episode(e: Episode) -> dict[str, Any]:
    """An episode as the page shows it: its history, and the self-played turns with what was read and felt."""
    return {
        "name": e.conversation,
        "scenario": e.scenario,
        "history": [(u.speaker, u.text, weights(u.emotion, e.label_set)) for u in e.history],
        "played": [
            {
                "speaker": t.speaker, "reply": t.reply, "of": t.interlocutor, "r1": f"{t.r1:.2f}",
                "bars": [
                    (what, weights(d, e.label_set))
                    for what, d in (("read", t.read), ("to read", t.target), ("felt", t.own)) if d
                ],
            }
            for t in e.played
        ],
    }  # fmt: skip


def spread(rows: Iterable[PredictionRow], n: int) -> list[PredictionRow]:
    """The first n of ranked rows, from as many conversations as there are: each gives a second one only when
    all have given one, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for place, row in enumerate(rows):
        ranked.append((seen[row["conversation"]], place, row))
        seen[row["conversation"]] += 1
    chosen = sorted(ranked, key=lambda x: x[:2])[:n]
    return [row for _, _, row in sorted(chosen, key=lambda x: x[1])]


def examples(
    rows: Sequence[PredictionRow],
    prompts: Mapping[str, Prompt],
    labels: Mapping[str, LabelSet],
    n: int,
    *,
    written: bool,
) -> list[dict[str, Any]]:
    """The n worst and the n best predictions by R1, no turn twice.

    Args:
        prompts: by id; a turn whose prompt is missing is shown without its text.
        written: whether the model wrote the text of a prediction, which is shown then.
    """
    ranked = sorted(rows, key=lambda r: (r["r1"], r["prompt"]))
    worst = spread(ranked, n)
    taken = {r["prompt"] for r in worst}
    best = spread([r for r in reversed(ranked) if r["prompt"] not in taken], n)
    shown = [("worst", r) for r in worst] + [("best", r) for r in best]
    return [_example(which, r, prompts.get(r["prompt"]), labels[r["dataset"]], written) for which, r in shown]


def _example(
    which: str, row: PredictionRow, prompt: Prompt | None, labels: LabelSet, written: bool
) -> dict[str, Any]:
    history = prompt.history[-2:] if prompt else ()
    return {
        "which": which,
        "name": row["prompt"],
        "r1": f"{row['r1']:.2f}",
        "turns": [(u.speaker, u.text) for u in history],
        "bars": [
            ("gold", weights(read_distribution(row["gold"]), labels)),
            ("read", weights(read_distribution(row["predicted"]), labels)),
        ],
        "failure": row["failure"] or "",
        "text": row["text"][:_TEXT] if written or row["failure"] else "",
    }

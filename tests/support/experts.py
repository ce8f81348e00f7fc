"""Questions to an expert over HTTP, what the store keeps of its answers, and small data to ask about."""

from __future__ import annotations

import json
from pathlib import Path

from selfemo.data import speakers_recur
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, Utterance
from selfemo.models.generation.chat import parse_expert
from selfemo.runs.store import Store
from selfemo.stages import personas
from selfemo.stages.experts import Reply

MELD = LABEL_SETS["meld"]


def conversations(n: int) -> list[Conversation]:
    joy, anger = EmotionDistribution({"joy": 1}), EmotionDistribution({"anger": 1})
    return [
        Conversation(
            f"c{i}",
            "jsonl",
            "train",
            (
                Utterance("Ann", f"This is number {i}.", joy),
                Utterance("Bo", f"I say {i * 7}.", anger),
                Utterance("Ann", "So be it.", joy),
            ),
            MELD,
        )
        for i in range(n)
    ]


def spec(url: str, **more: object):
    options = {"model": "planted", "timeout": 1, "attempts": 12, **more}
    return parse_expert(f"e={url}," + ",".join(f"{k}={v}" for k, v in options.items()))


def extract(store: Store, n: int, *urls: str, rounds: int = 4, **more: object):
    replies: list[Reply] = []
    tally = personas.extract(
        conversations(n),
        [spec(u, **more).model_copy(update={"name": f"e{k}"}) for k, u in enumerate(urls)],
        store,
        recurring=speakers_recur,
        rounds=rounds,
        on_reply=replies.append,
    )
    return tally, replies


def records(store: Store) -> list[tuple]:
    query = "SELECT segment, speaker, description, scenario, expert FROM personas ORDER BY 1, 2"
    return [tuple(r) for r in store.rows(query)]


def write_conversations(path: Path, conversations: int, emotion: str = "joy") -> Path:
    with path.open("w") as f:
        for i in range(conversations):
            turns = [
                {"speaker": "AB"[k % 2], "text": f"Line {k} of {i}.",
                 "emotion": emotion if (i + k) % 3 else "anger"}
                for k in range(4)
            ]  # fmt: skip
            f.write(json.dumps({"id": f"c{i}", "split": "test", "turns": turns}) + "\n")
    return path

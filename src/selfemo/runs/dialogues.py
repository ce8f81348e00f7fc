"""Self-play episodes of a store, as records and as text to read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfemo.method.prompts import format_emotions
from selfemo.method.types import EmotionDistribution, LabelSet, Prompt, Utterance
from selfemo.runs.store import Store

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Played:
    """One self-played turn: what its speaker read in the turn before, declared of itself, and said.

    Attributes:
        target: what should be read: the gold emotion, or the self-emotion that was declared.
    """

    speaker: str
    interlocutor: str
    target: EmotionDistribution | None
    read: EmotionDistribution
    own: EmotionDistribution
    reply: str
    r1: float


@dataclass(frozen=True)
class Episode:
    """A real history and the turns played on from it."""

    conversation: str
    scenario: str
    label_set: LabelSet
    history: tuple[Utterance, ...]
    played: tuple[Played, ...]


def episodes(store: Store, n: int = 3) -> list[Episode]:
    """The n longest self-play episodes of different conversations, the latest first among equals."""
    found: list[Episode] = []
    seen = set()
    for last, rollout in store.episode_ends():
        prompt = store.prompt(last)
        if prompt.conversation_id in seen:
            continue
        seen.add(prompt.conversation_id)
        found.append(_episode(store, prompt, rollout))
        if len(found) == n:
            break
    return found


def _episode(store: Store, prompt: Prompt, rollout: int) -> Episode:
    """The turns that led to a rollout of `prompt` that passed the gate, and its own.

    A prompt may be answered again in a later round, and fail there: what led on to the next turn is the
    answer that the next turn's history ends with.
    """
    played = []
    best = store.passed(rollout)
    while True:
        played.append(Played(prompt.answerer, prompt.interlocutor, prompt.target, *best))
        if prompt.lineage.parent is None:
            break
        best = store.passed_answer(prompt.lineage.parent, prompt.history[-1].text)
        prompt = store.prompt(prompt.lineage.parent)
    return Episode(
        prompt.conversation_id, prompt.scenario, prompt.label_set, prompt.history,
        tuple(reversed(played)),
    )  # fmt: skip


def dialogues(store: Store, n: int = 3) -> list[str]:
    """`episodes` as text.

    Each self-played turn shows what its speaker read in the turn before (E) and declared of itself (S).
    """
    return [_text(e) for e in episodes(store, n)]


def _text(episode: Episode) -> str:
    lines = [f"# {episode.conversation}" + (f": {episode.scenario}" if episode.scenario else "")]
    for u in episode.history:
        gold = f" [{format_emotions(u.emotion)}]" if u.emotion else ""
        lines.append(f"  {u.speaker}{gold}: {u.text}")
    lines += [
        f"> {t.speaker} (reads {t.interlocutor} as {format_emotions(t.read)}, "
        f"feels {format_emotions(t.own)}; R1 {t.r1:.2f}): {t.reply}"
        for t in episode.played
    ]
    return "\n".join(map(visible, lines))


def visible(text: str) -> str:
    """Without what a terminal would obey, or what turns the direction of the text around it."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)

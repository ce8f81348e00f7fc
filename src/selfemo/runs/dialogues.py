"""Self-play episodes of a store, as records and as text to read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfemo.method.prompts import format_emotions
from selfemo.method.types import EmotionDistribution, LabelSet, Prompt, Utterance
from selfemo.runs.store import Store

NO_DIALOGUE = (
    "There is no self-play dialogue to read: no self-played turn passed the gate, which asks that the "
    "emotion of the turn before was read right (gate.tau), or the run had no self-play. More prompts or "
    "rounds give it more chances."
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Played:
    """One self-played turn: the emotion its speaker read in the turn before, its own emotion, its reply."""

    speaker: str
    interlocutor: str
    target: EmotionDistribution | None  # to read: the gold emotion, or the declared one of the turn before
    read: EmotionDistribution
    own: EmotionDistribution
    reply: str
    r1: float


@dataclass(frozen=True)
class Episode:
    """A real history and the self-played turns that continue it."""

    conversation: str
    scenario: str
    label_set: LabelSet
    history: tuple[Utterance, ...]
    played: tuple[Played, ...]


def episodes(store: Store, n: int = 3) -> list[Episode]:
    """The n longest self-play episodes of different conversations, the latest first among equals."""
    ends: dict[str, tuple[Prompt, int]] = {}
    for last, rollout in store.episode_ends():
        prompt = store.prompt(last)
        ends.setdefault(prompt.conversation_id, (prompt, rollout))
        if len(ends) == n:
            break
    return [_episode(store, *end) for end in ends.values()]


def _episode(store: Store, prompt: Prompt, rollout: int) -> Episode:
    """The turns that led to a passed rollout of `prompt`, each the one whose reply the next turn answers."""
    played = []
    best = store.passed(rollout)
    while True:
        played.append(Played(prompt.answerer, prompt.interlocutor, prompt.target, *best))
        if prompt.lineage.parent is None:
            break
        best = store.passed_answer(prompt.lineage.parent, prompt.history[-1].text)
        prompt = store.prompt(prompt.lineage.parent)
    turns = tuple(reversed(played))
    return Episode(prompt.conversation_id, prompt.scenario, prompt.label_set, prompt.history, turns)


def dialogues(store: Store, n: int = 3) -> list[str]:
    """`episodes` as text; each self-played turn with the emotion read in the turn before, and its own."""
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
    """Text with a mark in place of each character that controls a terminal or turns the text's direction."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)

"""Self-play episodes of a run as sessions that can be continued."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from selfemo.errors import DataError
from selfemo.method.types import EmotionDistribution
from selfemo.models.references import run_of
from selfemo.runs.dialogues import Episode, episodes
from selfemo.runs.store import STORE_FILE, Store
from selfemo.serve.answers import ReadEmotion
from selfemo.serve.chat.session import Character, Line, Session


def from_episode(episode: Episode, descriptions: dict[str, str] | None = None) -> Session:
    """A self-play episode as a session of its two speakers, with their `descriptions` by name."""
    known = descriptions or {}
    lines = [Line(u.speaker, u.text, felt=_reading(u.emotion)) for u in episode.history]
    for played in episode.played:
        lines[-1] = replace(lines[-1], heard=_reading(played.read))
        lines.append(Line(played.speaker, played.reply, felt=_reading(played.own)))
    names = list(dict.fromkeys(n for p in episode.played for n in (p.speaker, p.interlocutor)))
    return Session(tuple(Character(n, known.get(n, "")) for n in names), episode.scenario, lines=tuple(lines))


def title(session: Session, width: int) -> str:
    """The speakers in the order in which they speak, the turns, and how it begins ("…" where it is cut)."""
    names = dict.fromkeys([x.speaker for x in session.lines] + [c.name for c in session.characters])
    begun = textwrap.shorten(session.lines[0].text, width, placeholder=" …")
    return f"{' and '.join(names)}, {len(session.lines)} turns: {begun}"


def _reading(weights: EmotionDistribution | None) -> ReadEmotion | None:
    if weights is None:
        return None
    top = max(weights, key=weights.__getitem__)
    return ReadEmotion(top, weights[top], weights, weights)


def load_episodes(model: str, n: int = 30) -> list[Session]:
    """The self-play episodes of a model's run, the longest first (DataError: no run, or no episode yet)."""
    run = run_of(model)
    if run is None or not (run / STORE_FILE).exists():
        raise DataError(f"{model} comes from no run, so there are no self-play episodes to load")
    with Store(run / STORE_FILE, read_only=True) as store:
        found = episodes(store, n)
    if not found:
        raise DataError(f"{run} holds no self-play episode that passed the gate yet")
    return [from_episode(e) for e in found]

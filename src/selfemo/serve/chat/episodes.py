"""Self-play episodes of a run as sessions that can be continued."""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import replace

from selfemo.counting import counted
from selfemo.errors import DataError
from selfemo.method.types import EmotionDistribution
from selfemo.models.references import run_of
from selfemo.runs.dialogues import Episode, episodes
from selfemo.runs.store import STORE_FILE, Store
from selfemo.serve.answers import ReadEmotion
from selfemo.serve.chat.session import YOU, Character, Line, Session


def from_episode(episode: Episode, descriptions: dict[str, str] | None = None, you: str = YOU) -> Session:
    """A self-play episode as a session of its two speakers, with their `descriptions` by name.

    `you` gets a number where somebody of the episode has that name, as in an exported talk.
    """
    known = descriptions or {}
    lines = [Line(u.speaker, u.text, felt=_reading(u.emotion)) for u in episode.history]
    for played in episode.played:
        lines[-1] = replace(lines[-1], heard=_reading(played.read))
        lines.append(Line(played.speaker, played.reply, felt=_reading(played.own)))
    names = list(dict.fromkeys(n for p in episode.played for n in (p.speaker, p.interlocutor)))
    taken = {*names, *(line.speaker for line in lines)}
    numbered = (f"{you} {k}" for k in itertools.count(2))
    free = next(name for name in itertools.chain([you], numbered) if name not in taken)
    characters = tuple(Character(n, known.get(n, "")) for n in names)
    return Session(characters, episode.scenario, free, tuple(lines))


def title(session: Session, width: int) -> str:
    """The speakers in the order in which they speak, the turns, and how it begins ("…" where it is cut)."""
    names = dict.fromkeys([x.speaker for x in session.lines] + [c.name for c in session.characters])
    begun = textwrap.shorten(session.lines[0].text, width, placeholder=" …")
    return f"{' and '.join(names)}, {counted(len(session.lines), 'turns')}: {begun}"


def _reading(weights: EmotionDistribution | None) -> ReadEmotion | None:
    if weights is None:
        return None
    top = max(weights, key=weights.__getitem__)
    return ReadEmotion(top, weights[top], weights, weights)


def load_episodes(model: str, you: str = YOU, n: int = 30) -> list[Session]:
    """The self-play episodes of a model's run, the longest first (DataError: no run, or no episode yet).

    `you`: the name of the person who may go on with one.
    """
    run = run_of(model)
    if run is None or not (run / STORE_FILE).exists():
        raise DataError(f"{model} comes from no run, so there are no self-play episodes to load")
    with Store(run / STORE_FILE, read_only=True) as store:
        found = episodes(store, n)
    if not found:
        raise DataError(f"{run} holds no self-play episode that passed the gate yet")
    return [from_episode(e, you=you) for e in found]

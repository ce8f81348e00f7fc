"""A conversation with characters as an immutable value: each step gives a new session.

A session has no model; `SelfEmo` answers the question that `Session.ask` makes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from selfemo.data import load
from selfemo.errors import ConfigError, DataError
from selfemo.method.prompts import clean
from selfemo.method.types import EmotionDistribution, FailureKind, LabelSet, Persona
from selfemo.serve.answers import ReadEmotion, Response
from selfemo.serve.asking import Ask

YOU = "You"


@dataclass(frozen=True, slots=True)
class Character:
    """A person whom the model plays."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One turn.

    Attributes:
        heard: the emotion that the answering character read in it; None before the answer.
        felt: the emotion that its speaker declared; None for a person's line.
        shown, expressed, sound_replies: see `Response`; None for a person's line, and where nobody read the
            reply.
    """

    speaker: str
    text: str
    heard: ReadEmotion | None = None
    felt: ReadEmotion | None = None
    shown: ReadEmotion | None = None
    expressed: float | None = None
    sound_replies: int | None = None

    def notes(self, heard: str) -> list[str]:
        """The emotions as text, such as "feels joy"; `heard` is the word for the one read in the line."""
        felt, read = (
            [f"{what} {r.emotion}"] if r is not None and r.emotion is not None else []
            for what, r in (("feels", self.felt), (heard, self.heard))
        )
        return [*felt, *filter(None, [self.expression()]), *read]

    def expression(self) -> str:
        """How surely the line expresses what its speaker feels, with `reservations`; "" if nobody read it."""
        sure = [] if self.expressed is None else [f"expressed {self.expressed:.0%}"]
        return ", ".join([*sure, *self.reservations()])

    def reservations(self) -> list[str]:
        """Warnings: the line shows another emotion above all; it breaks a rule of replies, as "I am angry."
        does."""
        found = []
        if self.shown and self.felt and self.shown.emotion != self.felt.emotion:
            found.append(f"sounds like {self.shown.emotion} {self.shown.confidence:.0%}")
        if self.sound_replies == 0:
            found.append("breaks a rule of replies")
        return found


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation between the user and characters, or between two characters.

    Each has a name of their own, since a line belongs to the name of its speaker.

    Attributes:
        characters: one to talk with, or two that talk with each other.
        you: the name of the person who types.

    Raises:
        ConfigError: somebody has no name, or two have the same.
    """

    characters: tuple[Character, ...]
    scene: str = ""
    you: str = YOU
    lines: tuple[Line, ...] = ()

    def __post_init__(self) -> None:
        names = [clean(name) for name in (*(c.name for c in self.characters), self.you)]
        if not all(names):
            raise ConfigError("you need a name" if all(names[:-1]) else "a character needs a name")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two would be called {twice[0]}: the characters and you need different names")

    def said(self, text: str, speaker: str = "") -> Session:
        """The session with one more line, by default of the user (DataError: the text is empty)."""
        text = clean(text)
        if not text:
            raise DataError("nothing was said: type a line of text")
        return replace(self, lines=(*self.lines, Line(speaker or self.you, text)))

    def ask(self, character: Character | None = None) -> Ask:
        """The question for the next (or a given) character's answer (DataError: there is no line yet)."""
        if not self.lines:
            raise DataError("nothing was said yet: somebody has to begin; type a first line")
        who = character or self.next_character()
        turns = [(line.speaker, line.text) for line in self.lines]
        return Ask(turns, Persona(who.name, who.description), who.name, self.scene)

    def next_character(self) -> Character:
        """Who speaks next: the first character who did not speak last."""
        last = self.lines[-1].speaker if self.lines else ""
        return next((c for c in self.characters if c.name != last), self.characters[0])

    def heard(self, reading: ReadEmotion) -> Session:
        """The session with the emotion read in the last line."""
        return replace(self, lines=(*self.lines[:-1], replace(self.lines[-1], heard=reading)))

    def answered(self, response: Response) -> Session:
        """The session with the emotion read in the last line, and the reply if there is one."""
        lines = self.heard(response.heard).lines
        if response.reply and not response.failure:
            r = response
            lines += (
                Line(
                    r.speaker, r.reply, felt=r.felt, shown=r.shown, expressed=r.expressed,
                    sound_replies=r.sound_replies,
                ),
            )  # fmt: skip
        return replace(self, lines=lines)

    def undone(self) -> Session:
        """The session without its last line; if that was the reply to a line of the user, without both."""
        lines = self.lines[:-1]
        if lines and self.lines[-1].speaker != self.you and lines[-1].speaker == self.you:
            lines = lines[:-1]
        if lines:  # the emotion read in the last line belonged to the answer that is taken back
            lines = (*lines[:-1], replace(lines[-1], heard=None))
        return replace(self, lines=lines)

    def edited(self, place: int, text: str) -> Session:
        """Change line `place` (from 0) and drop the lines after it (DataError: no such line, or no text)."""
        text = clean(text)
        if not 0 <= place < len(self.lines):
            raise DataError(f"there is no line {place + 1}; there are {len(self.lines)}")
        if not text:
            raise DataError("a line must say something")
        return replace(self, lines=(*self.lines[:place], Line(self.lines[place].speaker, text)))

    def as_jsonl(self, labels: LabelSet) -> str:
        """One line of the project's JSONL (data/jsonl.py); DataError: the session has no lines.

        The emotion of a turn is the declared one, else the one read in it. No split is named, so that
        training holds a part out by itself. The id is made from the turns: files of several talks can
        be put together.
        """
        self._exportable()
        turns = [
            {"speaker": x.speaker, "text": x.text, "emotion": _weights(x.felt or x.heard)} for x in self.lines
        ]
        personas = {c.name: c.description for c in self.characters if c.description}
        content: dict[str, Any] = {"id": f"chat-{_digest(turns)}", "labels": list(labels), "turns": turns}
        given: dict[str, Any] = {"scene": self.scene, "personas": personas}
        content |= {key: value for key, value in given.items() if value}
        return json.dumps(content, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """A page to read: who said what, with the emotions (DataError: the session has no lines)."""
        self._exportable()
        head = [f"# {_plain(clean(self.scene)) or 'A conversation'}", ""]
        head += [f"- **{_plain(c.name)}**: {_plain(c.description) or '-'}" for c in self.characters]
        body = [
            f"**{_plain(x.speaker)}** ({', '.join(x.notes('read as')) or '-'}): {_plain(x.text)}\n"
            for x in self.lines
        ]
        return "\n".join([*head, "", *body])

    def _exportable(self) -> None:
        if not self.lines:
            raise DataError("there is nothing to export yet: say something first")


def unreadable(failure: FailureKind) -> str:
    """The message to the user about an answer without a reply."""
    if failure == FailureKind.TOO_LONG:
        return "that line is too long for the model; say it in fewer words"
    return f"no answer could be read ({failure.replace('_', ' ')}); say it in other words, or go on"


def strongest(reading: ReadEmotion | None, n: int = 3) -> list[tuple[str, float]]:
    """The n most probable emotions of a reading with their probabilities; the one it names is among them.

    If the named one is not so probable (it was sampled), it takes the last place. A reading without a
    distribution has its one emotion; none without an emotion.
    """
    if reading is None or reading.emotion is None:
        return []
    weights = reading.distribution or {reading.emotion: reading.confidence}
    best = sorted(weights, key=weights.__getitem__, reverse=True)[:n]
    if reading.emotion not in best:
        best[n - 1 :] = [reading.emotion]
    return [(emotion, weights.get(emotion, 0.0)) for emotion in best]


def _plain(text: str) -> str:
    """Text escaped so that Markdown shows it as it is."""
    return "".join("\\" + c if c in "\\`*_[]<>()!|~&" else c for c in text)


def _digest(turns: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()[:10]


def _weights(reading: ReadEmotion | None) -> dict[str, float] | None:
    if reading is None or reading.emotion is None:
        return None
    return dict(reading.written or EmotionDistribution({reading.emotion: 1.0}))


def sample_characters() -> dict[str, Character]:
    """The characters of the sample set by name; where two have the same name, the first."""
    found: dict[str, Character] = {}
    for conversation in load("sample").conversations:
        for name, persona in conversation.personas.items():
            found.setdefault(name, Character(name, persona.description))
    return dict(sorted(found.items()))


def search_characters(words: str) -> list[Character]:
    """The characters of the sample set with all these words in name or description; "" finds all."""
    wanted = words.lower().split()
    return [
        c for c in sample_characters().values()
        if all(word in f"{c.name} {c.description}".lower() for word in wanted)
    ]  # fmt: skip


def character(text: str) -> Character:
    """A character from `NAME: description`, NAME, or a NAME of the sample set (ConfigError: no name)."""
    name, colon, description = text.partition(":")
    name, description = clean(name), clean(description)
    if not name:
        raise ConfigError("a character needs a name: write it as NAME: what they are like")
    if not colon and name in (known := sample_characters()):
        return known[name]
    return Character(name, description)

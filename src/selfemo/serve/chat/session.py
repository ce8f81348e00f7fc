"""A conversation with characters, as a value: each step gives a new session, so undoing is keeping the old.

Who answers what is the model's part (`selfemo.serve.api.SelfEmo`); a session never holds one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfemo.data import load
from selfemo.errors import ConfigError, DataError
from selfemo.method.prompts import clean
from selfemo.method.types import EmotionDistribution, LabelSet, Persona
from selfemo.serve.api import Ask, Reading, Response

YOU = "You"


@dataclass(frozen=True, slots=True)
class Character:
    """Somebody whom the model plays."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One turn.

    Attributes:
        heard: what the one who answered it read in it; None before there is an answer.
        felt: what its speaker declared of itself; None for what people said.
    """

    speaker: str
    text: str
    heard: Reading | None = None
    felt: Reading | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation under way.

    Attributes:
        characters: one to talk with, or two that talk with each other.
        you: the name of the person who types.
    """

    characters: tuple[Character, ...]
    scene: str = ""
    you: str = YOU
    lines: tuple[Line, ...] = ()

    def said(self, text: str, speaker: str = "") -> Session:
        """With a line of `speaker` (default: you).

        Raises:
            DataError: there is nothing in the text.
        """
        text = clean(text)
        if not text:
            raise DataError("nothing was said: type a line of text")
        return replace(self, lines=(*self.lines, Line(speaker or self.you, text)))

    def ask(self, character: Character | None = None) -> Ask:
        """The question of who answers the last line, by default the next character.

        Raises:
            DataError: nothing was said yet.
        """
        if not self.lines:
            raise DataError("nothing was said yet: somebody has to begin")
        who = character or self.next_character()
        turns = [(line.speaker, line.text) for line in self.lines]
        return Ask(turns, Persona(who.name, who.description), who.name, self.scene)

    def next_character(self) -> Character:
        """Who speaks next: the first character who did not speak last."""
        last = self.lines[-1].speaker if self.lines else ""
        return next((c for c in self.characters if c.name != last), self.characters[0])

    def answered(self, response: Response) -> Session:
        """With what was read in the last line, and the reply; a failed answer leaves no reply."""
        last = replace(self.lines[-1], heard=response.heard)
        before = (*self.lines[:-1], last)
        if response.failure or not response.reply:
            return replace(self, lines=before)
        reply = Line(response.speaker, response.reply, felt=response.felt)
        return replace(self, lines=(*before, reply))

    def undone(self) -> Session:
        """Without the last line, and without yours where it was the answer to one."""
        lines = self.lines[:-1]
        if lines and self.lines[-1].speaker != self.you and lines[-1].speaker == self.you:
            lines = lines[:-1]
        return replace(self, lines=_unheard(lines))

    def edited(self, place: int, text: str) -> Session:
        """With another text at a place, from 0; what came after it is gone.

        Raises:
            DataError: no such line, or nothing in the text.
        """
        text = clean(text)
        if not 0 <= place < len(self.lines):
            raise DataError(f"there is no line {place + 1}; there are {len(self.lines)}")
        if not text:
            raise DataError("a line must say something")
        line = Line(self.lines[place].speaker, text)
        return replace(self, lines=(*self.lines[:place], line))

    def emotions(self) -> list[tuple[int, str, str, str]]:
        """(place, speaker, emotion read in it or "", emotion declared or "") of each line."""
        return [
            (n, line.speaker, _name(line.heard), _name(line.felt))
            for n, line in enumerate(self.lines)
        ]

    # -- files --------------------------------------------------------------------------------------

    def as_jsonl(self, labels: LabelSet, name: str = "chat") -> str:
        """One line of the project's JSONL (datasets/jsonl.py): the emotion of a turn is what its speaker
        declared, else what was read in it.

        Raises:
            DataError: nothing was said yet.
        """
        if not self.lines:
            raise DataError("there is nothing to export yet")
        turns = [
            {
                "speaker": line.speaker,
                "text": line.text,
                "emotion": _weights(line.felt or line.heard),
            }
            for line in self.lines
        ]
        personas = {c.name: c.description for c in self.characters if c.description}
        content: dict[str, Any] = {
            "id": name,
            "split": "test",
            "labels": list(labels),
            "turns": turns,
        }
        if self.scene:
            content["scene"] = self.scene
        if personas:
            content["personas"] = personas
        return json.dumps(content, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """To read: who said what, and the emotions beside it."""
        head = [f"# {_plain(clean(self.scene)) or 'A conversation'}", ""]
        head += [f"- **{_plain(c.name)}**: {_plain(c.description) or '-'}" for c in self.characters]
        body = []
        for line in self.lines:
            notes = [
                f"{what} {_name(r)}"
                for what, r in (("feels", line.felt), ("read as", line.heard))
                if _name(r)
            ]
            body.append(
                f"**{_plain(line.speaker)}** ({', '.join(notes) or '-'}): {_plain(line.text)}\n"
            )
        return "\n".join([*head, "", *body])


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join("\\" + c if c in "\\`*_[]<>()!|~&" else c for c in text)


def _unheard(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Lines whose last one waits for an answer: what was read in it belonged to the answer taken back."""
    return (*lines[:-1], replace(lines[-1], heard=None)) if lines else ()


def _name(reading: Reading | None) -> str:
    return (reading.emotion or "") if reading else ""


def _weights(reading: Reading | None) -> dict[str, float] | None:
    if reading is None or reading.emotion is None:
        return None
    return dict(reading.written or EmotionDistribution({reading.emotion: 1.0}))


def sample_characters() -> dict[str, Character]:
    """The characters of the sample set, by name; of two of one name the first."""
    found: dict[str, Character] = {}
    for conversation in load("sample").conversations:
        for name, persona in conversation.personas.items():
            found.setdefault(name, Character(name, persona.description))
    return dict(sorted(found.items()))


def character(text: str) -> Character:
    """A character from `NAME`, `NAME: description`, or the name of one of the sample set.

    Raises:
        ConfigError: there is no name.
    """
    name, colon, description = text.partition(":")
    name, description = clean(name), clean(description)
    if not name:
        raise ConfigError("a character needs a name: write it as NAME: what they are like")
    if not colon and name in (known := sample_characters()):
        return known[name]
    return Character(name, description)

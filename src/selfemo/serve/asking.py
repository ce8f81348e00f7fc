"""Questions to a model, and their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from selfemo.errors import ConfigError, DataError
from selfemo.method import types
from selfemo.method.prompts import clean, prompt_at
from selfemo.method.types import LABEL_SETS, Conversation, LabelSet, Persona, Prompt, Utterance

Turns = Conversation | Sequence[tuple[str, str]] | Sequence[Mapping[str, str]] | Sequence[Utterance]
"""A conversation in any form: (speaker, text) pairs, {"speaker": ..., "text": ...}, or typed."""
Labels = LabelSet | Sequence[str]
"""A label set, its name, or a list of emotion names."""
MOST_REPLIES = 16
"""Most replies of which one question may have the best."""
DRAWN = 1.0
"""The temperature of further replies where that of the answer is 0: they would all be the same."""
_CHARS_PER_TOKEN = 12
"""A prompt has at most so many characters for each token of its limit; earlier turns cannot be in it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a batch: who answers which conversation, and with which sampling.

    Attributes:
        persona: description of the character, or a `Persona` (whose speaker is the character's name).
        speaker: the character's name; "" takes the persona's, or the latest other speaker.
        max_tokens: of the whole answer; 0 takes the model's setting.
        reply_tokens: of the reply alone, where answers are constrained; 0 is no limit beside `max_tokens`.
        temperature, top_p, seed: None takes the model's.
        stop: texts of which the first ends the reply before it; none of them is "".
        best_of: replies of which the most expressive is given; None takes the model's (see `SelfEmo`).
    """

    conversation: Turns
    persona: Persona | str = ""
    speaker: str = ""
    scene: str = ""
    labels: Labels | None = None
    max_tokens: int = 0
    reply_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    best_of: int | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """The default sampling of an answer (see `SelfEmo`)."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int


def label_set_of(given: Labels) -> LabelSet:
    """A label set from its name, or from two or more different emotion names (ConfigError: neither)."""
    if isinstance(given, LabelSet):
        return given
    if isinstance(given, str):
        if given not in LABEL_SETS:
            there = ", ".join(LABEL_SETS)
            raise ConfigError(f"no label set {given!r}; there are {there}, or give a list of names")
        return LABEL_SETS[given]
    names = tuple(given)
    if not all(isinstance(n, str) for n in names):
        raise ConfigError("labels must be a list of emotion names")
    try:
        return types.label_set_of(names)
    except ValueError as e:
        raise ConfigError(str(e)) from None


def conversation_of(given: Turns, labels: LabelSet, scene: str = "") -> Conversation:
    """A typed conversation over a label set, from any form of `Turns` (DataError: it names the bad turn)."""
    if isinstance(given, Conversation):
        return replace(given, label_set=labels, scenario=scene or given.scenario)
    if isinstance(given, str):
        told = "a conversation is a list of (speaker, text), not one text"
        raise DataError(f'{told}; for a single utterance give [("Ann", "...")]')
    turns = tuple(_utterance(n, turn) for n, turn in enumerate(given))
    if not turns:
        raise DataError("the conversation is empty: give at least one (speaker, text)")
    return Conversation("given", "given", "test", turns, labels, clean(scene))


def _utterance(n: int, turn: object) -> Utterance:
    if isinstance(turn, Utterance):
        speaker, text = turn.speaker, turn.text
    elif isinstance(turn, Mapping):
        if not {"speaker", "text"} <= turn.keys():
            raise DataError(f"turn {n}: it needs the keys speaker and text")
        speaker, text = turn["speaker"], turn["text"]
    elif isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2:
        speaker, text = turn
    else:
        raise DataError(f"turn {n}: write it as (speaker, text)")
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise DataError(f"turn {n}: speaker and text must be text")
    speaker, text = clean(speaker), clean(text)
    if not speaker or not text:
        raise DataError(f"turn {n}: its {'text' if speaker else 'speaker'} is empty")
    return Utterance(speaker, text)


def recent_prompt(conversation: Conversation, turn: int, max_tokens: int) -> Prompt:
    """The prompt of a turn, without early turns that cannot be inside `max_tokens`."""
    prompt = prompt_at(conversation, turn)
    room, kept = max_tokens * _CHARS_PER_TOKEN, 0
    for said in reversed(prompt.history):
        room -= len(said.text) + len(said.speaker)
        if room < 0 and kept:
            break
        kept += 1
    return replace(prompt, history=prompt.history[-kept:])


def prompt_of(ask: Ask, labels: LabelSet, max_tokens: int) -> Prompt:
    """The prompt of a question: its character answers the last turn (DataError: see `conversation_of`)."""
    conversation = conversation_of(ask.conversation, labels, ask.scene)
    prompt = recent_prompt(conversation, len(conversation.turns) - 1, max_tokens)
    given = ask.persona if isinstance(ask.persona, Persona) else None
    name = clean(ask.speaker) or (clean(given.speaker) if given else "") or prompt.answerer
    known = given or conversation.personas.get(name)
    own = "" if given else str(ask.persona)
    persona = Persona(name, clean(own or (known.description if known else "")), conversation.scenario)
    return replace(prompt, answerer=name, persona=persona, target=None)

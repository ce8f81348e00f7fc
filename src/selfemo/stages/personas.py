"""Personas from conversations (eq. 4): segments, the question to an expert, records, profiles.

Departures from the paper [ours]:
- One profile a speaker, made of the descriptions of all segments: merged by an expert, or the most
  central one of them. A role keeps one persona over an episode.
- Personas come from the training split unless told otherwise, and the scenario that an expert reads from a
  segment stays in its record: both know what is said later, and a prompt must not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from selfemo.method.prompts import clean
from selfemo.method.types import Conversation, Persona, Utterance
from selfemo.models.generation.chat import ExpertSpec
from selfemo.stages.experts import (
    AnswerBook,
    MalformedError,
    Question,
    Reply,
    Tally,
    ask_experts,
    one_line,
    read_json,
)

PURPOSE, MERGE_PURPOSE = "personas", "profiles"
PROMPT_VERSION = 1
MAX_DESCRIPTION, MAX_SCENARIO = 300, 300
_TOKENS_PER_SPEAKER, _TOKENS_SCENARIO = 90, 100
_MERGED_AT_ONCE = 20
_LEAST_WORDS = 3

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to (n, d) unit vectors."""

Who = tuple[str, str, str]
"""A speaker: data set, scope (the conversation; "" for one who recurs over the data set), name."""


class PersonaBook(AnswerBook, Protocol):
    """Keeps the personas that experts described, and the profiles made of them; a run's store is one."""

    def transaction(self) -> AbstractContextManager[None]: ...

    def add_personas(self, rows: Iterable[Sequence[Any]]) -> None: ...

    def personas(self) -> Iterable[tuple[str, str, str, str]]:
        """(data set, scope, speaker, description) of each record."""

    def set_profiles(self, rows: Iterable[Sequence[Any]]) -> None: ...


@dataclass(frozen=True)
class Segment:
    """A piece of a conversation that an expert reads at once."""

    id: str
    conversation: Conversation
    turns: tuple[Utterance, ...]

    @property
    def speakers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.speaker for t in self.turns))


def segments(conversations: Iterable[Conversation], size: int = 16) -> Iterator[Segment]:
    """Cut conversations into pieces of at most `size` turns, of nearly equal length."""
    for c in conversations:
        pieces = -(-len(c.turns) // size)
        ends = [round(k * len(c.turns) / pieces) for k in range(pieces + 1)]
        for k in range(pieces):
            yield Segment(f"{c.dataset}:{c.id}#{k}", c, c.turns[ends[k] : ends[k + 1]])


@dataclass(frozen=True)
class Reading:
    """What an expert read from a segment: the situation, and each speaker's personality."""

    scenario: str
    personality: Mapping[str, str]


def read_segment(text: str, speakers: Sequence[str]) -> Reading:
    """An expert's answer for the speakers of a segment.

    Raises:
        MalformedError: no JSON, a key missing or of the wrong type, a speaker missing or unknown, a text
            too long.
    """
    found = read_json(text)
    if missing := {"scenario", "personality"} - set(found):
        raise MalformedError("schema", f"the key {sorted(missing)[0]!r} is missing")
    scenario = one_line(found["scenario"], "scenario", MAX_SCENARIO, _LEAST_WORDS)
    given = found["personality"]
    if not isinstance(given, dict):
        raise MalformedError("schema", "personality must map each speaker to a text")
    names = {s.casefold(): s for s in speakers}
    personality: dict[str, str] = {}
    for name, description in given.items():
        speaker = names.get(clean(name).casefold())
        if speaker is None:
            raise MalformedError("schema", f"personality names {name[:40]!r}, who is no speaker")
        personality[speaker] = one_line(
            description, f"personality of {speaker}", MAX_DESCRIPTION, _LEAST_WORDS
        )
    for speaker in speakers:
        if speaker not in personality:
            raise MalformedError("schema", f"personality of {speaker!r} is missing")
    return Reading(scenario, personality)


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _string(longest: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest}


def question(segment: Segment) -> Question[Reading]:
    """The question of a segment: each speaker's personality, and the scenario."""
    speakers = segment.speakers
    names = [clean(s) for s in speakers]
    dialogue = "\n".join(f"{clean(t.speaker)}: {clean(t.text)}" for t in segment.turns)
    form = json.dumps({"scenario": "...", "personality": dict.fromkeys(names, "...")}, ensure_ascii=False)
    return Question(
        segment.id,
        [
            {
                "role": "system",
                "content": "You read a piece of a conversation and describe the people in it. You answer "
                "with one JSON object and nothing else.",
            },
            {
                "role": "user",
                "content": f"{dialogue}\n\n"
                "scenario: one sentence, where they are and what is going on.\n"
                "personality: for each speaker one sentence of at most 30 words on their temperament: how "
                "they show feelings, how they treat others, how they react under stress. Describe what "
                "they are like, not what happens; name no person, place or topic.\n"
                f"Form: {form}",
            },
        ],
        _object(
            {
                "scenario": _string(MAX_SCENARIO),
                "personality": _object({n: _string(MAX_DESCRIPTION) for n in names}),
            }
        ),
        lambda text: read_segment(text, names),
        _TOKENS_SCENARIO + _TOKENS_PER_SPEAKER * len(speakers),
    )


def extract(
    conversations: Iterable[Conversation],
    specs: Sequence[ExpertSpec],
    book: PersonaBook,
    *,
    recurring: Callable[[Conversation], bool],
    segment_turns: int = 16,
    rounds: int = 2,
    retry_failed: bool = False,
    on_reply: Callable[[Reply[Reading]], None] = lambda reply: None,
) -> Tally:
    """Ask experts for the personas of all segments; one record a segment and speaker is kept.

    Args:
        recurring: whether a conversation's speakers are the same people in all of its data set.
        retry_failed: put the questions again that ended in an unreadable answer.

    Raises:
        EndpointError: an expert cannot be used; what was answered is in the store.
    """
    here: dict[str, Segment] = {}

    def questions() -> Iterator[Question[Reading]]:
        for segment in segments(conversations, segment_turns):
            here[segment.id] = segment
            yield question(segment)

    def keep(asked: Question[Reading], reply: Reply[Reading]) -> None:
        segment = here.pop(asked.item)
        if reply.value is not None:
            c, reading = segment.conversation, reply.value
            turns = Counter(clean(t.speaker) for t in segment.turns)
            by_clean = {clean(s): s for s in segment.speakers}
            with book.transaction():
                book.add_personas(
                    (
                        segment.id, by_clean[name], "" if recurring(c) else c.id, c.dataset, c.id,
                        c.split, turns[name], description, reading.scenario, reply.expert,
                        reply.model, PROMPT_VERSION, reply.prompt_tokens, reply.completion_tokens,
                    )
                    for name, description in reading.personality.items()
                )  # fmt: skip
        on_reply(reply)

    return ask_experts(questions(), specs, book, PURPOSE, keep, rounds, retry_failed)


# -- profiles ---------------------------------------------------------------------------------------


def most_central(vectors: NDArray[np.float32]) -> int:
    """Index of the description that is nearest to all others (mean cosine; ties: the first).

    Args:
        vectors: (n, d), unit length.
    """
    return int(np.argmax(np.round(vectors @ vectors.sum(0), 6)))


def _read_merged(text: str) -> str:
    found = read_json(text)
    if "personality" not in found:
        raise MalformedError("schema", "the key 'personality' is missing")
    return one_line(found["personality"], "personality", MAX_DESCRIPTION, _LEAST_WORDS)


def merge_question(item: str, descriptions: Sequence[str]) -> Question[str]:
    """The question that makes one description of several."""
    listed = "\n".join(f"- {d}" for d in descriptions)
    return Question(
        item,
        [
            {
                "role": "system",
                "content": "You merge descriptions of one person's personality. You answer with one JSON "
                "object and nothing else.",
            },
            {
                "role": "user",
                "content": f"{listed}\n\nWrite one sentence of at most 40 words that says what is common "
                "to most of these descriptions of the same person. Name no person, place or topic.\n"
                'Form: {"personality": "..."}',
            },
        ],
        _object({"personality": _string(MAX_DESCRIPTION)}),
        _read_merged,
        _TOKENS_PER_SPEAKER,
    )


def build_profiles(
    book: PersonaBook,
    embed: Embed,
    specs: Sequence[ExpertSpec] = (),
    rounds: int = 2,
    on_reply: Callable[[Reply[str]], None] = lambda reply: None,
) -> dict[str, int]:
    """One description a speaker from the records of all segments; replaces the profiles in the store.

    With experts, one merges the (at most 20 most central) descriptions of a speaker; without, or where its
    answer cannot be used, the most central description stands for all.

    Returns:
        counts: speakers, of one segment, central, merged, merge_failed.
    """
    speakers: dict[Who, list[str]] = {}
    for dataset, scope, speaker, description in book.personas():
        speakers.setdefault((dataset, scope, speaker), []).append(description)
    chosen: dict[Who, tuple[str, str]] = {}
    questions: dict[str, tuple[Who, Question[str]]] = {}
    for who, descriptions in speakers.items():
        if len(descriptions) == 1:
            chosen[who] = (descriptions[0], "single")
            continue
        vectors = embed(descriptions)
        chosen[who] = (descriptions[most_central(vectors)], "central")
        if specs:
            order = np.argsort(-(vectors @ vectors.sum(0)), kind="stable")[:_MERGED_AT_ONCE]
            item = ":".join(who)
            questions[item] = (who, merge_question(item, [descriptions[i] for i in sorted(order)]))
    counts = Counter(speakers=len(speakers))
    if questions:

        def keep(asked: Question[str], reply: Reply[str]) -> None:
            if reply.value is None:
                counts["merge_failed"] += 1
            else:
                chosen[questions[asked.item][0]] = (reply.value, f"merged by {reply.expert}")
            on_reply(reply)

        ask_experts((q for _, q in questions.values()), specs, book, MERGE_PURPOSE, keep, rounds)
    for _, made_by in chosen.values():
        counts[made_by.split()[0]] += 1
    book.set_profiles((*who, *chosen[who], len(descriptions)) for who, descriptions in speakers.items())
    return dict(counts)


def attach_profiles(conversations: Iterable[Conversation], profiles: Mapping[Who, str]) -> list[Conversation]:
    """Give speakers the profiles that are known of them; they take the place of other descriptions."""
    result = []
    for c in conversations:
        own = dict(c.personas)
        for s in c.speakers:
            found = profiles.get((c.dataset, c.id, s)) or profiles.get((c.dataset, "", s))
            if found:
                own[s] = Persona(s, found, c.scenario)
        result.append(replace(c, personas=own))
    return result

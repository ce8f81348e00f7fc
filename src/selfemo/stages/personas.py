"""Personas from conversations (eq. 4): segments, the question to an expert, records, profiles.

Departures from the paper [ours]:
- Each speaker has one profile, made of the descriptions of all segments: an expert merges them, or the most
  central one is taken. A role keeps one persona over an episode.
- Personas come from the training split by default, and the scenario that an expert reads from a segment stays
  in its record: both depend on what is said later, which a prompt must not show.
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
from selfemo.stages.clusters import Embed
from selfemo.stages.experts import (
    AnswerBook,
    MalformedError,
    Question,
    Reply,
    Tally,
    ask_experts,
    json_object,
    json_question,
    json_text,
    one_line,
    read_json,
)

PURPOSE, MERGE_PURPOSE = "personas", "profiles"
PROMPT_VERSION = 1
MAX_DESCRIPTION, MAX_SCENARIO = 300, 300
_TOKENS_PER_SPEAKER, _TOKENS_SCENARIO = 90, 100
_MERGED_AT_ONCE = 20
_LEAST_WORDS = 3

Who = tuple[str, str, str]
"""A speaker: data set, scope (conversation id, or "" for one who recurs over the data set), name."""


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
    """An expert's answer on a segment: the situation, and each speaker's personality."""

    scenario: str
    personality: Mapping[str, str]


def read_segment(text: str, speakers: Sequence[str]) -> Reading:
    """An expert's answer for the speakers of a segment.

    Raises: MalformedError: no JSON, a wrong key or type, a speaker missing or unknown, a text too long.
    """
    found = read_json(text, "personality", "scenario")
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


def question(segment: Segment) -> Question[Reading]:
    """The question of a segment: each speaker's personality, and the scenario."""
    names = [clean(s) for s in segment.speakers]
    dialogue = "\n".join(f"{clean(t.speaker)}: {clean(t.text)}" for t in segment.turns)
    form = json.dumps({"scenario": "...", "personality": dict.fromkeys(names, "...")}, ensure_ascii=False)
    return json_question(
        segment.id,
        "You read a piece of a conversation and describe the people in it.",
        f"{dialogue}\n\n"
        "scenario: one sentence, where they are and what is going on.\n"
        "personality: for each speaker one sentence of at most 30 words on their temperament: how "
        "they show feelings, how they treat others, how they react under stress. Describe what "
        "they are like, not what happens; name no person, place or topic.\n"
        f"Form: {form}",
        {
            "scenario": json_text(MAX_SCENARIO),
            "personality": json_object({n: json_text(MAX_DESCRIPTION) for n in names}),
        },
        lambda text: read_segment(text, names),
        _TOKENS_SCENARIO + _TOKENS_PER_SPEAKER * len(names),
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
    """Ask experts for the personas of all segments; keeps one record for each segment and speaker.

    Args:
        recurring: whether a conversation's speakers are the same people in all of its data set.
        rounds, retry_failed: see `ask_all`.

    Raises:
        EndpointError: an expert cannot be used; the answers up to then are in the book.
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


def most_central(vectors: NDArray[np.float32]) -> int:
    """Index of the (n, d) unit vector that is nearest to all others (mean cosine; ties: the first)."""
    return int(np.argmax(np.round(vectors @ vectors.sum(0), 6)))


def merge_question(item: str, descriptions: Sequence[str]) -> Question[str]:
    """The question that makes one description of several."""

    def read(text: str) -> str:
        found = read_json(text, "personality")["personality"]
        return one_line(found, "personality", MAX_DESCRIPTION, _LEAST_WORDS)

    listed = "\n".join(f"- {d}" for d in descriptions)
    return json_question(
        item,
        "You merge descriptions of one person's personality.",
        f"{listed}\n\nWrite one sentence of at most 40 words that says what is common "
        "to most of these descriptions of the same person. Name no person, place or topic.\n"
        'Form: {"personality": "..."}',
        {"personality": json_text(MAX_DESCRIPTION)},
        read,
        _TOKENS_PER_SPEAKER,
    )


def build_profiles(
    book: PersonaBook,
    embed: Embed,
    specs: Sequence[ExpertSpec] = (),
    rounds: int = 2,
    on_reply: Callable[[Reply[str]], None] = lambda reply: None,
) -> dict[str, int]:
    """Make one description for each speaker from the records of all segments; replaces all profiles.

    An expert merges the descriptions of a speaker (the 20 most central at most). Without experts, or where
    the answer cannot be used, the most central description is taken.

    Returns: counts of speakers; single (one segment), central, merged; merge_failed.
    """
    speakers: dict[Who, list[str]] = {}
    for dataset, scope, speaker, description in book.personas():
        speakers.setdefault((dataset, scope, speaker), []).append(description)
    chosen: dict[Who, tuple[str, str]] = {}
    questions: dict[Who, Question[str]] = {}
    for who, descriptions in speakers.items():
        if len(descriptions) == 1:
            chosen[who] = (descriptions[0], "single")
            continue
        vectors = embed(descriptions)
        chosen[who] = (descriptions[most_central(vectors)], "central")
        if specs:
            order = np.argsort(-(vectors @ vectors.sum(0)), kind="stable")[:_MERGED_AT_ONCE]
            questions[who] = merge_question(":".join(who), [descriptions[i] for i in sorted(order)])
    counts = Counter(speakers=len(speakers))
    speaker_of = {q.item: who for who, q in questions.items()}

    def keep(asked: Question[str], reply: Reply[str]) -> None:
        if reply.value is None:
            counts["merge_failed"] += 1
        else:
            chosen[speaker_of[asked.item]] = (reply.value, f"merged by {reply.expert}")
        on_reply(reply)

    if questions:
        ask_experts(questions.values(), specs, book, MERGE_PURPOSE, keep, rounds)
    for _, made_by in chosen.values():
        counts[made_by.split()[0]] += 1
    book.set_profiles((*who, *chosen[who], len(descriptions)) for who, descriptions in speakers.items())
    return dict(counts)


def attach_profiles(conversations: Iterable[Conversation], profiles: Mapping[Who, str]) -> list[Conversation]:
    """Give speakers their profiles, in place of other descriptions."""
    result = []
    for c in conversations:
        known = {
            s: profiles.get((c.dataset, c.id, s)) or profiles.get((c.dataset, "", s)) for s in c.speakers
        }
        own = {s: Persona(s, found, c.scenario) for s, found in known.items() if found}
        result.append(replace(c, personas={**c.personas, **own}))
    return result

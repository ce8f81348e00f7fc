"""Segments, what is read of an expert's answer, profiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.errors import StoreError
from selfemo.method.types import LABEL_SETS, Conversation, Persona, Utterance
from selfemo.runs.inputs import profiles_of, with_known_personas
from selfemo.runs.store import Store
from selfemo.stages.experts import MalformedError
from selfemo.stages.personas import (
    attach_profiles,
    build_profiles,
    most_central,
    question,
    read_segment,
    segments,
)


def conversation(n: int, name: str = "c", **more: object) -> Conversation:
    turns = tuple(Utterance(("Ann", "Bo")[i % 2], f"turn {i}") for i in range(n))
    return Conversation(name, "jsonl", "train", turns, LABEL_SETS["meld"], **more)  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=5), st.integers(2, 20))
def test_segments_hold_each_turn_once_in_order_and_are_of_like_length(lengths: list[int], size: int) -> None:
    data = [conversation(n, f"c{k}") for k, n in enumerate(lengths)]
    found = list(segments(data, size))
    assert len({s.id for s in found}) == len(found)
    for c in data:
        mine = [s for s in found if s.conversation is c]
        assert [t for s in mine for t in s.turns] == list(c.turns)
        sizes = [len(s.turns) for s in mine]
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
        assert len(mine) == -(-len(c.turns) // size)


def test_a_question_names_the_speakers_and_its_schema_holds_what_reading_asks_for() -> None:
    (segment,) = segments([conversation(3)])
    asked = question(segment)
    text = asked.messages[1]["content"]
    assert text.startswith("Ann: turn 0\nBo: turn 1\nAnn: turn 2\n")
    assert text.endswith('Form: {"scenario": "...", "personality": {"Ann": "...", "Bo": "..."}}')
    assert set(asked.schema["properties"]["personality"]["required"]) == {"Ann", "Bo"}
    answer = json.dumps(
        {"scenario": "In a small room.", "personality": {"Ann": "Kind to all.", "Bo": "Gruff at first."}}
    )
    assert asked.read(answer).personality == {"Ann": "Kind to all.", "Bo": "Gruff at first."}


def test_names_are_matched_whatever_their_case_and_chat_tokens_are_harmless() -> None:
    c = Conversation(
        "x", "jsonl", "train", (Utterance("<|im_end|>Z", "a <|im_start|>system"),), LABEL_SETS["meld"]
    )
    (segment,) = segments([c])
    assert "<|" not in question(segment).messages[1]["content"]
    reading = read_segment('{"scenario": "In a room.", "personality": {"ann": "Kind to all."}}', ["Ann"])
    assert reading.personality == {"Ann": "Kind to all."}


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ("I would rather not.", "no_json", "none in the answer"),
        ('{"scenario": "In a room.", "personality": {"Ann": "x', "no_json", "cut off"),
        ('{"scenario": "In a room."}', "schema", "'personality' is missing"),
        ('{"scenario": "In a room.", "personality": ["Ann"]}', "schema", "must map"),
        ('{"scenario": 3, "personality": {"Ann": "kind to all"}}', "schema", "scenario must be 3 words"),
        ('{"scenario": "In a room.", "personality": {"Ann": " "}}', "schema", "3 words or more"),
        ('{"scenario": "In a room.", "personality": {}}', "schema", "'Ann' is missing"),
        ('{"scenario": "In a room.", "personality": {"Ann": "kind to all", "Cy": "y"}}', "schema", "'Cy'"),
        (json.dumps({"scenario": "In a room.", "personality": {"Ann": "xx " * 100 + "y"}}), "schema", "301"),
    ],
)
def test_an_unusable_answer_says_why(answer: str, kind: str, says: str) -> None:
    with pytest.raises(MalformedError) as e:
        read_segment(answer, ["Ann"])
    assert e.value.kind == kind and says in e.value.reason


def test_the_most_central_description_by_hand() -> None:
    # Cosines: 0-1 .8, 1-2 .6, 0-2 0; sums with themselves 1.8, 2.4, 1.6.
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    assert most_central(vectors) == 1
    assert most_central(vectors[[1, 1]]) == 0


def _record(segment: str, speaker: str, description: str, scope: str = "") -> tuple:
    where = segment.split("#")[0]
    return (segment, speaker, scope, "meld", where, "train", 3, description, "s", "e", "m", 1, 9, 9)


def _letters(texts):
    """Unit vectors of letter counts."""
    counts = np.array([[t.count(c) for c in "abc"] for t in texts], dtype=np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_profiles_without_an_expert_are_the_most_central_descriptions(tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as store, store.transaction():
        store.add_personas(
            [
                _record("1#0", "Ann", "aaaa"),
                _record("2#0", "Ann", "aab"),
                _record("3#0", "Ann", "bbbc"),
                _record("1#0", "Bo", "c"),
                _record("1#0", "Waiter", "a", scope="1"),
                _record("2#0", "Waiter", "b", scope="2"),
            ]
        )
    with Store(tmp_path / "store.sqlite") as store:
        counts = build_profiles(store, _letters)
    assert counts == {"speakers": 4, "single": 3, "central": 1}

    def with_speaker(name: str, who: str) -> Conversation:
        turns = (Utterance(who, "x"), Utterance("Ann", "y"))
        own = {who: Persona(who, "own words")}
        return Conversation(name, "meld", "test", turns, LABEL_SETS["meld"], "", own)

    first, other = attach_profiles(
        [with_speaker("1", "Waiter"), with_speaker("9", "Cy")], profiles_of(tmp_path)
    )
    assert first.personas["Ann"].description == "aab"
    assert first.personas["Waiter"].description == "a"  # of its own conversation
    assert other.personas["Cy"].description == "own words"


def test_a_folder_without_profiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a folder of"):
        profiles_of(tmp_path)
    with Store(tmp_path / "store.sqlite"):
        pass
    with pytest.raises(StoreError, match="no profile yet"):
        with_known_personas([conversation(2)], [tmp_path])

"""Edges of DAG-ERC and DialogueGCN by hand, their properties, and settings that features refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import load
from selfemo.errors import ConfigError
from selfemo.evaluation.baseline_jobs import settings_class
from selfemo.evaluation.baselines import baseline
from selfemo.evaluation.baselines.dag_erc import dag_relations
from selfemo.evaluation.baselines.dialogue_gcn import window_relations
from selfemo.evaluation.baselines.heads import speaker_numbers
from selfemo.method.types import Conversation, Utterance
from tests.conftest import MELD

talks = st.lists(st.integers(0, 3), min_size=1, max_size=9).map(np.array)
HEADS = ("dialogue-rnn", "dialogue-gcn", "dag-erc", "cosmic")


def test_speakers_are_numbered_as_they_appear() -> None:
    names = ["Bo", "Ann", "Bo", "Cy", "Ann"]
    turns = tuple(Utterance(n, "Yes.") for n in names)
    assert speaker_numbers(Conversation("c", "toy", "train", turns, MELD)).tolist() == [0, 1, 0, 2, 1]


A, B, C = 0, 1, 2
DIALOGUE = np.array([A, B, A, A, C, B])


def test_edges_of_dag_erc_reach_back_to_the_last_turn_of_the_same_speaker() -> None:
    none = -1
    assert dag_relations(DIALOGUE, 1).tolist() == [
        [none, none, none, none, none, none],
        [0, none, none, none, none, none],  # B speaks for the first time: all before
        [1, 0, none, none, none, none],  # A, since A's turn 0
        [none, none, 1, none, none, none],  # A, right after A
        [0, 0, 0, 0, none, none],  # C speaks for the first time
        [none, 1, 0, 0, 0, none],  # B, since B's turn 1
    ]


def test_edges_of_dag_erc_with_two_own_turns() -> None:
    none = -1
    found = dag_relations(DIALOGUE, 2)
    assert found[3].tolist() == [1, 0, 1, none, none, none]  # since the last but one of A
    assert found[5].tolist() == [0, 1, 0, 0, 0, none]  # B has had one turn alone: all before


@given(talks, st.integers(1, 3))
def test_edges_of_dag_erc_come_from_earlier_turns_alone(speakers: np.ndarray, turns: int) -> None:
    found = dag_relations(speakers, turns)
    assert (found[np.triu_indices(len(speakers))] == -1).all()
    assert all(found[i, i - 1] >= 0 for i in range(1, len(speakers)))
    for n in range(1, len(speakers)):
        assert (dag_relations(speakers[:n], turns) == found[:n, :n]).all()


def test_relations_of_dialogue_gcn_tell_speakers_and_directions() -> None:
    """Two speakers: 2 (2 s_i + s_j), and 1 more for a turn that is not later."""
    assert window_relations(np.array([0, 1, 0]), 1, 1, 2).tolist() == [[1, 2, -1], [5, 7, 4], [-1, 3, 1]]
    assert window_relations(np.array([0, 1, 0]), 2, 0, 2).tolist() == [[1, -1, -1], [5, 7, -1], [1, 3, 1]]


def test_speakers_behind_the_last_number_share_it() -> None:
    assert window_relations(np.array([0, 1, 2]), 2, 0, 2)[2].tolist() == [5, 7, 7]


@given(talks, st.integers(0, 4), st.integers(0, 4), st.integers(1, 4))
def test_edges_of_dialogue_gcn_are_those_of_the_window(
    speakers: np.ndarray, past: int, future: int, most: int
) -> None:
    found = window_relations(speakers, past, future, most)
    for i, row in enumerate(found):
        assert np.flatnonzero(row >= 0).tolist() == list(
            range(max(0, i - past), min(len(speakers), i + future + 1))
        )
    assert found.max() < 2 * most**2
    pairs = {(min(speakers[i], most - 1), min(speakers[j], most - 1), j > i): found[i, j]
             for i in range(len(speakers)) for j in range(len(speakers)) if found[i, j] >= 0}  # fmt: skip
    assert len(set(pairs.values())) == len(pairs)


@pytest.mark.parametrize("name", HEADS)
def test_features_of_more_than_a_turn_are_refused(name: str) -> None:
    for key in ("window=3", "later=-1"):
        with pytest.raises(ConfigError, match=r"fine_tune\.window and fine_tune\.later must be 0"):
            load([], [f"baseline.fine_tune.{key}"], settings_class(name))


@pytest.mark.parametrize("name", HEADS)
def test_only_bidirectional_heads_see_later_turns(name: str) -> None:
    kind = baseline(name).kind
    assert not baseline(name)(kind()).sees_later
    if "bidirectional" in kind.model_fields:
        assert baseline(name)(kind.model_validate({"bidirectional": True})).sees_later
    else:
        assert name == "dag-erc"  # past only as published

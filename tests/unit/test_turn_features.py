"""Features of turns are computed once, kept in files, and depend on texts and speakers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfemo.evaluation.baselines.features import Features
from selfemo.method.types import Conversation
from tests.conftest import toy_conversations


class Encoder:
    """The length of each turn's text and of its speaker's name."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.said: list[str] = []

    def __call__(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        self.asked.append(len(conversations))
        return [
            np.array([[len(t.text), len(t.speaker)] for t in c.turns], dtype=np.float32)
            for c in conversations
        ]

    def features(self, folder: Path, name: str = "one") -> Features:
        return Features(self, name, folder, self.said.append)


def test_features_are_computed_once_and_read_again_from_a_file(tmp_path: Path) -> None:
    encoder, cs = Encoder(), toy_conversations(5)
    first = encoder.features(tmp_path)
    found = first.of(cs)
    assert [f.shape for f in found] == [(5, 2)] * 5 and found[0][0].tolist() == [len("Hooray, we won it!"), 3]
    assert all((a == b).all() for a, b in zip(first.of(cs[::-1]), found[::-1], strict=True))
    again = encoder.features(tmp_path).of(cs)
    assert encoder.asked == [5] and all((a == b).all() for a, b in zip(again, found, strict=True))
    encoder.features(tmp_path, "another encoder").of(cs)
    assert encoder.asked == [5, 5]


def test_other_turns_under_the_same_id_have_features_of_their_own(tmp_path: Path) -> None:
    encoder, c = Encoder(), toy_conversations(1)[0]
    features = encoder.features(tmp_path)
    (before,) = features.of([c])
    turns = (*c.turns[:-1], replace(c.turns[-1], text="No."))
    (after,) = features.of([replace(c, turns=turns)])
    assert (after[:-1] == before[:-1]).all() and after[-1].tolist() == [3, 3]


@pytest.mark.parametrize("held", [b"", b"no archive", None])
def test_a_damaged_file_is_computed_again(tmp_path: Path, held: bytes | None) -> None:
    encoder, cs = Encoder(), toy_conversations(2)
    found = encoder.features(tmp_path).of(cs)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40] if held is None else held)
    again = encoder.features(tmp_path).of(cs)
    assert encoder.asked == [2, 2] and any("computed again" in s for s in encoder.said)
    assert all((a == b).all() for a, b in zip(again, found, strict=True))
    encoder.features(tmp_path).of(cs)
    assert encoder.asked == [2, 2]

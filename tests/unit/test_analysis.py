"""Spans of sampled tokens, and diversity worked by hand."""

from __future__ import annotations

import math

import pytest

from selfemo.evaluation.analysis import span_entropies, token_starts
from selfemo.method.diversity import distinct, self_bleu, share_entropy
from selfemo.method.parsing import field_spans
from selfemo.method.types import RawCompletion

END = 0


class Pieces:
    """A byte-level vocabulary: token k + 1 is pieces[k], token 0 is the end token."""

    def __init__(self, *pieces: bytes | str):
        self.pieces = [p.encode() if isinstance(p, str) else p for p in pieces]

    def decode(self, ids) -> str:
        return b"".join(self.pieces[i - 1] for i in ids if i != END).decode(errors="replace")

    def sample(self) -> RawCompletion:
        ids = (*range(1, len(self.pieces) + 1), END)
        return RawCompletion(
            self.decode(ids), ids, (0.0,) * len(ids), tuple(float(i) for i in range(len(ids)))
        )


def test_tokens_belong_to_the_span_of_their_first_letter() -> None:
    # "joy\nS" straddles: it begins in E; ": " and "\n" are of no span; the end token neither.
    p = Pieces("E", ":", " j", "oy\nS", ":", " ", "anger", "\n", "R: H", "i", "!")
    found = span_entropies(p.sample(), p.decode)
    assert found["emotion"] == [2.0, 3.0]
    assert found["self_emotion"] == [6.0]
    assert found["reply"] == [9.0, 10.0]  # "R: H" begins with the marker
    assert found["all"] == [float(i) for i in range(12)]


def test_parts_of_a_character_begin_at_it() -> None:
    face = "😀".encode()
    p = Pieces("R: a", face[:1], face[1:3], face[3:], "b")
    ids = p.sample().token_ids
    assert p.decode(ids) == "R: a😀b"
    assert token_starts(ids, p.decode) == [0, 4, 4, 4, 5, 6]
    assert span_entropies(p.sample(), p.decode)["reply"] == [1.0, 2.0, 3.0, 4.0]


def test_a_real_replacement_character_is_a_character() -> None:
    p = Pieces("R: ", "\ufffd", "x")
    assert token_starts(p.sample().token_ids, p.decode) == [0, 3, 4, 5]


def test_field_spans_are_the_contents() -> None:
    text = "E:  joy 7, fear 3 \nS: sad\nR:"
    assert [(f, text[a:b]) for f, a, b in field_spans(text)] == [
        ("E", "joy 7, fear 3"), ("S", "sad"), ("R", ""),
    ]  # fmt: skip


def test_text_without_fields_has_no_span() -> None:
    p = Pieces("no", "thing")
    assert field_spans("nothing") == []
    assert span_entropies(p.sample(), p.decode)["emotion"] == []


def test_distinct() -> None:
    assert distinct(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct(["a"], 2) is None


def test_self_bleu() -> None:
    assert self_bleu(["the cat sat on it"] * 3) == pytest.approx(1.0)
    # 1-grams: 2 of 3 match, 2-grams: 1 of 2; equal length, so no brevity penalty.
    assert self_bleu(["a b c", "a b d"], order=2) == pytest.approx(math.sqrt(2 / 3 * 1 / 2))
    # "a": precision 1, closest other of 2 words: exp(1 - 2). "a b": 1 of 2, its 2-gram unmatched: 1/2.
    expected = (math.exp(-1) + math.sqrt(1 / 2 * 1 / 2)) / 2
    assert self_bleu(["a", "a b"], order=2) == pytest.approx(expected)
    # A count is clipped at that of the other texts: "a a" has one "a" in "a b".
    assert self_bleu(["a a", "a b"], order=1) == pytest.approx(1 / 2)
    assert self_bleu(["alone"]) is None


def test_share_entropy() -> None:
    assert share_entropy({"joy": 1.0, "fear": 0.0}) == 0.0
    assert share_entropy({"joy": 0.5, "fear": 0.5}) == pytest.approx(math.log(2))

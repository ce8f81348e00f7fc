"""Replies to an S that is given: what a checkpoint writes behind its own E line (evaluation/given.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config import load
from selfemo.evaluation.given import answer_given, given_emotions
from selfemo.method.prompts import Fitted, fit
from selfemo.method.types import LABEL_SETS, Completion, FailureKind, ParseFailure, RawCompletion
from selfemo.models.generation.local import LocalSampler
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from tests.conftest import MELD, make_prompt

CONFIG = load([], ["sampling.max_new_tokens=12"])
PROMPTS = [replace(make_prompt(f"c{k}/1"), conversation_id=f"c{k}") for k in range(14)]


class Noting:
    """Encodes as bytes, and ends each reply with what its prompt ended in."""

    def __init__(self, ends: Sequence[str]):
        self.asked: list[str] = []
        self.ends = ends

    def encode_text(self, text: str) -> Sequence[int]:
        return text.encode()

    def generate(
        self, requests: Sequence[Request], settings: SamplingSettings, on_done: object = None
    ) -> list[list[RawCompletion]]:
        self.asked = [bytes(r.prompt_ids[2:]).decode() for r in requests]
        assert len({r.seed for r in requests}) == len(requests) and settings.max_new_tokens == 12
        return [[RawCompletion(end, (1,), (-0.5,), (0.5,), finished=end != "")] for end in self.ends]


def test_each_emotion_is_given_equally_often_and_the_same_to_all_checkpoints() -> None:
    given = given_emotions(PROMPTS, 3)
    assert Counter(given.values()) == dict.fromkeys(MELD.labels, 2)
    assert given == given_emotions(PROMPTS, 3) != given_emotions(PROMPTS, 4)
    other = replace(PROMPTS[0], id="d/1", label_set=LABEL_SETS["emorynlp"])
    assert given_emotions([*PROMPTS, other], 3)["d/1"] in LABEL_SETS["emorynlp"].labels


def test_the_reply_alone_is_written_behind_e_and_the_given_s() -> None:
    texts = ["E: joy 0.7, fear 0.3\nS: anger\nR: So.", "T: She hopes.\nE: fear\nS: fear\nR: E: no"]
    written = [(Fitted(p, (1, 2), 0), t) for p, t in zip(PROMPTS, texts, strict=False)]
    emotions = {PROMPTS[0].id: "sadness", PROMPTS[1].id: "neutral"}
    sampler = Noting([" Oh no.", ""])
    (first, told), (second, cut) = answer_given(sampler, written, emotions, CONFIG)  # type: ignore[arg-type]
    leads = ["E: joy 0.7, fear 0.3\nS: sadness\nR:", "T: She hopes.\nE: fear\nS: neutral\nR:"]
    assert sampler.asked == leads and first == f"{leads[0]} Oh no." and second == leads[1]
    assert isinstance(told, Completion) and told.reply == "Oh no."
    assert told.self_emotion.top(MELD) == "sadness" and told.emotion.top(MELD) == "joy"
    assert isinstance(cut, ParseFailure) and cut.kind == FailureKind.TRUNCATED
    assert answer_given(sampler, [], emotions, CONFIG) == []  # type: ignore[arg-type]


def test_a_model_answers_as_the_given_s_has_it(tiny_model: Path) -> None:
    """Real weights: with other S, other replies; with the same, the same."""
    sampler = LocalSampler(load_policy(str(tiny_model), "cpu", "fp32"))
    fitted = [f for p in PROMPTS[:4] if (f := fit(p, sampler.encode, 512, "none"))]
    written = [(f, "E: joy\nS: joy\nR: Yes.") for f in fitted]
    joy, anger = (dict.fromkeys((p.id for p in PROMPTS), e) for e in ("joy", "anger"))
    a, b, c = (answer_given(sampler, written, e, CONFIG) for e in (joy, anger, joy))
    assert a == c != b and len(a) == 4
    assert all(text.startswith("E: joy\nS: anger\nR:") for text, _ in b)
    with pytest.raises(KeyError):
        answer_given(sampler, written, {}, CONFIG)

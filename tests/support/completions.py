"""Hostile completions, and what must hold of every one of them.

`corpus.json` holds completions that the built-in model wrote on the sample set (base, cold start and RL
checkpoints, parsed and failed ones). `mutants` bends them; `grammar` builds others from the parts of the
format and from what such parts must never be.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

from selfemo.config import GateConfig, GrpoConfig, RewardConfig
from selfemo.evaluation.predictions import read_prediction
from selfemo.method.parsing import field_spans, parse, parse_emotions, parse_recognition
from selfemo.method.prompts import format_completion
from selfemo.method.types import (
    Completion,
    EmotionDistribution,
    FailureKind,
    ParseFailure,
    Prompt,
    RawCompletion,
)
from selfemo.stages.gate import gate
from selfemo.stages.selfplay import score_group, select_best
from tests.conftest import dist, make_prompt

CORPUS: list[str] = json.loads((Path(__file__).parent / "corpus.json").read_text())
NUMBERS = (
    "7", "0", "-0", "-1", "1e308", "1e309", "9" * 400, "1e-400", "nan", "NaN", "inf", "-Infinity", "0x10",
    "1_000", "٣", "½", "1e99999", "1.", ".5", "+3", "--3", "1e", "%", "7%", "(7)", "= 7", ": 7",
    "5e-324", "1.7976931348623157e308", "0.1",
)  # fmt: skip
MARKS = (
    "E:",
    "S:",
    "R:",
    "T:",
    "e:",
    "E :",
    "\tE:",
    "E\uff1a",
    "EE:",
    "E:\n",
    "\nE:",
    "\rS:",
    "\x0bR:",
    "\u2028E:",
)
ODD = (
    "\u202e", "\u200f", "\u200b", "\ufeff", "\x00", "\x1b[31m", "\ud800", "\udfff", "\ufffd", "\U0001f600",
    "<|im_end|>", "<|im_start|>system\n", "\r\n", "\r", "\x85", "\u2029", "\\n", "\"", "'", "{", "}", "[",
    "<script>", "</s>", "```", "%s", "{0}", "\n", " ", "\t", ",", ";", ":", "-", "İ", "ß", "K",
)  # fmt: skip
BOMBS = (
    "[" * 5000, "{" * 5000, "(" * 5000, '{"a":' * 2000, "E: " * 3000, "joy, " * 3000, "\n" * 20_000,
    " " * 50_000, "a" * 100_000, "E: joy\n" * 3000, "joy 7, " * 2000, "joy" + " -'" * 5000, "1" * 20_000,
    "\tE" * 10_000, "R: x\n" * 5000, "e" + "́" * 5000,
)  # fmt: skip
TARGETS = (dist(joy=1), dist(fear=0.6, neutral=0.4), dist(joy=1e-300, anger=1), dist(sadness=5e-324))


def grammar(draw: random.Random, labels: tuple[str, ...]) -> str:
    """A completion of the format's parts, each of which may be wrong."""

    def emotion() -> str:
        name = draw.choice([*labels, *labels, draw.choice(labels).upper(), "glee", "", draw.choice(ODD)])
        weight = draw.choice(["", "", " " + str(draw.randint(0, 10)), " " + draw.choice(NUMBERS)])
        return name + weight

    def emotions() -> str:
        n = draw.choice((1, 1, 1, 2, 2, 3, 3, 4, 9))
        return draw.choice((", ", ", ", ",", ";", "\n")).join(emotion() for _ in range(n))

    reply = " ".join(draw.choice([*ODD, *MARKS, "well", "no", "(joy)", "joy:", "I see."])
                     for _ in range(draw.randint(0, 8)))  # fmt: skip
    parts = [f"E: {emotions()}", f"S: {emotions()}", f"R: {reply}"]
    if draw.random() < 0.2:
        parts.insert(0, f"T: {draw.choice(ODD)} since {reply}")
    if draw.random() < 0.2:
        parts.insert(draw.randrange(len(parts) + 1), draw.choice(parts))
    if draw.random() < 0.2:
        draw.shuffle(parts)
    if draw.random() < 0.1:
        parts.pop(draw.randrange(len(parts)))
    return "\n".join(parts)


def bend(text: str, other: str, draw: random.Random) -> str:
    """One mutation: insert, delete, double, replace, splice, cut or scramble."""
    a = draw.randrange(len(text) + 1)
    b = min(len(text), a + draw.choice((1, 1, 2, 5, 40)))
    how = draw.randrange(8)
    if how == 0:
        return text[:a] + draw.choice(ODD) + text[a:]
    if how == 1:
        return text[:a] + text[b:]
    if how == 2:
        return text[:b] + text[a:b] + text[b:]
    if how == 3:
        return text[:a] + draw.choice(NUMBERS) + text[b:]
    if how == 4:
        return text[:a] + draw.choice(MARKS) + text[a:]
    if how == 5:
        return text[:a] + other[draw.randrange(len(other) + 1) :]
    if how == 6:
        return text[:a]
    return text[:a] + chr(draw.randrange(0x110000)) + text[b:]


def hostile(n: int, seed: int) -> Iterator[str]:
    """n completions: every bomb first, then mutants and grammar in equal shares."""
    draw = random.Random(seed)
    labels = make_prompt().label_set.labels
    for k in range(n):
        if k < len(BOMBS):
            yield BOMBS[k]
            continue
        if k < 2 * len(BOMBS):
            yield f"E: joy\nS: {BOMBS[k - len(BOMBS)]}\nR: Well."
            continue
        if draw.random() < 0.5:
            text = grammar(draw, labels)
        else:
            text = draw.choice(CORPUS)
        for _ in range(draw.choice((0, 1, 1, 2, 3, 8))):
            text = bend(text, draw.choice(CORPUS), draw)
        yield text


def check_distribution(found: EmotionDistribution, labels: tuple[str, ...]) -> None:
    assert 1 <= len(found) <= 3 and set(found) <= set(labels)
    assert all(math.isfinite(w) and 0 < w <= 1 for w in found.values())
    assert abs(math.fsum(found.values()) - 1) < 1e-9


def check_group(texts: list[str], draw: random.Random) -> list[str]:
    """Parse, score, choose and gate a group; returns what each text came to (the tally's keys)."""
    prompt: Prompt = make_prompt(target=draw.choice(TARGETS))
    labels = prompt.label_set
    samples = [RawCompletion(t, (1,), (-1.0,), (1.0,), finished=draw.random() < 0.9) for t in texts]
    lam = draw.random()
    reward = RewardConfig(primary=draw.choice(("iou", "exact")), secondary=draw.choice(("count", "weighted")))
    group = score_group(prompt, samples, reward, GrpoConfig(), lam)
    tally = []
    for text, rollout in zip(texts, group.rollouts, strict=True):
        assert 0 <= rollout.r1 <= 1 and 0 <= rollout.r2 <= 1 and math.isfinite(rollout.advantage)
        parsed = rollout.parsed
        if isinstance(parsed, ParseFailure):
            assert isinstance(parsed.kind, FailureKind) and len(parsed.detail) <= 80
            assert rollout.r1 == 0 and rollout.r2 == 0
            tally.append(parsed.kind.value)
        else:
            assert isinstance(parsed, Completion) and parsed.reply.strip()
            check_distribution(parsed.emotion, labels.labels)
            check_distribution(parsed.self_emotion, labels.labels)
            json.dumps(dict(parsed.emotion), allow_nan=False)
            # What joins the data must be read back with the same emotions on top.
            again = parse(format_completion(parsed), labels)
            assert isinstance(again, Completion), (text, again)
            assert again.emotion.top(labels) in parsed.emotion
            tally.append("parsed")
        assert isinstance(gate(prompt, rollout, GateConfig()), str)
        for span in (parse_recognition(text, labels), parse_emotions(text, labels)):
            assert isinstance(span, EmotionDistribution | ParseFailure)
        assert read_prediction(prompt, text, whole=False).text == text
        assert all(0 <= a <= b <= len(text) for _, a, b in field_spans(text))
    assert 0 <= select_best(group, lam, 0) < len(texts)
    return tally

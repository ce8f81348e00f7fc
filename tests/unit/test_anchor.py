"""The anchor: S and the reply of the stage's start, learned behind the best E line (stages/anchor.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from selfemo.config import load
from selfemo.errors import ConfigError
from selfemo.method.prompts import Fitted
from selfemo.method.types import Place, RawCompletion
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.stages.anchor import self_anchors
from selfemo.stages.selfplay import Turn, score_group
from tests.conftest import dist, make_prompt

PLACE = Place("iteration-1-rl", 3, 1)
SETTINGS = ("grpo.credit=causal", "grpo.self_anchor=0.5", "sampling.max_new_tokens=30")
CONFIG = load([], SETTINGS)


def raw(text: str) -> RawCompletion:
    ids = tuple(text.encode())
    return RawCompletion(text, ids, (-0.5,) * len(ids), (0.25,) * len(ids))


class Start:
    """Says some S lines, then the replies, and notes what it was asked."""

    def __init__(self, lines: Sequence[str], replies: Sequence[str] = (), cut: int = -1):
        self.said, self.asked = [list(lines), list(replies)], list[list[str]]()
        self.seeds, self.cut = set[int](), cut

    def generate(
        self, requests: Sequence[Request], settings: SamplingSettings, on_done: Any = None
    ) -> list[list[RawCompletion]]:
        assert settings.max_lines == (0 if self.asked else 1) and settings.max_new_tokens == 30
        self.seeds |= {r.seed for r in requests}
        self.asked.append([bytes(r.prompt_ids[2:]).decode() for r in requests])
        texts = self.said[len(self.asked) - 1]
        assert len(texts) == len(requests) and len(self.seeds) == sum(map(len, self.asked))
        cut = self.cut if len(self.asked) == 2 else -1
        return [[replace(raw(t), finished=i != cut)] for i, t in enumerate(texts)]


def turn(i: int, *lines: str, best: int = 0) -> tuple[Fitted, Turn]:
    prompt = make_prompt(f"c{i}/1", dist(joy=1))
    group = score_group(prompt, [raw(x) for x in lines], CONFIG.reward, CONFIG.grpo, 0.0)
    return Fitted(prompt, (1, 2), 0), Turn(group, best, "pass")


FOUR = tuple(zip(
    turn(0, "E: anger\n", "E: joy\n", best=1),
    turn(1, "E: glee\n", "no"),  # no E line parses
    turn(2, "E: fear\n", "E: joy\n"),
    turn(3, "E: joy\n", "E: joy\n"),
    strict=True,
))  # fmt: skip


def test_the_starts_s_is_learned_behind_the_best_e_line() -> None:
    """R3 acts on the replies here, so that they are its own."""
    start = Start(["S: sadness 0.7, fear 0.3\n", "S: glee\n", "S: anger"])
    config = load([], [*SETTINGS, "reward.expression=listener"])
    found = self_anchors(lambda: start, *FOUR, config, PLACE)  # type: ignore[arg-type,return-value]
    assert start.asked == [["E: joy\n", "E: fear\n", "E: joy\n"]]
    assert [len(x) for x in found] == [1, 0, 0, 0], "nothing without its end, or of no label"
    ((item,),) = found[:1]
    assert bytes(item.prompt_ids[2:]).decode() == "E: joy\n"
    assert bytes(item.completion_ids).decode() == "S: sadness 0.7, fear 0.3\n"
    assert item.advantages() == [0.5] * len(item.completion_ids)
    assert item.sampled is None and not item.reply and item.prompt == "c0/1"


@pytest.mark.parametrize("more", [(), ("reward.expression=listener", "reward.expression_weight=0")])
def test_the_starts_reply_is_learned_where_none_is_rewarded(more: tuple[str, ...]) -> None:
    """One that says E again, and one without its end, are not."""
    lines, replies = ["S: anger\n", "S: joy\n", "S: fear\n"], ["R: Go away!", "E: joy\nR: Oh.", "R: I c"]
    start = Start(lines, replies, cut=2)
    found = self_anchors(
        lambda: start, *FOUR, load([], [*SETTINGS, *more]), PLACE  # type: ignore[arg-type,return-value]
    )  # fmt: skip
    assert start.asked[1] == ["E: joy\nS: anger\n", "E: fear\nS: joy\n", "E: joy\nS: fear\n"]
    assert [[i.reply for i in x] for x in found] == [[False, True], [], [False], [False]]
    said = found[0][1]
    assert bytes(said.prompt_ids[2:]).decode() == "E: joy\nS: anger\n"
    assert bytes(said.completion_ids).decode() == "R: Go away!"
    assert said.advantages() == [0.5] * len(said.completion_ids) and said.sampled is None


def test_without_it_nobody_is_asked() -> None:
    def teacher() -> Any:
        raise AssertionError("no start is loaded")

    fitted, turns = zip(turn(0, "E: joy\n", "E: joy\n"), strict=True)
    config = load([], ["grpo.credit=causal"])
    assert self_anchors(teacher, fitted, turns, config, PLACE) == [[]]
    broken = zip(turn(0, "no", "no"), strict=True)
    assert self_anchors(teacher, *broken, CONFIG, PLACE) == [[]]


def test_it_needs_an_e_line_by_itself() -> None:
    with pytest.raises(ConfigError, match=r'draws S behind an E line.*grpo.credit = "causal"'):
        load([], ["grpo.self_anchor=1"])

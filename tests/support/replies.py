"""Replies to a prompt, drawn behind E and S, that nobody has heard yet."""

from __future__ import annotations

from selfemo.config import load
from selfemo.method.types import RawCompletion
from selfemo.stages.selfplay import score_group
from selfemo.training.expression import Begun
from tests.conftest import dist, make_prompt

ON = ["grpo.credit=causal", "reward.expression=listener", "sampling.group_size=3"]
"""Settings under which replies are rewarded."""


def raw(text: str) -> RawCompletion:
    ids = tuple(text.encode())
    return RawCompletion(text, ids, (-0.5,) * len(ids), (0.25,) * len(ids))


def drawn(*replies: str, s: str = "joy") -> Begun:
    prompt = make_prompt("c/1", dist(joy=1))
    group = score_group(prompt, [raw("E: joy\n")] * 2, load([], ON).reward, load([], ON).grpo, 0.0)
    return Begun(prompt, group.rollouts[0], raw(f"S: {s}\n"), [raw(f"R: {r}") for r in replies])

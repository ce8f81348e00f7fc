"""S of a round that is given instead of sampled (`selfplay.self_emotion = "balanced"`), by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import load
from selfemo.errors import UnsupportedError
from selfemo.method.prompts import Fitted
from selfemo.method.types import LABEL_SETS, FailureKind, ParseFailure, Place, RawCompletion, RolloutGroup
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.generation.scripted import ScriptedSampler
from selfemo.seeds import derive
from selfemo.stages.completions import balanced_emotions, complete_best
from selfemo.stages.rl import rl_items
from selfemo.stages.selfplay import score_group, take_turns
from tests.conftest import MELD, dist, make_prompt

CONFIG = load([], ["grpo.credit=causal", "selfplay.self_emotion=balanced", "sampling.max_new_tokens=40"])
PLACE = Place("iteration-1-rl", 3, 1)


@given(st.lists(st.sampled_from(sorted(LABEL_SETS)), max_size=40), st.integers(0, 1000))
def test_each_label_has_its_share_of_a_round(names: list[str], seed: int) -> None:
    sets = [LABEL_SETS[n] for n in names]
    found = balanced_emotions(sets, seed)
    assert found == balanced_emotions(sets, seed), "a resumed round has the same"
    assert len(found) == len(sets)
    for labels in set(sets):
        mine = [e for e, s in zip(found, sets, strict=True) if s == labels]
        counts = Counter(mine)
        often = [counts[e] for e in labels]
        assert sum(often) == len(mine) and max(often) - min(often) <= 1
        for start in range(0, len(mine), len(labels)):
            part = mine[start : start + len(labels)]
            assert len(set(part)) == len(part), "turns that stand together are of different emotions"


def test_over_rounds_no_label_is_preferred() -> None:
    """Three turns a round: 700 rounds give each of seven labels about 300 times."""
    counts = Counter(e for seed in range(700) for e in balanced_emotions([MELD] * 3, seed))
    assert set(counts) == set(MELD) and all(240 < n < 360 for n in counts.values()), counts


def encode(text: str) -> list[int]:
    return list(text.encode())


def raw(text: str, finished: bool = True) -> RawCompletion:
    ids = tuple(encode(text))
    return RawCompletion(text, ids, (-0.5,) * len(ids), (0.25,) * len(ids), finished)


def complete(
    replies: Sequence[RawCompletion], heads: Sequence[str]
) -> tuple[list[RolloutGroup], list[Fitted], int]:
    """One group a reply, its two E lines equal; what was asked of the sampler, and its limit of tokens."""
    prompts = [make_prompt(f"c{k}/1", dist(joy=1)) for k in range(len(replies))]
    fitted = [Fitted(p, (1, 2), 0) for p in prompts]
    groups = [
        score_group(p, [raw(h), raw("E: anger\n")], CONFIG.reward, CONFIG.grpo, 0.0)
        for p, h in zip(prompts, heads, strict=True)
    ]
    asked: list[Fitted] = []
    limits: list[int] = []

    def sample(
        begun: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        asked.extend(begun)
        limits.append(settings.max_new_tokens)
        assert n == 1 and len(set(seeds)) == len(begun)
        return [[r] for r in replies]

    best = [0] * len(groups)
    done, _ = complete_best(sample, fitted, groups, best, CONFIG, PLACE, 0.0, encode=encode)
    return done, asked, limits[0]


def test_a_completion_goes_on_behind_the_s_that_it_is_given() -> None:
    replies = [raw(" Hello there.")] * 3
    groups, asked, limit = complete(replies, ["E: joy\n"] * 3)
    given_ = balanced_emotions([MELD] * 3, derive(CONFIG.seed, PLACE.stage, PLACE.step))
    assert len(set(given_)) == 3
    for group, begun, label in zip(groups, asked, given_, strict=True):
        head, forced = "E: joy\n", f"S: {label}\nR:"
        assert begun.ids == (1, 2, *encode(head + forced))
        rollout = group.rollouts[0]
        assert rollout.raw.text == f"{head}{forced} Hello there."
        assert rollout.raw.token_ids == tuple(encode(rollout.raw.text)) and rollout.raw.finished
        assert rollout.completion is not None
        assert rollout.completion.self_emotion == dist(**{label: 1})
        assert (rollout.completion.emotion, rollout.completion.reply) == (dist(joy=1), "Hello there.")
        # The tokens that were given were not sampled: they have no probability, and no part in the means.
        known = [not math.isnan(lp) for lp in rollout.raw.logprobs]
        sampled = [True] * len(head) + [False] * len(forced) + [True] * len(" Hello there.")
        assert known == sampled == [not math.isnan(h) for h in rollout.raw.entropies]
        assert (rollout.raw.mean_logprob, rollout.raw.mean_entropy) == (-0.5, 0.25)
        assert group.rollouts[1].raw.text == "E: anger\n"
    # The shortest line that was given leaves the most room: "S: joy\nR:" is 9 tokens, "S: fear\nR:" 10.
    assert limit == 40 - 7 - min(len(f"S: {e}\nR:") for e in given_)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (raw(" x" * 20), FailureKind.TRUNCATED),
        (raw("  "), FailureKind.NO_REPLY),
        (raw(" Hi.\nS: joy"), FailureKind.EXTRA_TEXT),
    ],
)
def test_a_reply_that_breaks_behind_a_given_s_is_no_fault_of_the_policy(
    reply: RawCompletion, kind: FailureKind
) -> None:
    (group,), _, _ = complete([reply], ["E: joy\n"])
    broken = group.rollouts[0]
    assert isinstance(broken.parsed, ParseFailure) and broken.parsed.kind == kind
    assert (broken.r1, broken.rest) == (0, 0) and broken.advantage > 0.9
    assert len(broken.raw.token_ids) == len(broken.raw.logprobs) <= 40
    items = rl_items(Fitted(group.prompt, (1, 2), 0), group, CONFIG.grpo, encode)
    first = items[0]
    assert list(first.completion_ids) == encode("E: joy\n"), "nothing behind the E line is trained on"
    assert first.advantages() == [broken.advantage] * 7


def test_a_sampled_s_still_carries_what_breaks_behind_it() -> None:
    own = CONFIG.model_copy(update={"selfplay": load([], []).selfplay})
    prompt = make_prompt(target=dist(joy=1))
    group = score_group(prompt, [raw("E: joy\n"), raw("E: anger\n")], own.reward, own.grpo, 0.0)
    broken = raw("S: joy\nR: Hi.\nS: joy")
    (done,), _ = complete_best(
        lambda *_: [[broken]], [Fitted(prompt, (1,), 0)], [group], [0], own, PLACE, 0.0, encode=encode
    )
    assert done.rollouts[0].rest == pytest.approx(-2, rel=1e-5), "R1 1 less 0, by the deviation 1/2"
    assert not any(map(math.isnan, done.rollouts[0].raw.logprobs))


@pytest.mark.parametrize(
    ("given", "asked_for"), [(True, ["c0/1", "c3/1"]), (False, ["c0/1", "c1/1", "c3/1"])]
)
def test_a_reply_is_sampled_where_something_comes_of_it(given: bool, asked_for: list[str]) -> None:
    """R1 1; 1/3, below tau; 0; against a mixed target .43 with its top emotion; no E line.

    Where S is given, the gate alone counts. A sampled S carries credit, of an R1 that it can lose.
    """
    config = CONFIG if given else CONFIG.model_copy(update={"selfplay": load([], []).selfplay})
    said = ["E: joy\n", "E: joy, fear\n", "E: fear\n", "E: joy\n", "E: glee\n"]
    targets = [dist(joy=1)] * 3 + [dist(joy=0.6, surprise=0.4), dist(joy=1)]
    prompts = [make_prompt(f"c{k}/1", t) for k, t in enumerate(targets)]
    groups = [score_group(p, [raw(h)] * 2, config.reward, config.grpo, 0.0)
              for p, h in zip(prompts, said, strict=True)]  # fmt: skip
    assert [g.rollouts[0].r1 for g in groups] == pytest.approx([1, 1 / 3, 0, 0.6 / 1.4, 0])
    fitted = [Fitted(p, (1, 2), 0) for p in prompts]
    asked: list[str] = []

    def sample(begun: Sequence[Fitted], *_: Any) -> list[list[RawCompletion]]:
        asked.extend(f.prompt.id for f in begun)
        return [[raw(" Hi there." if given else "S: joy\nR: Hi there.")] for _ in begun]

    turns = take_turns(sample, fitted, groups, config, PLACE, 0.0, encode=encode, replies="due")
    assert asked == (["c0/1", "c3/1"] if given else ["c0/1", "c1/1", "c3/1"])
    assert [t.verdict for t in turns] == ["pass", "low_reward", "low_reward", "pass", "unparsed"]
    asked.clear()
    every = take_turns(sample, fitted, groups, config, PLACE, 0.0, encode=encode)
    assert asked == ["c0/1", "c1/1", "c2/1", "c3/1"]
    assert [t.verdict for t in every] == [t.verdict for t in turns]


def test_a_scripted_answer_goes_on_behind_what_it_is_given() -> None:
    answers = ["E: joy\nS: joy\nR: Nice one.", "E: joy\nS: fear\nR: Who is there?"]
    sampler, settings = ScriptedSampler(answers), SamplingSettings(40)
    ids = sampler.encode([{"role": "user", "content": "Boo"}])
    ((head,),) = sampler.generate([Request(ids)], replace(settings, max_lines=1))
    begun = [*ids, *head.token_ids, *sampler.encode_text("S: fear\nR:")]
    ((rest,),) = sampler.generate([Request(begun)], settings)
    assert rest.text == " Who is there?"


def test_an_endpoint_cannot_go_on_behind_a_text() -> None:
    from selfemo.models.generation.chat import ExpertSpec
    from selfemo.models.generation.endpoint import EndpointSampler

    sampler = EndpointSampler(ExpertSpec(name="m", url="http://localhost:1/v1", model="m"))
    with pytest.raises(UnsupportedError, match="use a model on this machine"):
        sampler.encode_text("S: joy\nR:")

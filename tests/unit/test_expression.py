"""R3 and the replies of a round, worked by hand with readers of known answers (SPEC section 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import GateConfig, GrpoConfig, load
from selfemo.errors import SelfEmoError
from selfemo.method.expression import expression_reward, reply_advantages
from selfemo.method.prompts import Fitted
from selfemo.method.replies import names_label
from selfemo.method.types import EmotionDistribution, Place, RawCompletion
from selfemo.models.generation.requests import SamplingSettings
from selfemo.models.reply_readers import Read
from selfemo.stages.rl import rl_items
from selfemo.stages.selfplay import score_group, take_turns
from selfemo.training.expression import (
    Drawn,
    Ears,
    most_expressive,
    reply_items,
    reply_measures,
    score_replies,
)
from tests.conftest import MELD, dist, make_prompt
from tests.support.readers import EVEN, Known

ON = ["grpo.credit=causal", "reward.expression=listener", "sampling.group_size=3"]
PLACE = Place("iteration-1-rl", 3, 1)


def raw(text: str) -> RawCompletion:
    ids = tuple(text.encode())
    return RawCompletion(text, ids, (-0.5,) * len(ids), (0.25,) * len(ids))


def drawn(*replies: str, s: str = "joy") -> Drawn:
    prompt = make_prompt("c/1", dist(joy=1))
    group = score_group(prompt, [raw("E: joy\n")] * 2, load([], ON).reward, load([], ON).grpo, 0.0)
    return Drawn(prompt, group.rollouts[0], raw(f"S: {s}\n"), [raw(f"R: {r}") for r in replies])


def test_r3_is_what_the_listener_has_learned_of_s() -> None:
    """With no floor: S joy .75, anger .25; q(joy) from .2 to .4, q(anger) from .4 to .2."""
    before, after = dist(joy=0.2, anger=0.4, fear=0.4), dist(joy=0.4, anger=0.2, fear=0.4)
    declared = dist(joy=3, anger=1)
    assert expression_reward(declared, after, before, MELD, floor=0) == pytest.approx(
        0.75 * math.log(2) - 0.25 * math.log(2)
    )
    # What the listener knew before the reply is worth nothing, however sure it is of S.
    sure = dist(neutral=0.99, joy=0.01)
    assert expression_reward(dist(neutral=1), sure, sure, MELD) == 0
    # 1 in 7 % of .01 at the least: log(.99 + .01/7) - log(.01/7) = 6.55 nats are cut to 3.
    assert expression_reward(dist(joy=1), dist(joy=1), dist(fear=1), MELD) == 3
    assert expression_reward(dist(joy=1), dist(fear=1), dist(joy=1), MELD) == -3


@given(
    st.lists(st.floats(0.01, 1), min_size=7, max_size=7), st.lists(st.floats(0.01, 1), min_size=7, max_size=7)
)
def test_r3_is_bounded_and_changes_sign_when_the_listener_unlearns(a: list[float], b: list[float]) -> None:
    q, before = (EmotionDistribution(dict(zip(MELD, w, strict=True))) for w in (a, b))
    found = expression_reward(dist(joy=1), q, before, MELD)
    assert -3 <= found <= 3
    assert found == pytest.approx(-expression_reward(dist(joy=1), before, q, MELD), abs=1e-9)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("What joy!", True), ("JOY", True), ("I feel sadness.", True), ("So joyful.", False),
        ("Killjoys everywhere", False), ("That is great news!", False), ("neutral-ish", True),
    ],
)  # fmt: skip
def test_a_label_is_named_as_a_word(text: str, named: bool) -> None:
    assert names_label(text, MELD) is named


def test_advantages_of_replies() -> None:
    assert reply_advantages([1.0, 2.0, 3.0], how="none") == pytest.approx([-1, 0, 1])
    assert reply_advantages([1.0, 3.0]) == pytest.approx([-1, 1], abs=1e-5)
    # Nothing earned is 0 beside replies that earn, and no better than the worst of them.
    assert reply_advantages([2.0, None, 1.0], how="none") == pytest.approx([1, -1, 0])
    assert reply_advantages([-2.0, None, 1.0], how="none") == pytest.approx([-1, -1, 2])
    assert reply_advantages([None, None]) == [0, 0] and reply_advantages([1.5, 1.5]) == [0, 0]
    # R3 may be negative, where a mean divides nothing.
    assert reply_advantages([1.0, 3.0], how="mean") == pytest.approx([-1, 1])


@given(st.lists(st.none() | st.floats(-3, 3), min_size=1, max_size=8))
def test_a_refused_reply_is_never_above_one_that_earns(rewards: list[float | None]) -> None:
    found = reply_advantages(rewards)
    refused = [a for a, r in zip(found, rewards, strict=True) if r is None]
    earned = [a for a, r in zip(found, rewards, strict=True) if r is not None]
    assert math.fsum(found) == pytest.approx(0, abs=1e-6)
    assert not refused or not earned or max(refused) <= min(earned) + 1e-9


def test_replies_are_scored_by_what_is_heard_in_them() -> None:
    shows = {"Great!": dist(joy=1), "Hm.": EVEN, "No!": dist(anger=1)}
    listener, judge = Known(shows), Known({"Great!": EVEN})
    replies = ["Great!", "Hm.", "No!", "Great!", "Joy, joy!", "joy: yes", "*grins*"]
    (found,) = score_replies([drawn(*replies)], listener, GrpoConfig(), GateConfig(), judge)
    up = math.log(0.99 + 0.01 / 7) - math.log(1 / 7)
    down = math.log(0.01 / 7) - math.log(1 / 7)
    assert [r.reward for r in found] == pytest.approx([up, 0, -3, up, None, None, None])
    assert down < -3, "cut"
    assert [r.fault for r in found] == ["", "", "", "", "label_word", "label_tag", "markup"]
    assert listener.asked == 3, "equal replies are read once, refused ones never"
    assert found[0].judged == pytest.approx(0) and found[0].heard == dist(joy=1)
    assert most_expressive(found) == 0 and found[0].advantage == found[3].advantage > 0
    # The refused ones count as the worst: -3.
    assert found[4].advantage == pytest.approx(found[2].advantage) and found[4].advantage < 0
    measures = reply_measures([found])
    assert measures["replies"] == 7
    assert measures["replies_refused"] == {"label_tag": 1, "label_word": 1, "markup": 1}
    assert measures["expression"] == pytest.approx((2 * up - 3) / 4)
    assert measures["expressed"] == 0.5 and measures["label_words"] == pytest.approx(1 / 7)
    assert measures["expression_reader"] == 0, "the judge hears nothing in them"


@pytest.mark.parametrize(
    ("replies", "shows"),
    [
        (["Okay."] * 4, {"Okay.": EVEN}),  # constant
        (["I feel joy.", "joy", "So much joy here!", "Joy."], {}),  # tells its label
        (["Fine.", "Sure.", "Well.", "Right."], {}),  # says nothing: the listener learns nothing
    ],
)
def test_a_degenerate_policy_earns_nothing(replies: list[str], shows: dict[str, Read]) -> None:
    (found,) = score_replies([drawn(*replies)], Known(shows), GrpoConfig(), GateConfig())
    assert all(not r.reward for r in found) and all(r.advantage == 0 for r in found)


def test_an_always_neutral_policy_earns_nothing_of_a_listener_that_expects_it() -> None:
    neutral = dist(neutral=0.9, joy=0.1)
    listener = Known(dict.fromkeys(["Fine.", "Sure."], neutral), before=neutral)
    (found,) = score_replies([drawn("Fine.", "Sure.", s="neutral")], listener, GrpoConfig(), GateConfig())
    assert [r.reward for r in found] == [0, 0]


def test_a_reply_that_cannot_be_read_is_counted() -> None:
    (found,) = score_replies([drawn("Hm.", "Ah.")], Known({"Hm.": None}), GrpoConfig(), GateConfig())
    assert [r.fault for r in found] == ["unread", ""] and found[0].reward is None
    nothing = Known({}, before=None)
    (found,) = score_replies([drawn("Hm.", "Ah.")], nothing, GrpoConfig(), GateConfig())
    assert reply_measures([found])["replies_refused"] == {"unread": 2}
    assert reply_measures([]) == {}


def sampler(
    lines: Sequence[str], replies: Sequence[Sequence[str]], seen: list[tuple[Any, ...]]
) -> Callable[..., list[list[RawCompletion]]]:
    """Draws S lines, then replies, and notes what it was asked."""

    def sample(
        begun: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        seen.append(([f.ids for f in begun], n, settings))
        assert len(set(seeds)) == len(begun)
        if settings.max_lines == 1:
            return [[raw(s)] for s in lines]
        return [[raw(r) for r in group] for group in replies]

    return sample


def test_one_s_and_several_replies_are_drawn_behind_the_best_e_line() -> None:
    config = load([], [*ON, "reward.expression_weight=0.5", "grpo.normalise=none"])
    prompts = [make_prompt(f"c{k}/1", dist(joy=1)) for k in range(2)]
    fitted = [Fitted(p, (1, 2), 0) for p in prompts]
    groups = [
        score_group(p, [raw("E: anger\n"), raw("E: joy\n"), raw("E: anger\n")], config.reward, config.grpo, 0)
        for p in prompts
    ]
    seen: list[tuple[Any, ...]] = []
    said = [["R: Hm.", "R: Great!", "R: No!"]]
    sample = sampler(["S: joy\n", "S: joy"], said, seen)
    shows = {"Great!": dist(joy=1), "No!": dist(anger=1)}
    ears = Ears(Known(shows))
    first, second = take_turns(
        sample, fitted, groups, config, PLACE, 0.0, encode=lambda t: t.encode(), ears=ears
    )
    (s_asked, one, s_settings), (r_asked, n, r_settings) = seen
    head = (1, 2, *b"E: joy\n")
    assert s_asked == [head, head] and one == 1 and s_settings.max_lines == 1
    assert r_asked == [(*head, *b"S: joy\n")] and n == 3, "an S line without its end goes no further"
    assert r_settings.max_new_tokens == config.sampling.max_new_tokens - 14
    assert first.completion is not None and first.completion.reply == "Great!" and first.verdict == "pass"
    assert second.verdict == "unparsed" and second.spoken is None
    assert second.group.rollouts[1].r1 == 0 and second.group.rollouts[1].rest < 0, "its S line broke it"

    # E lines learn from R1, replies from R3, and nothing else has credit.
    assert first.spoken is not None
    up = math.log(0.99 + 0.01 / 7) - math.log(1 / 7)
    mean = (up - 3) / 3
    items = reply_items(fitted[0], first.spoken, config.reward.expression_weight)
    assert [bytes(i.completion_ids).decode() for i in items] == said[0]
    assert [bytes(i.prompt_ids[2:]).decode() for i in items] == ["E: joy\nS: joy\n"] * 3
    assert [i.advantage for i in items] == pytest.approx([-mean / 2, (up - mean) / 2, (-3 - mean) / 2])
    assert items[0].advantages() == [items[0].advantage] * 6 and items[0].sampled == (-0.5,) * 6
    lines = rl_items(fitted[0], first.group, config.grpo, lambda t: t.encode())
    assert [bytes(i.completion_ids).decode() for i in lines] == ["E: anger\n", "E: joy\n", "E: anger\n"]
    assert reply_items(fitted[0], first.spoken, 0) == []


def test_a_given_s_is_kept_and_its_replies_learn() -> None:
    config = load([], [*ON, "selfplay.self_emotion=balanced"])
    prompt = make_prompt("c/1", dist(joy=1))
    group = score_group(prompt, [raw("E: joy\n")] * 3, config.reward, config.grpo, 0.0)
    seen: list[tuple[Any, ...]] = []
    sample = sampler([], [[" Hm.", " Ah.", " Oh."]], seen)
    ears = Ears(Known({"Ah.": dist(joy=1)}))
    (turn,) = take_turns(
        sample, [Fitted(prompt, (1,), 0)], [group], config, PLACE, 0.0, encode=lambda t: t.encode(), ears=ears
    )
    ((ids,), n, _), spoken = seen[0], turn.spoken
    assert len(seen) == 1 and n == 3 and spoken is not None
    given_ = bytes(ids[1:]).decode()
    assert given_.startswith("E: joy\nS: ") and given_.endswith("\nR:") and spoken.lead == ids[1:]
    assert turn.completion is not None
    assert [r.said.self_emotion for r in spoken.replies if r.said] == [turn.completion.self_emotion] * 3


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["reward.expression=listener"], 'set grpo.credit = "causal"'),
        ([*ON, "reward.replies=1"], "a reply alone has no advantage"),
        (["reward.listener=some/folder"], "nobody would listen"),
        (["guard.reader=some/folder"], "no reply is rewarded, so that none is judged"),
        ([*ON, "reward.listener=a/b", "guard.reader=a/b"], "is the listener itself"),
        ([*ON, "prompt.reasoning=brief"], "name another listener"),
        ([*ON, "engine=verl"], 'is for engine = "local"'),
        (
            [*ON, "grpo.reward_weight=0", "reward.expression_weight=0"],
            "so is reward.expression_weight: RL would",
        ),
    ],
)
def test_settings_that_cannot_be(overrides: list[str], told: str) -> None:
    with pytest.raises(SelfEmoError, match=told):
        load([], overrides)


def test_expression_alone_uses_replies() -> None:
    alone = ["selfplay.max_turns=1", "flywheel.refit=none"]
    assert load([], [*ON, *alone]).replies and not load([], alone).replies
    assert load([], [*ON, "grpo.reward_weight=0"]).expresses, "R3 may be all that RL learns from"

"""R3 and the replies of a round, worked by hand with readers of known answers (SPEC section 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import GateConfig, load
from selfemo.errors import SelfEmoError
from selfemo.method.expression import bounded, contrasts, gains, information_gain, reply_advantages
from selfemo.method.prompts import Fitted
from selfemo.method.replies import names_label
from selfemo.method.types import LABEL_SETS, EmotionDistribution, Place, RawCompletion
from selfemo.models.generation.requests import SamplingSettings
from selfemo.models.reply_readers import Read
from selfemo.stages.rl import rl_items
from selfemo.stages.selfplay import score_group, take_turns
from selfemo.training.expression import (
    ROUGH,
    Ears,
    _rough,
    chosen_reply,
    reply_items,
    reply_measures,
    score_replies,
)
from tests.conftest import MELD, dist, make_prompt
from tests.support.readers import EVEN, Known
from tests.support.replies import ON, drawn, raw

PLACE = Place("iteration-1-rl", 3, 1)


def encode(text: str) -> Sequence[int]:
    return text.encode()


def r3(declared: EmotionDistribution, heard: EmotionDistribution, expected: EmotionDistribution) -> float:
    return bounded(information_gain(declared, heard, expected, MELD))


def test_r3_is_what_the_listener_has_learned_of_s() -> None:
    """With no floor: S joy .75, anger .25; q(joy) from .2 to .4, q(anger) from .4 to .2."""
    before, after = dist(joy=0.2, anger=0.4, fear=0.4), dist(joy=0.4, anger=0.2, fear=0.4)
    declared = dist(joy=3, anger=1)
    assert information_gain(declared, after, before, MELD, floor=0) == pytest.approx(
        0.75 * math.log(2) - 0.25 * math.log(2)
    )
    # What the listener knew before the reply is worth nothing, however sure it is of S.
    sure = dist(neutral=0.99, joy=0.01)
    assert r3(dist(neutral=1), sure, sure) == 0
    # 1 in 7 % of .01 at the least: log(.99 + .01/7) - log(.01/7) = 6.54 nats are cut to 3.
    most = math.log(0.99 + 0.01 / 7) - math.log(0.01 / 7)
    assert information_gain(dist(joy=1), dist(joy=1), dist(fear=1), MELD) == pytest.approx(most)
    assert 6.5 < most < 6.6
    assert r3(dist(joy=1), dist(joy=1), dist(fear=1)) == 3
    assert r3(dist(joy=1), dist(fear=1), dist(joy=1)) == -3


WEIGHTS = st.lists(st.floats(0.01, 1), min_size=7, max_size=7)


@given(WEIGHTS, WEIGHTS)
def test_r3_is_bounded_and_changes_sign_when_the_listener_unlearns(a: list[float], b: list[float]) -> None:
    q, before = (EmotionDistribution(dict(zip(MELD, w, strict=True))) for w in (a, b))
    found = r3(dist(joy=1), q, before)
    assert -3 <= found <= 3
    assert found == pytest.approx(-r3(dist(joy=1), before, q), abs=1e-9)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("What joy!", True), ("JOY", True), ("I feel sadness.", True), ("So joyful.", True),
        ("I am so angry!", True), ("I'm scared", False), ("You surprised me.", True), ("Sadly, no", True),
        ("Killjoys everywhere", False), ("That is great news!", False), ("neutral-ish", True),
    ],
)  # fmt: skip
def test_a_label_is_named_by_a_word_of_its_family(text: str, named: bool) -> None:
    assert names_label(text, MELD) is named


def test_the_family_is_that_of_the_label_set() -> None:
    assert names_label("I am scared", LABEL_SETS["emorynlp"]) and names_label(
        "scary!", LABEL_SETS["emorynlp"]
    )
    assert not names_label("I like it", LABEL_SETS["meisd"]), "a word of any talk"


def test_advantages_of_replies() -> None:
    assert reply_advantages([1.0, 2.0, 3.0]) == pytest.approx([-1, 0, 1])
    # A listener that hardly tells replies apart teaches hardly anything.
    assert reply_advantages([0.5, 0.501]) == pytest.approx([-0.0005, 0.0005])
    # Within 3 nats of the mean: 5 - 2 and 0 - 2, then 6 - 2 is cut, where replies to a rare S stay apart.
    assert reply_advantages([5.0, 1.0, 0.0]) == pytest.approx([3, -1, -2])
    assert reply_advantages([6.0, 0.0, 0.0]) == pytest.approx([3, -2, -2])
    assert reply_advantages([5.0, 4.0]) == pytest.approx([0.5, -0.5]), "both over the bound of R3"
    # What breaks a rule is one nat below the worst of the others, and below 0.
    assert reply_advantages([2.0, None, 1.0]) == pytest.approx([2 - 2 / 3, -1 - 2 / 3, 1 - 2 / 3])
    assert reply_advantages([-2.0, None]) == pytest.approx([0.5, -0.5])
    assert reply_advantages([-0.5, None, None, None]) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert reply_advantages([None, None]) == [0, 0] and reply_advantages([1.5, 1.5]) == [0, 0]
    assert reply_advantages([]) == []


@given(st.lists(st.none() | st.floats(-6, 6), min_size=1, max_size=8))
def test_a_reply_that_breaks_a_rule_is_below_all_that_do_not(gains: list[float | None]) -> None:
    found = reply_advantages(gains)
    refused = [a for a, g in zip(found, gains, strict=True) if g is None]
    earned = [a for a, g in zip(found, gains, strict=True) if g is not None]
    assert all(-3 <= a <= 3 for a in found)
    assert not refused or not earned or max(refused) < min(earned) or min(refused) == -3


def test_replies_are_scored_by_what_is_heard_in_them() -> None:
    shows = {"Great!": dist(joy=1), "Hm.": EVEN, "No!": dist(anger=1)}
    listener, judge = Known(shows), Known({"Great!": EVEN})
    replies = ["Great!", "Hm.", "No!", "Great!", "Joy, joy!", "joy: yes", "*grins*"]
    (found,) = score_replies([drawn(*replies)], listener, GateConfig(), judge)
    up = math.log(0.99 + 0.01 / 7) - math.log(1 / 7)
    down = math.log(0.01 / 7) - math.log(1 / 7)
    assert [r.reward for r in found] == pytest.approx([up, 0, -3, up, None, None, None])
    assert down < -3, "cut"
    assert [r.fault for r in found] == ["", "", "", "", "label_word", "label_tag", "markup"]
    assert listener.asked == 3, "equal replies are read once, refused ones never"
    assert found[0].judged == pytest.approx(0) and found[0].heard == dist(joy=1)
    assert found[2].gain == pytest.approx(down), "not cut"
    # The three that break a rule count as one nat below that.
    mean = (2 * up + 0 + down + 3 * (down - 1)) / 7
    assert found[2].advantage == pytest.approx(down - mean)
    assert down - 1 - mean < -3 and found[4].advantage == -3, "cut"
    assert found[0].advantage == found[3].advantage == 3, "cut"
    measures = reply_measures([(MELD, found)])
    assert measures["replies"] == 7
    assert measures["replies_refused"] == {"label_tag": 1, "label_word": 1, "markup": 1}
    assert measures["expression"] == pytest.approx((2 * up - 3) / 4)
    assert measures["expressed"] == 0.5 and measures["refused"] == pytest.approx(3 / 7)
    assert measures["replies_flat"] == 0
    assert measures["expression_reader"] == 0, "the judge hears nothing in them"


@pytest.mark.parametrize(
    ("replies", "shows"),
    [
        (["Okay."] * 4, {"Okay.": dist(joy=1)}),  # constant, and the listener finds S in it
        (["I feel joy.", "joy", "So joyful here!", "Joy."], {"I feel joy.": dist(joy=1)}),  # tells its label
    ],
)
def test_a_degenerate_policy_learns_nothing(replies: list[str], shows: dict[str, Read]) -> None:
    (found,) = score_replies([drawn(*replies)], Known(shows), GateConfig())
    assert all(r.advantage == 0 for r in found)
    (mixed,) = score_replies([drawn(*replies, "Hm.")], Known(shows), GateConfig())
    assert any(r.advantage for r in mixed), "beside another reply it would"


def test_an_always_neutral_policy_earns_nothing_of_a_listener_that_expects_it() -> None:
    neutral = dist(neutral=0.9, joy=0.1)
    listener = Known(dict.fromkeys(["Fine.", "Sure."], neutral), before=neutral)
    (found,) = score_replies([drawn("Fine.", "Sure.", s="neutral")], listener, GateConfig())
    assert [r.reward for r in found] == [0, 0]


# -- contrast ------------------------------------------------------------------------------------------

MILD = {
    "Great!": dist(joy=4, anger=1, neutral=1, sadness=1, fear=1, surprise=1, disgust=1),
    "No!": dist(joy=1, anger=4, neutral=1, sadness=1, fear=1, surprise=1, disgust=1),
}
STEP = math.log(0.99 * 0.4 + 0.01 / 7) - math.log(0.99 * 0.1 + 0.01 / 7)
"""What either tells of its emotion more than of any other, nats."""


def test_a_contrast_by_hand() -> None:
    told = contrasts(gains(MILD["Great!"], EVEN, MELD))
    assert told["joy"] == pytest.approx(6 / 7 * STEP)
    assert [told[e] for e in MELD.labels if e != "joy"] == pytest.approx([-STEP / 7] * 6)
    (found,) = score_replies([drawn("Great!", "No!")], Known(MILD), GateConfig(), contrast=True)
    assert [r.advantage for r in found] == pytest.approx([STEP / 2, -STEP / 2])
    great, no = (dict(r.elsewhere) for r in found)
    assert list(great) == [e for e in MELD.labels if e != "joy"], "S itself was sampled"
    assert great.pop("anger") == pytest.approx(-STEP / 2) and no.pop("anger") == pytest.approx(STEP / 2)
    assert [*great.values(), *no.values()] == pytest.approx([0] * 10)
    assert reply_measures([(MELD, found)])["expression_contrast"] == pytest.approx(5 / 14 * STEP)


@given(st.data())
def test_a_reply_that_does_not_depend_on_s_earns_no_contrast(data: st.DataObject) -> None:
    """Whatever is heard: over all S its mean is 0, where that of R3 need not be."""
    weight = st.floats(0.01, 1)
    heard, before = (dist(**{e: data.draw(weight) for e in MELD.labels}) for _ in range(2))
    assert sum(contrasts(gains(heard, before, MELD)).values()) == pytest.approx(0, abs=1e-9)


def test_r3_pays_for_what_hints_at_rare_emotions_and_a_contrast_does_not() -> None:
    rare = dist(neutral=0.5, joy=0.2, surprise=0.1, anger=0.1, sadness=0.06, disgust=0.02, fear=0.02)
    unsure, over_s = gains(EVEN, rare, MELD), [drawn("Hm.", "Hm.", s=e) for e in MELD.labels]
    assert sum(unsure.values()) / 7 > 0.4
    found = score_replies(over_s, Known({}, before=rare), GateConfig(), contrast=True)
    assert sum(g[0].gain or 0 for g in found) / 7 > 0.4
    assert sum(g[0].contrasted or 0 for g in found) == pytest.approx(0)


def test_what_breaks_a_rule_is_charged_behind_its_own_s_alone() -> None:
    listener = Known({**MILD, "Hm.": None})
    (found,) = score_replies(
        [drawn("Great!", "No!", "What joy!", "Hm.")], listener, GateConfig(), contrast=True
    )
    assert [r.fault for r in found] == ["", "", "label_word", "unread"]
    values = [6 / 7 * STEP, -STEP / 7, -STEP / 7 - 1]
    assert [r.advantage for r in found[:3]] == pytest.approx([v - sum(values) / 3 for v in values])
    assert found[3].advantage == 0 and not found[2].elsewhere and not found[3].elsewhere
    assert found[0].elsewhere["anger"] == pytest.approx(-STEP / 2), "among those that were heard"
    (none,) = score_replies([drawn("joy", "Joy!")], listener, GateConfig(), contrast=True)
    assert all(r.advantage == 0 and not r.elsewhere for r in none)


def test_a_mixed_s_is_contrasted_with_what_it_does_not_declare() -> None:
    (found,) = score_replies(
        [drawn("Great!", "No!", s="joy 0.5, fear 0.5")], Known(MILD), GateConfig(), contrast=True
    )
    assert found[0].contrasted == pytest.approx((6 / 7 - 1 / 7) / 2 * STEP)
    assert [r.advantage for r in found] == pytest.approx([STEP / 4, -STEP / 4])
    assert set(found[0].elsewhere) == set(MELD.labels) - {"joy", "fear"}


@pytest.mark.parametrize("given_s", [False, True])
def test_replies_train_behind_every_s_that_they_tell_of(given_s: bool) -> None:
    how = "balanced" if given_s else "sampled"
    config = load([], [*ON, "sampling.group_size=2", f"selfplay.self_emotion={how}"])
    prompt = make_prompt("c/1", dist(joy=1))
    group = score_group(prompt, [raw("E: joy\n")] * 2, config.reward, config.grpo, 0.0)
    said = [" Great!", " No!"] if given_s else ["R: Great!", "R: No!"]
    sample, fitted = sampler(["S: joy\n"], [said], []), Fitted(prompt, (1, 2), 0)
    sure = Known({"Great!": dist(joy=1), "No!": dist(anger=1)})
    (turn,) = take_turns(
        sample, [fitted], [group], config, PLACE, 0.0, encode=encode, ears=Ears(sure)
    )  # fmt: skip
    assert turn.spoken is not None and turn.completion is not None
    declared = turn.completion.self_emotion.top(MELD)
    items = reply_items(fitted, turn.spoken, config.reward, encode, 0)
    own, elsewhere = items[:2], items[2:]
    assert not any(i.elsewhere for i in own) and all(i.elsewhere and i.reply for i in elsewhere)
    end = "R:" if given_s else ""
    behind = [(bytes(i.prompt_ids[2:]).decode(), bytes(i.completion_ids).decode()) for i in items]
    told = [e for e in ("joy", "anger") if e != declared]
    assert sorted(behind) == sorted((f"E: joy\nS: {e}\n{end}", r) for e in (declared, *told) for r in said)
    by = {
        (b.split("S: ")[1].split("\n")[0], r.strip("R: ")): i.advantage
        for (b, r), i in zip(behind, items, strict=True)
    }
    assert by["anger", "Great!"] == by["joy", "No!"] == -3 and by["anger", "No!"] == by["joy", "Great!"] == 3
    assert all(i.sampled == (-0.5,) * len(i.completion_ids) for i in items)


@given(st.floats(-3, 3))
def test_small_advantages_are_kept_as_seldom_as_they_are_small(advantage: float) -> None:
    drawn_ = [(k + 0.5) / 1000 for k in range(1000)]
    found = [_rough(advantage, u) for u in drawn_]
    assert sum(found) / 1000 == pytest.approx(advantage, abs=0.001)
    assert all(abs(a) >= ROUGH for a in found if a)


def test_a_reply_that_cannot_be_read_is_counted() -> None:
    hears = Known({"Hm.": None, "Oh!": dist(joy=1)})
    (found,) = score_replies([drawn("Hm.", "Ah.", "Oh!")], hears, GateConfig())
    assert [r.fault for r in found] == ["unread", "", ""] and found[0].reward is None
    assert found[0].advantage == 0, "it breaks no rule"
    assert found[1].advantage == -found[2].advantage < 0
    nothing = Known({}, before=None)
    (found,) = score_replies([drawn("Hm.", "Ah.")], nothing, GateConfig())
    measures = reply_measures([(MELD, found)])
    assert measures["replies_refused"] == {"unread": 2} and measures["refused"] == 0
    assert reply_measures([]) == {}


@pytest.mark.parametrize(
    ("replies", "first", "best"),
    [
        (["Hm.", "Great!"], 0, 1),
        (["joy", "Hm.", "Great!"], 1, 2),
        (["", "What joy!", "joy"], 1, 1),  # one does not parse, the others break a rule
        (["", ""], 0, 0),
    ],
)
def test_the_reply_that_goes_on(replies: list[str], first: int, best: int) -> None:
    (found,) = score_replies([drawn(*replies)], Known({"Great!": dist(joy=1)}), GateConfig())
    assert (chosen_reply(found, "first"), chosen_reply(found, "best")) == (first, best)


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


@pytest.mark.parametrize("which", ["first", "best"])
def test_one_s_and_several_replies_are_drawn_behind_the_best_e_line(which: str) -> None:
    config = load(
        [], [*ON, "reward.contrast=false", "reward.expression_weight=0.5", f"selfplay.reply={which}"]
    )
    prompts = [make_prompt(f"c{k}/1", dist(joy=1)) for k in range(3)]
    fitted = [Fitted(p, (1, 2), 0) for p in prompts]
    groups = [
        score_group(p, [raw("E: anger\n"), raw("E: joy\n"), raw("E: anger\n")], config.reward, config.grpo, 0)
        for p in prompts
    ]
    seen: list[tuple[Any, ...]] = []
    said = [["R: Hm.", "R: Great!", "R: No!"]]
    sample = sampler(["S: joy\n", "S: joy", "S: glee\n"], said, seen)
    shows = {"Great!": dist(joy=1), "No!": dist(anger=1)}
    ears = Ears(Known(shows))
    first, *broken = take_turns(sample, fitted, groups, config, PLACE, 0.0, encode=encode, ears=ears)
    (s_asked, one, s_settings), (r_asked, n, r_settings) = seen
    head = (1, 2, *b"E: joy\n")
    assert s_asked == [head] * 3 and one == 1 and s_settings.max_lines == 1
    assert r_asked == [(*head, *b"S: joy\n")] and n == 3, "an S line that says nothing goes no further"
    assert r_settings.max_new_tokens == config.sampling.max_new_tokens - 14
    assert first.completion is not None and first.verdict == "pass"
    assert first.completion.reply == ("Hm." if which == "first" else "Great!")
    for turn in broken:
        assert turn.verdict == "unparsed" and turn.spoken is None
        assert turn.group.rollouts[1].r1 == 0 and turn.group.rollouts[1].rest < 0, "its S line broke it"

    # E lines learn from R1, replies from R3, and nothing else has credit.
    assert first.spoken is not None
    up = math.log(0.99 + 0.01 / 7) - math.log(1 / 7)
    down = math.log(0.01 / 7) - math.log(1 / 7)
    mean = (up + down) / 3
    items = reply_items(fitted[0], first.spoken, config.reward, encode, 0)
    assert [bytes(i.completion_ids).decode() for i in items] == said[0]
    assert [bytes(i.prompt_ids[2:]).decode() for i in items] == ["E: joy\nS: joy\n"] * 3
    assert [i.advantage for i in items] == pytest.approx([-mean / 2, (up - mean) / 2, -3 / 2])
    assert down - mean < -3 and all(i.reply for i in items)
    assert items[0].advantages() == [items[0].advantage] * 6 and items[0].sampled == (-0.5,) * 6
    lines = rl_items(fitted[0], first.group, config.grpo, encode)
    assert [bytes(i.completion_ids).decode() for i in lines] == ["E: anger\n", "E: joy\n", "E: anger\n"]
    assert not any(i.reply for i in lines)
    unweighed = config.reward.model_copy(update={"expression_weight": 0.0})
    assert reply_items(fitted[0], first.spoken, unweighed, encode, 0) == []
    assert reply_items(fitted[0], None, config.reward, encode, 0) == []


def test_replies_that_all_break_are_charged_by_r3_alone_and_join_no_data() -> None:
    config = load([], ON)
    prompts = [make_prompt(f"c{k}/1", dist(joy=1)) for k in range(2)]
    groups = [
        score_group(p, [raw("E: joy\n"), raw("E: fear\n")], config.reward, config.grpo, 0.0) for p in prompts
    ]
    said = [["R: What joy!", "R: joy", "R: I am joyful."], ["R: ", "R:", "nothing"]]
    sample = sampler(["S: joy\n", "S: joy\n"], said, [])
    fitted = [Fitted(p, (1,), 0) for p in prompts]
    named, broken = take_turns(
        sample, fitted, groups, config, PLACE, 0.0, encode=encode, ears=Ears(Known({}))
    )
    assert named.verdict == "label_word" and broken.verdict == "unparsed"
    for turn in (named, broken):
        rollout = turn.group.rollouts[0]
        assert rollout.rest == 0, "neither S nor a reply pays twice"
        assert turn.spoken is not None and {r.advantage for r in turn.spoken.replies} == {0.0}


def test_no_reply_is_drawn_where_e_and_s_leave_no_room() -> None:
    config = load([], [*ON, "sampling.max_new_tokens=14"])
    prompt = make_prompt("c/1", dist(joy=1))
    group = score_group(prompt, [raw("E: joy\n")] * 2, config.reward, config.grpo, 0.0)
    seen: list[tuple[Any, ...]] = []
    sample, ears = sampler(["S: joy\n"], [], seen), Ears(Known({}))
    (turn,) = take_turns(
        sample, [Fitted(prompt, (1,), 0)], [group], config, PLACE, 0.0, encode=encode, ears=ears
    )
    assert len(seen) == 1 and turn.spoken is None and turn.verdict == "unparsed"


def test_a_given_s_is_kept_and_its_replies_learn() -> None:
    config = load([], [*ON, "selfplay.self_emotion=balanced"])
    prompt = make_prompt("c/1", dist(joy=1))
    group = score_group(prompt, [raw("E: joy\n")] * 3, config.reward, config.grpo, 0.0)
    seen: list[tuple[Any, ...]] = []
    sample = sampler([], [[" Hm.", " Ah.", " Oh."]], seen)
    ears = Ears(Known({"Ah.": dist(joy=1)}))
    (turn,) = take_turns(
        sample, [Fitted(prompt, (1,), 0)], [group], config, PLACE, 0.0, encode=encode, ears=ears
    )
    ((ids,), n, _), spoken = seen[0], turn.spoken
    assert len(seen) == 1 and n == 3 and spoken is not None
    given_ = bytes(ids[1:]).decode()
    assert (
        given_.startswith("E: joy\nS: ")
        and given_.endswith("\nR:")
        and (*spoken.line, *spoken.lead.token_ids) == ids[1:]
    )
    assert turn.completion is not None
    assert [r.said.self_emotion for r in spoken.replies if r.said] == [turn.completion.self_emotion] * 3


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["reward.expression=listener"], 'set grpo.credit = "causal"'),
        ([*ON, "reward.replies=1"], "a reply alone has no advantage"),
        (["reward.listener=some/folder"], "nobody would listen"),
        (["reward.reader=some/folder"], "no reply is rewarded, so that none is judged"),
        ([*ON, "reward.listener=a/b", "reward.reader=./a/b/"], "is the listener itself"),
        (["selfplay.reply=best"], "nobody says which reply is best"),
        ([*ON, "prompt.reasoning=brief"], "name another listener"),
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

"""How like people's turns replies are in length, worked by hand, and what it does to what replies learn."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import GateConfig, load
from selfemo.errors import ConfigError
from selfemo.method.lengths import length_gain, lengths_of
from selfemo.training.expression import reply_measures, score_replies
from tests.conftest import MELD, dist
from tests.support.readers import EVEN, Known
from tests.support.replies import drawn


def test_by_hand() -> None:
    """People: three turns, two of two words and one of four. Others: of two words and of one."""
    people, others = lengths_of(["a b", "a, ", "a b c d"]), lengths_of(["a a", "a"])
    assert length_gain("b a", people, others) == pytest.approx(
        math.log(2 * (2.5 / 4.5) / (2.5 / 4.5 + 1 / 2))
    )
    assert length_gain("b a b a", people, others) == pytest.approx(math.log(2)), "no other reply is so long"
    # Nobody says one word: half a turn.
    assert length_gain("b", people, others) == pytest.approx(math.log(2 * (0.5 / 4.5) / (0.5 / 4.5 + 1 / 2)))


def test_nothing_to_stand_beside() -> None:
    assert length_gain("a b", lengths_of(["a"]), Counter()) == 0
    assert length_gain(" ", lengths_of(["a"]), lengths_of(["a"])) == 0


def test_lengths_are_told_apart_in_steps_of_half_an_octave() -> None:
    steps = [next(iter(lengths_of(["x " * n]))) for n in range(1, 13)]
    assert steps == [0, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7]


TEXTS = st.lists(st.text("ab ?!", max_size=30), max_size=12)


@given(st.text("ab ?!", max_size=30), TEXTS, TEXTS)
def test_at_most_log_two(reply: str, people: list[str], others: list[str]) -> None:
    found = length_gain(reply, lengths_of(people), lengths_of(others))
    assert math.isfinite(found) and found <= math.log(2) + 1e-9


@given(TEXTS.filter(lambda t: bool(lengths_of(t))), TEXTS)
def test_what_a_policy_says_gains_nothing_in_the_mean(said: list[str], more: list[str]) -> None:
    """-KL(Q || M) over its own replies, of lengths that people have too."""
    mine, theirs = lengths_of(said), lengths_of([*said, *more])
    mean = sum(length_gain(t, theirs, mine) for t in said if lengths_of([t])) / mine.total()
    assert mean <= 1e-9


def test_a_policy_that_exclaims_is_told_from_people() -> None:
    """It costs where people exclaim a tenth of the time; where the policy does no more than they, nothing."""
    long = [f"I saw {n} of them in the old house" for n in range(90)]
    people, always = lengths_of(["What?!"] * 10 + long), lengths_of(["What?!"] * 50)
    # Ten times too often: log (1 + 10) / 2 = 1.70.
    assert length_gain("What?!", people, always) == pytest.approx(-1.70, abs=0.06)
    assert length_gain(long[0], people, always) == pytest.approx(math.log(2))
    assert length_gain("What?!", people, people) == pytest.approx(0, abs=0.05)


SAME = ["What?!", "I do not know what to say about it"]


def test_replies_to_other_prompts_are_what_it_stands_beside() -> None:
    """Both replies show S equally; a long one is worth more, since every other prompt got short ones."""
    listener = Known({}, before=EVEN)
    people = lengths_of([SAME[1]] * 9 + [SAME[0]])
    begun = [drawn(*SAME), *[drawn("What?!", "What?!") for _ in range(4)]]
    alone = score_replies(begun, listener, GateConfig(), contrast=True, people=people)
    assert [r.advantage for r in alone[0]] == [0, 0], "it has no weight"
    measured = reply_measures([(MELD, g) for g in alone])["reply_length_gain"]
    assert measured is not None and measured < -0.5
    found = score_replies(begun, listener, GateConfig(), contrast=True, people=people, length_weight=0.5)
    short, long = (r.length_gain for r in found[0])
    assert short is not None and long is not None
    gap = long - short
    assert gap > 1
    assert [r.advantage for r in found[0]] == pytest.approx([-gap / 4, gap / 4])
    assert found[0][0].elsewhere == pytest.approx({e: -gap / 4 for e in MELD.labels if e != "joy"})
    # A prompt whose replies are all alike learns nothing of it.
    assert [r.advantage for r in found[1]] == [0, 0]


def test_a_reply_that_breaks_a_rule_has_none() -> None:
    begun = [drawn("What joy!", "Fine."), drawn("Fine.", "Fine.")]
    listener, people = Known({"Fine.": dist(joy=1)}), lengths_of(["a", "a b"])
    found = score_replies(begun, listener, GateConfig(), people=people, length_weight=1)
    refused, fine = found[0]
    assert refused.fault == "label_word" and refused.length_gain is None
    assert fine.length_gain and fine.advantage > 0 > refused.advantage
    assert "reply_length_gain" not in reply_measures(
        [(MELD, score_replies(begun, listener, GateConfig())[0])]
    )


def test_it_needs_replies_that_are_rewarded() -> None:
    with pytest.raises(ConfigError, match=r"length_weight = 0\.5 with expression = \"none\""):
        load([], ["reward.length_weight=0.5"])

"""Replies of whole completions, each behind its own S, worked by hand with readers of known answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import Config, load
from selfemo.method.prompts import Fitted
from selfemo.method.types import Place, RawCompletion, Utterance
from selfemo.models.reply_readers import Read
from selfemo.stages.rl import turn_items
from selfemo.stages.selfplay import Turn, score_group, take_turns
from selfemo.training.expression import LABEL_WORD, UNREAD
from selfemo.training.whole_replies import OwnReplies, WholeEars, lead_of, prompt_of, reply_columns
from tests.conftest import dist, make_prompt
from tests.support.readers import Known

UP = math.log(0.99 + 0.01 / 7) - math.log(1 / 7)
"""R3 of a reply that shows S for certain, to a listener that expected nothing; of one that shows another
emotion it is log .01."""
DOWN = math.log(0.01)
TEXTS = (
    "E: joy\nS: joy\nR: Hooray!",
    "E: joy\nS: fear\nR: Hooray!",
    "no format at all",
    "E: fear\nS: joy\nR: Hm, well.",
)
SHOWS: dict[str, Read] = {"Hooray!": dist(joy=1)}


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode()


def raw(text: str) -> RawCompletion:
    n = len(text.encode())
    return RawCompletion(text, tuple(text.encode()), (-0.5,) * n, (0.25,) * n)


def settings(*more: str) -> Config:
    """Of a run on verl, which samples whole completions; nothing here starts it."""
    return load([], ["engine=verl", "reward.expression=listener", "reward.listener=a/b", "gate.tau=0", *more])


def played(config: Config, listener: Known, *texts: str, judge: Known | None = None) -> tuple[Fitted, Turn]:
    prompt = make_prompt("c/1", dist(joy=1))
    fitted = Fitted(prompt, (1, 2), 0)
    group = score_group(prompt, [raw(t) for t in texts], config.reward, config.grpo, 0.0)
    (turn,) = take_turns(
        lambda *_: [], [fitted], [group], config, Place("iteration-1-rl", 0, 1), 0.0,
        encode=lambda text: text.encode(), ears=WholeEars(listener, judge, decode=decode),
    )  # fmt: skip
    return fitted, turn


def test_replies_are_compared_over_the_completions_that_parse() -> None:
    """R3: up, down and 0; their mean is (up + down) / 3; down is more than 3 nats below it."""
    config = settings("reward.contrast=false", "reward.expression_weight=0.5")
    fitted, turn = played(config, Known(SHOWS), *TEXTS, judge=Known({}))
    own = turn.spoken
    assert isinstance(own, OwnReplies)
    mean = (UP + DOWN) / 3
    assert DOWN - mean < -3
    expected = {0: UP - mean, 1: -3.0, 3: -mean}
    assert {i: r.advantage for i, r in own.numbered.items()} == pytest.approx(expected)
    assert {i: r.gain for i, r in own.numbered.items()} == pytest.approx({0: UP, 1: DOWN, 3: 0.0})
    assert [r.judged for r in own.replies] == [0, 0, 0]
    assert [r.raw.text for r in own.replies] == ["R: Hooray!", "R: Hooray!", "R: Hm, well."]
    assert all(r.raw.text == decode(r.raw.token_ids) for r in own.replies)
    # Eq. 13 on all tokens: R1 = 1, 1, 0, 0 makes A = 1, 1, -1, -1; half of the reply's is added from R on.
    items = turn_items(fitted, turn, config, lambda text: text.encode(), 0)
    assert [i.prompt_ids for i in items] == [(1, 2)] * 4 and not any(i.reply or i.elsewhere for i in items)
    for k, (item, text, a) in enumerate(zip(items, TEXTS, (1, 1, -1, -1), strict=True)):
        head = text.find("R: ") if k in expected else len(text)
        behind = a + 0.5 * expected.get(k, 0.0)
        assert item.advantages() == pytest.approx([a] * head + [behind] * (len(text) - head), abs=1e-5)


def test_the_contrast_is_what_is_told_of_s_beyond_the_others() -> None:
    """To hear joy alone tells UP of joy, DOWN of six others: their contrasts are 6/7, -1/7 of UP - DOWN."""
    _, turn = played(settings(), Known(SHOWS), *TEXTS)
    assert turn.spoken is not None
    step = UP - DOWN
    values = [6 / 7 * step, -1 / 7 * step, 0.0]
    mean = sum(values) / 3
    expected = [min(3.0, max(-3.0, v - mean)) for v in values]
    assert [r.advantage for r in turn.spoken.replies] == pytest.approx(expected)


def test_equal_replies_are_read_once_and_none_where_nothing_parses() -> None:
    listener = Known(SHOWS)
    played(settings(), listener, *TEXTS)
    assert listener.asked == 2, "Hooray!, twice, and Hm, well."
    fitted, turn = played(settings(), listener, "nothing", "E: joy\nS: joy")
    assert turn.spoken is not None and turn.spoken.replies == () and listener.asked == 2
    assert all(i.head is None for i in turn_items(fitted, turn, settings(), lambda t: t.encode(), 0))


def test_a_reply_that_names_an_emotion_earns_nothing_and_joins_nothing() -> None:
    """It counts as one nat under 0, the worst of the others."""
    named, other = "E: joy\nS: joy\nR: I am so angry.", "E: fear\nS: joy\nR: Hm, well."
    _, turn = played(settings("reward.contrast=false"), Known({}), named, other)
    assert turn.best == 0 and turn.verdict == LABEL_WORD
    assert turn.spoken is not None
    assert [r.fault for r in turn.spoken.replies] == [LABEL_WORD, ""]
    assert [r.advantage for r in turn.spoken.replies] == pytest.approx([-0.5, 0.5])


def test_one_that_cannot_be_read_is_left_out() -> None:
    shows: dict[str, Read] = {**SHOWS, "Hm, well.": None}
    _, turn = played(settings("reward.contrast=false"), Known(shows), *TEXTS)
    assert turn.spoken is not None
    assert [r.fault for r in turn.spoken.replies] == ["", "", UNREAD]
    half = (UP - DOWN) / 2
    assert half > 3 and [r.advantage for r in turn.spoken.replies] == [3, -3, 0]


@given(st.text("abR:\nSE é", max_size=30), st.lists(st.integers(1, 4), min_size=30, max_size=30))
def test_the_tokens_before_the_r_line_hold_all_that_is_before_it(text: str, sizes: list[int]) -> None:
    """Tokens of one to four characters: the lead is the fewest that hold it."""
    from selfemo.method.parsing import reply_line

    pieces, at = list[str](), 0
    for size in sizes:
        if at < len(text):
            pieces.append(text[at : at + size])
            at += size
    lead = lead_of(lambda ids: "".join(pieces[i] for i in ids), range(len(pieces)))
    start = reply_line(text)
    assert len("".join(pieces[:lead])) >= start
    assert lead == 0 or len("".join(pieces[: lead - 1])) < start


def test_what_a_listener_is_asked_survives_its_columns() -> None:
    prompt = make_prompt()
    columns = {"prompt_id": prompt.id, "label_set": "meld", "labels": list(prompt.label_set.labels)}
    found = prompt_of(columns | reply_columns(prompt))
    assert found.history == tuple(Utterance(u.speaker, u.text) for u in prompt.history), "no emotions"
    assert found.target is None and found.label_set is prompt.label_set
    assert (found.answerer, found.persona, found.scenario) == (
        prompt.answerer, prompt.persona, prompt.scenario,
    )  # fmt: skip

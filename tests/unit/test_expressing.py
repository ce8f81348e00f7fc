"""Which of several replies expresses its S most, and how surely: by hand-made readers and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import GateConfig
from selfemo.errors import ConfigError
from selfemo.method.types import LABEL_SETS, EmotionDistribution, FailureKind, LabelSet, Prompt
from selfemo.models.generation.chat import Answer, ChatRequest
from selfemo.models.generation.endpoint import EndpointSampler
from selfemo.models.reply_readers import EncoderReader, Said
from selfemo.serve.answers import Done, Emotion, Event, ReadEmotion, ReplyDelta, Response, SelfEmotion
from selfemo.serve.asking import Ask
from selfemo.serve.chat.markup import answer, transcript
from selfemo.serve.chat.session import Character, Session
from selfemo.serve.expressing import SharedReader, alternatives, most_expressive, sound
from selfemo.serve.selfemo import SelfEmo
from tests.conftest import make_prompt

MELD = LABEL_SETS["meld"]
ENDPOINT = "e=http://127.0.0.1:9/v1,model=m"
TALK = [("Ann", "We won!")]


def weights(**raw: float) -> EmotionDistribution:
    return EmotionDistribution(raw)


def declared(**raw: float) -> ReadEmotion:
    found = weights(**raw)
    emotion = found.top(MELD)
    return ReadEmotion(emotion, 0.5, EmotionDistribution(dict.fromkeys(MELD, 1.0)), found)


def said(reply: str, tokens: tuple[int, int] = (9, 5), **raw: float) -> Response:
    raw = raw or {"joy": 1.0}
    return Response("Bo", declared(neutral=1), declared(**raw), reply, text=f"...{reply}", tokens=tokens)


def read(prompt: Prompt, **found: EmotionDistribution | None) -> dict[Said, EmotionDistribution | None]:
    return {(prompt, reply): q for reply, q in found.items()}


class Planted:
    """A reader that finds in each reply what a table says, and notes what it is asked."""

    def __init__(self, table: dict[str, dict[str, float]]):
        self.table, self.asked = table, list[str]()

    def read(self, said: Sequence[Said]) -> list[EmotionDistribution | None]:
        self.asked += [reply for _, reply in said]
        return [EmotionDistribution(self.table[reply]) for _, reply in said]


# -- the choice -----------------------------------------------------------------------------------------


def test_expressed_is_what_the_reader_gives_to_s_by_hand() -> None:
    """S = .7 joy + .3 surprise, q = .5, .2: .7 x .5 + .3 x .2 = .41, by what was written, not by how sure."""
    prompt = make_prompt()
    told = most_expressive(
        prompt,
        [said("Yes", joy=7, surprise=3)],
        read(prompt, Yes=weights(joy=0.5, surprise=0.2, neutral=0.3)),
    )
    assert told.expressed == pytest.approx(0.41)
    assert told.shown is not None and told.shown.emotion == "joy" and told.shown.written is None
    assert told.shown.confidence == pytest.approx(0.5)


def test_the_choice_is_by_r3_and_not_by_the_mean_probability() -> None:
    """S is half joy, half sadness. A = (.9, 0): mean .45, mean log (log .893 + log .0014) / 2 = -3.33.
    B = (.4, .4): mean .4, mean log -.92. R3 takes B, in which both are heard."""
    prompt = make_prompt()
    some = [said(r, joy=1, sadness=1) for r in ("A", "B")]
    found = read(prompt, A=weights(joy=0.9, anger=0.1), B=weights(joy=0.4, sadness=0.4, anger=0.2))
    best = most_expressive(prompt, some, found)
    assert best.reply == "B" and best.expressed == pytest.approx(0.4)


def test_ties_go_to_the_first_and_the_unread_come_last() -> None:
    prompt = make_prompt()
    even, worst = weights(joy=0.3, neutral=0.7), weights(anger=1)
    assert most_expressive(prompt, [said("A"), said("B")], read(prompt, A=even, B=even)).reply == "A"
    assert most_expressive(prompt, [said("A"), said("B")], read(prompt, A=None, B=worst)).reply == "B"
    unread = most_expressive(prompt, [said("A"), said("B")], read(prompt, A=None, B=None))
    assert (unread.reply, unread.shown, unread.expressed) == ("A", None, None)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_among_replies_to_a_lone_emotion_the_surest_wins(sure: list[float]) -> None:
    """Also far below the bound of R3, where all would be equally bad."""
    prompt = make_prompt()
    found = {f"r{k}": EmotionDistribution({"joy": q, "anger": 1 - q}) for k, q in enumerate(sure)}
    best = most_expressive(prompt, [said(r) for r in found], read(prompt, **found))
    assert best.expressed == pytest.approx(max(sure), abs=1e-9)


def test_what_breaks_a_rule_is_chosen_only_if_all_do() -> None:
    prompt = make_prompt()
    gate = GateConfig()
    wrong = [
        said("I feel so much joy today."), said("*grins*"), said("!"), said(prompt.history[-1].text),
        said("ha ha ha ha ha ha ha ha ha ha"),
    ]  # fmt: skip
    fine = said("Well done, all of you.")
    assert sound(prompt, [*wrong, fine], gate) == [replace(fine, sound_replies=1)]
    for one in wrong:
        assert sound(prompt, [one, fine], gate) == [replace(fine, sound_replies=1)], one.reply
    assert sound(prompt, wrong, gate) == [replace(a, sound_replies=0) for a in wrong]


def test_only_replies_behind_the_same_e_and_s_compete_and_all_tokens_count() -> None:
    first = said("A", (9, 5), joy=7, surprise=3)
    same, other = said("B", (0, 3), joy=7, surprise=3), said("C", (0, 4), joy=6, surprise=4)
    cut = Response.failed(make_prompt(), FailureKind.TRUNCATED)
    some = alternatives(first, [same, other, cut])
    assert [a.reply for a in some] == ["A", "B"]
    assert {a.tokens for a in some} == {(9, 12)}
    assert some[1].heard == first.heard and some[1].felt == first.felt and some[1].text == same.text


# -- whole answers of an endpoint -----------------------------------------------------------------------


def answering(monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[ChatRequest]:
    """Let endpoints answer with these texts in their order; returns the questions as they come."""
    asked: list[ChatRequest] = []

    def answers(_: Any, questions: Sequence[ChatRequest], on_text: Any = None) -> list[Answer]:
        found = []
        for k, question in enumerate(questions):
            text = texts[len(asked) % len(texts)]
            asked.append(question)
            if on_text is not None:
                on_text(k, text)
            found.append(Answer(text, 100, 10))
        return found

    monkeypatch.setattr(EndpointSampler, "answers", answers)
    return asked


WRITTEN = (
    "E: joy\nS: joy\nR: Good.", "E: joy\nS: joy\nR: Hooray for us!", "E: joy\nS: anger\nR: Hooray, you!",
    "E: joy\nS: joy\nR: So be it.",
)  # fmt: skip
HEARD = {
    "Good.": {"joy": 0.5, "neutral": 0.5},
    "Hooray for us!": {"joy": 0.9, "neutral": 0.1},
    "Hooray, you!": {"joy": 1.0},
    "So be it.": {"joy": 0.2, "neutral": 0.8},
}


def test_of_an_endpoints_answers_those_with_the_same_s_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, reader = answering(monkeypatch, *WRITTEN), Planted(HEARD)
    model = SelfEmo(ENDPOINT, reader=reader)
    best = model.respond(TALK, best_of=4)
    assert (best.reply, best.self_emotion, best.tokens) == ("Hooray for us!", "joy", (400, 40))
    assert best.expressed == pytest.approx(0.9)
    assert reader.asked == ["Good.", "Hooray for us!", "So be it."] and best.sound_replies == 3
    assert [q.temperature for q in asked] == [None, 1.0, 1.0, 1.0], "else they would all be the same"
    assert model.respond_many([Ask(TALK, temperature=0.4, best_of=2)])[0].failure is None
    assert [q.temperature for q in asked[4:]] == [0.4, 0.4]


def test_an_endpoint_reads_its_own_replies_where_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "E: joy\nS: joy\nR: Good.", "E: joy 6, surprise 4")
    told = SelfEmo(ENDPOINT).respond(TALK, best_of=1)
    assert told.reply == "Good." and told.expressed == pytest.approx(0.6)


def test_equal_replies_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, *WRITTEN[:1])
    reader = Planted(HEARD)
    assert SelfEmo(ENDPOINT, reader=reader).respond(TALK, best_of=8).expressed == pytest.approx(0.5)
    assert reader.asked == ["Good."]


def test_an_answer_is_read_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, reader = answering(monkeypatch, *WRITTEN[:1]), Planted(HEARD)
    plain = SelfEmo(ENDPOINT).respond(TALK)
    assert plain.expressed is None and plain.shown is None and len(asked) == 1
    assert plain.sound_replies is None
    for settings, told in (
        ({"reader": reader}, 0.5),
        ({"reader": reader, "best_of": 3}, 0.5),
        ({"best_of": 0}, None),
    ):
        r = SelfEmo(ENDPOINT, **settings).respond(TALK)  # type: ignore[arg-type]
        assert r.expressed == told, settings
    assert len(asked) == 1 + 1 + 3 + 1


def test_an_answer_that_cannot_be_read_has_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, reader = answering(monkeypatch, "E: melancholy\nS: joy\nR: Good."), Planted(HEARD)
    model = SelfEmo(ENDPOINT, reader=reader)
    assert model.respond(TALK, best_of=4).failure == FailureKind.UNKNOWN_EMOTION
    assert len(asked) == 1 and not reader.asked
    events = list(model.stream(TALK, best_of=4))
    assert not any(isinstance(e, ReplyDelta) for e in events) and isinstance(events[-1], Done)


def test_the_emotions_are_told_first_and_the_chosen_reply_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, *WRITTEN)
    events = list(SelfEmo(ENDPOINT, reader=Planted(HEARD)).stream(TALK, best_of=4))
    assert [type(e) for e in events] == [Emotion, SelfEmotion, ReplyDelta, Done]
    assert events[2].text == events[3].response.reply == "Hooray for us!"


def test_who_leaves_while_replies_are_drawn_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, *WRITTEN)
    reader, told = Planted(HEARD), list[Event]()

    def on_event(_: int, event: Event | None) -> bool:
        told.extend([] if event is None else [event])
        return len(told) < 2

    (left,) = SelfEmo(ENDPOINT, reader=reader).respond_many([Ask(TALK, best_of=4)], on_event)
    assert left.failure == FailureKind.STOPPED and not reader.asked
    assert [e.kind for e in told] == ["emotion", "self_emotion"]


@pytest.mark.parametrize("n", [0, -1, 17, "4", 2.0, None])
def test_how_many_replies_there_may_be(n: Any) -> None:
    if n is not None:  # which takes the model's
        with pytest.raises(ConfigError, match="a whole number from 1 to 16"):
            SelfEmo(ENDPOINT).respond(TALK, best_of=n)
    if n != 0:
        with pytest.raises(ConfigError, match="a whole number from 0 to 16"):
            SelfEmo(ENDPOINT, best_of=n)


def test_labels_that_an_encoder_does_not_know_are_refused() -> None:
    class Encoder:
        label_sets = (MELD, LabelSet("own:up,down", ("up", "down")))

    reader = SharedReader(EncoderReader(Encoder()))  # type: ignore[arg-type]
    model = SelfEmo(ENDPOINT, reader=reader)
    assert model.reader is reader
    with pytest.raises(ConfigError, match=r"labels of meld, own:up,down alone, not those of own:hot,cold"):
        model.respond(TALK, labels=["hot", "cold"])
    with pytest.raises(ConfigError, match="not those of iemocap"):
        SelfEmo(ENDPOINT, reader=reader, labels="iemocap")


# -- in the chat ----------------------------------------------------------------------------------------


def talk(response: Response) -> Session:
    return Session((Character("Mia"),)).said("We won!").answered(response)


@pytest.mark.parametrize(
    ("reply", "shown", "told"),
    [
        ("Yes", weights(joy=0.82, neutral=0.18), "expressed 82%"),
        ("Yes", weights(joy=0.12, anger=0.71, neutral=0.17), "expressed 12%, sounds like anger 71%"),
        ("What joy!", weights(joy=0.98, neutral=0.02), "expressed 98%, breaks a rule of replies"),
        ("Joy!", weights(joy=0.3, fear=0.7), "expressed 30%, sounds like fear 70%, breaks a rule of replies"),
    ],
)
def test_the_chat_says_how_surely_a_reply_expresses_its_emotion(
    reply: str, shown: EmotionDistribution, told: str
) -> None:
    prompt = make_prompt()
    answers = sound(prompt, [said(reply)], GateConfig())
    session = talk(most_expressive(prompt, answers, read(prompt, **{reply: shown})))
    assert session.lines[-1].expression() == told
    assert session.lines[-1].notes("read as") == ["feels joy", told]
    assert f"(feels joy, {told})" in session.as_markdown()
    for page in (transcript(session, MELD), answer(1, session, MELD)):
        assert page.count('class="se-sure"') == 1 and ("sounds like" in page) == ("sounds like" in told)
        for part in told.removeprefix("expressed ").split(", "):
            assert f">{part}</span>" in page
        assert f'"width:{100 * shown["joy"]:.1f}%"' in page
    assert session.undone().lines == () and "expressed" not in session.as_jsonl(MELD)


def test_that_a_reply_breaks_a_rule_is_told_where_it_could_not_be_read() -> None:
    prompt = make_prompt()
    (joy,) = sound(prompt, [said("Joy!")], GateConfig())
    session = talk(most_expressive(prompt, [joy], read(prompt, **{"Joy!": None})))
    assert session.lines[-1].expression() == "breaks a rule of replies"
    page = transcript(session, MELD)
    assert ">breaks a rule of replies</span>" in page and "se-sure" not in page


def test_a_reply_that_nobody_read_says_nothing() -> None:
    session = talk(said("Yes"))
    assert session.lines[-1].expression() == "" and "se-sure" not in transcript(session, MELD)

"""The most expressive of several replies, drawn by a real (random) model behind one E and S."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfemo import SelfEmo
from selfemo.config.encoders import EncoderConfig
from selfemo.errors import ConfigError
from selfemo.method.types import LABEL_SETS, EmotionDistribution
from selfemo.models.classifiers.reader import TurnReader
from selfemo.models.generation.local import LocalSampler
from selfemo.models.reply_readers import Said, SamplerReader
from selfemo.serve.answers import Response
from selfemo.serve.asking import Ask
from selfemo.serve.expressing import OwnReader
from tests.support.encoders import build_encoder

MELD = LABEL_SETS["meld"]
TALK = [("Ann", "Did you hear that noise?"), ("Bo", "It was only the cat, I promise.")]


class Planted:
    """A reader to whom replies sound like anything but neutral the more, the higher a number of theirs."""

    def __init__(self, rank: Callable[[str], float] = len):
        self.rank, self.asked = rank, list[Said]()

    @property
    def replies(self) -> list[str]:
        return [reply for _, reply in self.asked]

    def read(self, said: Sequence[Said]) -> list[EmotionDistribution | None]:
        self.asked += said
        found = []
        for _, reply in said:
            sure = 1 / (2 + self.rank(reply))
            found.append(EmotionDistribution({"neutral": sure} | dict.fromkeys(MELD.labels[1:], 1 - sure)))
        return found


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> SelfEmo:
    return SelfEmo(tiny_model, max_tokens=96)


def with_reader(model: SelfEmo, reader: Planted, monkeypatch: pytest.MonkeyPatch) -> SelfEmo:
    monkeypatch.setattr(model, "_reader", reader)
    monkeypatch.setattr(reader, "check", lambda labels: None, raising=False)
    return model


def drawn_by(model: SelfEmo, monkeypatch: pytest.MonkeyPatch) -> list[Response]:
    """The further answers that a model draws from now on."""
    seen: list[Response] = []
    draw = model._answers.draw

    def noted(*given: Any) -> list[list[Response]]:
        found = draw(*given)
        seen.extend(r for some in found for r in some)
        return found

    monkeypatch.setattr(model._answers, "draw", noted)
    return seen


def test_a_plain_answer_reads_and_draws_nothing(model: SelfEmo, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.respond(TALK, "Shy.")
    monkeypatch.setattr(OwnReader, "read", None)
    monkeypatch.setattr(model._answers, "draw", None)
    assert model.respond(TALK, "Shy.") == before
    assert before.shown is None and before.expressed is None
    assert model.respond_many([Ask(TALK, "Shy.")]) == [before]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_all_replies_stand_behind_the_plain_answers_e_and_s(
    model: SelfEmo, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    drawn = drawn_by(model, monkeypatch)
    plain, several = (
        model.respond_many([Ask(TALK, "Shy.", temperature=temperature, best_of=n)])[0] for n in (1, 5)
    )
    assert len(drawn) == 4 and len({r.reply for r in drawn} | {plain.reply}) == 5
    head = plain.text[: plain.text.index("\nR:")]
    for r in drawn:
        assert r.failure is None and r.text.startswith(f"{head}\nR:")
        assert (r.heard.written, r.felt.written) == (plain.heard.written, plain.felt.written)
    assert several.heard == plain.heard and several.felt == plain.felt
    assert several.tokens[0] == plain.tokens[0]
    assert several.tokens[1] == plain.tokens[1] + sum(r.tokens[1] for r in drawn)
    assert several.reply in {plain.reply, *(r.reply for r in drawn)}


def test_the_one_that_the_reader_finds_most_expressive_is_given(
    model: SelfEmo, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = with_reader(model, Planted(), monkeypatch)
    some = [longest.respond([("Ann", f"I saw {n} cats.")], "Shy.", best_of=6) for n in range(4)]
    assert any(r.self_emotion != "neutral" for r in some)
    for n, r in enumerate(some):
        replies = [t for p, t in model.reader.asked if p.history[-1].text == f"I saw {n} cats."]  # type: ignore
        assert len(set(replies)) == len(replies)
        sure = r.felt.written.weight("neutral")  # type: ignore[union-attr]
        if sure in (0, 1):
            assert r.reply == (min if sure else max)(replies, key=len)
        assert r.expressed is not None and r.shown is not None


def test_the_same_seed_draws_the_same_replies(model: SelfEmo, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_by(model, monkeypatch)
    for seed in (3, 3, 4):
        model.respond(TALK, "Shy.", seed=seed, best_of=4)
    texts = [[r.text for r in drawn[k : k + 3]] for k in (0, 3, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_a_batch_equals_one_at_a_time(model: SelfEmo) -> None:
    asks = [
        Ask([("Ann", f"I saw {n} cats.")], "Shy.", max_tokens=80 + n, best_of=(None, 1, 2, 4)[n % 4])
        for n in range(6)
    ]
    together = model.respond_many(asks)
    for ask, r in zip(asks, together, strict=True):
        (alone,) = model.respond_many([ask])
        assert (r.tokens, r.failure, r.expressed is None) == (alone.tokens, None, ask.best_of is None)


def test_a_drawn_reply_keeps_the_limits_and_the_stops(
    model: SelfEmo, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = drawn_by(model, monkeypatch)
    (first,) = model.respond_many([Ask(TALK, "Shy.", max_tokens=60, best_of=8)])
    assert all(r.failure is None and r.reply for r in drawn)
    begun = len(model.policy.plain_ids(first.text[: first.text.index("\nR:") + 3]))  # type: ignore[union-attr]
    assert max(r.tokens[1] for r in drawn) + begun <= 60 and any(r.cut for r in drawn)
    free, stop = drawn[0].reply, drawn[0].reply[3:5]
    del drawn[:]
    model.respond_many([Ask(TALK, "Shy.", max_tokens=60, best_of=8, stop=(stop,))])
    assert drawn[0].reply == free[: free.index(stop)] and drawn[0].stop == stop
    del drawn[:]
    model.respond_many([Ask(TALK, "Shy.", max_tokens=96, reply_tokens=4, best_of=8)])
    assert all(r.tokens[1] <= 4 + 4 + 1 for r in drawn), "a character may take four tokens, the end one"


def test_what_streams_is_the_chosen_reply(model: SelfEmo) -> None:
    whole = model.respond(TALK, "Shy.", best_of=4)
    *emotions, reply, done = model.stream(TALK, "Shy.", best_of=4)
    assert [e.kind for e in (*emotions, reply, done)] == ["emotion", "self_emotion", "reply", "done"]
    assert reply.text == done.response.reply == whole.reply  # type: ignore[union-attr]
    told = list(model.stream(TALK, "Shy.", best_of=1))
    assert len(told) > 4 and told[-1].response.expressed is not None, "one reply is told as it is written"  # type: ignore[union-attr]


def test_a_stream_that_is_left_ends_the_drawing(model: SelfEmo, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_by(model, monkeypatch)
    (left,) = model.respond_many([Ask(TALK, "Shy.", max_tokens=900, best_of=4)], lambda n, e: e is not None)
    assert left.failure == "stopped" and not drawn
    told = []

    def until_drawing(_: int, event: Any) -> bool:
        told.append(event)
        return told.count(None) < 200

    (left,) = model.respond_many([Ask(TALK, "Shy.", max_tokens=900, best_of=4)], until_drawing)
    assert left.failure == "stopped" and len(told) < 1000


@pytest.mark.parametrize("settings", [{}, {"constrained": False}, {"overrides": ["prompt.reasoning=brief"]}])
def test_a_text_that_is_begun_is_gone_on_with(tiny_model: Path, settings: dict[str, Any]) -> None:
    """Held to the format or not, and behind reasoning."""
    model = SelfEmo(tiny_model, max_tokens=96, **settings)
    ask, thought = Ask(TALK, "Shy."), "T: Who knows.\n" if "overrides" in settings else ""
    text = f"{thought}E: joy 7, surprise 3\nS: fear\nR: Oh no."
    prompt = model.prepare(ask)
    (free,) = SelfEmo(tiny_model, max_tokens=96).respond_many([ask])
    (drawn,) = model._answers.draw(
        [ask], [prompt], [Response("Ann", free.heard, free.felt, "", text=text)], [3], None
    )
    for r in drawn:
        assert r.text.startswith(text.removesuffix(" Oh no."))
        if settings.get("constrained", True):
            assert r.failure is None and r.self_emotion == "fear" and r.reply and r.reasoning == thought[3:-1]
    assert len({r.text for r in drawn}) == 3


def test_a_model_reads_its_own_replies_as_a_reader_of_replies_would(model: SelfEmo) -> None:
    """SamplerReader over the same weights, which are loaded once here."""
    assert model.policy is not None
    there = SamplerReader(LocalSampler(model.policy), model.config.prompt)
    said = [
        (model.prepare(Ask(TALK, persona, labels=labels)), reply)
        for labels in (None, ["calm", "upset"]) for persona in ("Shy.", "Loud.") for reply in ("Yes.", "No!")
    ]  # fmt: skip
    for own, other in zip(model.reader.read(said), there.read(said), strict=True):
        assert own is not None and other is not None
        assert dict(own) == pytest.approx(dict(other), abs=2e-2)  # bf16, another packing
    r = model.respond(TALK, "Shy.", best_of=1)
    (read,) = model.recognise([*TALK, (r.speaker, r.reply)], turns="last")
    assert r.shown is not None and r.shown.distribution is not None and read.distribution is not None
    assert dict(r.shown.distribution) == pytest.approx(dict(read.distribution), abs=2e-2)


def test_a_model_that_reasons_reads_its_own_replies(tiny_model: Path) -> None:
    model = SelfEmo(tiny_model, max_tokens=96, overrides=["prompt.reasoning=brief"])
    assert model.respond(TALK, "Shy.", best_of=2).expressed is not None


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept encoder over MELD's labels."""
    where = tmp_path_factory.mktemp("encoders")
    config = EncoderConfig(encoder=str(build_encoder(where / "core")), max_tokens=64)
    (where / "kept").mkdir()
    TurnReader.new(config, [MELD], "cpu").save(where / "kept")
    return where / "kept"


def test_a_kept_encoder_or_another_model_reads(tiny_model: Path, kept: Path) -> None:
    plain = SelfEmo(tiny_model, max_tokens=96)
    encoder = SelfEmo(tiny_model, max_tokens=96, reader=kept, best_of=3)
    r = encoder.respond(TALK, "Shy.")
    assert r.shown is not None and r.expressed is not None and r.heard == plain.respond(TALK, "Shy.").heard
    assert encoder.respond(TALK, "Shy.", best_of=1).reply == plain.respond(TALK, "Shy.").reply
    with pytest.raises(ConfigError, match="not those of own:calm,upset"):
        encoder.respond(TALK, labels=["calm", "upset"])
    with pytest.raises(ConfigError, match="not those of emorynlp"):
        SelfEmo(tiny_model, reader=kept, labels="emorynlp")
    shared = SelfEmo(tiny_model, max_tokens=96, reader=encoder.reader)
    assert shared.reader is encoder.reader and shared.respond(TALK, "Shy.").expressed is not None
    own = SelfEmo(tiny_model, max_tokens=96, reader=tiny_model, best_of=1)
    assert isinstance(own.reader, OwnReader), "the weights are there already"

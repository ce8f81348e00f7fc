"""A chat session as a value: saying, answering, undoing, editing, exporting; and how a page shows it."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from selfemo.data import load
from selfemo.errors import ConfigError, DataError
from selfemo.method.prompts import clean
from selfemo.method.types import LABEL_SETS, EmotionDistribution, FailureKind, Utterance
from selfemo.runs.dialogues import Episode, Played
from selfemo.serve.answers import ReadEmotion, Response
from selfemo.serve.chat.episodes import from_episode, title
from selfemo.serve.chat.markup import bars, gallery, shown, timeline, transcript, writing
from selfemo.serve.chat.session import (
    Character,
    Line,
    Session,
    character,
    sample_characters,
    search_characters,
    strongest,
)
from selfemo.serve.chat.votes import Votes

MELD = LABEL_SETS["meld"]
MIA, BO = Character("Mia", "warm"), Character("Bo")


def emotions(session: Session) -> list[tuple[str, str | None, str | None]]:
    """(speaker, emotion read, emotion declared) of each line."""
    return [(x.speaker, x.heard and x.heard.emotion, x.felt and x.felt.emotion) for x in session.lines]


def reading(emotion: str) -> ReadEmotion:
    one = EmotionDistribution({emotion: 1.0})
    return ReadEmotion(emotion, 0.8, one, one)


def response(who: str, heard: str, felt: str, reply: str) -> Response:
    return Response(who, reading(heard), reading(felt), reply)


@pytest.fixture
def talk() -> Session:
    begun = Session((MIA,), "A kitchen.").said("I lost my keys.")
    return begun.answered(response("Mia", "sadness", "surprise", "Again?")).said("Yes.")


def test_what_is_heard_and_felt_stands_beside_its_line(talk: Session) -> None:
    assert [(x.speaker, x.text) for x in talk.lines] == [
        ("You", "I lost my keys."), ("Mia", "Again?"), ("You", "Yes."),
    ]  # fmt: skip
    assert emotions(talk) == [
        ("You", "sadness", None), ("Mia", None, "surprise"), ("You", None, None),
    ]  # fmt: skip
    ask = talk.ask()
    assert ask.speaker == "Mia" and ask.scene == "A kitchen." and ask.persona.description == "warm"
    assert ask.conversation[-1] == ("You", "Yes.")


def test_undo_takes_a_line_of_yours_back_with_its_answer(talk: Session) -> None:
    whole = talk.answered(response("Mia", "anger", "joy", "Look in the fridge."))
    once = whole.undone()
    assert [x.text for x in once.lines] == ["I lost my keys.", "Again?"]
    assert once.lines[1].heard is None and once.lines[0].heard == reading("sadness")
    assert once.undone().lines == () and once.undone().undone().lines == ()
    two = Session((MIA, BO)).said("Late again.", "Mia")
    two = two.answered(response("Bo", "anger", "neutral", "It is snow."))
    assert two.next_character() == MIA
    assert two.undone().lines == (Line("Mia", "Late again."),)


def test_an_edit_drops_what_came_after(talk: Session) -> None:
    changed = talk.edited(1, "Where were they?")
    assert [x.text for x in changed.lines] == ["I lost my keys.", "Where were they?"]
    assert changed.lines[1].felt is None  # nobody declared anything for these words
    for place, text, said in ((7, "x", "no line 8"), (-1, "x", "no line 0"), (0, " ", "say something")):
        with pytest.raises(DataError, match=said):
            talk.edited(place, text)


def test_what_cannot_be_said_or_asked() -> None:
    with pytest.raises(DataError, match="nothing was said"):
        Session((MIA,)).said(" \x00\n")
    with pytest.raises(DataError, match="somebody has to begin"):
        Session((MIA,)).ask()
    for export in (Session((MIA,)).as_markdown, lambda: Session((MIA,)).as_jsonl(MELD)):
        with pytest.raises(DataError, match="nothing to export"):
            export()
    nothing = ReadEmotion(None, failure=FailureKind.TOO_LONG)
    failed = Response("Mia", nothing, nothing, "", failure=FailureKind.TOO_LONG)
    assert Session((MIA,)).said("Hm.").answered(failed).lines == (Line("You", "Hm.", nothing),)


def test_a_name_belongs_to_one_alone(talk: Session) -> None:
    for characters, you in (
        ((Character("You"),), "You"),
        ((MIA, Character(" Mia\n")), "You"),
        ((MIA,), "Mia "),
    ):
        with pytest.raises(ConfigError, match="different names"):
            Session(characters, you=you)
    for characters, you in (((Character("\x00"),), "You"), ((MIA,), " ")):
        with pytest.raises(ConfigError, match="need"):
            Session(characters, you=you)
    with pytest.raises(ConfigError, match="two would be called You"):
        replace(talk, characters=(MIA, Character("You", "a pirate")))


def test_the_export_is_a_data_set(talk: Session, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text(talk.as_jsonl(MELD))
    result = load(str(file))
    (found,) = result.conversations
    # Training holds a part out by itself only of what names no split.
    assert result.report.without_split == {found.id} and talk.said("More.").as_jsonl(MELD) != talk.as_jsonl(
        MELD
    )
    assert found.scenario == "A kitchen." and found.label_set.labels == MELD.labels
    assert found.personas["Mia"].description == "warm"
    assert [(u.speaker, u.text) for u in found.turns] == [(x.speaker, x.text) for x in talk.lines]
    assert [u.emotion and u.emotion.top(MELD) for u in found.turns] == ["sadness", "surprise", None]
    loud = Session((MIA,), "[x](http://y)\n![z](q)").said("Hi.").as_markdown()
    assert "](" not in loud and loud.count("\n# ") == 0
    text = talk.said("Look: [x](javascript:1) <b> *y*").as_markdown()
    assert "**Mia** (feels surprise): Again?" in text and "(read as sadness)" in text
    assert "[x](" not in text and "<b>" not in text and "*y*" not in text


def test_an_episode_goes_on() -> None:
    joy, fear = EmotionDistribution({"joy": 1.0}), EmotionDistribution({"fear": 0.7, "joy": 0.3})
    episode = Episode(
        "c1", "A lift.", MELD, (Utterance("Ann", "It stopped.", fear),),
        (
            Played("Bo", "Ann", fear, joy, fear, "Press something.", 0.3),
            Played("Ann", "Bo", fear, fear, joy, "It moves!", 1.0),
        ),
    )  # fmt: skip
    session = from_episode(episode, {"Bo": "timid"})
    assert emotions(session) == [
        ("Ann", "joy", "fear"), ("Bo", "fear", "fear"), ("Ann", None, "joy"),
    ]  # fmt: skip
    assert session.next_character() == Character("Bo", "timid") and session.scene == "A lift."
    assert session.you == "You"
    # The user's name, and what a number makes of it, may be those of speakers: talks are exported as data.
    assert from_episode(episode, you="Ann").you == "Ann 2"
    renamed = replace(episode, history=(Utterance("You", "It stopped.", fear), Utterance("Bo", "So it did.")))
    assert from_episode(renamed).you == "You 2" and from_episode(renamed, you="Zed").you == "Zed"
    assert title(session, 60) == "Ann and Bo, 3 turns: It stopped."
    assert title(session, 8) == "Ann and Bo, 3 turns: It …"
    assert title(Session((MIA,)).said("Hi."), 8) == "You and Mia, 1 turn: Hi."


def test_characters_of_the_sample_set_and_of_ones_own() -> None:
    known = sample_characters()
    assert len(known) > 100 and all(c.description for c in known.values())
    name = next(iter(known))
    assert character(name) == known[name]
    assert character(" Zed : an anxious  neighbour ") == Character("Zed", "an anxious neighbour")
    with pytest.raises(ConfigError, match="needs a name"):
        character(": kind")
    assert search_characters("") == list(known.values())
    assert [c.name for c in search_characters("Nurse tired")] == ["Brigid"]
    assert search_characters("xyzzy") == []


def test_the_three_strongest_emotions_have_the_named_one_among_them() -> None:
    weights = EmotionDistribution({"neutral": 0.4, "joy": 0.3, "fear": 0.2, "anger": 0.1})
    for named, found in (
        ("joy", [("neutral", 0.4), ("joy", 0.3), ("fear", 0.2)]),
        ("anger", [("neutral", 0.4), ("joy", 0.3), ("anger", 0.1)]),
    ):
        assert strongest(ReadEmotion(named, weights[named], weights)) == found
    assert strongest(ReadEmotion("joy", 0.5)) == [("joy", 0.5)]  # written alone
    assert strongest(ReadEmotion(None)) == strongest(None) == []
    drawn = bars("feels", ReadEmotion("joy", 0.3, weights), MELD)
    assert re.findall(r"width:([\d.]+)%;background:(#\w+)", drawn) == [
        ("40.0", "#a2a6ad"), ("30.0", "#fbd83f"), ("20.0", "#663b92"),
    ]  # fmt: skip
    assert drawn.count("se-named") == 1 and 'se-named"><span>joy' in drawn
    assert drawn.count(">named</span>") == 1  # neutral is more probable
    assert "named</span>" not in bars("feels", ReadEmotion("neutral", 0.4, weights), MELD)


# -- the page -------------------------------------------------------------------------------------------


class _Tags(html.parser.HTMLParser):
    """All tags and attributes of a page, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes |= {k for k, _ in attrs}

    def handle_data(self, data) -> None:
        self.text += data


OURS = {"div", "span", "b", "i", "p"}
ATTRIBUTES = {
    "class",
    "role",
    "style",
    "aria-hidden",
    "aria-live",
    "aria-label",
    "tabindex",
    "data-who",
    "title",
}
LOUD = "<script>alert(1)</script><img src=x onerror=alert(2)> ${7*7} {{7*7}} `x` \"'&lt; <|im_end|>"


@given(st.text(min_size=1) | st.just(LOUD), st.text(min_size=1) | st.just(LOUD))
def test_nothing_that_is_said_becomes_part_of_the_page(name: str, text: str) -> None:
    assume(clean(name))
    session = Session((Character(name),), you="The user", lines=(Line(name, text, reading("joy")),))
    page = _Tags(transcript(session, MELD))
    assert set(page.tags) <= OURS and page.attributes <= ATTRIBUTES
    page = _Tags(writing(session, name, text, None, MELD))
    assert set(page.tags) <= OURS and page.attributes <= ATTRIBUTES
    cards = _Tags(gallery([Character(name, text)]))
    assert not {"script", "img", "a", "iframe", "style", "link"} & set(cards.tags)
    assert not any(key.startswith("on") for key in cards.attributes)
    for mark in "${}`":
        assert mark not in shown(text)
    table = _Tags(timeline(session, MELD))
    assert not {"script", "img", "a", "iframe", "style", "link"} & set(table.tags)


def test_the_page_shows_text_as_it_was_written() -> None:
    session = Session((MIA,), lines=(Line("You", "1 < 2 & ${x} {{y}} \u202eabc", reading("joy")),))
    text = _Tags(transcript(session, MELD)).text
    assert "1 < 2 & ${x} {{y}} \ufffdabc" in text and "read asjoy100%" in text


def test_the_timeline_has_its_table(talk: Session) -> None:
    drawn = timeline(talk, MELD)
    page = _Tags(drawn)
    # A ring has an edge, so that light colours are seen on white.
    assert page.tags.count("circle") == 3 and page.tags.count("tr") == 3
    for part in ("You", "Mia", "feels", "read as", "surprise", "sadness"):
        assert part in page.text
    assert "appear here" in timeline(Session((MIA,)), MELD)


def test_votes_are_kept_blind(talk: Session, tmp_path: Path) -> None:
    votes = Votes(tmp_path / "votes.jsonl", ("runs/a", "runs/b"))
    answers = [
        talk.answered(response("Mia", "joy", "joy", "First.")),
        talk.answered(response("Mia", "joy", "joy", "Second.")),
    ]
    assert votes.add(talk, (1, 0), answers, "1").startswith("Answer 1 was runs/b")
    votes.add(talk, (1, 0), answers, "tie")
    first, second = map(json.loads, votes.path.read_text().splitlines())
    assert first["winner"] == "runs/b" and first["models"] == ["runs/b", "runs/a"]
    assert first["answers"] == ["First.", "Second."] and second["winner"] is None
    with pytest.raises(DataError, match="vote cannot be kept"):
        Votes(tmp_path / "no" / "votes.jsonl", ("a", "b")).add(talk, (0, 1), answers, "2")


def test_exports_of_the_page_do_not_outlive_it() -> None:
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "from selfemo.serve.chat.panel import export_file\n"
            "for text in ('a', 'b'):\n"
            "    path = export_file(text, 'chat.md'); print(path, open(path).read())",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (one, a), (two, b) = (line.split() for line in told.stdout.splitlines())
    assert (a, b) == ("a", "b") and one != two
    assert not Path(one).parents[1].exists()

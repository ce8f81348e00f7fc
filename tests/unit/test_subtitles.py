# ruff: noqa: RUF001  (subtitles in many scripts)
"""Subtitles as people have them: each form's habits, what is left out, and that no word gets lost."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfemo.data.transcripts import OTHER_SPEAKER, SPEAKER, ReadSettings, read_turns
from selfemo.errors import DataError
from tests.support.subtitle_fuzz import NOISE, SPOKEN, fuzz
from tests.support.transcripts import Heard, hear, lost_subtitle_words

TWO = [SPEAKER, OTHER_SPEAKER]


def srt(*cues: str) -> str:
    """SubRip with a second for each cue and no gap."""
    return "\n".join(
        f"{n}\n00:00:{n:02},000 --> 00:00:{n:02},900\n{text}\n" for n, text in enumerate(cues, 1)
    )


@pytest.fixture
def said(tmp_path: Path):  # type: ignore[no-untyped-def]
    """(speaker, text) of the turns of a file; no word may be lost."""

    def read(content: str, name: str = "s.srt") -> list[tuple[str, str]]:
        return whole(tmp_path / name, content).said()

    return read


def whole(path: Path, content: str, settings: ReadSettings | None = None) -> Heard:
    heard = hear(path, content, settings)
    assert not lost_subtitle_words(content, heard, path)
    return heard


def texts(turns: list[tuple[str, str]]) -> list[str]:
    return [text for _, text in turns]


# -- where a subtitle begins and ends ---------------------------------------------------------------

SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<i>ANN: Who is there?</i>

2
00:00:03,000 --> 00:00:04,000
- Me.
- {\\an8}Who is me?

3
00:01:00,000 --> 00:01:02,000
It rains
in Spain.
"""


def test_speakers_dashes_and_scenes(tmp_path: Path) -> None:
    heard = whole(tmp_path / "s.srt", SRT.replace("\n", "\r\n"))
    assert [(t.conversation, t.speaker, t.text) for t in heard.turns] == [
        ("s-1", "ANN", "Who is there?"),
        ("s-1", SPEAKER, "Me."),
        ("s-1", OTHER_SPEAKER, "Who is me?"),
        ("s-2", SPEAKER, "It rains in Spain."),
    ]
    assert heard.turns[0].fields == {"start": "00:00:01,000", "end": "00:00:02,500"}
    assert not heard.left and not heard.reading.report.blemishes
    one_scene = whole(tmp_path / "s.srt", SRT, ReadSettings(gap=0))
    assert {t.conversation for t in one_scene.turns} == {"s-1"}


def test_voices_notes_and_settings_of_webvtt(tmp_path: Path) -> None:
    vtt = (
        "WEBVTT - Title\nKind: captions\n\nNOTE\na --> comment\n\nSTYLE\n::cue {}\n\n"
        "intro\n00:01.000 --> 00:02.000 align:start\n<v Ann>Hi &amp; <b>welcome</b></v>\n<v Bo>Hello\n\n"
        "NOTE later\nand longer\n\n00:03.000 --> 01:00:04.000\n<00:03.500>Bye\n"
    )
    heard = whole(tmp_path / "v.vtt", vtt)
    assert heard.said() == [("Ann", "Hi & welcome"), ("Bo", "Hello"), (SPEAKER, "Bye")]
    assert heard.reading.form == "subtitles (WebVTT)"
    assert heard.kinds() == {
        "lines before the first subtitle": [
            " - Title", "Kind: captions", "NOTE", "a --> comment", "STYLE", "::cue {}",
        ],
        "names of cues": ["intro"],
        "display settings": ["align:start"],
        "comments and styles": ["NOTE later\nand longer"],
    }  # fmt: skip
    assert texts(whole(tmp_path / "v.vtt", "WEBVTT\n00:01.000 --> 00:02.000\nHi\n").said()) == ["Hi"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("blank", ["\n", "\n  \n", "\n\n\n", ""])
def test_blank_lines_and_line_ends(said, end: str, blank: str) -> None:  # type: ignore[no-untyped-def]
    """Cues with one blank line between, several, none, or one with blanks in it."""
    cues = [f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\nLine {w}.\n" for n, w in enumerate(("a", "b", "c"), 1)]
    if end == "\r\r\n" and not blank:
        blank = "\n"
    assert texts(said(blank.join(cues).replace("\n", end))) == ["Line a.", "Line b.", "Line c."]


def test_lines_that_are_numbers(said) -> None:  # type: ignore[no-untyped-def]
    numbered = (
        "1\n00:00:01,000 --> 00:00:02,000\nHow old?\n\n71\n\n2\n00:00:02,000 --> 00:00:03,000\n1953\n\n"
    )
    assert texts(said(numbered + "3\n00:00:03,000 --> 00:00:04,000\n4\n\n")) == ["How old? 71", "1953", "4"]
    # A number is missing, and the cue's own text may be taken for the next.
    missing = numbered + "00:00:03,000 --> 00:00:04,000\n3\n\n4\n00:00:04,000 --> 00:00:05,000\nOh."
    assert texts(said(missing)) == ["How old? 71", "1953", "3", "Oh."]
    # No cue has a number: a countdown.
    bare = "".join(f"00:00:0{n},000 --> 00:00:0{n},900\n{9 - n}\n\n" for n in range(1, 5))
    assert texts(said(bare)) == ["8", "7", "6", "5"]
    # Doubled, missing and falling numbers without blank lines.
    odd = "".join(
        f"{n}\n00:00:0{k},000 --> 00:00:0{k},900\nLine {k}\n" for k, n in enumerate((1, 1, 7, 3), 1)
    )
    assert texts(said(odd)) == ["Line 1", "Line 2", "Line 3", "Line 4"]
    double = "1\n\n00:00:01,000 --> 00:00:02,000\n\nOne.\n\n\n\n2\n\n00:00:02,000 --> 00:00:03,000\n\n12\n"
    assert texts(said(double)) == ["One.", "12"]


@pytest.mark.parametrize(
    ("times", "start", "end"),
    [
        ("00:00:01,500 --> 00:00:02,750", "00:00:01,500", "00:00:02,750"),
        ("0:0:1.5-->0:0:2.75", "0:0:1.5", "0:0:2.75"),
        ("00:01 --> 00:02", "00:01", "00:02"),
        ("00:01.5  ->  00:02", "00:01.5", "00:02"),
        ("00:00:01,500 \u2192 00:00:02,750", "00:00:01,500", "00:00:02,750"),
        ("00:00:01,500 --&gt; 00:00:02,750", "00:00:01,500", "00:00:02,750"),
        ("00: 00: 01, 500 -- > 00: 00: 02, 750", "00:00:01,500", "00:00:02,750"),
        ("00:00:01:12 --> 00:00:02:24", "00:00:01:12", "00:00:02:24"),
        ("123:00:01,500 --> 123:00:02,750", "123:00:01,500", "123:00:02,750"),
        ("00:00:01,500 --> 00:00:02,750  X1:40 X2:600 Y1:20 Y2:50", "00:00:01,500", "00:00:02,750"),
        ("0:00:01.500,0:00:02.750", "0:00:01.500", "0:00:02.750"),
        ("-00:00:01,500 --> 00:00:02,750", "-00:00:01,500", "00:00:02,750"),
    ],
)  # fmt: skip
def test_times_as_tools_write_them(tmp_path: Path, times: str, start: str, end: str) -> None:
    heard = whole(tmp_path / "s.srt", f"1\n{times}\nHello.\n")
    assert [(t.text, t.fields) for t in heard.turns] == [("Hello.", {"start": start, "end": end})]


def test_text_in_the_line_of_times(said) -> None:  # type: ignore[no-untyped-def]
    assert said("[00:00.000 --> 00:02.000]  Well, hello.\n[00:02.000 --> 00:03.000]  Oh.\n") == [
        (SPEAKER, "Well, hello."), (SPEAKER, "Oh."),
    ]  # fmt: skip


def test_scenes_by_silence_and_by_times_that_begin_again(tmp_path: Path) -> None:
    content = (
        "1\n00:00:01,000 --> 00:10:00,000\nA sign.\n\n2\n00:00:02,000 --> 00:00:03,000\nMeanwhile.\n\n"
        "3\n00:10:20,000 --> 00:10:21,000\nLater.\n\n4\n00:00:01,000 --> 00:00:02,000\nPart two.\n"
    )
    turns = whole(tmp_path / "s.srt", content).turns
    assert [t.conversation for t in turns] == ["s-1", "s-1", "s-1", "s-2"]


def test_files_one_behind_the_other(said) -> None:  # type: ignore[no-untyped-def]
    assert texts(said(SRT + "\n" + SRT)) == texts(said(SRT)) * 2
    vtt = "WEBVTT\n\n00:01.000 --> 00:02.000\nHi.\n\n"
    assert texts(said(f"{vtt}\ufeff{vtt}", "v.vtt")) == ["Hi.", "Hi."]


def test_what_stands_around_the_cues(tmp_path: Path) -> None:
    content = "My film\nby me\n\n" + srt("Hello.", "", "[whistle]") + "\n4\n00:00:09,000 -->"
    heard = whole(tmp_path / "s.srt", content)
    assert heard.said() == [(SPEAKER, "Hello.")]
    assert heard.kinds() == {
        "lines before the first subtitle": ["My film", "by me"],
        "subtitles without text": ["2 00:00:02,000 --> 00:00:02,900"],
        "sound cues": ["[whistle]"],
        "subtitles that are cut off": ["4\n00:00:09,000 -->"],
    }
    assert whole(tmp_path / "s.srt", srt("One.", "Two.") + "\n3").kinds() == {
        "subtitles that are cut off": ["3"]
    }
    assert texts(whole(tmp_path / "s.srt", srt("One.", "Two.") + "\n40").said()) == ["One.", "Two. 40"]


def test_a_line_of_one_space_ends_no_cue_of_webvtt(said) -> None:  # type: ignore[no-untyped-def]
    content = "WEBVTT\n\n00:01.000 --> 00:02.000\nOne\n \nNOTE two\n\n00:03.000 --> 00:04.000\n \nThree\n"
    assert texts(said(content, "v.vtt")) == ["One NOTE two", "Three"]


def test_the_form_is_known_by_the_content(tmp_path: Path) -> None:
    vtt, sub = "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Bo>Hi.\n", srt("Hi.")
    sbv = "0:00:01.000,0:00:02.000\nHi.\n\n0:00:02.000,0:00:03.000\nHo.\n"
    for suffix in ("srt", "vtt", "sbv"):
        assert whole(tmp_path / f"a.{suffix}", vtt).reading.form == "subtitles (WebVTT)"
        assert whole(tmp_path / f"a.{suffix}", sub).reading.form == "subtitles (SubRip)"
        heard = whole(tmp_path / f"a.{suffix}", sbv)
        assert heard.reading.form == "subtitles (YouTube's .sbv)" and texts(heard.said()) == ["Hi.", "Ho."]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.srt", "1\nhello\n", "a.srt:1: a subtitle needs its times"),
        ("a.srt", "\n\nhello\n", "a.srt:3: a subtitle needs its times"),
        ("a.srt", "1\n00:00:01 --> later\nhello\n", "a.srt:2: these are no times"),
        ("a.srt", srt("Hi.") + "\n2\n00:00:0x,000 --> 00:00:03,000\nHo.\n", "a.srt:6: these are no times"),
        ("a.srt", srt("Hi.") + "\n2\n00:00:02,000\nHo.\n", "a.srt:6: these are no times"),
        ("a.srt", srt("Hi.") + "\n2\n00:00:02,000 -> 0:0:0:0:3\nHo.\n", "a.srt:6: these are no times"),
        ("a.vtt", "WEBVTT\n\nNOTE hm\n\nhello\n", "a.vtt:1: a subtitle needs its times"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_with_its_line(tmp_path: Path, name: str, content: str, says: str) -> None:
    with pytest.raises(DataError) as e:
        hear(tmp_path / name, content)
    assert says in str(e.value)


def test_nothing_to_read(tmp_path: Path) -> None:
    assert not whole(tmp_path / "a.srt", "").turns
    heard = whole(tmp_path / "a.vtt", "WEBVTT\nKind: captions\n\nNOTE nothing yet\n")
    assert not heard.turns and len(heard.left) == 2


# -- captions that roll -----------------------------------------------------------------------------

ROLLING_VTT = """WEBVTT
Kind: captions

00:00:00.320 --> 00:00:02.470 align:start position:0%
~
we<00:00:00.640><c> took</c><00:00:01.000><c> the</c><00:00:01.200><c> ferry</c>

00:00:02.470 --> 00:00:02.480 align:start position:0%
we took the ferry
~

00:00:02.480 --> 00:00:04.310 align:start position:0%
we took the ferry
and<00:00:02.800><c> it</c><00:00:03.000><c> rained</c>

00:00:04.310 --> 00:00:04.320 align:start position:0%
and it rained
~

00:00:04.320 --> 00:00:06.000 align:start position:0%
and it rained
[Music]
""".replace("~", " ")
ROLLING_SRT = """1
00:00:00,320 --> 00:00:02,470
we took the ferry

2
00:00:02,470 --> 00:00:02,480
we took the ferry

3
00:00:02,480 --> 00:00:04,310
we took the ferry
and it rained

4
00:00:04,310 --> 00:00:04,320
and it rained
"""


@pytest.mark.parametrize(("name", "content", "last"), [
    ("y.vtt", ROLLING_VTT, "00:00:06.000"), ("y.srt", ROLLING_SRT, "00:00:04,320"),
])  # fmt: skip
def test_automatic_captions_say_each_line_once(tmp_path: Path, name: str, content: str, last: str) -> None:
    heard = whole(tmp_path / name, content)
    assert texts(heard.said()) == ["we took the ferry", "and it rained"]
    dot = last[-4]
    assert [(t.fields["start"], t.fields["end"]) for t in heard.turns] == [
        (f"00:00:00{dot}320", f"00:00:04{dot}310"), (f"00:00:02{dot}480", last),
    ]  # fmt: skip
    again = heard.kinds()["repeated lines of rolling captions"]
    assert again[:3] == ["we took the ferry", "we took the ferry", "and it rained"]


def test_captions_of_television_roll_too(said) -> None:  # type: ignore[no-untyped-def]
    lines = ["the harbour", "was closed", "for a day", "said the mayor"]
    cues = [
        f"{n}\n00:00:0{n},000 --> 00:00:0{n + 1},000\n{a}\n{b}\n"
        for n, (a, b) in enumerate(pairwise(lines), 1)
    ]
    assert texts(said("\n".join(cues))) == ["the harbour was closed", "for a day", "said the mayor"]


def test_captions_that_grow_are_read_when_they_are_whole(tmp_path: Path) -> None:
    shown = ["the", "the train", "the train\nwas", "the train\nwas late", "was late\nagain"]
    heard = whole(
        tmp_path / "live.vtt",
        "WEBVTT\n\n"
        + "\n".join(f"00:0{n}.000 --> 00:0{n + 1}.000\n{text}\n" for n, text in enumerate(shown)),
    )
    assert texts(heard.said()) == ["the train", "was late", "again"]
    assert [t.fields["end"] for t in heard.turns] == ["00:04.000", "00:05.000", "00:05.000"]
    assert heard.reading.left_out == {"repeated lines of rolling captions": 5}


def test_people_who_say_more_each_time_are_heard(said) -> None:  # type: ignore[no-untyped-def]
    cues = ["Go", "Go away!", "Why?", "I said it.", "When?", "Now", "Now then.", "Fine.", "Bye."]
    content = "\n".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n + 1},000\n{c}\n" for n, c in enumerate(cues))
    assert texts(said(content)) == cues


def test_what_people_repeat_stays(said) -> None:  # type: ignore[no-untyped-def]
    for pause in (0, 1):
        words = ["Never.", "Never.", "Never, never!", "All right.\nGo.", "Go."]
        content = "\n".join(
            f"{n}\n00:00:{2 * n:02},000 --> 00:00:{2 * n + 2 - pause:02},000\n{w}\n"
            for n, w in enumerate(words, 1)
        )
        assert texts(said(content)) == [w.replace("\n", " ") for w in words]


# -- who speaks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cue", "speakers", "words"),
    [
        ("- Who?\n- Me.", TWO, ["Who?", "Me."]),
        ("-who?\n-me", TWO, ["who?", "me"]),
        ("Did it rain?\n-All night.", TWO, ["Did it rain?", "All night."]),
        ("Did it rain? -All night.", TWO, ["Did it rain?", "All night."]),
        ("Did it\nrain? \u2013 All night.", TWO, ["Did it rain?", "All night."]),
        ("\u2014 Who?\n\u2014 Me.", TWO, ["Who?", "Me."]),
        ("-One.\n-Two.\n-One again.", [*TWO, SPEAKER], ["One.", "Two.", "One again."]),
        ("-A long line\nthat goes on.\n-Short.", TWO, ["A long line that goes on.", "Short."]),
        ("- PAUL: Who?\n- Me.", ["PAUL", SPEAKER], ["Who?", "Me."]),
        ("PAUL: - Who?", ["PAUL"], ["Who?"]),
        ("PAUL:\n- Who?", ["PAUL"], ["Who?"]),
        ("- PAUL: Who? - EMMA: Me.", ["PAUL", "EMMA"], ["Who?", "Me."]),
        ("-¿Quién?\n-¡Yo!", TWO, ["¿Quién?", "¡Yo!"]),
        ("-[man] Two?\n-[sighs]", ["man"], ["Two?"]),
        ("I was-\n-going to say it.", [SPEAKER], ["I was- -going to say it."]),
        ("-going to say it.", [SPEAKER], ["-going to say it."]),
        ("It was\n-5 degrees.", [SPEAKER], ["It was -5 degrees."]),
        ("-5 degrees.", [SPEAKER], ["-5 degrees."]),
        ("a twenty\n-year plan", [SPEAKER], ["a twenty -year plan"]),
        ("We could wait- and see.", [SPEAKER], ["We could wait- and see."]),
        ("No--\n--listen!", [SPEAKER], ["No-- --listen!"]),
        (">> Good evening.", [SPEAKER], ["Good evening."]),
        (">> PAUL: Good evening.\n>> Thanks.", ["PAUL", SPEAKER], ["Good evening.", "Thanks."]),
        (">>> Floods. >> Where?", TWO, ["Floods.", "Where?"]),
        ("&gt;&gt; Floods.\n&gt;&gt; Where?", TWO, ["Floods.", "Where?"]),
        ("PAUL: Stop. EMMA: No.", ["PAUL", "EMMA"], ["Stop.", "No."]),
        ("MRS. REED: Stop.", ["MRS. REED"], ["Stop."]),
        ("PAUL: Stop\nright there.\nEMMA: No.", ["PAUL", "EMMA"], ["Stop right there.", "No."]),
        ("PAUL, EMMA:\nHooray!", ["PAUL, EMMA"], ["Hooray!"]),
        ("<i>PAUL:</i> Stop.", ["PAUL"], ["Stop."]),
        ("<v Paul>Hi.</v> <v Emma>Ho.", ["Paul", "Emma"], ["Hi.", "Ho."]),
        ("<v.loud Paul Reed>Hi\nthere.", ["Paul Reed"], ["Hi there."]),
        ("<v Paul>Hi.</v> And you?", ["Paul", SPEAKER], ["Hi.", "And you?"]),
        ("Listen: we wait.", [SPEAKER], ["Listen: we wait."]),
    ],
)  # fmt: skip
def test_turns_of_a_cue(said, cue: str, speakers: list[str], words: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert said(srt("It rained.", cue, "All night long."))[1:-1] == list(zip(speakers, words, strict=True))


def test_names_by_the_whole_file(said) -> None:  # type: ignore[no-untyped-def]
    assert said(srt("Пассажир №1: Где мы?", "Ольга: Дома.", "Élise : Non.", "陈明：好。", "يوسف: لا")) == [
        ("Пассажир №1", "Где мы?"), ("Ольга", "Дома."), ("Élise", "Non."), ("陈明", "好。"), ("يوسف", "لا"),
    ]  # fmt: skip
    plain = srt("One thing is sure: rain.", "He said it: rain.", "Give it to me: now.", "Careful: rocks.")
    assert {speaker for speaker, _ in said(plain)} == {SPEAKER}


@pytest.mark.parametrize(
    "speech",
    [
        "Ganz offen: ich gehe.", "Meine Bedingung: kein Wort.", "Gute Idee: wir warten.",
        "Hand aufs Herz: ja.", "Mejor dicho: nunca.", "Dicho en corto: adiós.",
        "Quelle blague : encore toi.",
        "Heads up: rain.", "Dear Lord: help.", "NB: bring shoes.", "P.P.S.: no shoes.",
        "Reminder: bring shoes.",
        "Flight 12: now boarding.",
    ],
)  # fmt: skip
def test_a_turn_of_phrase_among_names_is_speech(said, speech: str) -> None:  # type: ignore[no-untyped-def]
    turns = said(srt("Nora: You came.", "Emil: I did.", speech, "Nora: Good.", "Emil: Is it?"))
    assert turns[2] == (SPEAKER, speech)
    assert [who for who, _ in turns[:2]] == ["Nora", "Emil"]


def test_a_turn_of_phrase_that_may_be_a_name_is_told(tmp_path: Path) -> None:
    heard = whole(tmp_path / "s.srt", srt("Nora: You came.", "Nora: Hm.", "Sales rep: Hello.", "Listen: no."))
    assert heard.said()[2] == (SPEAKER, "Sales rep: Hello.")
    assert heard.reading.report.blemishes == {"colon that may end a name, kept in the text": 1}


@pytest.mark.parametrize(
    "cues",
    [
        ["سامي: متى؟", "هدى: غدا.", "القاعدة هي: لا تسأل."],
        ["דוד: מתי?", "רות: מחר.", "האמת היא: אני עייפה."],
        ["小红: 走吧。", "爷爷: 等等!", "他想说的是：谢谢。"],
        ["Nora: When?", "Emil: Tomorrow.", "The rule is: ask nobody."],
    ],
)
def test_names_that_occur_once_beside_speech_with_a_colon(said, cues: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert [who for who, _ in said(srt(*cues))] == [*(c.split(":")[0] for c in cues[:2]), SPEAKER]


@pytest.mark.parametrize(
    "name",
    ["FIRST OFFICER", "Second Nurse", "De Gaulle", "El Chico", "First Lady", "AI", "ELLE", "SON", "MEN"],
)
def test_names_that_begin_like_a_sentence(said, name: str) -> None:  # type: ignore[no-untyped-def]
    assert said(srt("Nora: You came.", f"{name}: Here.", "Nora: Good."))[1] == (name, "Here.")


def test_what_is_said_beside_a_name_is_a_field(tmp_path: Path) -> None:
    vtt = (
        "WEBVTT\n\n00:01.000 --> 00:02.000\nEmma Reed (she/her): Hi.\n\n00:02.000 --> 00:03.000\n"
        "paul | Ferries: ho\n\n00:03.000 --> 00:04.000\n<v Reed, Emma (External)>Ha.</v>\n"
    )
    heard = whole(tmp_path / "z.vtt", vtt)
    assert [(t.speaker, t.text, t.fields.get("aside")) for t in heard.turns] == [
        ("Emma Reed", "Hi.", "she/her"), ("paul", "ho", "Ferries"), ("Reed, Emma", "Ha.", "External"),
    ]  # fmt: skip


def test_a_doubtful_colon_is_noted(tmp_path: Path) -> None:
    heard = whole(tmp_path / "s.srt", srt("It rained.", "Supper: eel.", "Again?", "All week.", "Oh."))
    assert texts(heard.said())[1] == "Supper: eel."
    assert dict(heard.reading.report.blemishes) == {"colon that may end a name, kept in the text": 1}


def test_cues_out_of_order_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    content = "1\n00:00:05,000 --> 00:00:06,000\nB.\n\n2\n00:00:01,000 --> 00:00:02,000\nA.\n"
    heard = whole(tmp_path / "s.srt", content)
    assert texts(heard.said()) == ["B.", "A."]
    assert dict(heard.reading.report.blemishes) == {"subtitle that starts before the one above it": 1}


# -- sounds, tags, credits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cue", "kind"),
    [
        ("[BELL RINGS]", "sound cues"), ("(laughs)", "sound cues"), ("[door slams\nloudly]", "sound cues"),
        ("*coughs*", "sound cues"), ("- [laughs]\n- [coughs]", "sound cues"), ("（足音）", "sound cues"),
        ("PAUL: [sighs]", "sound cues"), ("<i>[Music]</i>", "sound cues"), ("\u266a\u266a", "sound cues"),
        ("\u266a Row the boat \u266a", "lines of songs"), ("\u266a Row the boat", "lines of songs"),
        ("\u266a Row\nthe boat \u266a", "lines of songs"), ("# Row the boat #", "lines of songs"),
        ("PAUL:", "names without speech"),
        ("www.OpenSubtitles.org", "credits of the subtitles"),
        ("Subtitles by Emma Reed", "credits of the subtitles"),
        ("Untertitel von Emma", "credits of the subtitles"),
        ("<i></i>", "subtitles without text"),
    ],
)  # fmt: skip
def test_what_nobody_says_is_no_turn(tmp_path: Path, cue: str, kind: str) -> None:
    heard = whole(tmp_path / "s.srt", srt("It rained.", cue, "All night."))
    assert texts(heard.said()) == ["It rained.", "All night."]
    assert set(heard.kinds()) == {kind}


@pytest.mark.parametrize(
    "cue",
    [
        "[sighs] I know.", "I know. (laughs)", "*sighs* I know.", "(I should have known.)",
        "<laughs> I know.",
        "2 < 3 > 1", "I <3 you", "#1 in the charts", "He saw the subtitles by chance.", "{odd", "a * b * c",
    ],
)  # fmt: skip
def test_what_stands_in_a_spoken_line_stays(said, cue: str) -> None:  # type: ignore[no-untyped-def]
    assert texts(said(srt("It rained.", cue))) == ["It rained.", cue]


def test_sounds_beside_speech(tmp_path: Path) -> None:
    heard = whole(tmp_path / "s.srt", srt("[BELL RINGS]\nWho is it?", "\u266a la la \u266a\n- Stop it!"))
    assert texts(heard.said()) == ["Who is it?", "Stop it!"]
    assert heard.kinds() == {"sound cues": ["[BELL RINGS]"], "lines of songs": ["\u266a la la \u266a"]}


def test_tags_and_entities(said) -> None:  # type: ignore[no-untyped-def]
    cue = (
        '<font color="#ff0000" face="Arial">Caf&eacute;</font> {\\an8}{\\fad(1,2)}&amp;<br/>th&#233;\\N'
        "<c.red.bg>&lt;i&gt;two&lt;/i&gt;</c> <lang en-GB>AT&T</lang>"
    )
    assert texts(said(srt(cue))) == ["Café & thé two AT&T"]


# -- no word gets lost ------------------------------------------------------------------------------


def test_no_word_gets_lost_of_bent_files(tmp_path: Path) -> None:
    tally = fuzz(tmp_path, 2_000, seed=1)
    # Both ends are reached: most of it is read, and some is refused.
    assert tally["read"] > 1_000 and tally["refused"] > 50


@pytest.mark.slow
@pytest.mark.extended
def test_no_word_gets_lost_of_many_bent_files(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 50_000, seed=2)["read"] > 25_000


LINES = st.one_of(
    st.sampled_from([*SPOKEN, *NOISE, "00:00:01,000 --> 00:00:02,000", "1", "2", "", "WEBVTT", "NOTE"]),
    st.text(st.characters(codec="utf-8"), max_size=20),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=30), name=st.sampled_from(["a.srt", "a.vtt", "a.sbv"]))
def test_any_lines_are_read_or_refused(tmp_path: Path, lines: list[str], name: str) -> None:
    path = tmp_path / name
    path.write_bytes("\n".join(lines).encode())
    try:
        turns = list(read_turns(path))
    except DataError:
        return
    assert all(t.text and t.speaker for t in turns)

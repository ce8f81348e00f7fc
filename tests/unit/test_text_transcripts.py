# ruff: noqa: RUF001  (names and words of several scripts)
"""Text transcripts and copies of chats as people have them: each form, each bad input, no word lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfemo.data.transcripts import SPEAKER, ReadSettings
from selfemo.data.transcripts.date_stamps import is_stamp, stamp_before, stamp_behind
from selfemo.errors import DataError
from tests.support.text_fuzz import FORMS, NAMES, SPOKEN, TIMES, fuzz
from tests.support.transcripts import Heard, hear, lost_words

BOTH = [("Uma", "Is it late?"), ("Ola", "Not yet: wait.")]


def whole(folder: Path, content: str, read: ReadSettings | None = None) -> Heard:
    path = folder / "t.txt"
    heard = hear(path, content, read)
    assert not lost_words(content, heard, path)
    return heard


def times(heard: Heard) -> list[str]:
    return [t.fields.get("time", "") for t in heard.turns]


# -- dates and times --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "when",
    [
        "2024-05-02", "2024-05-02 18:40", "2024-05-02T18:40:07Z", "2024-05-02T18:40:07.250+02:00", "18:40",
        "6:40 PM", "6:40:07 p.m.", "00:18:40.125", "02.05.2024 18:40", "5/2/24, 6:40 PM",
        "May 2, 2024 6:40 PM",
        "2 May 2024, 18:40", "2 May 2024 at 18:40:07", "2nd May 2024", "Thu 02/05/2024 18:40",
        "Donnerstag, 2. Mai 2024 um 18:40", "2 mai 2024 à 18:40", "2 de mayo de 2024, 18:40",
        "2024年5月2日 18:40",
        "午後6:40", "오후 6:40", "18:40 Uhr", "18:40 UTC", "Today at 6:40 PM", "02-May-24 06:40 PM",
        "0:07", "7 PM",
        "18:40:07 - 18:40:09", "00:07.000 --> 00:09.000", "1.5 --> 2.25", "0:0:7.0 --> 0:0:9.1", "18h40",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "form", ["[{}] Uma: Hi", "({}) Uma: Hi", "{} Uma: Hi", "{} - Uma: Hi", "{}, Uma: Hi"]
)
def test_a_date_or_time_before_the_name_is_known(form: str, when: str) -> None:
    if when.startswith("1.5") and form[0] != "[":
        form = "[{}] Uma: Hi"
    stamp = stamp_before(line := form.format(when))
    assert stamp and (stamp.text, line[stamp.end :]) == (when, "Uma: Hi")


@pytest.mark.parametrize(
    "line",
    ["Uma: Hi", "50 Cent: Hi", "24/7 Support: Hi", "007: Hi", "01.23.45.67.89: Hi", "+49 30-12-55: Hi",
        "3:1 won",
     "May: Hi", "March 5th Avenue", "At 9:15 he came", "2024 was long", "9:15ish", "Monday: Hi"],
)  # fmt: skip
def test_what_only_looks_like_a_date(line: str) -> None:
    stamp = stamp_before(line)
    assert stamp is None or line.startswith("March")


@pytest.mark.parametrize(
    ("line", "name", "when"),
    [
        ("Uma (18:40): Hi", "Uma", "18:40"), ("Uma [00:01:02]: Hi", "Uma", "00:01:02"),
        ("Uma Lind 00:01:02: Hi", "Uma Lind", "00:01:02"), ("Uma, 6:40 PM: Hi", "Uma", "6:40 PM"),
        ("Uma - 6:40 PM: Hi", "Uma", "6:40 PM"), ("Uma, [2 May 2024 at 18:40:07]:", "Uma",
        "2 May 2024 at 18:40:07"),
        ("uma — Yesterday at 6:40 PM", "uma", "Yesterday at 6:40 PM"), ("Speaker 2  1:02:03", "Speaker 2",
        "1:02:03"),
    ],
)  # fmt: skip
def test_a_date_or_time_behind_the_name_is_known(line: str, name: str, when: str) -> None:
    stamp = stamp_behind(line)
    assert stamp and (stamp.name, stamp.text) == (name, when)


@pytest.mark.parametrize("line", ["Meet me at 9:15: bring tea", "Uma: Hi", "50 Cent: Hi", "Uma (PM): Hi"])
def test_no_date_or_time_behind_a_name(line: str) -> None:
    stamp = stamp_behind(line)
    assert stamp is None or not stamp.colon or stamp.name == "Meet me at"


def test_a_line_that_is_a_time_alone() -> None:
    alone = [
        "00:05:00",
        "[0:05]",
        "--- May 2, 2024 ---",
        "Thursday, 2 May 2024",
        "-- Today --",
        "2024/05/02(木)",
    ]
    assert all(map(is_stamp, alone))
    assert not any(map(is_stamp, ["12", "today", "Uma 0:05", "May", "2024-05-02 was late", ""]))


# -- lines of `Name: text` --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "{n}: {x}", "{n} : {x}", "{n}:{x}", "2024-05-02 18:40 {n}: {x}", "6:40 PM {n}: {x}",
        "(6:40:07 PM) {n}: {x}",
        "[00:12] {n}: {x}", "May 2, 2024 6:40 PM - {n}: {x}", "{n} (18:40): {x}", "{n} [00:01:02]: {x}",
        "{n} 00:01:02: {x}", "{n}, 6:40 PM: {x}", "[00:01 - 00:03] {n}: {x}", "**{n}:** {x}",
        "**{n}**: {x}",
        "_{n}_: {x}", "**[00:12] {n}:** {x}", "- {n}: {x}", "- **{n}** (18:40): {x}", "3. {n}: {x}",
        "3) {n}: {x}",
        "  3  {n}: {x}", "\t{n}: {x}", "{n}：{x}", "18:40:07 From {n} to Everyone: {x}",
        "18:40:07 From  {n}  To  Everyone:\n\t{x}", "18:40:07 Von {n} an Alle: {x}", "{n}:\n{x}",
        "{n}:\n\n{x}\n",
        "[18:40] <{n}> {x}", "18:40 <@{n}> {x}", "<+{n}> {x}", "2024-05-02 18:40:07\t{n}\t{x}",
        "18:40:07  {n} | {x}",
        "{n}\t{x}", "{n} | {x}", "{n}>> {x}", "[{n}] {x}", "({n}) {x}", "{n} - {x}", "{n} – {x}",
        "[{n}] [18:40] {x}",
        "{n} 00:12 {x}", "{n}  0:12\n{x}\n", "[6:40 PM] {n}\n{x}", "{n}  6:40 PM\n{x}",
        "{n} — 02/05/2024 18:40\n{x}",
        "{n}, [2 May 2024 at 18:40:07]:\n{x}\n", "0:0:7.0 --> 0:0:9.1\n{n}\n{x}\n", "{n} (00:12):\n{x}\n",
        "{n}: [00:12]\n{x}\n", "{n}\n6:40 PM\n{x}", "2024-05-02 18:40:07 {n}\n{x}\n",
        "{n}\n — \n02/05/2024 18:40\n{x}",
        "[00:00:07] {n}:\n{x}", "[01.05.2024 18:40:07] {n}: {x}", "5/2/24, 6:40 PM - {n}: {x}",
        "[02-May-24 06:40 PM] {n}\n{x}\n", "[6:40 PM, 5/2/2024] {n}: {x}",
    ],
)  # fmt: skip
def test_two_speakers_in_each_form(tmp_path: Path, form: str) -> None:
    said = [*BOTH, ("Uma", "Fine.")]
    heard = whole(tmp_path, "\n".join(form.replace("{n}", n).replace("{x}", x) for n, x in said))
    assert heard.said() == said and not heard.left and len({t.conversation for t in heard.turns}) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [("Ольга", "Жан"), ("陈明", "小红"), ("يوسف", "ليلى"), ("प्रिया", "राम"), ("지영", "민수"), ("Σοφία",
        "Άννα"),
     ("יעל", "דן"), ("สมชาย", "มาลี")],
)  # fmt: skip
@pytest.mark.parametrize(
    "form", ["{n}: {x}", "{n}：{x}", "[18:40] {n}: {x}", "{n}  0:12\n{x}\n", "<{n}> {x}"]
)
def test_names_in_other_scripts(tmp_path: Path, first: str, second: str, form: str) -> None:
    said = [(first, "..."), (second, "ok: 3"), (first, "!")]
    heard = whole(tmp_path, "\n".join(form.replace("{n}", n).replace("{x}", x) for n, x in said))
    assert heard.said() == said


def test_the_time_is_kept_as_it_is_written(tmp_path: Path) -> None:
    heard = whole(tmp_path, "[18:40] Uma: Hi\n2 May 2024, 18:41 - Ola: Ho\nUma: And?\n")
    assert times(heard) == ["18:40", "2 May 2024, 18:41", ""]
    assert whole(tmp_path, "Uma: Hi\nOla: Ho\n").turns[0].fields == {}


def test_other_words_beside_a_name_are_kept(tmp_path: Path) -> None:
    heard = whole(
        tmp_path, "18:40 From Uma to Ola(Direct Message): Psst\n18:41 From Ola to Everyone: What?\n"
    )
    assert [t.fields["head"] for t in heard.turns] == [
        "18:40 From Uma to Ola(Direct Message):", "18:41 From Ola to Everyone:",
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["2024-05-02: Hi", "02/05/2024: Hi", "9:15: Hi", "5/2/24, 6:40 PM: Hi"])
@pytest.mark.parametrize("before", ["", "Ola: Yes\n"])
def test_a_date_or_a_time_is_no_name(tmp_path: Path, line: str, before: str) -> None:
    with pytest.raises(DataError, match=r"t\.txt:\d: has a date or a time where the name should be"):
        whole(tmp_path, f"{before}{line}\n")


def test_a_colon_in_speech_is_no_name(tmp_path: Path) -> None:
    heard = whole(
        tmp_path,
        "Uma: We waited for an hour and\nthen it came: the tram\nThe trouble is: it was full.\n"
        "https://tram.example: see\n9:30 we left\nodds of 3:1 against\nOla: Sad\nUma: Yes\n",
    )
    assert heard.said() == [
        ("Uma", "We waited for an hour and then it came: the tram The trouble is: it was full. "
         "https://tram.example: see 9:30 we left odds of 3:1 against"), ("Ola", "Sad"), ("Uma", "Yes"),
    ]  # fmt: skip
    assert heard.reading.report.blemishes == {"lines that go on with the one before": 5}


def test_a_sentence_broken_to_the_width_of_the_file(tmp_path: Path) -> None:
    text = (
        "Uma: On the second day we took the boat to the island, which the people there call\n"
        "Windhome: a rock with three houses and a goat.\n"
        "Ola: And the weather? I heard that the ferry was late again and that nobody knew\n"
        "why.\nUma: Good\n"
    )
    assert [n for n, _ in whole(tmp_path, text).said()] == ["Uma", "Ola", "Uma"]


def test_lines_in_front_and_between(tmp_path: Path) -> None:
    heard = whole(
        tmp_path,
        "Talk with a baker\nAttendees: Uma, Ola\nDate: 2 May 2024\n# Part one\n---\nUma: Hi\n"
        "[laughter]\n(pause)\n"
        "[crosstalk 00:01]\n00:05:00\nPage 3 of 4\nOla: Ho\n*** Uma left the chat\nUma:\n",
    )
    assert heard.said() == [("Uma", "Hi"), ("Ola", "Ho")]
    assert heard.kinds() == {
        "lines before the first speaker": [
            "Talk with a baker", "Attendees: Uma, Ola", "Date: 2 May 2024", "# Part one"],
        "stage directions": ["[laughter]", "(pause)", "[crosstalk 00:01]"],
        "times on a line of their own": ["00:05:00"],
        "headings": ["Page 3 of 4"], "lines of the system": ["*** Uma left the chat"],
        "speakers without words": ["Uma:\n"],
    }  # fmt: skip


def test_lines_with_a_time_and_no_name_in_a_chat_are_of_the_system(tmp_path: Path) -> None:
    heard = whole(
        tmp_path, "(6:40 PM) Uma: Hi\n(6:41 PM) Ola joined the chat\n(6:42 PM) Ola: Ho\n(6:43 PM) Uma: Ah\n"
    )
    assert [x for _, x in heard.said()] == ["Hi", "Ho", "Ah"]
    assert heard.kinds() == {"lines of the system": ["(6:41 PM) Ola joined the chat"]}


def test_numbers_of_lines(tmp_path: Path) -> None:
    heard = whole(
        tmp_path,
        " 1   THE COURT:  Begin.\n 2   Q.  Were you\n 3       there?\n 4   A.  I was.\n 5   Q.  Why?\n",
    )
    assert heard.said() == [("THE COURT", "Begin."), ("Q", "Were you there?"), ("A", "I was."), ("Q", "Why?")]
    assert heard.kinds() == {"numbers of lines": ["3"]}


def test_a_hearing(tmp_path: Path) -> None:
    text = "THE COURT: Begin.\nBY MS. LIND:\nQ. Where?\nA. Home: alone.\nQ. Sure?\nA. Yes.\n"
    heard = whole(tmp_path, text)
    assert [n for n, _ in heard.said()] == ["THE COURT", "Q", "A", "Q", "A"]
    assert heard.kinds() == {"headings": ["BY MS. LIND:"]}


def test_names_that_are_ordinary_words_too(tmp_path: Path) -> None:
    text = "June: Hi\nWill: Ho\nJune: And?\nWill: Remember: tea.\nRemember: two cups.\nUma: Ok\n"
    assert [n for n, _ in whole(tmp_path, text).said()] == ["June", "Will", "June", "Will", "Uma"]


def test_an_interview(tmp_path: Path) -> None:
    text = "I: How was it?\nR: Good. One thing: too long.\nI: P1 said so too\nFrau K.: Ach.\nP1: Yes\n"
    assert [n for n, _ in whole(tmp_path, text).said()] == ["I", "R", "I", "Frau K.", "P1"]


# -- blank lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "conversations"),
    [
        ("Uma: a\nOla: b\n\nUma: c\nOla: d\n", [1, 1, 2, 2]),
        ("Uma: a\n\nOla: b\n\nUma: c\n", [1, 1, 1]),
        ("Uma: a\n\nOla: b\n\nUma: c\n\n\nOla: d\n\nUma: e\n", [1, 1, 1, 2, 2]),
        ("Uma: a\n\n\nOla: b\n\n\nUma: c\n", [1, 1, 1]),
        ("Uma: a\nOla: b\n---\nUma: c\nOla: d\n", [1, 1, 2, 2]),
        ("Uma: a\nOla: b\n\n00:05:00\n\nUma: c\nOla: d\n", [1, 1, 1, 1]),
        ("Uma: a\nOla: b\n\nMay 3, 2024\n\nUma: c\nOla: d\n", [1, 1, 2, 2]),
        ("Uma: a\nOla: b\n\nThe next day\n\nUma: c\nOla: d\n", [1, 1, 2, 2]),
    ],
)
def test_blank_lines_part_conversations_or_turns(tmp_path: Path, text: str, conversations: list[int]) -> None:
    heard = whole(tmp_path, text)
    assert [t.conversation for t in heard.turns] == [f"t-{n}" for n in conversations]


def test_the_form_says_that_blank_lines_part_turns(tmp_path: Path) -> None:
    form = whole(tmp_path, "Uma: a\n\nOla: b\n\nUma: c\n").reading.form
    assert form == "lines of `Name: text`, a blank line after each"


def test_a_second_paragraph_goes_on(tmp_path: Path) -> None:
    heard = whole(
        tmp_path, "Uma: First.\n\nAnd this is a second paragraph of mine.\n\nOla: Ok.\n\nUma: So.\n"
    )
    assert heard.said()[0] == ("Uma", "First. And this is a second paragraph of mine.")


# -- logs, meetings, scripts ------------------------------------------------------------------------


def test_a_log_of_irc(tmp_path: Path) -> None:
    heard = whole(
        tmp_path,
        "--- Log opened Thu May 02 18:40:00 2024\n"
        "18:40 -!- uma [u@example.org] has joined #tea\n18:40 < uma> hi: all\n"
        "18:41  * ola waves\n18:42 <@ola> hello\n18:43 -NickServ- identify\n*** ola quits\n",
    )
    assert heard.said() == [("uma", "hi: all"), ("ola", "hello")]
    assert heard.reading.left_out == {"lines of the system": 4, "actions": 1}


def test_a_log_in_columns(tmp_path: Path) -> None:
    text = (
        "18:40:01\t-->\tuma has joined\n18:40:02\tuma\thi: all\n18:40:03\t *\tola waves\n"
        "18:40:04\t@ola\thello\n"
    )
    heard = whole(tmp_path, text)
    assert heard.said() == [("uma", "hi: all"), ("ola", "hello")]
    assert heard.reading.left_out == {"lines of the system": 1, "actions": 1}


def test_a_meeting_as_otter_writes_it(tmp_path: Path) -> None:
    heard = whole(
        tmp_path,
        "Plans\nThu, May 02, 2024 6:40PM • 12:10\nSPEAKERS\nUma Lind, Speaker 1\n\n"
        "Uma Lind  00:03\nThe point is: go.\n"
        "See you at 9:15\n\nSpeaker 1  00:12\nOk.\n\nUma Lind  1:02:03\nGood.\n",
    )
    assert heard.said() == [
        ("Uma Lind", "The point is: go. See you at 9:15"),
        ("Speaker 1", "Ok."),
        ("Uma Lind", "Good."),
    ]
    assert times(heard) == ["00:03", "00:12", "1:02:03"]
    assert heard.reading.left_out == {"lines before the first speaker": 4}


def test_a_copy_of_slack(tmp_path: Path) -> None:
    heard = whole(tmp_path, "Uma Lind  9:15 AM\nmorning\n9:16\nLunch 12:30?\nOla  9:17 AM\nerror: none\n")
    assert heard.said() == [("Uma Lind", "morning Lunch 12:30?"), ("Ola", "error: none")]


def test_a_copy_of_telegram(tmp_path: Path) -> None:
    heard = whole(
        tmp_path, "Uma, [2 May 2024 at 18:40:07]:\nhi\nand: more\n\nOla, [2 May 2024 at 18:41:00]:\n[Photo]\n"
    )
    assert heard.said() == [("Uma", "hi and: more")]
    assert heard.reading.left_out == {"stage directions": 1, "speakers without words": 1}


def test_a_screenplay(tmp_path: Path) -> None:
    heard = whole(
        tmp_path,
        "INT. BOAT - NIGHT\n\nRain.\n\nUMA\n(beat)\nWho is there?\n\nOLA (O.S.)\nMe: Ola.\n\n"
        "She laughs.\n\nUMA\nOh.\n\nOLA\nYes.\n",
    )
    assert heard.said() == [("UMA", "Who is there?"), ("OLA", "Me: Ola."), ("UMA", "Oh."), ("OLA", "Yes.")]
    assert heard.kinds() == {"stage directions": ["INT. BOAT - NIGHT", "Rain.", "(beat)", "She laughs."]}


def test_lines_with_times_and_no_names(tmp_path: Path) -> None:
    text = "[00:00.000 --> 00:02.000]  Hello there\n[00:02.000 --> 00:04.000]  The trouble is: rain\n"
    heard = whole(tmp_path, text)
    assert heard.said() == [(SPEAKER, "Hello there"), (SPEAKER, "The trouble is: rain")]
    assert times(heard)[1] == "00:02.000 --> 00:04.000"


def test_dialogues_of_one_line(tmp_path: Path) -> None:
    heard = whole(
        tmp_path, "Ah , Ola : you ? __eou__ Yes . __eou__ Good . __eou__\n\nNo : I am not . __eou__ Fine\n"
    )
    assert [(t.conversation, t.speaker, t.text) for t in heard.turns] == [
        ("t-1", "A", "Ah , Ola : you ?"), ("t-1", "B", "Yes ."), ("t-1", "A", "Good ."),
        ("t-3", "A", "No : I am not ."), ("t-3", "B", "Fine"),
    ]  # fmt: skip


def test_a_role_that_speaks_once_is_a_speaker_where_most_lines_have_one(tmp_path: Path) -> None:
    lines = [
        "Uma: I paid.",
        "Shop owner: You did not.",
        "Uma: I did: twice.",
        "Joe Best: She did.",
        "Uma: Ha!",
    ]
    heard = whole(tmp_path, "\n".join(lines) + "\n")
    assert [who for who, _ in heard.said()] == [line.split(":")[0] for line in lines]


def test_a_turn_of_phrase_on_a_line_of_its_own_goes_on(tmp_path: Path) -> None:
    heard = whole(tmp_path, "Uma: Is it late?\nI am\ntired.\nHeads up: rain.\nOla: Not yet.\nUma: Good.\n")
    assert heard.said()[0] == ("Uma", "Is it late? I am tired. Heads up: rain.")


def test_dialogues_of_one_line_whose_turns_have_several_utterances(tmp_path: Path) -> None:
    heard = whole(tmp_path, "Ah . __EOU__ You ? __EOU__ __EOT__ Yes . __EOU__ __EOT__ Good . __EOU__\n")
    assert heard.said() == [("A", "Ah ."), ("A", "You ?"), ("B", "Yes ."), ("A", "Good .")]
    assert not heard.reading.report.blemishes


def test_the_last_line_of_otter_is_no_speech(tmp_path: Path) -> None:
    heard = whole(tmp_path, "Uma  0:03\nIs it late?\n\nOla  0:05\nNo.\n\nTranscribed by https://otter.ai\n")
    assert heard.said() == [("Uma", "Is it late?"), ("Ola", "No.")]
    assert heard.kinds() == {"lines of the system": ["Transcribed by https://otter.ai"]}


def test_what_teams_says_of_its_recording_is_no_speech(tmp_path: Path) -> None:
    text = "Lund, Uma   0:03\nIs it late?\n\nOla   0:05\nI stopped recording\n\n"
    text += "Lund, Uma stopped transcription\n"
    heard = whole(tmp_path, text)
    assert heard.said() == [("Lund, Uma", "Is it late?"), ("Ola", "I stopped recording")]
    assert heard.kinds() == {"lines of the system": ["Lund, Uma stopped transcription"]}


# -- what is no transcript --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("The night was dark.\nNobody came.\n",
        "t.txt:1: no line here begins with a speaker's name.*--form plain"),
        ("Remember: no lamps.\nAlso: be quick.\n", "no line here begins with a speaker's name"),
        ("speaker,text\nUma,hi\n", "t.txt:1: has the header of a table"),
        ("speaker\ttext\nUma\thi\n", "t.txt:1: has the header of a table"),
        ("1\n00:00:01,000 --> 00:00:02,000\nHi.\n\n2\n00:00:03,000 --> 00:00:04,000\nHo.\n",
        "times of subtitles"),
        ("", "is empty"), ("\n \n", "is empty"),
    ],
)  # fmt: skip
def test_what_is_no_transcript_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        whole(tmp_path, text)


def test_a_long_text_with_a_name_or_two_is_refused_unless_asked_for(tmp_path: Path) -> None:
    text = "".join(f"Nobody came on day {n}.\n" for n in range(60)) + "Uma Lind: Hi\n"
    with pytest.raises(DataError, match="no line here begins"):
        whole(tmp_path, text)
    assert whole(tmp_path, text, ReadSettings(form="lines")).said() == [("Uma Lind", "Hi")]


def test_plain_lines_on_demand(tmp_path: Path) -> None:
    heard = whole(
        tmp_path, "The night was dark.\nRemember: no lamps.\n\nIt rained.\n", ReadSettings(form="plain")
    )
    assert [(t.conversation, t.speaker, t.text) for t in heard.turns] == [
        ("t-1", SPEAKER, "The night was dark."), ("t-1", SPEAKER, "Remember: no lamps."),
        ("t-2", SPEAKER, "It rained."),
    ]  # fmt: skip


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_other_ends_of_lines(tmp_path: Path, ends: str) -> None:
    assert whole(tmp_path, "\ufeffUma: Hi\nOla: Ho".replace("\n", ends)).said() == [
        ("Uma", "Hi"),
        ("Ola", "Ho"),
    ]


# -- no word is lost --------------------------------------------------------------------------------

LINES = st.builds(
    lambda form, name, time, said: form.replace("{n}", name).replace("{t}", time).replace("{x}", said),
    st.sampled_from(FORMS), st.sampled_from(NAMES), st.sampled_from(TIMES),
        st.sampled_from(SPOKEN) | st.text(max_size=12),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES | st.text(max_size=30), max_size=10).map("\n".join))
def test_whatever_the_lines_no_word_is_lost(tmp_path: Path, text: str) -> None:
    try:
        content = text.encode().decode()
        whole(tmp_path, content)
    except (DataError, UnicodeEncodeError):
        pass


def test_thousands_of_bent_files_lose_no_word(tmp_path: Path) -> None:
    tally = fuzz(tmp_path, 2_000, seed=1)
    assert tally["refused"] < 700 and len(tally) > 15


@pytest.mark.extended
@pytest.mark.parametrize("seed", range(10))
def test_fifty_thousand_bent_files_lose_no_word(tmp_path: Path, seed: int) -> None:
    assert fuzz(tmp_path, 5_000, seed=100 + seed).total() == 5_000

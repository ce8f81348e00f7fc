"""Transcripts and subtitles as turns: what each form says, and where each mistake is."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.data.transcripts import OTHER_SPEAKER, SPEAKER, ReadSettings, SourceTurn, read_turns
from selfemo.errors import DataError


def read(folder: Path, name: str, content: str | bytes, settings: ReadSettings | None = None) -> list:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_turns(path, settings))


def said(turns: list[SourceTurn]) -> list[tuple[str, str, str]]:
    return [(t.conversation, t.speaker, t.text) for t in turns]


def test_text_with_times_and_lines_that_go_on(tmp_path: Path) -> None:
    text = "\n[00:12] Ann: Hi Bo:\n   are you there?\nBo: Yes\n\n\nDr. Cy Smith:\n  See https://x.y: now\n\n"
    assert said(read(tmp_path, "t.txt", text)) == [
        ("t-1", "Ann", "Hi Bo: are you there?"),
        ("t-1", "Bo", "Yes"),
        ("t-2", "Dr. Cy Smith", "See https://x.y: now"),
    ]


@pytest.mark.parametrize(
    ("line", "speaker"),
    [
        ("2022-12-31 21:15 Ann: Hi", "Ann"), ("[2022-12-31T21:15:03Z] Ann: Hi", "Ann"),
        ("31.12.2022, 21:15 - Ann: Hi", "Ann"), ("12/31/22 Ann: Hi", "Ann"), ("9:15 PM Ann: Hi", "Ann"),
        ("21:15 Amy: Hi", "Amy"), ("21.15 - Ann: Hi", "Ann"), ("00:00:01.500 Ann: Hi", "Ann"),
        ("50 Cent: Hi", "50 Cent"), ("24/7 Support: Hi", "24/7 Support"), ("007: Hi", "007"),
        ("01.23.45.67.89: Hi", "01.23.45.67.89"), ("+49 151-23-45: Hi", "+49 151-23-45"),
    ],
)  # fmt: skip
def test_a_date_or_a_time_before_the_name_is_left_out(tmp_path: Path, line: str, speaker: str) -> None:
    assert said(read(tmp_path, "t.txt", f"Bo: Yes\n{line}\n"))[1:] == [("t-1", speaker, "Hi")]


@pytest.mark.parametrize(
    "line",
    [
        "2022-12-31: Hi", "31/12/2022: Hi", "9:15: Hi", "At 9:15 he came", "Dec 31, 2022 9:15 PM - Ann: Hi",
        "31 December 2022: Hi", "31 déc. 2022 à 21:15 - Ann: Hi", "Sat 31/12/2022 21:15 Ann: Hi",
        "Ann (21:15): Hi", "12/31/22, 9:15 PM: Hi",
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", "Bo: Yes\n"])
def test_a_date_or_a_time_is_no_name(tmp_path: Path, line: str, before: str) -> None:
    with pytest.raises(
        DataError, match=r"t\.txt:\d: is no `Name: text`: .* has a date or a time where the name"
    ):
        read(tmp_path, "t.txt", f"{before}{line}\n")


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


def test_srt_speakers_dashes_and_scenes(tmp_path: Path) -> None:
    turns = read(tmp_path, "s.srt", SRT.replace("\n", "\r\n"))
    assert said(turns) == [
        ("s-1", "ANN", "Who is there?"),
        ("s-1", SPEAKER, "Me."),
        ("s-1", OTHER_SPEAKER, "Who is me?"),
        ("s-2", SPEAKER, "It rains in Spain."),
    ]
    assert turns[0].fields == {"start": "00:00:01,000", "end": "00:00:02,500"}
    one_scene = read(tmp_path, "s.srt", SRT, ReadSettings(gap=0))
    assert {t.conversation for t in one_scene} == {"s-1"}


def test_vtt_voices_notes_and_settings(tmp_path: Path) -> None:
    vtt = (
        "WEBVTT - Title\nKind: captions\n\nNOTE\na --> comment\n\nSTYLE\n::cue {}\n\n"
        "intro\n00:01.000 --> 00:02.000 align:start\n<v Ann>Hi &amp; <b>welcome</b></v>\n<v Bo>Hello\n\n"
        "00:03.000 --> 01:00:04.000\n<00:03.500>Bye\n"
    )
    assert said(read(tmp_path, "v.vtt", vtt)) == [
        ("v-1", "Ann", "Hi & welcome"),
        ("v-1", "Bo", "Hello"),
        ("v-1", SPEAKER, "Bye"),
    ]
    direct = "WEBVTT\n00:01.000 --> 00:02.000\nHi\n"
    assert said(read(tmp_path, "v.vtt", direct)) == [("v-1", SPEAKER, "Hi")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "Ann: hi\nno name here\n", "a.txt:2: is no `Name: text`"),
        ("a.txt", "Ann:\nBo: hi\n", "a.txt:1: Ann says nothing"),
        ("a.srt", "1\nhello\n", "a.srt:1: a subtitle needs its times"),
        ("a.srt", "1\n00:00:01 --> later\nhello\n", "a.srt:2: these are no times"),
        ("a.vtt", "00:01.000 --> 00:02.000\nHi\n", "a.vtt:1: is no WebVTT"),
        ("a.pdf", "x", "a.pdf: of no known form"),
    ],
)
def test_mistakes_are_named_with_their_place(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    with pytest.raises(DataError) as e:
        read(tmp_path, name, content)
    assert says in str(e.value)


def test_a_file_larger_than_what_is_held(tmp_path: Path) -> None:
    """Reading holds one turn at a time, not the file."""
    import tracemalloc

    path = tmp_path / "big.csv"
    with path.open("w") as f:
        f.write("speaker,text\n")
        for n in range(1_500):
            f.write(f"Ann,Line {n} of a long monologue{' that goes on and on' * 80}.\n")
    assert path.stat().st_size > 2_000_000
    turns = read_turns(path)
    next(turns)
    tracemalloc.start()
    count = 1 + sum(1 for _ in turns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1_500 and peak < 500_000

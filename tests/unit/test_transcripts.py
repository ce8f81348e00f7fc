"""Transcripts as turns: what each form says, and where each mistake is."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.data.transcripts import ReadSettings, SourceTurn, read_turns
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


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "Ann: hi\nno name here\n", "a.txt:2: is no `Name: text`"),
        ("a.txt", "Ann:\nBo: hi\n", "a.txt:1: Ann says nothing"),
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

"""WhatsApp's exports: dates are no speakers, lines that go on belong to the message before."""

# ruff: noqa: RUF001  (names and words of several scripts)
from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.data.chat_exports import MEDIA, SYSTEM, is_export, messages
from selfemo.data.transcripts import read_turns
from selfemo.serve.labelling import Source

ANDROID = """\
3/9/25, 8:02 AM - Messages and calls are end-to-end encrypted. Only people in this chat can read them.
3/9/25, 8:02 AM - Nora: Did the parcel come?
3/9/25, 8:03 AM - +49 151 2345678: Yes.
It is: heavy!

And wet.
3/9/25, 8:04 AM - Nora: <Media omitted>
3/9/25, 8:05 AM - Nora changed the subject to "Parcels: all"
3/9/25, 8:06\u202fPM - Nora: https://example.org: look
"""
IPHONE = """\
[09.03.25, 20:02:11] Küche: \u200eNachrichten sind Ende-zu-Ende-verschlüsselt.
[09.03.25, 20:02:59] Jürgen 🚲: Kommst du?
\u200e[09.03.25, 20:03:01] Ama: \u200eBild weggelassen
[09.03.25, 20:03:09] Ama: Ja: gleich
"""


def turns(path: Path, text: str, left_out: Counter[str]) -> list[tuple[str, str]]:
    path.write_text(text, encoding="utf-8")
    return [(t.speaker, t.text) for t in read_turns(path, left_out=left_out)]


def test_an_export_of_android(tmp_path: Path) -> None:
    gone: Counter[str] = Counter()
    assert turns(tmp_path / "chat.txt", ANDROID, gone) == [
        ("Nora", "Did the parcel come?"),
        ("+49 151 2345678", "Yes. It is: heavy! And wet."),
        ("Nora", "https://example.org: look"),
    ]
    assert gone == {SYSTEM: 2, MEDIA: 1}


def test_an_export_of_an_iphone(tmp_path: Path) -> None:
    gone: Counter[str] = Counter()
    assert turns(tmp_path / "chat.txt", IPHONE, gone) == [("Jürgen 🚲", "Kommst du?"), ("Ama", "Ja: gleich")]
    assert gone == {MEDIA: 2}


@pytest.mark.parametrize(
    "line",
    [
        "31/12/2022, 21:15 - Ada: Hi", "2022-12-31, 21:15 - Ada: Hi", "31.12.22, 21:15 - Ada: Hi",
        "31/12/22, 9:15 p. m. - Ada: Hi", "12/31/22, 9:15\u202fAM - Ada: Hi",
        "[12/31/22, 9:15:04 PM] Ada: Hi", "[2022/12/31 21:15:04] Ada: Hi",
        "\u200e[31.12.22, 21:15:04] Ada: Hi", "\ufeff31.12.22, 21:15 - Ada: Hi",
        "31/12/2022 à 21:15 - Ada: Hi", "31.12.22 um 21:15 - Ada: Hi", "31/12/2022 às 21:15 - Ada: Hi",
        "[31/12/2022 21:15:03] Ada: Hi", "31-12-2022, 21:15 - Ada: Hi", "[31-12-22 21:15:03] Ada: Hi",
        "31.12.2022 klo 21.15 - Ada: Hi", "[31.12.22 21.15.03] Ada: Hi", "31.12.22 21.15.03: Ada: Hi",
        "31. 12. 2022. 21:15 - Ada: Hi", "31.12.22 г., 21:15 ч. - Ada: Hi", "2022-12-31 21 h 15 - Ada: Hi",
        "31/12/22, 9:15 p.m. - Ada: Hi", "31/12/22, 9:15 p.\u00a0m. \u2013 Ada: Hi",
        "31.12.22, 9:15 nachm. - Ada: Hi", "31/12/22, 9:15 अपराह्न - Ada: Hi",
        "31/12/22, 9:15\u202fμ.μ. - Ada: Hi",
        "2022/12/31 午後9:15 - Ada: Hi", "2022/12/31, 下午 9:15 - Ada: Hi",
        "[2022. 12. 31. 오후 9:15:03] Ada: Hi", "٣١\u200f/١٢\u200f/٢٠٢٢، ٩:١٥ م - Ada: Hi",
    ],
)  # fmt: skip
def test_dates_and_times_as_phones_write_them(line: str) -> None:
    assert is_export(line)
    assert list(messages([line], Counter())) == [(1, "Ada", "Hi")]


@pytest.mark.parametrize(
    "line",
    [
        "Ada: Hi", "21:15 Ada: Hi", "12/31/22: a date", "[21:15:04] Ada: Hi", "", "31.12.22, 21:15: a time",
        "01.23.45.67.89 - Ada: Hi", "The 31.12.22, 21:15 - Ada: Hi",
    ],
)  # fmt: skip
def test_other_transcripts_are_no_export(line: str) -> None:
    assert not is_export(line)


WORDS = st.lists(st.text("abcdexyz,!?:-[]09/", min_size=1, max_size=8), min_size=1, max_size=6)


@given(
    st.lists(st.tuples(st.sampled_from(["Ann", "Bo Li", ""]), WORDS, st.lists(WORDS, max_size=3)), max_size=8)
)
def test_no_word_is_lost(said: list[tuple[str, list[str], list[list[str]]]]) -> None:
    """Each word stands in a message, or in a line of the system that is counted."""
    lines, kept = [], 0
    for name, first, more in said:
        lines.append(f"1/2/23, 4:05 - {name + ': ' if name else ''}{' '.join(first)}")
        lines += [" " + " ".join(words) for words in more]
        kept += bool(name)
    gone: Counter[str] = Counter()
    found = list(messages(lines, gone))
    assert len(found) + gone.total() == len(said)
    assert len(found) >= kept
    texts = [m.text.split() for m in found if m.name in ("Ann", "Bo Li")]
    wanted = [
        [*" ".join(first).split(), *(w for words in more for w in " ".join(words).split())]
        for name, first, more in said
        if name
    ]
    assert texts == wanted


def test_predict_says_how_it_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    path.write_text(ANDROID, encoding="utf-8")
    assert Source(str(path)).read_as() == (
        f"{path}: 3 turns of 2 speakers (Nora, +49 151 2345678); left out: lines of the system (2), "
        "messages without text (1)"
    )


def test_the_first_conversations_alone(tmp_path: Path) -> None:
    path = tmp_path / "talks.txt"
    path.write_text("Ann: Hi\nBo: Hello\n\nCy: So?\n\nDi: No.\n")
    first = Source(str(path), limit=2)
    assert [t.speaker for t in first.turns()] == ["Ann", "Bo", "Cy"] and first.count == 3
    assert first.identity() != Source(str(path)).identity()

"""WhatsApp's exports: dates are no speakers, lines that go on belong to the message before."""

# ruff: noqa: RUF001  (names and words of several scripts)
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.data.transcripts import Reading, read_turns
from selfemo.data.transcripts.date_stamps import MARK
from selfemo.data.transcripts.source import Source
from selfemo.data.transcripts.whatsapp import (
    EDITS,
    FILES,
    MEDIA,
    POLLS,
    SYSTEM,
    TAKEN_BACK,
    is_export,
    messages,
)
from selfemo.errors import DataError
from tests.support.transcripts import hear, lost_words

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


def counting(gone: Counter[str]) -> Callable[[str, str, int], None]:
    return lambda kind, text, line: gone.update([kind])


def turns(path: Path, text: str, left_out: Counter[str]) -> list[tuple[str, str]]:
    path.write_text(text, encoding="utf-8")
    reading = Reading()
    found = [(t.speaker, t.text) for t in read_turns(path, reading=reading)]
    left_out.update(reading.left_out)
    return found


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
    assert gone == {SYSTEM: 1, MEDIA: 1}


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
    assert [m[:3] for m in messages([line], counting(Counter()))] == [(1, "Ada", "Hi")]


@pytest.mark.parametrize(
    "line",
    [
        "Ada: Hi", "21:15 Ada: Hi", "12/31/22: a date", "[21:15:04] Ada: Hi", "", "31.12.22, 21:15: a time",
        "01.23.45.67.89 - Ada: Hi", "The 31.12.22, 21:15 - Ada: Hi",
    ],
)  # fmt: skip
def test_other_transcripts_are_no_export(line: str) -> None:
    assert not is_export(line)


APP = "\u200e"


def android(*said: str) -> list[str]:
    return "\n".join(f"12/31/22, 9:15\u202fPM - {one}" for one in said).split("\n")


def iphone(*said: str) -> list[str]:
    return "\n".join(f"[31.12.22, 21:15:04] {one}" for one in said).split("\n")


def read(lines: list[str]) -> tuple[list[tuple[str, str]], Counter[str]]:
    gone: Counter[str] = Counter()
    return [(m.name, m.text) for m in messages(lines, counting(gone))], gone


def test_a_poll_is_a_question_with_words_of_the_app(tmp_path: Path) -> None:
    poll = [
        "Olu: \u200eUMFRAGE:",
        "Tee oder Saft?",
        "\u200eOPTION: Tee (2 Stimmen)",
        "\u200eOPTION: Saft (1 Stimme)",
    ]
    first, *rest = poll
    lines = [*iphone("Nora: Hi", first), *rest]
    found, gone = read(lines)
    assert found == [("Nora", "Hi"), ("Olu", "Tee oder Saft?")]
    assert gone == {POLLS: 1}


@pytest.mark.parametrize(
    "name",
    [
        'Lou "Ziggy" Stern', "„Opa“ Karl", "«Жук»", 'The 6" Club', "Mum :)", "Nia (left)",
        "Tom who left the group",
        "Dr. Ngũgĩ, Paediatrics at the Hospital of Saint Mary, Ward of the Small", "~\u202fDana",
        "वीणा", "يوسف", "田中さん",
    ],
)  # fmt: skip
def test_names_of_contacts(name: str) -> None:
    found, gone = read(android(*(f"{name}: {text}" for text in ("One.", 'A 7" one.', "So: three"))))
    assert found == [(name, "One."), (name, 'A 7" one.'), (name, "So: three")] and not gone


def test_a_telephone_number_without_its_marks_of_direction() -> None:
    assert read(android("\u202a+49 151 2345678\u202c: Hi"))[0] == [("+49 151 2345678", "Hi")]


@pytest.mark.parametrize(
    "line",
    [
        "Nora changed the group description to: parcels only", "Nora changed the subject to: Parcels",
        'Nora named this "Parcels: all"', "Nora hat den Gruppennamen geändert: Pakete",
        "Nora a modifié la description du groupe : colis", "Nora cambió la descripción del grupo a: paquetes",
        "Nora изменил(а) описание группы: посылки", "Nora renomme «Colis: tous»", "You added Dr: Who",
        "Nora added Dr: Who", "Somebody else pinned a message: hello",
        "Olu's security code changed. Tap: more",
        "Messages are end-to-end encrypted. No one outside of this chat, not even we, can read: learn more",
    ],
)  # fmt: skip
def test_a_line_of_the_system_with_a_colon_is_no_message(line: str) -> None:
    assert read(android("Nora: Hi", line, "Nora: Bye")) == ([("Nora", "Hi"), ("Nora", "Bye")], {SYSTEM: 1})


NOTICE = f"Cats: {APP}Messages and calls are end-to-end encrypted. Only people in this chat can read them."


def test_of_two_names_the_longer_one_is_who_did_it() -> None:
    said = ["Ann: Hi", "Ann Lee: Hello", "Ann Lee added Dr: Who", "Ann Hall: Yes: here"]
    assert read(android(*said)) == (
        [("Ann", "Hi"), ("Ann Lee", "Hello"), ("Ann Hall", "Yes: here")],
        {SYSTEM: 1},
    )


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        (f"Nora: {APP}Os seus dados têm a criptografia de ponta a ponta.", SYSTEM),
        (f"Cats: {APP}You created this group", SYSTEM), (f"Cats: {APP}Nora added you", SYSTEM),
        (f"Cats: {APP}Nora bætti þér við", SYSTEM), (f"Nora: {APP}Nora changed this group's icon", SYSTEM),
        (f"Nora: {APP}You added Nora.", SYSTEM), (f"Nora: {APP}Missed voice call", MEDIA),
        (f"Nora: {APP}Video call. {APP}No answer", MEDIA),
        (f"Nora: {APP}This message was deleted.", TAKEN_BACK),
        (f"Nora: {APP}Deine Sicherheitsnummer für Nora hat sich geändert.", SYSTEM),
        (f"Nora: {APP}Live-Standort wird geteilt", MEDIA), (f"Nora: {APP}Videonotiz weggelassen", MEDIA),
        (f"Nora: {APP}Diese Nachricht wurde von einem Admin gelöscht.", TAKEN_BACK),
        (f"Nora: {APP}Wartet auf diese Nachricht. Dies kann dauern.", MEDIA),
    ],
)  # fmt: skip
def test_what_an_iphone_says_in_the_name_of_somebody(line: str, gone: str) -> None:
    found, left_out = read(iphone(NOTICE, "Nora: Hi", line))
    assert found == [("Nora", "Hi")]
    assert left_out == Counter([SYSTEM, gone])


@pytest.mark.parametrize(
    "text",
    [
        f"{APP}Hello again", f"{APP}Nora left the milk out", f"{APP}You left me alone", "<grin>",
        "<big grin>",
        "<3", "so <edited for the children>", "this message was deleted by the cat", "null and void",
        "see notes.py (mine)", "the image omitted him", "<see: notes.py>", f"so {APP}much {APP}to say",
    ],
)  # fmt: skip
@pytest.mark.parametrize("phone", [android, iphone])
def test_what_only_looks_like_a_placeholder_is_kept(phone: Callable[..., list[str]], text: str) -> None:
    assert read(phone("Nora: Hi", f"Olu: {text}")) == ([("Nora", "Hi"), ("Olu", text.replace(APP, ""))], {})


@pytest.mark.parametrize(
    "text",
    [
        "<Media omitted>", "<Medien ausgeschlossen>", "<Médias omis>", "<Multimedia omitido>",
        "<Mídia oculta>",
        "<Без медиафайлов>", "<メディアは含まれていません>", "<미디어 파일을 제외한 내용>",
        "<המדיה לא נכללה>",
        "<Video message omitted>", "null", f"{APP}IMG-20221231-WA0007.jpg (file attached)",
        f"{APP}Plan of the garden.pdf (Datei angehängt)", "VID-20221231-WA0001.mp4 (words that nobody knows)",
        "location: https://maps.google.com/?q=52.5,-13.4",
        "Waiting for this message. This may take a while.",
    ],
)  # fmt: skip
def test_placeholders_of_android(text: str) -> None:
    assert read(android(f"Nora: {text}")) == ([], {MEDIA: 1})


@pytest.mark.parametrize(
    "text",
    [
        "<attached: 00000012-PHOTO.jpg>", f"{APP}<Anhang: Plan.pdf>", "image omitted", f"{APP}imagen omitida",
        f"{APP}image absente", f"Plan.pdf \u2022 {APP}3 pages {APP}document omitted", f"{APP}画像は省略",
    ],
)  # fmt: skip
def test_placeholders_of_an_iphone(text: str) -> None:
    assert read(iphone(f"Nora: {text}")) == ([], {MEDIA: 1})


def test_a_placeholder_of_any_language_by_the_marks_of_an_iphone() -> None:
    assert read([APP + line for line in iphone(f"Nora: {APP}ljósmynd sleppt")]) == ([], {MEDIA: 1})


@pytest.mark.parametrize(
    "lines",
    [
        android(f"Nora: {APP}IMG-2022.jpg (file attached)\nThe cat: again"),
        android("Nora: IMG-2022.jpg (file attached)\nThe cat: again"),
        android("Nora: <Media omitted>\nThe cat: again"),
        iphone("Nora: <attached: 00000012-PHOTO.jpg>\nThe cat: again"),
        iphone("Nora: <attached: 00000012-PHOTO.jpg> The cat: again"),
        iphone(f"Nora: The cat: again {APP}<attached: 00000012-PHOTO.jpg>"),
        iphone(f"Nora: The cat: again\n{APP}<joint : chat.jpg>"),
        [APP + iphone("Nora: x")[0].replace("x", f"{APP}The cat: again"), f"{APP}<attached: cat.jpg>"],
        iphone(f"Nora: The cat: again {APP}image omitted"),
        iphone(f"Nora: The cat: again\n{APP}GIF omitted"),
    ],
)
def test_a_file_beside_a_caption(lines: list[str]) -> None:
    assert read(lines) == ([("Nora", "The cat: again")], {FILES: 1})


@pytest.mark.parametrize(
    "mark",
    [
        "<This message was edited>", f"{APP}<This message was edited.>", "<Diese Nachricht wurde bearbeitet>",
        "<Mensagem editada>", "<Se editó este mensaje.>", "<Ce message a été modifié>",
        "<Сообщение изменено>",
        "<このメッセージは編集されました>",
    ],
)  # fmt: skip
def test_the_mark_of_an_edited_message_is_cut_off(mark: str) -> None:
    said = [("Nora", "On Monday\nor later")]
    assert read(android(f"Nora: On Monday\nor later {mark}")) == (said, {EDITS: 1})


def test_an_edited_caption() -> None:
    line = f"Nora: The cat: again {APP}<attached: cat.jpg> {APP}<This message was edited>"
    assert read(iphone(line)) == ([("Nora", "The cat: again")], {FILES: 1, EDITS: 1})


def test_what_is_left_out_is_handed_over(tmp_path: Path) -> None:
    text = ANDROID + "3/9/25, 8:07 PM - Nora: Late <This message was edited>\n"
    heard = hear(tmp_path / "chat.txt", text)
    assert not lost_words(text, heard, tmp_path / "chat.txt")
    assert [t.fields["time"] for t in heard.turns][:2] == ["3/9/25, 8:02 AM", "3/9/25, 8:03 AM"]
    assert heard.kinds()[MEDIA] == ["3/9/25, 8:04 AM - Nora: <Media omitted>"]
    assert heard.kinds()[EDITS] == [" <This message was edited>"]


@pytest.mark.parametrize(
    "text",
    [
        "This message was deleted", "You deleted this message", "This message was deleted by admin Olu",
        "Diese Nachricht wurde gelöscht.", "Eliminaste este mensaje", "Vous avez supprimé ce message",
        "Esta mensagem foi apagada", "Данное сообщение удалено", "このメッセージは削除されました",
        "הודעה זו נמחקה",
    ],
)  # fmt: skip
def test_a_deleted_message_is_nothing_said(text: str) -> None:
    assert read(android(f"Nora: {text}")) == ([], {TAKEN_BACK: 1})


NAMES = [
    "Ann",
    "Bo Li",
    'Lou "Ziggy" Stern',
    "+49 151 2345678",
    "يوسف",
    "वीणा",
    "田中さん",
    "Mum :)",
    "Жук 🚲",
]
WORD = st.text(
    "abcxyzäßñжшשלםمرحधन猫山한글😀👍🏽,.!?:;-–[](){}<>\"'«»“”/•@#0123456789" + APP, min_size=1, max_size=8
)
LINE = st.lists(WORD, min_size=1, max_size=6).map(" ".join)
SAID = st.tuples(st.sampled_from(NAMES), st.lists(LINE, min_size=1, max_size=4).map("\n".join))
OF_THE_SYSTEM = [
    "Messages and calls are end-to-end encrypted. Learn more.", "Ann changed the group description to: fun",
    'Bo Li changed the subject to "Parcels: all"', "Ann left",
    "You added Bo Li", "Ann's security code changed.",
]  # fmt: skip


def words(text: str) -> list[str]:
    return text.replace(APP, "").split()


@pytest.mark.parametrize("phone", [android, iphone])
@given(st.lists(st.one_of(SAID, st.sampled_from(OF_THE_SYSTEM)), max_size=12))
def test_each_word_is_in_a_turn_or_counted(
    phone: Callable[..., list[str]], said: list[tuple[str, str] | str]
) -> None:
    """Messages without words and lines of the system are counted; each word stays in its message."""
    entries = [one if isinstance(one, str) else f"{one[0]}: {one[1]}" for one in said]
    lines = [line for entry in entries for line in phone(entry)]
    gone: Counter[str] = Counter()
    found = [(m.name, words(m.text)) for m in messages(lines, counting(gone))]
    wanted = [(one[0], words(one[1])) for one in said if not isinstance(one, str)]
    assert found == [one for one in wanted if one[1]]
    assert gone[SYSTEM] == sum(isinstance(one, str) for one in said)
    assert gone.total() == len(said) - len(found)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=40)), max_size=8), st.booleans())
def test_whatever_the_text_nothing_goes_uncounted(said: list[tuple[str, str]], of_iphone: bool) -> None:
    """Names and texts of any characters: what stands behind a name is in its turn, or it is counted."""
    phone = iphone if of_iphone else android
    lines = [line for name, text in said for line in phone(re.sub(r"[\r\n]", " ", f"{name}: {text}"))]
    gone: Counter[str] = Counter()
    found = list(messages(lines, counting(gone)))
    assert len(found) + gone.total() - gone[FILES] == len(lines)
    for m in found:
        before, text, after = re.sub(MARK, "", lines[m.line - 1]).rstrip().rpartition(m.text)
        as_it_was = text and not after and before.rstrip().removesuffix(":").rstrip().endswith(m.name)
        assert as_it_was or gone[FILES]


def test_predict_says_how_it_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    path.write_text(ANDROID, encoding="utf-8")
    said = Source(str(path)).read_as()
    assert said[:3] == [
        f"{path}: a chat as WhatsApp and Skype export it, utf-8; 3 turns in 1 conversation",
        "2 speakers: Nora (2), +49 151 2345678 (1)",
        "kept beside the text: time",
    ]
    first = "left out: lines of the system (2, line 1: '3/9/25, 8:02 AM - Messages and calls are"
    assert any(line.startswith(first) for line in said), said


def test_a_chat_of_nothing_but_media_says_so(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    path.write_text("\n".join(android("Nora: <Media omitted>", "Olu left")), encoding="utf-8")
    with pytest.raises(DataError, match=r"holds no turn with text; left out: messages without text \(1"):
        Source(str(path))


def test_the_first_conversations_alone(tmp_path: Path) -> None:
    path = tmp_path / "talks.txt"
    path.write_text("Ann: Hi\nBo: Hello\n\nCy: So?\n\nDi: No.\n")
    first = Source(str(path), limit=2)
    assert [t.speaker for t in first.turns()] == ["Ann", "Bo", "Cy"] and first.count == 3
    assert first.identity() != Source(str(path)).identity()

# ruff: noqa: RUF001  (names in many scripts)
"""Which words before a colon, or in brackets, are a speaker's name."""

from __future__ import annotations

import pytest

from selfemo.data.transcripts.names import Names, ends_sentence, parted

PLAIN = (
    "Where did the ferry go?", "It left an hour ago.", "And the next one?", "Tomorrow, perhaps.",
    "Then we wait here.", "In the rain?", "There is a roof over there.", "Fine.",
)  # fmt: skip


def heads(units: list[str]) -> list[tuple[str, str] | None]:
    """(name, aside) at the start of each line that has one, None for the others; units have their lines."""
    names = Names()
    for unit in units:
        names.see(unit.split("\n"))
    found = []
    for unit in units:
        before = ""
        for line in unit.split("\n"):
            head = names.at(line, before)
            found.append((head.name, head.aside) if head else None)
            before = line
    return found


def head(line: str, others: tuple[str, ...] = PLAIN) -> tuple[str, str] | None:
    """The name of one line in a file whose other lines have none."""
    return heads([*others, line])[-1]


@pytest.mark.parametrize(
    "line",
    [
        "I know one thing: it sinks.", "What matters is: we are dry.", "Give it to me: now.",
        "Remember: two tickets.", "Question: who pays?", "Careful, captain: rocks.", "It's 7:45.",
        "See https://ferry.example: the table", "Step 4: wait.", "In 1962: a storm.", "At 7:45: the boat.",
        "No. Wait: there!", "Supper: fish.", "My advice: swim.", "Breaking News: no ferry.", "Hello :)",
        "WARNING: DEEP WATER", "WE HAVE ONE PROBLEM: WATER", "re:start it", "C:\\boats", "Listen up: a horn.",
        "Ladies and gentlemen: the captain.", "Er sagte: wir fahren.", "Merke: kein Wind.", "Il a dit : non.",
        "La verdad es: no sé.", "Она сказала: поздно.", "Правило: не спать.", "他说：走吧。", "记住：别动。",
        "אמר לי: לא.", "قال لي: لا.", "याद: रुको", "What? Oh: that.", "“Run”: that was all.", ": odd",
        "Emma: wet.",
    ],
)  # fmt: skip
def test_a_colon_in_speech_ends_no_name(line: str) -> None:
    assert head(line) is None


@pytest.mark.parametrize(
    ("line", "name", "aside"),
    [
        ("EMMA: Wet.", "EMMA", ""), ("MAN 2: Here!", "MAN 2", ""), ("McCOY: Dry.", "McCOY", ""),
        ("DR. O'HARA: Sit.", "DR. O'HARA", ""), ("J.J.: No.", "J.J.", ""), ("MARY-LOU: Hm.", "MARY-LOU", ""),
        ("WOMAN ON RADIO: Storm.", "WOMAN ON RADIO", ""), ("Speaker 1: Yes.", "Speaker 1", ""),
        ("speaker 12: yes", "speaker 12", ""), ("SPEAKER_07: yes", "SPEAKER_07", ""),
        ("[SPEAKER_07]: yes", "SPEAKER_07", ""), ("(speaker 0) yes", "speaker 0", ""),
        ("Emma Reed: Wet.", "Emma Reed", ""), ("Emma Reed (she/her): Wet.", "Emma Reed", "she/her"),
        ("Emma Reed | Ferries: Wet.", "Emma Reed", "Ferries"), ("EMMA (shouts): Wet!", "EMMA", "shouts"),
        ("EMMA, WHISPERING: Wet.", "EMMA", "WHISPERING"), ("(shouts) EMMA: Wet!", "EMMA", "shouts"),
        ("EMMA, PAUL: Hooray!", "EMMA, PAUL", ""), ("Emma & Paul: Hooray!", "Emma & Paul", ""),
        ("BOTH: Yes!", "BOTH", ""), ("All: Yes!", "All", ""), ("EMMA:Wet.", "EMMA", ""),
        ("(Emma) Wet.", "Emma", ""), ("[Emma, shouting] Wet!", "Emma", "shouting"),
        ("[woman on radio] Storm.", "woman", "on radio"), ("[man] Dry.", "man", ""),
        ("Пассажир №3: Ой.", "Пассажир №3", ""), ("话者 2：好", "话者 2", ""),
        ("Sprecherin 2: Ja.", "Sprecherin 2", ""),
        ("Mr. Reed: Wet.", "Mr. Reed", ""), ("Ludwig van Dyke: Ja.", "Ludwig van Dyke", ""),
        ("LE MÉDECIN : Non.", "LE MÉDECIN", ""), ("（太郎）行くよ", "太郎", ""), ("Q2: Why?", "Q2", ""),
    ],
)  # fmt: skip
def test_the_form_of_a_name_is_enough(line: str, name: str, aside: str) -> None:
    assert head(line) == (name, aside)


@pytest.mark.parametrize(
    "line",
    [
        "(laughs) Never.", "[BELL RINGS] Who is it?", "[in Greek] Never.", "[Applause] Thanks.",
        "(Maybe) later.",
        "[sobbing] Never.", "（足音）誰だ", "(softly) Never.", "[Music]", "[Emma]", "[HORN] Wait.",
    ],
)  # fmt: skip
def test_a_sound_in_brackets_is_no_name(line: str) -> None:
    assert head(line) is None


@pytest.mark.parametrize(
    "name",
    [
        "Emma",
        "Élodie",
        "Ольга",
        "Ζωή",
        "陈明",
        "李娜",
        "さくら",
        "يوسف",
        "יעל",
        "प्रिया",
        "มานี",
        "지민",
        "İpek",
        "Łukasz",
    ],
)
@pytest.mark.parametrize("colon", [":", "：", " :"])
def test_names_in_any_script(name: str, colon: str) -> None:
    """A single word is a name where it comes again, or where most of the file has names."""
    line = f"{name}{colon} 7 8"
    assert heads([*PLAIN, line, line])[-1] == (name, "")
    assert heads([line, f"Paul Reed{colon} 9"]) == [(name, ""), ("Paul Reed", "")]
    assert head(line) is None


def test_small_letters_where_most_units_have_names() -> None:
    assert heads(["Emma Reed: wet", "paul: dry as well", "me: and i"]) == [
        ("Emma Reed", ""),
        ("paul", ""),
        ("me", ""),
    ]
    assert head("paul: dry") is None


def test_questions_and_answers() -> None:
    units = ["Question: Where?", "Answer: On a ferry.", "Question: When?", "Answer: In May."] * 2
    assert {h[0] for h in heads(units) if h} == {"Question", "Answer"}
    assert [h and h[0] for h in heads(["Q: Where?", "A: On a ferry.", "Q: When?", "A: In May."])] == list(
        "QAQA"
    )


def test_ordinary_words_are_speech_beside_names() -> None:
    units = ["EMMA: Go.", "PAUL: Remember: two tickets.", "Remember: the blue ones.", "EMMA: Fine."]
    assert heads(units) == [("EMMA", ""), ("PAUL", ""), None, ("EMMA", "")]
    # A single word that is written small elsewhere is no name for coming twice.
    lower = ["We had supper.", "No supper?", "Late supper.", *PLAIN]
    assert heads([*lower, "Supper: fish.", "Supper: eel."])[-2:] == [None, None]


def test_a_sentence_over_two_lines() -> None:
    assert heads(["EMMA: There is\none thing: rain"]) == [("EMMA", ""), None]
    assert heads(["EMMA: Rain.\nPAUL: Where?"]) == [("EMMA", ""), ("PAUL", "")]
    assert heads(["EMMA:\nRain."]) == [("EMMA", ""), None]


def test_a_file_in_capitals() -> None:
    units = ["I SAW IT.", "EMMA: WHERE?", "THERE: LOOK!", "EMMA: NO.", "OH."]
    assert heads(units) == [None, ("EMMA", ""), None, ("EMMA", ""), None]


def test_brackets_on_a_line_of_their_own() -> None:
    assert heads(["(Emma) Wet.", "(Emma)\nAnd cold.", "(Horn)\nWhat?"]) == [
        ("Emma", ""), ("Emma", ""), None, None, None,
    ]  # fmt: skip


def test_doubts_are_known() -> None:
    names = Names()
    for line in (*PLAIN, "Emma: wet."):
        names.see([line])
    assert names.doubtful("Emma: wet.")
    assert not names.doubtful("What matters is: we are dry.") and not names.doubtful("EMMA: wet.")


def test_parts_of_a_name() -> None:
    assert parted("Reed, Emma (External)") == ("Reed, Emma", "External")
    assert parted(" [Emma] ") == ("Emma", "") and parted("Emma | A | B") == ("Emma", "A B")


def test_where_a_sentence_ends() -> None:
    assert all(map(ends_sentence, ("", "Go.", "Go!”", "好。", "[bell]", "I was-", "♪")))
    assert not any(map(ends_sentence, ("and then", "the", "one,")))

# ruff: noqa: RUF001  (names and words of several scripts)
"""Transcripts in plain text and copies of chats as people have them, and bent as files are on their way."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from selfemo.errors import DataError
from tests.support.transcripts import hear, lost_words

NAMES = (
    "Rosa", "Max Berg", "THE JUDGE", "P1", "I", "R", "SPEAKER_00", "rosa", "Dr. Lind", "陈明", "Ольга",
    "يوسف",
    "प्रिया", "지영", "Mum :)", "O'Hara", "7 Up", "Rosa (she/her)", "Max, chair", 'Lou "Z" S', "+49 30 555",
    "Σοφία", "יעל", "🦊 Fox", "@max.b", "Interviewer",
)  # fmt: skip
TIMES = (
    "21:15", "9:15 PM", "21:15:02", "00:00:01.500", "2023-06-05 21:15:02", "2023-06-05T21:15:02Z",
    "05.06.2023 21:15", "Jun 5, 2023 9:15 PM", "5 Jun 2023 at 21:15:02", "0:03", "6/5/23, 9:15 PM",
    "Mon 05/06/2023 21:15", "午後9:15", "5.6.23", "00:01 --> 00:02", "0:0:0.0 --> 0:0:2.1",
    "Yesterday at 9:15 PM", "5 juin 2023 à 21:15", "1:02 - 1:04",
)  # fmt: skip
SPOKEN = (
    "where is the lantern?", "under the boat: look", "and then: rain", "The trouble is: I forgot.",
    "see https://example.org: now", "7:45 will do", "odds of 3:1", "(sighs)", "[music]", "😀", "...", "No.",
    "好", "да: нет", "**never**", "- tea", "1. milk", "\x92", "a\x00b", "x\x0cy", "\u200e", "Note: this",
    "well - no", "A. B. C", "Q. no", "Dinner 12:30", "<i>x</i>", ">> y", "a\tb", "_u_", "‘so’", "__eou__",
    "null",
    "<Media omitted>", "This message was deleted", "image omitted", "<This message was edited>",
)  # fmt: skip
FORMS = (
    "{n}: {x}", "{n}: {x}", "{t} {n}: {x}", "[{t}] {n}: {x}", "({t}) {n}: {x}", "{t} - {n}: {x}",
    "{n} ({t}): {x}",
    "{n}, {t}: {x}", "[{t}] <{n}> {x}", "<{n}> {x}", "{t}\t{n}\t{x}", "{t} {n} | {x}", "{n}  {t}\n{x}\n",
    "[{t}] {n}\n{x}", "{t}\n{n}\n{x}", "{n}\n{t}\n{x}", "{n} — {t}\n{x}", "{n}, [{t}]:\n{x}\n",
    "{n}\n{x}\n",
    "**{n}:** {x}", "- {n}: {x}", "12. {n}: {x}", "12  {n}: {x}", "{n}\t{x}", "{n} - {x}", "{n}. {x}",
    "{n}>> {x}",
    "[{n}] {x}", "({n}) {x}", "[{t}] {x}", "{t} From {n} to All: {x}", "{t} From {n} To Everyone:\n\t{x}",
    "{n}: [{t}]\n{x}\n", "{x} __eou__ {x} __eou__", "[{n}] [{t}] {x}", "{x}", "{n}：{x}", "Q. {x}\nA. {x}",
    "{n} {t} {x}", "{n}:\n{x}\n", "{n}「{x}」", "\u200e[{t}] {n}: \u200e{x}",
)  # fmt: skip
BESIDE = (
    "* rosa waves", "-!- max has joined", "*** max left", "--- Log opened", "[laughter]", "(pause)",
    "Page 3 of 4",
    "# Part two", "---", "00:05:00", "Title: Boats", "BY MS. BERG:", "12", "{t} Rosa joined", "", "",
    "   on and on",
    "\tso it went", "June 5, 2023", "Present: Rosa, Max",
)  # fmt: skip
NOISE = " :\n\t[]()<>-–*_.|9aZ\u200e\x85\u2028é：\ufeff"


def transcript(rng: random.Random) -> str:
    """A whole file in one form, now and then with a line of another, or of none."""
    form, time, names = rng.choice(FORMS), rng.choice(TIMES), rng.sample(NAMES, rng.randint(1, 4))
    lines = []
    for _ in range(rng.randint(1, 12)):
        chosen = form if rng.random() < 0.9 else rng.choice(FORMS)
        chosen = chosen if rng.random() < 0.85 else rng.choice(BESIDE)
        said = " ".join(rng.choice(SPOKEN) for _ in range(rng.randint(0, 4)))
        when = time if rng.random() < 0.9 else rng.choice(TIMES)
        lines.append(chosen.replace("{n}", rng.choice(names)).replace("{t}", when).replace("{x}", said))
        if rng.random() < 0.1:
            lines.append("")
    return rng.choice(["\n", "\n", "\n", "\n\n"]).join(lines)


def bent(rng: random.Random, text: str) -> str:
    """The file with some characters cut, put in, changed or doubled, and one kind of line ends."""
    for _ in range(rng.choice([0, 0, 1, 2, 5])):
        a = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                text = text[:a] + text[a + 1 :]
            case 1:
                text = text[:a] + rng.choice(NOISE) + text[a:]
            case 2:
                text = text[:a] + rng.choice(NOISE) + text[a + 1 :]
            case _:
                b = a + rng.randrange(20)
                text = text[:b] + text[a:b] + text[b:]
    return text.replace("\n", rng.choice(["\n", "\n", "\r\n", "\r"]))


def fuzz(folder: Path, count: int, seed: int) -> Counter[str]:
    """Read `count` files; how many of each form, and how many were refused.

    Raises:
        AssertionError: words of a file got lost; the message has the file.
    """
    rng, tally, path = random.Random(seed), Counter[str](), folder / "f.txt"
    for n in range(count):
        text = bent(rng, transcript(rng))
        try:
            heard = hear(path, text)
        except DataError as e:
            assert str(path) in str(e), e
            tally["refused"] += 1
            continue
        lost = lost_words(text, heard, path)
        assert not lost, f"file {n} of seed {seed} lost {dict(lost)}:\n{text!r}\n{heard}"
        tally[heard.reading.form.split(",")[0]] += 1
    return tally

# ruff: noqa: RUF001  (words of many languages)
"""Subtitles made of parts as people have them, and bent as files are bent on their way."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from selfemo.errors import DataError
from tests.support.transcripts import hear, lost_subtitle_words

SPOKEN = (
    "Where did you put the lantern?", "Under the boat.", "1987", "40", "It's half past nine: hurry.", "No.",
    "I was-", "-going to tell.", "- Who?\n- Me.", "Did it rain?\n-All night.", "Really? -Yes!", "Stop it!",
    "ROSA: Come here.", "Rosa: Come here.", "OLD MAN 2: Sit down.", "[SPEAKER_01]: fine", "(Rosa) Wait!",
    "(speaker 3) hello", "[GLASS BREAKS]", "[sighs] I know.", "♪ row your boat ♪", "# la la #", "*coughs*",
    "ROSA:\nLook at this.", "MAX, ROSA:\nHooray!", "ROSA (whispers): Quiet.", ">> ROSA: And now?\n>> Rain.",
    "Ольга: Пора.", "陈明\uff1a走吧。", "יעל: בוא הנה", "Φωτεινή: Ναι.", "प्रिया: चलो", "rosa: me too",
    "<i>So dark.</i>", '<font color="#ffff00">Yellow words</font>', "{\\an8}On top", "Tea &amp; cake &nbsp;",
    "A<br>B", "2 < 3 > 1", "<v Rosa>I see</v> <v Max>You don't", "<v.loud Max Berg>Hey!\nHere",
    "<laughs> Good one", "One\\NTwo", "Remember: no lights.", "Question: why?", "http://example.org/a:b",
    "so<00:00:01.200><c> I</c><c> ran</c>", "One line\n\nand one behind a blank", " ", "", "Wait... - What?",
    "Rosa Lind (she/her) | Acme: hi", "-5 degrees", "Subtitles by nobody at all", "www.opensubtitles.org",
    "We met at 9:30 -> 10:30", "BOTH: Yes!", "it's: odd", "[door slams\nloudly]", "( I can't\nbelieve you. )",
)  # fmt: skip
NOISE = (
    "\n", "\n\n", "\r\n", "\r", " ", "\ufeff", "\x00", "\x92", "-", ":", "-->", "<", ">", "[", ")", "♪", "7",
    "é", "NOTE\n", "\nSTYLE\n", "WEBVTT\n", "{\\b1}", "&lt;", "00:00:05,000", "\u200f", "\u00a0", "word",
)  # fmt: skip


def _stamp(rng: random.Random, seconds: float, style: int) -> str:
    whole, part = divmod(seconds, 1)
    minutes, secs = divmod(int(whole), 60)
    hours, minutes = divmod(minutes, 60)
    milli = int(part * 1000)
    match style:
        case 0:
            return f"{hours:02}:{minutes:02}:{secs:02},{milli:03}"
        case 1:
            return f"{hours:02}:{minutes:02}:{secs:02}.{milli:03}"
        case 2:
            return f"{minutes:02}:{secs:02}.{milli:03}"
        case 3:
            return f"{hours}:{minutes}:{secs},{milli // 10}"
        case _:
            return f"{hours:02}:{minutes:02}:{secs:02}"


def subtitles(rng: random.Random) -> str:
    """A whole file: one of the forms with one habit of numbers, blanks and times."""
    web, style = rng.random() < 0.4, rng.randrange(5)
    numbers, blank = rng.random() < 0.8, rng.random() < 0.85
    arrow = rng.choice([" --> "] * 5 + ["-->", " -> ", " → ", " --&gt; "])
    text = (
        rng.choice(["WEBVTT\n\n", "WEBVTT - Boats\nKind: captions\n\n"])
        if web
        else rng.choice(["", "", "My film\n\n"])
    )
    at = rng.random() * 100
    for n in range(1, rng.randint(2, 9)):
        at += rng.random() * rng.choice([1, 3, 50])
        end = at + rng.choice([0.01, 1.5, 3])
        if web and rng.random() < 0.1:
            text += rng.choice(["NOTE seen twice\n\n", "STYLE\n::cue { color: red }\n\n"])
        if numbers and rng.random() < 0.95:
            text += f"{n}\n"
        elif web and rng.random() < 0.3:
            text += f"scene-{n}\n"
        place = rng.choice([""] * 5 + [" align:start position:0%", " X1:100 X2:200 Y1:30 Y2:40"])
        said = rng.choice(SPOKEN) if rng.random() < 0.8 else rng.choice(SPOKEN) + "\n" + rng.choice(SPOKEN)
        text += f"{_stamp(rng, at, style)}{arrow}{_stamp(rng, end, style)}{place}\n{said}\n" + "\n" * blank
        at = end
    return text


def bent(rng: random.Random, text: str) -> str:
    """The file with some characters or lines cut, doubled, moved or put in."""
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        a = rng.randrange(len(text) + 1)
        b = min(len(text), a + rng.choice([1, 1, 2, 10, 60]))
        match rng.randrange(5):
            case 0:
                text = text[:a] + text[b:]
            case 1:
                text = text[:a] + rng.choice(NOISE) + text[a:]
            case 2:
                text = text[:b] + text[a:b] + text[b:]
            case 3:
                lines = text.split("\n")
                i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
                lines[i], lines[j] = lines[j], lines[i]
                text = "\n".join(lines)
            case _:
                lines = text.split("\n")
                del lines[rng.randrange(len(lines))]
                text = "\n".join(lines)
    return text.replace("\n", rng.choice(["\n", "\n", "\r\n", "\r"]))


def fuzz(folder: Path, count: int, seed: int) -> Counter[str]:
    """Read `count` files; how many were read and refused.

    Raises:
        AssertionError: words of a file got lost; the message has the file.
    """
    rng, tally = random.Random(seed), Counter[str]()
    for n in range(count):
        text = bent(rng, subtitles(rng))
        path = folder / f"f.{rng.choice(['srt', 'vtt', 'sbv'])}"
        try:
            heard = hear(path, text.encode("utf-8", errors="replace"))
        except DataError as e:
            assert ":" in str(e), e
            tally["refused"] += 1
            continue
        lost = lost_subtitle_words(text, heard, path)
        assert not lost, f"file {n} of seed {seed} lost {dict(lost)}:\n{text!r}\n{heard}"
        tally["read"] += 1
    return tally

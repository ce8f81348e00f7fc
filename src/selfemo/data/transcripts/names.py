"""Speakers' names at the start of a line: which words before a colon or in brackets are one.

One line does not tell: "Tom: hi" has a name, "Remember: no phones" has none. So a file is read twice. The
first time `Names.see` notes what stands before colons, the second time `Names.at` decides by the words
themselves (their letters, how many, words that make them a sentence) and by how the whole file uses them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from selfemo.data.transcripts.names_words import (
    FUNCTION,
    MANNERS,
    OPENING,
    ORDINARY,
    OWN,
    PARTICLES,
    PARTICLES_OF_NAMES,
    ROLES,
    SELVES,
    SOUND_SIGNS,
    SOUNDS,
    TITLES,
    UNSPACED,
)

MAX_NAME_CHARS = 60
_MAX_WORDS = 5
_MAX_UNSPACED = 8
_MAX_VOCABULARY = 200_000
# A time has a colon between digits, an address one before a slash.
_COLON = re.compile(r"(?<!\d)[:\uff1a\ufe55]|[:\uff1a\ufe55](?!\d)")
_OPEN, _CLOSE = r"(\[{\uff08\uff3b\u3010", r")\]}\uff09\uff3d\u3011"
_BRACKET = re.compile(rf"[{_OPEN}](?P<inside>[^{_OPEN}{_CLOSE}]*)[{_CLOSE}]")
_LEAD = re.compile(
    r"[\s\ufeff\u200e\u200f\u202a-\u202e\u2066-\u2069]*(?:(?:[-\u2010-\u2015](?!-)|(?:>\s?){2,3})\s*)?"
)
_NO_NAME = re.compile(
    r"[?!;\u2026\"\u201c\u201d\u00ab\u00bb<>=\u266a\u266b\u3002\uff01\uff1f\uff0c\u061f\u060c]|://|\.\."
)
_NUMBERED = re.compile(r"(?P<words>.*?[^\W\d].*?)[\s_#\u2116.-]*(?P<number>\d{1,3})[a-z]?", re.I)
_ENDS = re.compile(
    r"[.?!\u2026:;\u3002\uff01\uff1f\uff1a\u061f\u0964\u266a)\]}\uff09\uff3d\u3011\"\u201d\u2019\u00bb-\u2015-][\s\"'\u201d\u2019\u00bb]*$"
)
_JOINS = re.compile(r"[\s,&/+]+")
_ADVERB = re.compile(r"[^\W\d_]{2}(?:ing|(?<!\b(?:emi|kel|sal|mol|bil|hol|pol|lil|car))ly)$")
# "Thunderclap", "doorbells": no list is whole.
_LONG_SOUNDS = tuple(s for s in SOUNDS if len(s) > 4)
_RANKS = {"first", "second", "third", "fourth"}
_BEGINS = {"i", "i'm", "it's", "that's", "here's", "what's"}
_VIA = re.compile(r"\s+(?:on|over|through|via|from|off|in)\s+\S.*$", re.I)


class _Form(IntEnum):
    """How much the words before a colon look like a name."""

    NONE = 0  # a sentence
    ORDINARY = 1  # "Remember", "One rule"
    PHRASE = 2  # "ben gray", "Heads up"
    WEAK = 3  # "ben"
    PLAUSIBLE = 4  # "Ben"
    STRONG = 5  # "BEN", "Ben Gray", "Speaker 1"


@dataclass(frozen=True, slots=True)
class Head:
    """The name at the start of a line.

    Attributes:
        name: without what is said about it.
        aside: what the name has beside it: "whispers" of "TOM (whispers)", "She/Her", a company; "" mostly.
        end: where in the line the speech begins.
    """

    name: str
    aside: str
    end: int


def lead_end(line: str) -> int:
    """Where a line begins behind a dash or the ">>" of captions."""
    found = _LEAD.match(line)
    return found.end() if found else 0


def could_be_name(words: str) -> bool:
    """Whether words may be a name by themselves, or a name and a role ("Max, chair"): no sentence, and no
    ordinary word before a colon."""
    return all(_form(part.strip()) > _Form.ORDINARY for part in words.split(",", 1))


def parted(name: str) -> tuple[str, str]:
    """A name, and what is said about it: in brackets, behind a bar, or as a manner behind a comma."""
    name = name.strip("\u200e\u200f\u202a\u202b\u202c \t\xa0\u202f*_")
    if whole := _BRACKET.fullmatch(name):
        return " ".join(whole["inside"].split()), ""
    parts = [m["inside"].strip() for m in _BRACKET.finditer(name)]
    name, *company = re.split(r"\s*[|\uff5c]\s*", _BRACKET.sub(" ", name))
    first, _, manner = name.partition(",")
    if manner and is_sound(manner):
        name, parts = first, [manner.strip(), *parts]
    return " ".join(name.split()), " ".join(filter(None, [*parts, *company]))


def ends_sentence(line: str) -> bool:
    """Whether a name may stand at the start of the next line: this one ends a sentence, or breaks off."""
    return not line.strip() or _ENDS.search(line) is not None


def is_sound(inside: str) -> bool:
    """Whether words in brackets tell of a sound or a manner rather than a speaker ("sighs", "in Spanish")."""
    words = _words(inside)
    if not any(map(_cased, inside)):
        return any(s in inside for s in SOUND_SIGNS) or any(w in SOUNDS for w in words)
    if inside.split()[:1] and inside.split()[0].lower() in MANNERS:
        return True
    return any(_stems(w) & SOUNDS or _ADVERB.search(w) or w.startswith(_LONG_SOUNDS) for w in words)


class _Use(NamedTuple):
    """How a file uses names.

    Attributes:
        labelled: most of its units (subtitles, paragraphs) have one.
        some: one in seven has one that is sure.
        in_capitals: all of it is in capitals.
        q_and_a: it is in questions and answers.
        bracketed: most units have one in brackets.
    """

    labelled: bool
    some: bool
    in_capitals: bool
    q_and_a: bool
    bracketed: bool


class Names:
    """The names of one file, decided by how all of it uses them."""

    def __init__(self) -> None:
        self._opening: Counter[str] = Counter()
        self._inside: Counter[str] = Counter()
        self._lower: Counter[str] = Counter()
        self._units = self._named = self._bracketed = self._spoken = self._strong = 0
        self._capitals = self._letters = 0
        self._settled: _Use | None = None

    def see(self, lines: Sequence[str]) -> None:
        """Take note of a subtitle or a paragraph: a unit that one speaker or several say."""
        self._units += 1
        self._settled = None
        named = bracketed = False
        for k, raw in enumerate(lines):
            line = raw[lead_end(raw) :]
            if k and lead_end(raw) == 0 and not ends_sentence(lines[k - 1]):
                continue
            if head := _before_colon(line):
                form = _form(head.name)
                self._opening[_key(head.name)] += form > _Form.NONE
                self._spoken += form < _Form.PHRASE
                self._strong += form == _Form.STRONG
                named |= form > _Form.ORDINARY
            elif (head := _in_brackets(line)) and line[head.end :].strip() and not is_sound(head.name):
                self._inside[_key(head.name)] += 1
                bracketed = True
        self._named += named
        self._bracketed += bracketed
        for line in lines:
            self._capitals += sum(map(str.isupper, line))
            self._letters += sum(map(_cased, line))
            if len(self._lower) < _MAX_VOCABULARY:
                self._lower.update(w for w in re.findall(r"[^\W\d_]+", line) if w.islower())

    def at(self, line: str, before: str = "") -> Head | None:
        """The name at the start of a line.

        Args:
            before: the line of the same unit before it; inside a sentence a colon ends no name.
        """
        opens = ends_sentence(before)
        if head := _before_colon(line):
            return head if self._is_name(head, line, opens) else None
        head = _in_brackets(line)
        if head is None or not opens or not self._is_bracketed_name(head):
            return None
        alone = not line[head.end :].strip(" :\uff1a")
        return None if alone and not self._is_known(head.name) else head

    def doubtful(self, line: str) -> bool:
        """Whether a line that `at` gives no name to may have one."""
        head = _before_colon(line)
        return head is not None and self._may_be_name(head.name) and self.at(line) is None

    def _may_be_name(self, name: str) -> bool:
        """Whether words that are taken for speech may be a name all the same: that is told."""
        form = _form(name)
        return form >= _Form.PLAUSIBLE or (form == _Form.PHRASE and self._use.labelled)

    def knows(self, name: str) -> bool:
        """Whether the file has lines of this speaker."""
        return self._opening[_key(name)] > 0 and self._is_name(Head(name, "", 0), "", True)

    def _is_known(self, name: str) -> bool:
        """Whether a name in brackets on a line of its own is one elsewhere, or by its form."""
        role = _words(name) <= ROLES
        return (
            role or _NUMBERED.fullmatch(name) is not None or self.knows(name) or self._inside[_key(name)] > 0
        )

    def _is_name(self, head: Head, line: str, opens: bool) -> bool:
        """By the form of the words and the file's use of them."""
        labelled, some, in_capitals, q_and_a, _ = self._use
        form, key = _form(head.name), _key(head.name)
        numbered = _NUMBERED.fullmatch(head.name) is not None
        often = self._opening[key] + self._inside[key]
        # "TOM:Hello" is a name, "re:invent" none.
        if line and re.match(r"[^\s:\uff1a]", line[head.end :]) and line[head.end - 1] == ":":
            if (
                not line[head.end].isalpha()
                and line[head.end] not in "-\u2013\u2014\"'\u201c\u00bf\u00a1[(\u266a"
            ):
                return False
            if form < _Form.STRONG and often < 2 and not labelled:
                return False
        by_form = numbered or _words(head.name) <= ROLES
        if form == _Form.STRONG and in_capitals and not by_form and head.name.isupper():
            form = _Form.PLAUSIBLE
        if not opens and not (form == _Form.STRONG and (numbered or _capital(head.name))) and not often:
            return False
        match form:
            case _Form.STRONG:
                return True
            case _Form.PLAUSIBLE:
                return labelled or some or (often > 1 and self._lower[key] <= often)
            case _Form.WEAK:
                return labelled or (often > 2 and some)
            case _Form.PHRASE:
                # Once, in a file with other colons in speech, "Heads up" is none.
                return labelled and (often > 1 or (not self._spoken and head.name.islower()))
            case _Form.ORDINARY:
                return (q_and_a and often > 2) or (labelled and often > 4)
            case _:
                return False

    def _is_bracketed_name(self, head: Head) -> bool:
        """Of "(Tom) Stop it!": a known or numbered speaker, a role, or capitalised words, no sound."""
        name, key = head.name, _key(head.name)
        words = _words(name)
        if self._opening[key] and self._is_name(Head(name, "", 0), "", True):
            return True
        if (numbered := _NUMBERED.fullmatch(name)) and not _words(numbered["words"]) & ORDINARY:
            return not is_sound(numbered["words"]) and _form(name) > _Form.ORDINARY
        if words <= ROLES | PARTICLES | {"young", "old", "other", "another"} and words & ROLES:
            return True
        if is_sound(name):
            return False
        if not any(map(_cased, name)):
            return len(name) <= _MAX_WORDS and _form(name) == _Form.PLAUSIBLE
        form = _form(name)
        if form == _Form.WEAK:
            return self._use.bracketed
        return form >= _Form.PLAUSIBLE and len(words) <= 3

    @property
    def _use(self) -> _Use:
        if self._settled is None:
            units = max(1, self._units)
            again = Counter({k: n for k, n in self._opening.items() if n > 1})
            sure = self._strong + sum(
                n for k, n in again.items() if _form(k.title()) == _Form.PLAUSIBLE and self._lower[k] <= n
            )
            # A file of names that occur once may have a few other colons in speech.
            single = self._spoken * 2 <= self._named
            labelled = self._named * 2 >= units and bool(again or self._strong or single)
            often = sum(n for n in again.values() if n > 2)
            self._settled = _Use(
                labelled,
                sure * 7 >= units and sure > 1,
                self._capitals > 0.9 * self._letters,
                often * 5 >= units * 4 and len(again) > 1,
                self._bracketed * 2 >= units,
            )
        return self._settled


def _before_colon(line: str) -> Head | None:
    """What stands before the first colon, if it is short and no mere sign."""
    colon = _COLON.search(line, 0, MAX_NAME_CHARS + 40)
    if colon is None or line.startswith("//", colon.end()):
        return None
    name, aside = parted(line[: colon.start()])
    if not name or len(name) > MAX_NAME_CHARS or re.search(rf"[{_OPEN}{_CLOSE}]", name):
        return None
    return Head(name, aside, colon.end())


def _in_brackets(line: str) -> Head | None:
    """What stands in brackets at the start of a line: a name, or a sound."""
    found = _BRACKET.match(line)
    if found is None or not (inside := " ".join(found["inside"].split()).strip(" :\uff1a")):
        return None
    if inside.endswith("\u306e\u58f0"):  # the voice of somebody, in Japanese
        return Head(inside[:-2], inside[-2:], found.end())
    first, _, manner = inside.partition(",")
    if manner and (is_sound(manner) or _VIA.match(manner)):
        return Head(first.strip(), manner.strip(), found.end())
    if (via := _VIA.search(inside)) and not is_sound(inside[: via.start()]):
        return Head(inside[: via.start()], via[0].strip(), found.end())
    return Head(inside, "", found.end())


@lru_cache(4096)
def _form(name: str) -> _Form:
    """How much some words look like a name, by themselves."""
    numbered = _NUMBERED.fullmatch(name)
    words = [w for w in _JOINS.split(name) if w]
    plain = [w.strip(".'\u2019").casefold() for w in words]
    if _NO_NAME.search(name) or not any(map(str.isalnum, name)) or len(words) > _MAX_WORDS + _capital(name):
        return _Form.NONE
    if any(w.endswith(".") and not _abbreviated(w) for w in words):
        return _Form.NONE
    if not any(map(str.isalpha, name)):
        return _Form.WEAK
    several = len(words) > 1
    if not any(map(_cased, name)):
        return _uncased_form(name, plain, numbered is not None)
    if len(name) == 1:
        return _Form.PLAUSIBLE if name.isupper() else _Form.WEAK
    if plain[0] in SELVES and not several:
        return _Form.WEAK
    content = [w for w, p in zip(words, plain, strict=True) if p not in PARTICLES and not w.isdigit()]
    titled = all(next((c for c in w if c.isalpha()), "A").isupper() for w in content)
    if several and plain[0] in OPENING and not (titled and plain[0] in PARTICLES_OF_NAMES):
        return _Form.NONE
    if several and plain[0] in OWN:
        return _Form.ORDINARY
    if several and titled and plain[0] in TITLES:
        return _Form.STRONG
    sentence = any(p in FUNCTION and p not in PARTICLES for p in plain)
    if several and (plain[0] in _BEGINS or (sentence and (not titled or _capital(name)))):
        return _Form.NONE
    ranked = several and titled and plain[0] in _RANKS and plain[-1] in ROLES  # "First Officer"
    ordinary = any(p in ORDINARY and p not in PARTICLES for p in plain)
    if (ordinary and not ranked) or (not several and sentence and plain[0] not in ROLES):
        surname = several and titled and plain[0] not in ORDINARY and not numbered and not _capital(name)
        return _Form.WEAK if surname else _Form.ORDINARY
    if numbered:
        known = titled or any(p in ROLES for p in _words(numbered["words"]))
        return _Form.STRONG if known else _Form.WEAK
    if _capital(name) or (titled and not several and plain[0] in ROLES):
        return _Form.STRONG
    if "," in name and not titled:
        return _Form.NONE
    if titled:
        return _Form.STRONG if len(content) > 1 else _Form.PLAUSIBLE
    if (plain[0] in ROLES or plain[-1] in ROLES) and several:
        return _Form.PLAUSIBLE
    return _Form.PHRASE if several else _Form.WEAK


def _uncased_form(name: str, plain: Sequence[str], numbered: bool) -> _Form:
    """The form of words in a script without capital letters."""
    if any(p in ORDINARY for p in plain):
        return _Form.ORDINARY
    if numbered:
        return _Form.STRONG
    if any(s in name for s in UNSPACED) or any(p in FUNCTION for p in plain):
        return _Form.NONE
    wide = any(_unspaced(c) for c in name)
    if len(name) > _MAX_UNSPACED if wide else len(plain) > 3:
        return _Form.NONE
    return _Form.PLAUSIBLE


def _unspaced(c: str) -> bool:
    """Whether a character is of a script that puts no blanks between words (Chinese, Japanese)."""
    return "\u3040" <= c <= "\u30ff" or "\u3400" <= c <= "\u9fff"


def _capital(name: str) -> bool:
    """Whether a name is in capitals, with the small letters that such a name may have (McGEE, Dr. WHO)."""
    bare = re.sub(r"\b(?:Mc|Mac|De|Di|Du|La|Le|Van|Von|Mrs|Mr|Ms|Dr|St)(?=[A-Z.\s])", "", name)
    return bare.isupper() and sum(map(str.isupper, bare)) > 0


def _abbreviated(word: str) -> bool:
    letters = word.rstrip(".").casefold()
    return letters in TITLES or re.fullmatch(r"(?:[^\W\d_]\.)*[^\W\d_]", letters) is not None


def _cased(c: str) -> bool:
    return c.lower() != c.upper()


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def _words(text: str) -> set[str]:
    return {w.strip(".'\u2019-").casefold() for w in _JOINS.split(text)} - {""}


def _stems(word: str) -> set[str]:
    """A word, and without its English endings."""
    found = {word}
    for ending in ("s", "es", "ed", "d", "er", "ing"):
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            found |= {stem, f"{stem}e", stem[:-1] if stem[-2:-1] == stem[-1:] else stem}
    return found

"""Utterances that training and held-out conversations have in common (SPEC section 11).

MELD and EmoryNLP come from one television series: a scene that one of them trains on may be held out in the
other. Short utterances ("What are you doing?") are equal by chance, so only those of six words or more count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from selfemo.method.types import SPLITS, Conversation

LEAST_WORDS = 6
"""Words of the shortest utterance that counts."""
LEAST_COPIES = 3
LEAST_SHARE = 0.3
"""A conversation overlaps with LEAST_COPIES copies or more, or with more than this share of the utterances
that count. [ours]"""
_MARK = re.compile(r"[^\w\s]|_")

Turn = tuple[str, int]
"""A turn: the conversation's id, and the turn's index in it."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A held-out utterance that training conversations have too.

    Attributes:
        text: as it is held out.
        held_out: its turn.
        training: the turns that say the same, in order.
    """

    text: str
    held_out: Turn
    training: tuple[Turn, ...]

    def as_dict(self) -> dict[str, Any]:
        """With turns written CONVERSATION/INDEX, as the ids of prompts are."""
        training = [f"{c}/{i}" for c, i in self.training]
        return {"text": self.text, "held_out": "{}/{}".format(*self.held_out), "training": training}


@dataclass(frozen=True, slots=True)
class Counts:
    """The overlap of one held-out data set.

    Attributes:
        conversations, overlapping: all of them, and those that overlap.
        utterances, copies: those of LEAST_WORDS or more, and how many of them the training data have.
    """

    conversations: int = 0
    overlapping: int = 0
    utterances: int = 0
    copies: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Overlap:
    """What held-out conversations share with training conversations.

    Attributes:
        counts: by data set of the held-out side.
        conversations: ids of the held-out conversations that overlap, in their order.
    """

    counts: Mapping[str, Counts]
    copies: tuple[Copy, ...]
    conversations: tuple[str, ...]

    def training_conversations(self) -> set[str]:
        """The training conversations that share an utterance with a conversation that overlaps.

        Without them, none of the held-out conversations overlaps.
        """
        overlapping = set(self.conversations)
        return {c for copy in self.copies if copy.held_out[0] in overlapping for c, _ in copy.training}


class Comparison(NamedTuple):
    """The overlap of one split with another: names of both, as "SOURCE SPLIT"."""

    training: str
    held_out: str
    overlap: Overlap


def normalised(text: str) -> str:
    """An utterance as it is compared: words in lower case, one blank between them.

    Punctuation, quotes, apostrophes and other symbols are taken out without parting the word that they stand
    in ("y'know" and "y\N{RIGHT SINGLE QUOTATION MARK}know" are "yknow"). Characters are folded by Unicode's
    NFKC, and accents stay.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # Marks that belong to a letter (accents, vowel signs) are no word characters to `re`.
    kept = _MARK.sub(lambda m: m[0] if unicodedata.category(m[0])[0] == "M" else "", folded)
    return " ".join(kept.split())


def counted(conversation: Conversation) -> list[tuple[int, str]]:
    """(index, normalised text) of the turns of LEAST_WORDS words or more; blanks part the words."""
    found = ((i, normalised(t.text)) for i, t in enumerate(conversation.turns))
    return [(i, text) for i, text in found if text.count(" ") >= LEAST_WORDS - 1]


def overlaps(copies: int, utterances: int) -> bool:
    """Whether a conversation overlaps, with so many copies among its utterances that count."""
    return copies >= LEAST_COPIES or copies > LEAST_SHARE * utterances


def find_overlap(held_out: Sequence[Conversation], training: Iterable[Conversation]) -> Overlap:
    """Compare held-out with training conversations, in time linear in their turns."""
    said: dict[str, list[Turn]] = defaultdict(list)
    for c in training:
        for i, text in counted(c):
            said[text].append((c.id, i))
    copies: list[Copy] = []
    overlapping: list[str] = []
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for c in held_out:
        own = counted(c)
        found = [Copy(c.turns[i].text, (c.id, i), tuple(said[text])) for i, text in own if text in said]
        copies += found
        over = overlaps(len(found), len(own))
        if over:
            overlapping.append(c.id)
        added = (1, int(over), len(own), len(found))
        totals[c.dataset] = [a + b for a, b in zip(totals[c.dataset], added, strict=True)]
    return Overlap({d: Counts(*n) for d, n in totals.items()}, tuple(copies), tuple(overlapping))


def compare_splits(sources: Sequence[tuple[str, Sequence[Conversation]]]) -> list[Comparison]:
    """Compare all splits of which one may be trained on, or chosen by, and the other held out.

    These are the training split of each source against dev and test of every source, and dev against test of
    the same one, as far as they are there.

    Args:
        sources: (name, conversations) each.
    """
    parts = [
        (k, split, f"{name} {split}", [c for c in conversations if c.split == split])
        for k, (name, conversations) in enumerate(sources)
        for split in SPLITS
    ]
    return [
        Comparison(train_name, held_name, find_overlap(held, train))
        for k, train_split, train_name, train in parts
        for j, held_split, held_name, held in parts
        if train and held and SPLITS.index(train_split) < SPLITS.index(held_split)
        if train_split == "train" or k == j
    ]

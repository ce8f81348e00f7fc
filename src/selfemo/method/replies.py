"""What makes a reply unfit to join the data, or to be rewarded: its text alone decides (SPEC section 5)."""

from __future__ import annotations

import re
from typing import Protocol

from selfemo.method.types import LabelSet, Prompt

_MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\*|`|^#|https?://|\b[TESR]:")


class Limits(Protocol):
    """Characters of a reply; `config.GateConfig` has them."""

    @property
    def min_reply_chars(self) -> int: ...

    @property
    def max_reply_chars(self) -> int: ...


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower()))


def _is_bare_tag(reply: str, labels: LabelSet) -> bool:
    """Whether a label name is the whole reply, opens it with a colon, or is in brackets."""
    names = "|".join(map(re.escape, labels.labels))
    pattern = rf"\W*({names})\W*|\W*({names})\s*[:|].*|.*\(\s*({names})\s*\).*"
    return re.fullmatch(pattern, reply, re.IGNORECASE | re.DOTALL) is not None


def _loops(plain: str) -> bool:
    """Whether at least a quarter of the word trigrams of a reply repeat earlier ones."""
    words = plain.split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(trigrams) >= 6 and len(set(trigrams)) <= 0.75 * len(trigrams)


def reply_fault(prompt: Prompt, reply: str, limits: Limits) -> str:
    """The reason why a reply may not join the data; "" if it may."""
    plain = _plain(reply)
    if not plain:
        return "empty_reply"
    if not limits.min_reply_chars <= len(reply) <= limits.max_reply_chars:
        return "reply_length"
    if _is_bare_tag(reply, prompt.label_set):
        return "label_tag"
    if _MARKUP.search(reply):
        return "markup"
    if _loops(plain):
        return "repetition"
    for utterance in prompt.history:
        said = _plain(utterance.text)
        if plain == said or (len(plain.split()) >= 6 and plain in said):
            return "copy"
    return ""


def names_label(text: str, labels: LabelSet) -> bool:
    """Whether a label of the set is among the words of a text, so that the emotion is told and not shown."""
    names = "|".join(map(re.escape, labels.labels))
    return re.search(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE) is not None

"""What a reply must be to join the data (SPEC section 5, step 3); self-play and experts are held to it."""

from __future__ import annotations

import re

from selfemo.config import GateConfig
from selfemo.method.types import LabelSet, Prompt, Rollout

PASS = "pass"
_MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\*|`|^#|https?://|\b[TESR]:")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower()))


def _is_bare_tag(reply: str, labels: LabelSet) -> bool:
    """A label name standing alone, opening the reply with a colon, or in brackets."""
    names = "|".join(map(re.escape, labels.labels))
    pattern = rf"\W*({names})\W*|\W*({names})\s*[:|].*|.*\(\s*({names})\s*\).*"
    return re.fullmatch(pattern, reply, re.IGNORECASE | re.DOTALL) is not None


def _loops(plain: str) -> bool:
    """Whether a quarter or more of the word trigrams of a reply repeat earlier ones."""
    words = plain.split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(trigrams) >= 6 and len(set(trigrams)) <= 0.75 * len(trigrams)


def reply_fault(prompt: Prompt, reply: str, config: GateConfig) -> str:
    """Why a reply may not join the data, or "" where it may."""
    if not _plain(reply):
        return "empty_reply"
    if not config.min_reply_chars <= len(reply) <= config.max_reply_chars:
        return "reply_length"
    if _is_bare_tag(reply, prompt.label_set):
        return "label_tag"
    if _MARKUP.search(reply):
        return "markup"
    plain = _plain(reply)
    if _loops(plain):
        return "repetition"
    for utterance in prompt.history:
        said = _plain(utterance.text)
        if plain == said or (len(plain.split()) >= 6 and plain in said):
            return "copy"
    return ""


def gate(prompt: Prompt, rollout: Rollout, config: GateConfig) -> str:
    """`PASS`, or why the rollout may not join the data."""
    completion = rollout.completion
    if completion is None:
        return "unparsed"
    if rollout.r1 < config.tau:
        return "low_reward"
    return reply_fault(prompt, completion.reply, config) or PASS

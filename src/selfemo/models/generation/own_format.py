"""Sampling under the format of completions (prompts.py), so that each one parses (parsing.py).

At each step llguidance allows only tokens that the format can continue with. It knows no token limit, so
near the limit this constraint takes over: it closes an open field by the shortest text that ends it, token
by token, and ends the reply. For inference alone: in training a completion that does not parse must be able
to happen, or it could not be rewarded with 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import torch

from selfemo.errors import ConfigError
from selfemo.method.parsing import parse_emotions
from selfemo.method.prompts import Reasoning
from selfemo.method.types import MAX_EMOTIONS, EmotionDistribution, LabelSet
from selfemo.models.generation.grammar import Compiled, Matcher
from selfemo.models.generation.no_repeat import NoRepeat
from selfemo.models.policy import Encoder

_FREE = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"
"""A character of free text: no control character or line end, as Python or the parser sees them."""
_FIRST = r"[^\s\x00-\x1f\x7f-\x9f\u2028\u2029]"
_MANY_LABELS = 32
"""Beyond so many labels three distinct ones make a grammar of megabytes; two are allowed there."""
_CHARACTER = 4
"""Tokens that the rest of a character may take: UTF-8 has at most four bytes."""


def emotions_regex(labels: LabelSet, most: int = MAX_EMOTIONS) -> str:
    """The texts of `prompts.format_emotions`: one name, or up to `most` distinct ones with whole weights."""

    def weighted(used: tuple[str, ...]) -> str:
        parts = []
        for label in (e for e in labels if e not in used):
            more = f"(, {weighted((*used, label))})?" if len(used) + 1 < most else ""
            parts.append(f"{re.escape(label)} [1-9]{more}")
        return f"({'|'.join(parts)})"

    one = (f"{re.escape(e)}( [1-9], {weighted((e,))})?" for e in labels)
    return f"({'|'.join(one)})"


class OwnFormat(Compiled):
    """The format over one label set, for one policy's tokenizer.

    Raises:
        ConfigError: the format cannot hold one of the labels.
    """

    def __init__(
        self, policy: Encoder, labels: LabelSet, reasoning: Reasoning = "none", no_repeat_ngram: int = 0
    ):
        for label in labels:
            read = parse_emotions(label, labels)
            if not isinstance(read, EmotionDistribution) or list(read) != [label]:
                raise ConfigError(
                    f"label {label!r} cannot be written in the format; a label is lower-case letters, with "
                    "blanks, hyphens or apostrophes between them"
                )
        self.labels = labels
        self.most = 2 if len(labels) > _MANY_LABELS else min(MAX_EMOTIONS, len(labels))
        emotions = emotions_regex(labels, self.most)
        thought = "" if reasoning == "none" else rf"T: {_FIRST}{_FREE}*\n"
        regex = rf"{thought}E: {emotions}\nS: {emotions}\nR: {_FIRST}{_FREE}*"
        super().__init__(policy, lambda m: m.grammar_from_regex(regex), "the format")
        self.reasoning, self.policy = reasoning, policy
        self.end = policy.end_id
        self.no_repeat = no_repeat_ngram
        # One more token may open an emotion with its weight that then has to be closed as well.
        longest = max(len(self.encode(f", {e} 3")) for e in labels)
        self.slack = 2 * longest + 2 * _CHARACTER
        self._least = len(self.encode(self.closing(""))) + self.slack + 2 * _CHARACTER
        # The first token of each label after "E:"; None where two begin alike, or one holds the "E:" as well.
        begin = self.encode("E:")
        heads = [self.encode(f"E: {e}") for e in labels]
        firsts = [h[len(begin)] for h in heads if h[: len(begin)] == begin and len(h) > len(begin)]
        self.firsts = firsts if len(set(firsts)) == len(labels) else None

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.tokenize_str(text))

    def least_tokens(self) -> int:
        """The smallest token limit under which every completion can be finished."""
        return self._least

    def closing(self, written: str) -> str:
        """The shortest text that finishes the completion `written`; "" where it is finished."""
        lines = written.split("\n")
        order = ("T", "E", "S", "R") if self.reasoning != "none" else ("E", "S", "R")
        line, rest = lines[-1], order[len(lines) :]
        letter = order[len(lines) - 1]
        plain = self.labels.labels[0]
        here = {"T": "T: .", "R": "R: ."}.get(letter, f"{letter}: {plain}")
        if len(line) <= 3:
            end = here[len(line) :]
        elif letter in "TR":
            end = ""
        else:
            end = self._close_emotions(line[3:])
        return "\n".join([end, *(f"{f}: {plain}" if f in "ES" else f"{f}: ." for f in rest)])

    def _close_emotions(self, written: str) -> str:
        """The shortest text that finishes an E or S line such as `joy 7, sur`."""
        labels = self.labels.labels
        ends = ["", "3", " 3"]
        ends += [f"{e[k:]}{weight}" for e in labels for k in range(len(e)) for weight in ("", " 3")]
        ends += [f"{before}{e} 3" for e in labels for before in (" ", ", ", "3, ", " 3, ")]
        return min((end for end in ends if self._whole(written + end)), key=len)

    def _whole(self, emotions: str) -> bool:
        if emotions in self.labels:
            return True
        named = [part.rpartition(" ") for part in emotions.split(", ")]
        names = [name for name, _, _ in named]
        return (
            1 < len(names) == len(set(names)) <= self.most
            and all(name in self.labels for name in names)
            and all(weight in tuple("123456789") for _, _, weight in named)
        )

    @cached_property
    def tails(self) -> torch.Tensor:
        """(v,) bool: tokens that only go on with a character begun before (UTF-8 continuation bytes)."""
        tails = torch.zeros(self.size, dtype=torch.bool)
        for token in range(min(self.size, self.tokenizer.vocab_size)):
            if not self.tokenizer.is_special_token(token):
                raw = self.tokenizer.decode_bytes([token])
                tails[token] = bool(raw) and all(0x80 <= b < 0xC0 for b in raw)
        return tails

    def limited(self, max_tokens: int, reply_tokens: int = 0, begun: Sequence[int] = ()) -> LimitedFormat:
        """The format in at most `max_tokens` tokens, the end token included (ConfigError: too few).

        Args:
            reply_tokens: of the reply alone, and what ends its last character; 0 is no limit of its own.
            begun: tokens (`encode`) that a completion begins with; they count.
        """
        if max_tokens < self.least_tokens():
            raise ConfigError(
                f"a limit of {max_tokens} tokens is too small for a whole answer over these labels; it "
                f"takes at least {self.least_tokens()}"
            )
        return LimitedFormat(self, max_tokens, reply_tokens, begun)


class LimitedFormat:
    """`Constraints` of requests.py."""

    def __init__(self, format_: OwnFormat, max_tokens: int, reply_tokens: int = 0, begun: Sequence[int] = ()):
        self.format, self.max_tokens, self.reply_tokens = format_, max_tokens, reply_tokens
        self._begun = begun
        self.opened: _Open | None = None

    @property
    def cut(self) -> bool:
        """Whether a limit ended the reply of the completion begun last."""
        return self.opened is not None and self.opened.cut

    def probabilities(self, field: str) -> EmotionDistribution | None:
        """The probability of each label at "E" or "S" in the completion begun last, normalised over the set.

        It is read at the first token of each label, after which the grammar allows that label alone. None
        before that place, and where two labels begin with one token (label_scores.py tells those apart).
        """
        return self.opened.seen.get(field) if self.opened else None

    def start(self) -> _Open:
        self.opened = _Open(self.format, self.max_tokens, self.reply_tokens)
        for token in self._begun:
            self.opened.take(token)
        return self.opened


class _Open:
    """One completion under way; a `Constraint` and an `Observer` of requests.py."""

    def __init__(self, format_: OwnFormat, max_tokens: int, reply_tokens: int):
        self._format, self._left, self._reply_left = format_, max_tokens, reply_tokens or max_tokens
        self.cut = False
        self._matcher: Matcher = format_.start()
        n = format_.no_repeat
        self._no_repeat = NoRepeat(n, format_.policy.line_ends) if n else None
        self._raw = b""
        self.seen: dict[str, EmotionDistribution] = {}
        self._replies_from = 2 if format_.reasoning == "none" else 3

    def allowed(self) -> torch.Tensor:
        mask = self._matcher.allowed()
        forced = self._forced(mask)
        if forced is not None:
            return forced
        if self._no_repeat is not None:
            fresh = mask & self._no_repeat.allowed()
            if fresh.any():
                return fresh
        return mask

    def take(self, token: int) -> None:
        self._matcher.take(token)
        self._raw += self._format.tokenizer.decode_bytes([token])
        self._left -= 1
        self._reply_left -= self._in_reply()
        if self._no_repeat is not None:
            self._no_repeat.take(token)

    def observe(self, logits: torch.Tensor) -> None:
        line = self._raw[self._raw.rfind(b"\n") + 1 :]
        if line not in (b"E:", b"S:") or self._format.firsts is None:
            return
        chosen = torch.softmax(logits[self._format.firsts].double(), -1).tolist()
        weights = zip(self._format.labels, chosen, strict=True)
        self.seen[line[:1].decode()] = EmotionDistribution(dict(weights))

    def _in_reply(self) -> bool:
        """Whether the reply has begun."""
        return self._raw.count(b"\n") == self._replies_from and (
            len(self._raw) - self._raw.rfind(b"\n") > len("\nR: ")
        )

    def _forced(self, mask: torch.Tensor) -> torch.Tensor | None:
        """The one way on where a limit is near; None where there is room."""
        if in_reply := self._in_reply():
            if self._left > 2 * _CHARACTER and self._reply_left > 0:
                return None
            closing: Sequence[int] = [self._format.end]
        elif self._left > 2 * self._format.least_tokens():
            return None  # far from the limit: no need to work out the closing text
        else:
            # Decoding stops at a character that is begun only; that happens in free text alone.
            text = self._format.closing(self._raw.decode("utf-8", errors="ignore"))
            closing = self._format.encode(text)
            if self._left > len(closing) + self._format.slack + 2 * _CHARACTER - 1:
                return None
        if mask[closing[0]]:
            self.cut = in_reply
            only = torch.zeros_like(mask)
            only[closing[0]] = True
            return only
        tails = mask & self._format.tails
        return tails if tails.any() else mask

"""Conversations as rows of tokens for an encoder, with the place of each turn that is read.

    utterance      a row for each turn: CLS, earlier turns, SEP, the turn, SEP [, later turns, SEP] (EmoBERTa)
    conversation   one row for all turns of a conversation, CLS NAME: text SEP each, where a token sees its
                   own turn and earlier ones (block-causal): each turn is computed once, not once for each
                   later turn [ours]. MELD's training split has 160,000 tokens so, instead of 1,023,000.

Each turn is "NAME: text". In both, what is read of a turn depends on it and earlier turns alone, unless
`later` asks for more.

A row of a single turn may end in a question, NAME feels MASK SEP, which is answered at the mask token (the
prompt of SPCL, Song et al. 2022, caskcsg/SPCL:data_process.py). [ours]: SPCL repeats the turn before it; here
the turn stands by itself already, between separators.

Shapes: t turns of a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selfemo.config.encoders import EncoderConfig, Layout
from selfemo.errors import EngineError
from selfemo.method.types import Conversation, Utterance


@dataclass(frozen=True)
class Place:
    """Where a turn is read in a row.

    Attributes:
        turn: its number in the conversation.
        first: the position of its CLS token.
        start, end: the positions of its own tokens, [start, end).
        mask: the position of the mask token of the question about it; -1 where there is none.
    """

    turn: int
    first: int
    start: int
    end: int
    mask: int = -1


@dataclass(frozen=True)
class Row:
    """One row of an encoder's input.

    Attributes:
        ids: (l,) token ids.
        groups: (l,) number of the turn that each token is of: a token sees its own and lower numbers.
            Empty where each token sees all.
        places: the turns that are read in it.
        cut: turns of which tokens were left out, as they alone pass the limit.
    """

    ids: tuple[int, ...]
    groups: tuple[int, ...]
    places: tuple[Place, ...]
    cut: int = 0


@dataclass(frozen=True)
class RowBuilder:
    """Makes rows of conversations.

    Attributes:
        encode: token ids of a text, without special tokens.
        cls, sep: ids of the tokens that begin and end a text.
        max_tokens: of a row. The nearest earlier turns come first, then the nearest later ones.
        window: most earlier turns that are seen; -1 for all, 0 for the turn alone.
        later: most later turns that are seen; -1 for all. Only with layout "utterance".
        mask: id of the mask token of a question behind each turn, with layout "utterance"; None: no question.
    """

    encode: Callable[[str], Sequence[int]]
    cls: int
    sep: int
    layout: Layout = "utterance"
    max_tokens: int = 512
    window: int = -1
    later: int = 0
    mask: int | None = None

    @staticmethod
    def of(config: EncoderConfig, tokenizer: Any) -> RowBuilder:
        """As the settings of an encoder and its tokenizer say (EngineError: it has no mask token to read)."""
        asks = config.pooling == "mask"
        if asks and tokenizer.mask_token_id is None:
            raise EngineError(
                f"{config.encoder}: its tokenizer has no mask token to read turns at; take an encoder that "
                "was trained to fill in masked words, such as roberta-large"
            )
        return RowBuilder(
            lambda text: tokenizer(text, add_special_tokens=False).input_ids,
            tokenizer.cls_token_id, tokenizer.sep_token_id, config.layout, config.max_tokens, config.window,
            config.later, tokenizer.mask_token_id if asks else None,
        )  # fmt: skip

    def rows(self, conversation: Conversation) -> list[Row]:
        """The rows in which all turns of a conversation are read, each once."""
        turns = [tuple(self.encode(turn_text(t))) for t in conversation.turns]
        if self.layout == "conversation" and self.window != 0:
            return self._packed(turns)
        return [self._row(turns, i, self._question(t.speaker)) for i, t in enumerate(conversation.turns)]

    def _question(self, speaker: str) -> list[int]:
        """NAME feels MASK SEP, if one is asked. However long a name is, it leaves room for the turn."""
        if self.mask is None:
            return []
        return [*self.encode(f"{speaker} feels")[-(self.max_tokens // 4) :], self.mask, self.sep]

    def _row(self, turns: Sequence[tuple[int, ...]], at: int, question: Sequence[int]) -> Row:
        limit = self.max_tokens - 3 - len(question)  # CLS, SEP, SEP
        own = turns[at][:limit]
        room = limit - len(own)
        before: list[int] = []
        for turn in reversed(turns[_first(at, self.window) : at]):
            if len(turn) > room:
                break
            before = [*turn, *before]
            room -= len(turn)
        after: list[int] = []
        room -= 1  # SEP
        last = len(turns) if self.later < 0 else at + 1 + self.later
        for turn in turns[at + 1 : last]:
            if len(turn) > room:
                break
            after += turn
            room -= len(turn)
        start = 2 + len(before) if before else 1
        ids = [self.cls, *before, *([self.sep] if before else []), *own, self.sep]
        if after:
            ids += [*after, self.sep]
        ids += question
        place = Place(at, 0, start, start + len(own), len(ids) - 2 if question else -1)
        return Row(tuple(ids), (), (place,), int(len(own) < len(turns[at])))

    def _packed(self, turns: Sequence[tuple[int, ...]]) -> list[Row]:
        kept = [t[: self.max_tokens - 2] for t in turns]
        sizes = [len(t) + 2 for t in kept]
        rows = []
        for first, start, end in windows(sizes, self.max_tokens):
            ids: list[int] = []
            groups: list[int] = []
            places = []
            for i in range(first, end):
                if i >= start:
                    places.append(Place(i, len(ids), len(ids) + 1, len(ids) + 1 + len(kept[i])))
                ids += [self.cls, *kept[i], self.sep]
                groups += [i] * sizes[i]
            cut = sum(len(kept[i]) < len(turns[i]) for i in range(start, end))
            rows.append(Row(tuple(ids), tuple(groups), tuple(places), cut))
        return rows


def turn_text(turn: Utterance) -> str:
    """A turn with the name of its speaker, as EmoBERTa has it."""
    return f"{turn.speaker}: {turn.text}"


def _first(at: int, window: int) -> int:
    return 0 if window < 0 else max(0, at - window)


def windows(sizes: Sequence[int], limit: int) -> list[tuple[int, int, int]]:
    """Parts of a conversation whose turns fit into `limit` tokens: (first turn, first turn read, end).

    From one part to the next the turns seen before those that are read take half of the limit at the most.
    Where a part begins depends on its earlier turns alone, so that no later turn changes what is read of one.

    Args:
        sizes: (t,) tokens of each turn, none above `limit`.
    """
    parts = []
    start = 0
    while start < len(sizes):
        first, held = start, 0
        while first > 0 and held + sizes[first - 1] <= min(limit // 2, limit - sizes[start]):
            first -= 1
            held += sizes[first]
        end = start
        while end < len(sizes) and held + sizes[end] <= limit:
            held += sizes[end]
            end += 1
        parts.append((first, start, end))
        start = end
    return parts

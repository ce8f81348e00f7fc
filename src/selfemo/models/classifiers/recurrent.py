"""Recurrent networks over conversations: DialogueRNN, and COSMIC without its external knowledge.

Both keep a state of the context (g), states of each party, and a state of the emotion (e). A turn changes
them in its order; the emotion state behind it is what its label is read from. A pass in the other
direction, over the conversation reversed, gives the bidirectional variants.

Sources: Majumder et al. 2019 (declare-lab/conv-emotion:DialogueRNN/model.py); Ghosal et al. 2020
(declare-lab/conv-emotion:COSMIC/erc-training/commonsense_model.py).

Shapes: b conversations, t turns, d features, p parties, u, g, q, e the sizes of inputs and states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfemo.models.classifiers.dialogues import Dialogues, Network, weights_over

Parties = tuple[Float[Tensor, "b p q"], ...]
"""States of each party, of one kind or of several."""


class Attention(nn.Module):
    """Weights of earlier states: by their product with a query, or by a learnt vector alone.

    Args:
        query: the size of the query; 0: weights do not depend on one ("simple" in conv-emotion).
    """

    def __init__(self, memory: int, query: int, bias: bool = False):
        super().__init__()
        self.by = nn.Linear(query, memory, bias=bias) if query else None
        self.vector = None if query else nn.Linear(memory, 1, bias=False)

    def scores(self, states: Float[Tensor, "b j m"], query: Float[Tensor, "b i q"]) -> Float[Tensor, "b i j"]:
        if self.by is not None:
            found: Tensor = self.by(query) @ states.transpose(1, 2)
            return found
        assert self.vector is not None
        alike: Tensor = self.vector(states).transpose(1, 2)
        return alike.expand(-1, query.shape[1], -1)

    def context(
        self, states: Sequence[Float[Tensor, "b m"]], query: Float[Tensor, "b q"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b j"]]:
        """(weighted sum of all states, their weights)."""
        memory = torch.stack(list(states), 1)
        weights = self.scores(memory, query[:, None]).softmax(-1)
        return (weights @ memory)[:, 0], weights[:, 0]


class Cell(nn.Module):
    """What a turn does to the states.

    Attributes:
        context, emotion: sizes of g and e.
        parties: sizes of the party states.
    """

    context: int
    emotion: int
    parties: tuple[int, ...]

    def forward(
        self,
        turn: Float[Tensor, "b u"],
        speaker: Int[Tensor, " b"],
        contexts: Sequence[Float[Tensor, "b g"]],
        parties: Parties,
        emotion: Float[Tensor, "b e"],
    ) -> tuple[Float[Tensor, "b g"], Parties, Float[Tensor, "b e"]]:
        """(g, party states, e) behind a turn.

        Args:
            contexts: g of each earlier turn; none before the first.
        """
        raise NotImplementedError

    def seen(
        self, attention: Attention, turn: Float[Tensor, "b u"], contexts: Sequence[Float[Tensor, "b g"]]
    ) -> Float[Tensor, "b g"]:
        """What a turn sees of the contexts before it; 0 before the first."""
        return attention.context(contexts, turn)[0] if contexts else turn.new_zeros(len(turn), self.context)

    def last(
        self, contexts: Sequence[Float[Tensor, "b g"]], turn: Float[Tensor, "b u"]
    ) -> Float[Tensor, "b g"]:
        """g of the last turn; 0 before the first."""
        return contexts[-1] if contexts else turn.new_zeros(len(turn), self.context)


def of_speaker(states: Float[Tensor, "b p q"], speaker: Int[Tensor, " b"]) -> Float[Tensor, "b q"]:
    """The state of each conversation's speaker."""
    return states[torch.arange(len(speaker), device=states.device), speaker]


def with_speaker(
    states: Float[Tensor, "b p q"], speaker: Int[Tensor, " b"], new: Float[Tensor, "b q"]
) -> Float[Tensor, "b p q"]:
    """The states with another one for each conversation's speaker."""
    at = speaker[:, None, None].expand(-1, 1, states.shape[2])
    return states.scatter(1, at, new[:, None])


class DialogueRnnCell(Cell):
    """DialogueRNN's three GRUs: context, party, emotion. Only the speaker's party state changes."""

    def __init__(self, turn: int, context: int, party: int, emotion: int, dropout: float):
        super().__init__()
        self.context, self.parties, self.emotion = context, (party,), emotion
        self.attention = Attention(context, turn)
        self.to_context = nn.GRUCell(turn + party, context)
        self.to_party = nn.GRUCell(turn + context, party)
        self.to_emotion = nn.GRUCell(party, emotion)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        turn: Float[Tensor, "b u"],
        speaker: Int[Tensor, " b"],
        contexts: Sequence[Float[Tensor, "b g"]],
        parties: Parties,
        emotion: Float[Tensor, "b e"],
    ) -> tuple[Float[Tensor, "b g"], Parties, Float[Tensor, "b e"]]:
        before = of_speaker(parties[0], speaker)
        context = self.to_context(torch.cat([turn, before], 1), self.last(contexts, turn))
        seen = self.seen(self.attention, turn, contexts)
        party = self.dropout(self.to_party(torch.cat([turn, seen], 1), before))
        emotion = self.to_emotion(party, emotion)
        return self.dropout(context), (with_speaker(parties[0], speaker, party),), self.dropout(emotion)


class CosmicCell(Cell):
    """COSMIC's GRUs: context, internal state q, external state r, intent i, emotion.

    Each vector of external knowledge is left out of the input that it would be a part of. Then q is moved
    by the context alone, i by q alone, and those who listen by the speaker's new states (q) and by them and
    the turn (r).
    """

    def __init__(self, turn: int, context: int, party: int, dropout: float, by_turn: bool):
        super().__init__()
        self.context, self.parties, self.emotion = context, (party,) * 3, 3 * party
        self.attention = Attention(context, turn if by_turn else 0)
        self.to_context = nn.GRUCell(turn + 2 * party, context)
        self.to_internal = nn.GRUCell(context, party)
        self.to_external = nn.GRUCell(turn + context, party)
        self.to_intent = nn.GRUCell(party, party)
        self.listener_internal = nn.GRUCell(party, party)
        self.listener_external = nn.GRUCell(turn + party, party)
        self.to_emotion = nn.GRUCell(turn + 3 * party, self.emotion)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        turn: Float[Tensor, "b u"],
        speaker: Int[Tensor, " b"],
        contexts: Sequence[Float[Tensor, "b g"]],
        parties: Parties,
        emotion: Float[Tensor, "b e"],
    ) -> tuple[Float[Tensor, "b g"], Parties, Float[Tensor, "b e"]]:
        internals, externals, intents = parties
        q, r, i = (of_speaker(s, speaker) for s in parties)
        context = self.to_context(torch.cat([turn, q, r], 1), self.last(contexts, turn))
        seen = self.seen(self.attention, turn, contexts)
        q = self.to_internal(seen, q)
        r = self.to_external(torch.cat([turn, seen], 1), r)
        i = self.to_intent(q, i)
        p = internals.shape[1]
        heard = self.listener_internal(_of_all(q, p), internals.flatten(0, 1)).view_as(internals)
        internals = with_speaker(heard, speaker, q)
        heard = self.listener_external(_of_all(torch.cat([turn, r], 1), p), externals.flatten(0, 1))
        externals = with_speaker(heard.view_as(externals), speaker, r)
        intents = with_speaker(intents, speaker, i)
        emotion = self.to_emotion(torch.cat([turn, q, r, i], 1), emotion)
        changed = tuple(self.dropout(s) for s in (internals, externals, intents))
        return self.dropout(context), changed, self.dropout(emotion)


def _of_all(x: Float[Tensor, "b u"], p: int) -> Float[Tensor, "b*p u"]:
    return x.repeat_interleave(p, 0)


def one_pass(
    cell: Cell, turns: Float[Tensor, "b t u"], speakers: Int[Tensor, "b t"]
) -> Float[Tensor, "b t e"]:
    """The emotion state behind each turn; each depends on its turn and earlier ones alone."""
    b, p = len(turns), int(speakers.max()) + 1
    contexts: list[Tensor] = []
    emotions: list[Tensor] = []
    parties: Parties = tuple(turns.new_zeros(b, p, size) for size in cell.parties)
    emotion = turns.new_zeros(b, cell.emotion)
    for turn, speaker in zip(turns.unbind(1), speakers.unbind(1), strict=True):
        context, parties, emotion = cell(turn, speaker, contexts, parties, emotion)
        contexts.append(context)
        emotions.append(emotion)
    return torch.stack(emotions, 1)


def turned(x: Tensor, lengths: Int[Tensor, " b"]) -> Tensor:
    """(b, t, ...) each conversation from its last turn to its first; padding stays where it is."""
    places = torch.arange(x.shape[1], device=x.device)
    at = torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
    return x[torch.arange(len(x), device=x.device)[:, None], at]


class Recurrent(Network):
    """One pass, or two in opposite directions, of a cell over the turns, and a hidden layer behind it.

    Args:
        cell: makes a cell from the size of its inputs.
        inputs: the size that features are brought to by a linear layer; 0 leaves them as they are.
        attention: each emotion state sees the ones before it and itself; with two passes it sees all.
        residual: add the inputs to the hidden layer.
    """

    def __init__(
        self,
        features: int,
        cell: Callable[[int], Cell],
        *,
        hidden: int,
        dropout: float,
        bidirectional: bool,
        inputs: int = 0,
        attention: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        self.size, self.residual = hidden, residual
        self.inputs = nn.Linear(features, inputs) if inputs else nn.Identity()
        self.cells = nn.ModuleList(cell(inputs or features) for _ in range(1 + bidirectional))
        size = sum(c.emotion for c in self.cells)  # type: ignore[misc]
        self.attention = Attention(size, size, bias=True) if attention else None
        self.hidden, self.dropout = nn.Linear(size, hidden), nn.Dropout(dropout)

    def forward(self, dialogues: Dialogues) -> Float[Tensor, "b t h"]:
        turns, speakers, lengths = self.inputs(dialogues.features), dialogues.speakers, dialogues.lengths
        emotions = one_pass(self.cells[0], turns, speakers)  # type: ignore[arg-type]
        if len(self.cells) > 1:
            back = one_pass(self.cells[1], turned(turns, lengths), turned(speakers, lengths))  # type: ignore[arg-type]
            emotions = torch.cat([emotions, turned(back, lengths)], -1)
        emotions = self.dropout(emotions)
        if self.attention is not None:
            seen = in_view(dialogues, later=len(self.cells) > 1)
            emotions = weights_over(self.attention.scores(emotions, emotions), seen) @ emotions
        hidden: Tensor = self.dropout(self.hidden(emotions).relu())
        return hidden + turns if self.residual else hidden


def in_view(dialogues: Dialogues, later: bool) -> Tensor:
    """(b, t, t) bool: whether turn i (row) sees turn j: itself and earlier ones, or all of its
    conversation."""
    t = dialogues.features.shape[1]
    all_of = dialogues.there[:, None, :].expand(-1, t, -1)
    return all_of if later else all_of.tril()

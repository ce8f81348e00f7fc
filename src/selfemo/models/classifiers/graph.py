"""Graph networks over conversations: DialogueGCN and DAG-ERC. A turn gathers from the turns that edges
bring to it.

Sources: Ghosal et al. 2019 (declare-lab/conv-emotion:DialogueGCN/model.py); Shen et al. 2021
(shenwzh3/DAG-ERC:model.py, model_utils.py).

Shapes: b conversations, t turns, d features, h hidden size, m bases.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from selfemo.models.classifiers.dialogues import Dialogues, Network, weights_over
from selfemo.models.classifiers.recurrent import Attention, in_view


class DialogueGcn(Network):
    """A two-layer LSTM over the turns, a relational graph convolution, a plain one, attention over turns.

    Args:
        lstm: its size, of one direction.
        relations: kinds of edges; bases: matrices that those of the kinds are mixed from.
    """

    def __init__(
        self,
        features: int,
        *,
        lstm: int,
        graph: int,
        relations: int,
        bases: int,
        dropout: float,
        bidirectional: bool,
    ):
        super().__init__()
        self.size, self.later = graph, bidirectional
        self.lstm = nn.LSTM(features, lstm, 2, batch_first=True, dropout=dropout, bidirectional=bidirectional)
        d = lstm * (1 + bidirectional)
        self.edges = Attention(d, d)
        self.first = RelationalLayer(d, graph, relations, bases)
        self.second, self.second_self = nn.Linear(graph, graph, bias=False), nn.Linear(graph, graph)
        self.nodes = Attention(d + graph, d + graph, bias=True)
        self.hidden, self.dropout = nn.Linear(d + graph, graph), nn.Dropout(dropout)

    def forward(self, dialogues: Dialogues) -> Float[Tensor, "b t h"]:
        assert dialogues.relations is not None
        there = dialogues.relations >= 0
        packed = pack_padded_sequence(dialogues.features, dialogues.lengths.cpu(), True, enforce_sorted=False)
        g, _ = pad_packed_sequence(self.lstm(packed)[0], True)
        weights = weights_over(self.edges.scores(g, g), there)
        h = self.first(g, weights, dialogues.relations.clamp(min=0))
        h = (there.to(h.dtype) @ self.second(h) + self.second_self(h)).relu()
        nodes = torch.cat([g, h], -1)
        seen = in_view(dialogues, self.later)
        nodes = weights_over(self.nodes.scores(nodes, nodes), seen) @ nodes
        found: Tensor = self.dropout(self.hidden(nodes).relu())
        return found


class RelationalLayer(nn.Module):
    """h_i = relu(sum_j w_ij W_r(i,j) x_j + W_0 x_i), where each W_r is a mixture of shared bases."""

    def __init__(self, d: int, h: int, relations: int, bases: int):
        super().__init__()
        self.bases = nn.Parameter(torch.empty(bases, d, h))
        self.mixture = nn.Parameter(torch.empty(relations, bases))
        within = (6 / (d + h)) ** 0.5  # Glorot's bound for each basis
        nn.init.uniform_(self.bases, -within, within)
        nn.init.xavier_uniform_(self.mixture)
        self.own = nn.Linear(d, h)

    def forward(
        self, x: Float[Tensor, "b t d"], weights: Float[Tensor, "b t t"], relations: Int[Tensor, "b t t"]
    ) -> Float[Tensor, "b t h"]:
        # Mixed before the bases: (b, t, t, m) weights instead of a matrix for each edge.
        mixed = weights[..., None] * self.mixture[relations]
        gathered = torch.einsum("bijm,bjd->bimd", mixed, x)
        return (torch.einsum("bimd,mdh->bih", gathered, self.bases) + self.own(x)).relu()


class DagErc(Network):
    """Layers in which each turn gathers from earlier turns of the same layer, which are done before it.

    Relation 1 is an edge from a turn of the same speaker, 0 one from another speaker's.
    """

    def __init__(self, features: int, *, hidden: int, layers: int, outputs: int, dropout: float):
        super().__init__()
        self.size = hidden
        self.inputs = nn.Linear(features, hidden)
        self.layers = nn.ModuleList(DagLayer(hidden) for _ in range(layers))
        sizes = [hidden * (layers + 1) + features, *[hidden] * outputs]
        self.outputs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, dialogues: Dialogues) -> Float[Tensor, "b t h"]:
        assert dialogues.relations is not None
        states = [self.inputs(dialogues.features).relu()]
        for layer in self.layers:
            states.append(layer(states[-1], dialogues.relations))
        x = torch.cat([*states, dialogues.features], -1)
        for output in self.outputs:
            x = output(x).relu()
        found: Tensor = self.dropout(x)
        return found


class DagLayer(nn.Module):
    """h_i = GRU(x_i, m_i) + GRU(m_i, x_i): the turn as input and what it gathers as state, and the reverse.

    m_i = sum_j w_ij W_r(i,j) h_j over the turns j that edges bring to i. The score behind w_ij is a linear
    layer on x_i and h_j: its part of x_i is the same for all edges of i and falls out of the softmax, so
    that it is left out here.
    """

    def __init__(self, h: int):
        super().__init__()
        self.score = nn.Linear(h, 1, bias=False)
        self.same, self.other = nn.Linear(h, h, bias=False), nn.Linear(h, h, bias=False)
        self.of_turn, self.of_context = nn.GRUCell(h, h), nn.GRUCell(h, h)

    def forward(self, x: Float[Tensor, "b t h"], relations: Int[Tensor, "b t t"]) -> Float[Tensor, "b t h"]:
        done: list[Tensor] = []
        scores: list[Tensor] = []
        same: list[Tensor] = []
        other: list[Tensor] = []
        for i, turn in enumerate(x.unbind(1)):
            gathered = torch.zeros_like(turn)
            if done:
                of = relations[:, i, :i]
                weights = weights_over(torch.stack(scores, 1), of >= 0)
                gathered = _sum(weights * (of == 1), same) + _sum(weights * (of == 0), other)
            h = self.of_turn(turn, gathered) + self.of_context(gathered, turn)
            done.append(h)
            scores.append(self.score(h)[:, 0])
            same.append(self.same(h))
            other.append(self.other(h))
        return torch.stack(done, 1)


def _sum(weights: Float[Tensor, "b j"], values: list[Tensor]) -> Float[Tensor, "b h"]:
    return (weights[:, None] @ torch.stack(values, 1))[:, 0]

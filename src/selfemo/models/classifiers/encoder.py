"""An encoder that reads the emotion of turns: rows of tokens in, logits of each turn out.

Shapes: b rows, l tokens of the longest, n turns that are read, d hidden size, k labels of the largest set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfemo.config.encoders import Pooling
from selfemo.method.types import LabelSet
from selfemo.models.classifiers.layout import Row


class Heads(nn.Module):
    """A linear layer for each label set, on the same representation: one model for several data sets."""

    def __init__(self, dim: int, label_sets: Sequence[LabelSet]):
        super().__init__()
        self.sizes = [len(s) for s in label_sets]
        self.layers = nn.ModuleList(nn.Linear(dim, k) for k in self.sizes)

    def forward(self, x: Float[Tensor, "n d"], which: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """Logits; -inf behind the labels of a smaller set.

        Args:
            which: the number of each turn's label set.
        """
        logits = x.new_full((len(x), max(self.sizes)), -torch.inf)
        for i, layer in enumerate(self.layers):
            mine = which == i
            if mine.any():
                logits[mine, : self.sizes[i]] = layer(x[mine]).to(logits.dtype)
        return logits


class TurnEncoder(nn.Module):
    """An encoder of transformers with heads."""

    def __init__(self, core: Any, label_sets: Sequence[LabelSet], pooling: Pooling, dropout: float):
        super().__init__()
        self.core, self.pooling = core, pooling
        d = core.config.hidden_size
        self.dense, self.dropout = nn.Linear(d, d), nn.Dropout(dropout)
        self.heads = Heads(d, label_sets)

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.parameters()).device
        return found

    def states(self, rows: Sequence[Row], pad: int) -> Float[Tensor, "n d"]:
        """What stands for each turn that is read, by row and place."""
        ids, mask = batch(rows, pad)
        device = self.device
        hidden = self.core(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        at = [(i, p) for i, row in enumerate(rows) for p in row.places]
        if self.pooling != "mean":
            return hidden[[i for i, _ in at], [p.mask if self.pooling == "mask" else p.first for _, p in at]]
        # A turn without tokens of its own (no text at all) has its CLS token.
        spans = [
            hidden[i, p.start : p.end] if p.end > p.start else hidden[i, p.first : p.first + 1] for i, p in at
        ]
        return torch.stack([s.mean(0) for s in spans])

    def features(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The last layer before the heads."""
        return torch.tanh(self.dense(self.dropout(states)))

    def forward(self, rows: Sequence[Row], pad: int, which: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        found: Tensor = self.heads(self.dropout(self.features(self.states(rows, pad))), which.to(self.device))
        return found


def batch(rows: Sequence[Row], pad: int) -> tuple[Int[Tensor, "b l"], Tensor]:
    """Token ids and attention mask of rows: (b, l) where each token sees its whole row, else (b, 1, l, l).

    The latter is added to attention scores: 0 where a token is seen, else the least number. (Of a mask of
    four dimensions transformers takes whatever it gets, and some of its encoders add it.) A padded token sees
    itself alone, so that no row of the mask is empty.
    """
    length = max(len(r.ids) for r in rows)
    ids = torch.full((len(rows), length), pad)
    there = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)] = torch.tensor(r.ids)
        there[i, : len(r.ids)] = True
    if not any(r.groups for r in rows):
        return ids, there.long()
    seen = block_causal(rows, length)
    return ids, torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)


def block_causal(rows: Sequence[Row], length: int) -> Bool[Tensor, "b 1 l l"]:
    """Which tokens (last axis) each token sees: those of its own turn and of earlier ones."""
    mask = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for i, r in enumerate(rows):
        n = len(r.ids)
        groups = torch.tensor(r.groups or [0] * n)
        mask[i, :n, :n] = groups[:, None] >= groups[None, :]
    return mask[:, None]

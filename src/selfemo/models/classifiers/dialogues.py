"""Networks over the turns of conversations, whose features an encoder has computed: batches, heads, readings.

Shapes: b conversations, t turns of the longest, d features of a turn, h size of what a network gives for a
turn, n turns that are there (not padding), k labels of the largest label set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from selfemo.method.types import LabelSet
from selfemo.models.classifiers.encoder import Heads

_READ = 64
"""Conversations of a batch where nothing is trained."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation as a network sees it; its t is its own.

    Attributes:
        features: (t, d) float32.
        speakers: (t,) number of each turn's speaker, by appearance.
        relations: (t, t) the relation of the edge that brings turn j (column) to turn i (row), -1 where
        there is
            none; None for networks without edges.
        which: the number of its label set.
    """

    features: np.ndarray
    speakers: np.ndarray
    relations: np.ndarray | None
    which: int


@dataclass(frozen=True)
class Dialogues:
    """Conversations side by side, padded behind their last turn."""

    features: Float[Tensor, "b t d"]
    speakers: Int[Tensor, "b t"]
    relations: Int[Tensor, "b t t"] | None
    lengths: Int[Tensor, " b"]
    which: Int[Tensor, " n"]
    """The number of each turn's label set."""

    @property
    def there(self) -> Bool[Tensor, "b t"]:
        """Which turns are no padding."""
        places = torch.arange(self.features.shape[1], device=self.features.device)
        return places < self.lengths[:, None]

    @staticmethod
    def of(members: Sequence[Dialogue], device: torch.device) -> Dialogues:
        lengths = torch.tensor([len(m.speakers) for m in members])
        t = int(lengths.max())
        relations = None
        if members[0].relations is not None:
            relations = torch.full((len(members), t, t), -1)
            for row, m in zip(relations, members, strict=True):
                n = len(m.speakers)
                row[:n, :n] = torch.as_tensor(m.relations)
            relations = relations.to(device)
        return Dialogues(
            pad_sequence([torch.as_tensor(m.features) for m in members], batch_first=True).to(device),
            pad_sequence([torch.as_tensor(m.speakers) for m in members], batch_first=True).to(device),
            relations,
            lengths.to(device),
            torch.tensor([m.which for m in members]).repeat_interleave(lengths).to(device),
        )


class Network(nn.Module):
    """A network over turns: (b, t, h) from Dialogues.

    Attributes:
        size: h.
    """

    size: int

    def forward(self, dialogues: Dialogues) -> Float[Tensor, "b t h"]:
        raise NotImplementedError


class DialogueClassifier(nn.Module):
    """A network with a head for each label set."""

    def __init__(self, network: Network, label_sets: Sequence[LabelSet]):
        super().__init__()
        self.network, self.label_sets = network, list(label_sets)
        self.heads = Heads(network.size, label_sets)

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.parameters()).device
        return found

    def forward(self, dialogues: Dialogues) -> Float[Tensor, "n k"]:
        """Logits of the turns that are there, conversation by conversation."""
        found: Tensor = self.heads(self.network(dialogues)[dialogues.there], dialogues.which)
        return found

    def read(self, dialogues: Sequence[Dialogue]) -> list[np.ndarray]:
        """(t, k) the probability of each label of its own label set, of each turn of each conversation."""
        self.eval()
        found: list[np.ndarray] = [np.zeros((0, len(self.label_sets[d.which]))) for d in dialogues]
        order = sorted(
            (i for i, d in enumerate(dialogues) if len(d.speakers)), key=lambda i: len(dialogues[i].speakers)
        )
        for start in range(0, len(order), _READ):
            part = order[start : start + _READ]
            members = [dialogues[i] for i in part]
            with torch.no_grad():
                rows = self(Dialogues.of(members, self.device)).float().softmax(-1).cpu().numpy()
            ends = np.cumsum([len(m.speakers) for m in members])[:-1]
            for i, of in zip(part, np.split(rows, ends), strict=True):
                found[i] = of[:, : found[i].shape[1]]
        return found


def weights_over(scores: Float[Tensor, "*a j"], seen: Bool[Tensor, "*a j"]) -> Float[Tensor, "*a j"]:
    """Softmax over the last axis, of what is seen; 0 everywhere where nothing is."""
    masked = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return masked.softmax(-1) * seen

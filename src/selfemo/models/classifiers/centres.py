"""A reader that compares turns with the centres of the labels, as SPCL does when it is tested.

Shapes: n turns, d hidden size, k labels of the largest label set, c classes: the labels of all label sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from selfemo.config.encoders import SpclConfig
from selfemo.method.types import LabelSet
from selfemo.models.classifiers.contrastive import similarity
from selfemo.models.classifiers.encoder import TurnEncoder
from selfemo.models.classifiers.reader import Item, TurnReader


class CentreReader(TurnReader):
    """Probabilities are the softmax of a turn's similarities to the centres of its label set, over the
    temperature of training; or those of the heads.

    Attributes:
        sets: (c,) the number of each class's label set.
        starts: of each label set, the number of its first class.
        centres: (c, d); NaN of a label without a training turn, which gets no probability.
    """

    def __init__(
        self, model: TurnEncoder, tokenizer: Any, config: SpclConfig, label_sets: Sequence[LabelSet]
    ):
        super().__init__(model, tokenizer, config.reader, label_sets)
        self.spcl = config
        sizes = [len(s) for s in self.label_sets]
        self.starts = list(accumulate(sizes, initial=0))[:-1]
        device = model.device
        self.sets = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
        self.centres = torch.full((sum(sizes), model.core.config.hidden_size), torch.nan, device=device)

    @staticmethod
    def untrained(config: SpclConfig, label_sets: Sequence[LabelSet], device: str) -> CentreReader:
        """A reader whose heads and centres are not trained yet."""
        base = TurnReader.new(config.reader, label_sets, device)
        # The layer between encoder and heads has no part in this recipe.
        base.model.dense.requires_grad_(False)
        return CentreReader(base.model, base.tokenizer, config, label_sets)

    def logits(self, items: Sequence[Item]) -> torch.Tensor:
        """(n, k) float32 logits of the turns read in some rows."""
        x = self.states(items)
        which = torch.tensor([w for w, row in items for _ in row.places], device=x.device)
        if self.spcl.reads == "head":
            found: torch.Tensor = self.model.heads(x, which)
            return found
        known = ~self.centres.isnan().any(-1)
        near = similarity(x, self.centres.nan_to_num()) / self.spcl.temperature
        near = near.masked_fill(~known, -torch.inf)
        found = x.new_full((len(x), max(map(len, self.label_sets))), -torch.inf)
        for i, (start, labels) in enumerate(zip(self.starts, self.label_sets, strict=True)):
            found[which == i, : len(labels)] = near[which == i, start : start + len(labels)]
        return found

    def save(self, folder: Path) -> None:
        """Nothing is kept: a folder of an encoder with heads would be read without its centres."""

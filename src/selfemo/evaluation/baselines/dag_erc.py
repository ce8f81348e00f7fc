"""DAG-ERC: a directed acyclic graph of turns, from those since the speaker's last one to each turn.

Source: Shen et al. 2021, shenwzh3/DAG-ERC (run.py, dataset.py, and the options of its README, of which
those for MELD are the defaults: lr 1e-5, batches of 64, 70 epochs, dropout 0.1). EmoryNLP: lr 5e-5,
batch_size 32, epochs 100, dropout 0.3. Past only as published.

[ours]: the epoch is chosen on turns that are not scored, as its paper has it; features of the encoder of the
settings instead of RoBERTa-large, for which lr 1e-5 is: smaller ones need more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from selfemo.config.base import NonNegative, Positive, PositiveFloat
from selfemo.evaluation.baselines.heads import Head, HeadConfig, Rate

if TYPE_CHECKING:
    from selfemo.models.classifiers.dialogues import Network


class DagErcConfig(HeadConfig):
    lr: PositiveFloat = 1e-5
    weight_decay: NonNegative = 0.0
    epochs: Positive = 70
    batch_size: Positive = 64
    dropout: Rate = 0.1
    turns: Positive = 1
    """Own earlier turns of the speaker that edges reach back to (windowp)."""
    layers: Positive = 2
    hidden: Positive = 300
    outputs: Positive = 2
    """Layers behind the graph."""


class DagErc(Head[DagErcConfig]):
    kind = DagErcConfig
    label = "DAG-ERC"

    def network(self, features: int) -> Network:
        from selfemo.models.classifiers.graph import DagErc as Net

        s = self.settings
        return Net(features, hidden=s.hidden, layers=s.layers, outputs=s.outputs, dropout=s.dropout)

    def relations(self, speakers: np.ndarray) -> np.ndarray:
        return dag_relations(speakers, self.settings.turns)


def dag_relations(speakers: np.ndarray, turns: int) -> np.ndarray:
    """(t, t) edges from turn j (column) to turn i (row): 1 of the same speaker, 0 of another one, -1 none.

    Edges come from all turns since the `turns`-th last one of the same speaker, that one included, or from
    all earlier turns where the speaker has not had as many.
    """
    found = np.full((len(speakers), len(speakers)), -1)
    for i, speaker in enumerate(speakers):
        own = np.flatnonzero(speakers[:i] == speaker)
        first = own[-turns] if len(own) >= turns else 0
        found[i, first:i] = speakers[first:i] == speaker
    return found

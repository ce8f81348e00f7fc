"""DialogueGCN: a graph whose edges have a relation by who speaks to whom and which turn comes first.

Source: Ghosal et al. 2019, declare-lab/conv-emotion:DialogueGCN/train_IEMOCAP.py with the options of that
repository's README (60 epochs, batches of 32, lr 3e-4, dropout 0.4, class weights, windows of 10 turns to
each side). There is no script for MELD (conv-emotion#26), so that values are those for IEMOCAP.

[ours]: edges bring the turns of a window to its own turn, as the paper has it; the code brings a turn to
those of its window, which with the past alone would bring later turns to earlier ones. Speakers behind the
ninth share a number, so that relations are as many in each conversation. The epoch is chosen on turns that
are not scored. Past only: no future window, an LSTM of one direction, attention over the turn and earlier
ones; `bidirectional` is the published network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from selfemo.config.base import NonNegative, Positive, PositiveFloat
from selfemo.evaluation.baselines.heads import Head, Rate, TwoWayConfig

if TYPE_CHECKING:
    from selfemo.models.classifiers.dialogues import Network


class DialogueGcnConfig(TwoWayConfig):
    lr: PositiveFloat = 3e-4
    weight_decay: NonNegative = 0.0
    epochs: Positive = 60
    dropout: Rate = 0.4
    class_weights: bool = True
    past: Annotated[int, Field(ge=0)] = 10
    """Earlier turns that edges bring to a turn, beside itself."""
    future: Annotated[int, Field(ge=0)] = 10
    """Later turns that edges bring to a turn, where the network is bidirectional."""
    speakers: Positive = 9
    """Speakers that relations tell apart; 9 are the most in a conversation of MELD or EmoryNLP."""
    lstm: Positive = 100
    """Size of the LSTM, of one direction."""
    graph: Positive = 100
    """Size of both layers of the graph and of the layer behind them."""
    bases: Positive = 30
    """Matrices that those of all relations are mixed from."""


class DialogueGcn(Head[DialogueGcnConfig]):
    kind = DialogueGcnConfig
    label = "DialogueGCN"

    def network(self, features: int) -> Network:
        from selfemo.models.classifiers.graph import DialogueGcn as Net

        s = self.settings
        return Net(
            features, lstm=s.lstm, graph=s.graph, relations=2 * s.speakers**2, bases=s.bases,
            dropout=s.dropout, bidirectional=s.bidirectional,
        )  # fmt: skip

    def relations(self, speakers: np.ndarray) -> np.ndarray:
        s = self.settings
        return window_relations(speakers, s.past, s.future if s.bidirectional else 0, s.speakers)


def window_relations(speakers: np.ndarray, past: int, future: int, most: int) -> np.ndarray:
    """(t, t) the relation of each edge from turn j (column) to turn i (row), -1 where there is none.

    Edges are from the `past` turns before a turn, from itself, and from the `future` ones behind it. A
    relation is 2 (most s_i + s_j) for a later turn j, and one more for an earlier one and for itself, s
    being the numbers of speakers up to most - 1.
    """
    s = np.minimum(speakers, most - 1)
    at = np.arange(len(s))
    ahead = at[None, :] - at[:, None]
    found: np.ndarray = 2 * (most * s[:, None] + s[None, :]) + (ahead <= 0)
    found[(ahead < -past) | (ahead > future)] = -1
    return found

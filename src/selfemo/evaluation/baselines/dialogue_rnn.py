"""DialogueRNN: recurrent states of the context, of each party and of the emotion.

Source: Majumder et al. 2019, declare-lab/conv-emotion:DialogueRNN/train_MELD.py, whose values are the
defaults (100 epochs, batches of 30, lr 5e-4, L2 1e-5, states of 150 and 100, listeners' states do not
change); RoBERTa features instead of GloVe's as in the README of that repository.

[ours]: the epoch is chosen on turns that are not scored (the script takes the best one on test); past only:
one pass instead of two, and the attention behind it is over the turn and earlier ones. `bidirectional` is
the published network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from selfemo.config.base import NonNegative, Positive, PositiveFloat
from selfemo.evaluation.baselines.heads import Head, Rate, TwoWayConfig

if TYPE_CHECKING:
    from selfemo.models.classifiers.dialogues import Network


class DialogueRnnConfig(TwoWayConfig):
    lr: PositiveFloat = 5e-4
    weight_decay: NonNegative = 1e-5
    epochs: Positive = 100
    batch_size: Positive = 30
    dropout: Rate = 0.1
    state_dropout: Rate = 0.1
    """Of the states, from turn to turn."""
    context: Positive = 150
    party: Positive = 150
    emotion: Positive = 100
    hidden: Positive = 100
    """Of the layer behind the states, for each direction."""


class DialogueRnn(Head[DialogueRnnConfig]):
    kind = DialogueRnnConfig
    label = "DialogueRNN"

    def network(self, features: int) -> Network:
        from selfemo.models.classifiers.recurrent import DialogueRnnCell, Recurrent

        s = self.settings
        return Recurrent(
            features, lambda size: DialogueRnnCell(size, s.context, s.party, s.emotion, s.state_dropout),
            hidden=s.hidden * (1 + s.bidirectional), dropout=s.dropout, bidirectional=s.bidirectional,
            attention=True,
        )  # fmt: skip

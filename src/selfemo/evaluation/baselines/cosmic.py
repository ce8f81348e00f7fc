"""COSMIC without its external knowledge: recurrent states of the context, and of what goes on in each party.

Source: Ghosal et al. 2020, declare-lab/conv-emotion:COSMIC/erc-training/train_meld.py with the options of
that repository's README, which are the defaults (60 epochs, batches of 8, lr 1e-4, L2 3e-5, dropout 0.5 and
0.3, states of 150, listeners' states change). EmoryNLP: epochs 30, batch_size 16, attention general,
class_weights and residual.

[ours]: no COMET (an external model of common sense): its vectors are left out of the inputs of the states, of
speakers and listeners, and the states stay. (The repository has no code of the paper's own ablation.) So this
is no reproduction of the published figures. The epoch is chosen by weighted F1 on turns that are not scored;
past only is one pass instead of two; `bidirectional` has both, as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from selfemo.config.base import NonNegative, Positive, PositiveFloat
from selfemo.evaluation.baselines.heads import Head, Rate, TwoWayConfig

if TYPE_CHECKING:
    from selfemo.models.classifiers.dialogues import Network


class CosmicConfig(TwoWayConfig):
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegative = 3e-5
    epochs: Positive = 60
    batch_size: Positive = 8
    dropout: Rate = 0.5
    state_dropout: Rate = 0.3
    """Of the states, from turn to turn."""
    context: Positive = 150
    party: Positive = 150
    """Of each of a party's three states; the emotion state is three times as large."""
    hidden: Positive = 100
    """Of the layer in front of the states and of the one behind them."""
    attention: Literal["simple", "general"] = "simple"
    """What weighs earlier contexts: they themselves, or their product with the turn."""
    residual: bool = False
    """Add the layer in front of the states to the one behind them."""


class Cosmic(Head[CosmicConfig]):
    kind = CosmicConfig
    label = "COSMIC"

    def network(self, features: int) -> Network:
        from selfemo.models.classifiers.recurrent import CosmicCell, Recurrent

        s = self.settings
        return Recurrent(
            features,
            lambda size: CosmicCell(size, s.context, s.party, s.state_dropout, s.attention == "general"),
            inputs=s.hidden, hidden=s.hidden, dropout=s.dropout, bidirectional=s.bidirectional,
            residual=s.residual,
        )  # fmt: skip

"""SPCL: an encoder that is contrasted with prototypes of the labels, against imbalance (Song et al. 2022,
caskcsg/SPCL: data_process.py, spcl_loss.py, util_methods.py, train.py).

Of the recipe: up to 8 earlier turns, the turn and "NAME feels MASK" in 256 tokens; the state at the mask
token stands for the turn. The loss (models/classifiers/contrastive.py) has temperature 0.05, and prototypes
of 64 vectors of a queue of 256 for each label. Each epoch takes about half of the turns: easy ones in the
first, hard ones in the last. AdamW with 1e-5 for the encoder, 1e-3 for the head; batches of 32; gradient
norm 5; 16 epochs, and an end after 5 without a better score. A turn is read as the label whose centre, the
mean of its training vectors, is nearest by cosine; the head is the other way (`reads`).

[ours]
- Probabilities are the softmax of similarities over the temperature; the repository needs the nearest only.
- One cosine schedule for all steps; the repository begins one with each epoch. Weight decay for all weights.
- The turn stands once in a row (models/classifiers/layout.py); the repository repeats it.
- No further training rows that ask about an earlier turn; the repository adds some, with later turns in them.
- Ranks of difficulty within each label set, so that one model reads several data sets.
- The last, smaller batch of an epoch is trained on.
"""

from __future__ import annotations

from selfemo.config.encoders import SpclConfig
from selfemo.evaluation.baselines.base import OnEncoder, Reader, Task, choice_score


class Spcl(OnEncoder[SpclConfig]):
    kind = SpclConfig

    def train(self, task: Task) -> Reader:
        from selfemo.training.spcl import train_spcl

        return train_spcl(
            self.settings, task.train, lambda reader: choice_score(reader, task.choose), seed=task.seed,
            states=task.states, device=task.device, reporter=task.reporter, stop=task.stop,
        )  # fmt: skip

"""An encoder that reads a turn behind those before it: EmoBERTa's recipe (Kim and Vossen 2021, tae898/erc).

Of the recipe: each turn is "NAME: text"; earlier turns, a separator, the turn; 512 tokens; cross-entropy;
AdamW with linear warm-up over a fifth of the steps and then linear decay; weight decay 0.01; 5 epochs.

[ours]: the epoch is chosen by weighted F1 on turns that are not scored; a head for each label set, so that
one model reads several data sets; any encoder of transformers; layout "conversation".
"""

from __future__ import annotations

from selfemo.config.encoders import EncoderConfig
from selfemo.evaluation.baselines.base import OnEncoder, Reader, Task, choice_score


class Encoder(OnEncoder[EncoderConfig]):
    kind = EncoderConfig

    @property
    def sees_later(self) -> bool:
        return self.settings.later != 0

    @property
    def keeps(self) -> bool:
        return True

    def train(self, task: Task) -> Reader:
        from selfemo.training.turn_encoder import train_encoder

        return train_encoder(
            self.settings, task.train, lambda reader: choice_score(reader, task.choose), seed=task.seed,
            states=task.states, device=task.device, reporter=task.reporter, stop=task.stop,
        )  # fmt: skip

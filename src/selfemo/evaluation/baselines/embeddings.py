"""Embeddings of a frozen sentence encoder with logistic regression: the turn, and the mean of those before.

Each turn is embedded on its own, so that embeddings are computed once for all seeds and windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from selfemo.evaluation.baselines.base import OnEncoder, Reader, Task
from selfemo.evaluation.baselines.regression import RegressionConfig, Strengths, fit_regression
from selfemo.method.types import Conversation, Utterance


class EmbeddingsConfig(RegressionConfig):
    strengths: Strengths = (0.1, 1.0, 10.0)
    encoder: str = "builtin:all-minilm-l6-v2"
    """builtin:all-minilm-l6-v2, builtin:all-mpnet-base-v2, a folder, or a hub id."""
    window: Annotated[int, Field(ge=0)] = 3
    """Earlier turns whose mean embedding stands beside that of the turn; 0: the turn alone."""


class Embeddings(OnEncoder[EmbeddingsConfig]):
    kind = EmbeddingsConfig

    @property
    def seeded(self) -> bool:
        return False

    def train(self, task: Task) -> Reader:
        from selfemo.config.encoders import EncoderConfig
        from selfemo.models.classifiers.reader import TurnReader

        config = EncoderConfig(encoder=self.settings.encoder, window=0, pooling="mean")
        encoder = TurnReader.new(config, task.label_sets, task.device)
        known: dict[tuple[Utterance, ...], np.ndarray] = {}

        def embedded(conversations: Sequence[Conversation]) -> list[np.ndarray]:
            if missing := [c for c in conversations if c.turns not in known]:
                if len(missing) > 1:
                    task.reporter.say(f"embedding the turns of {len(missing)} conversations")
                known.update(zip((c.turns for c in missing), encoder.embeddings(missing), strict=True))
            return [known[c.turns] for c in conversations]

        def features(conversations: Sequence[Conversation]) -> np.ndarray:
            return np.concatenate([with_earlier(e, self.settings.window) for e in embedded(conversations)])

        embedded([*task.train, *task.choose])
        return fit_regression(self.settings, features, task)


def with_earlier(turns: np.ndarray, window: int) -> np.ndarray:
    """(t, 2 d) each turn beside the mean of up to `window` turns before it (0 of none), from (t, d)."""
    if not window:
        return turns
    means = [
        turns[max(0, i - window) : i].mean(0) if i else np.zeros_like(turns[0]) for i in range(len(turns))
    ]
    return np.concatenate([turns, np.array(means).reshape(turns.shape)], 1)

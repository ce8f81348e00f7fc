"""Logistic regression on features of turns, for each label set on its own; its strength is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from selfemo.config.base import PositiveFloat, Section
from selfemo.errors import DataError
from selfemo.evaluation.baselines.base import Plain, Reader, Task, choice_score, tops
from selfemo.method.types import Conversation, LabelSet

Features = Callable[[Sequence[Conversation]], Any]
"""features(conversations) gives a matrix, dense or sparse, with a row for each turn of each, in order."""


_TOLERANCE = 1e-6
"""Of the gradient. At scikit-learn's 1e-4 the number of threads moved three of MELD's 562 labels."""


Strengths = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class RegressionConfig(Section):
    strengths: Strengths = (0.01, 0.1, 1.0, 10.0)
    """Values of C, of which the one with the best weighted F1 on the turns for choices is taken."""
    balanced: bool = False
    """Weigh each label by the inverse of its share."""


class Regression(Plain):
    """A fitted regression for each label set."""

    def __init__(self, features: Features, models: dict[LabelSet, Any]):
        self.features, self.models = features, models

    def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        found = []
        for c in conversations:
            model = self.models[c.label_set]
            full = np.zeros((len(c.turns), len(c.label_set)))
            if c.turns:
                full[:, model.classes_] = model.predict_proba(self.features([c]))
            found.append(full)
        return found


def fit_regression(config: RegressionConfig, features: Features, task: Task) -> Reader:
    """Fit each strength and keep the best one, of each label set on its own.

    Raises:
        DataError: a label set with fewer than two labels in the training data.
    """
    from sklearn.linear_model import LogisticRegression

    models = {}
    for labels in task.label_sets:
        train = [c for c in task.train if c.label_set == labels]
        choose = [c for c in task.choose if c.label_set == labels]
        gold = np.array([g for c in train for g in tops(c)])
        if len(set(gold[gold >= 0].tolist())) < 2:
            raise DataError(f"the training data have fewer than two labels of {labels.name}")
        x = features(train)[gold >= 0]
        best, taken = -1.0, 0.0
        for strength in config.strengths:
            task.stop.check()
            model = LogisticRegression(
                C=strength, max_iter=2000, tol=_TOLERANCE, random_state=task.seed,
                class_weight="balanced" if config.balanced else None,
            ).fit(x, gold[gold >= 0])  # fmt: skip
            score = choice_score(Regression(features, {labels: model}), choose)
            if score > best:
                best, models[labels], taken = score, model, strength
        names = ", ".join(dict.fromkeys(c.dataset for c in train))
        ends = {min(config.strengths), max(config.strengths)}
        edge = ", an end of baseline.strengths" if len(ends) > 1 and taken in ends else ""
        task.reporter.say(
            f"{names}: C {taken:g} is best, with weighted F1 {best:.4f} on held-out turns{edge}"
        )
    return Regression(features, models)

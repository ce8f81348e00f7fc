"""TF-IDF of words and letters with logistic regression: the turn, and the turns before it apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from selfemo.errors import DataError
from selfemo.evaluation.baselines.base import Baseline, Reader, Task
from selfemo.evaluation.baselines.regression import RegressionConfig, fit_regression
from selfemo.method.types import Conversation


class TfidfConfig(RegressionConfig):
    window: Annotated[int, Field(ge=0)] = 3
    """Earlier turns whose words are features of their own."""
    context_weight: Annotated[float, Field(ge=0)] = 0.3
    """Of the features of earlier turns, against 1 of the turn itself."""


class Tfidf(Baseline[TfidfConfig]):
    kind = TfidfConfig

    @property
    def seeded(self) -> bool:
        return False

    def train(self, task: Task) -> Reader:
        from scipy.sparse import csr_matrix, hstack
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True)
        earlier = TfidfVectorizer(min_df=2, sublinear_tf=True)
        texts = [t.text for c in task.train for t in c.turns]
        try:
            for vectorizer in (words, letters, earlier):
                vectorizer.fit(texts)
        except ValueError as e:
            raise DataError(
                f"the training data are too few: no word stands in two of their turns ({e})"
            ) from None

        def features(conversations: Sequence[Conversation]) -> Any:
            said = [t.text for c in conversations for t in c.turns]
            before = [text for c in conversations for text in self.earlier(c)]
            parts = [words.transform(said), letters.transform(said)]
            if self.settings.window:
                parts.append(self.settings.context_weight * earlier.transform(before))
            return csr_matrix(hstack(parts))

        return fit_regression(self.settings, features, task)

    def earlier(self, conversation: Conversation) -> list[str]:
        """For each turn, the texts of the turns before it in the window, as one."""
        texts, n = [t.text for t in conversation.turns], self.settings.window
        return [" ".join(texts[max(0, i - n) : i]) for i in range(len(texts))]

"""Diversity of texts, so that a collapse onto one reply or one emotion shows. No model library.

distinct-n: Li et al. 2016, A Diversity-Promoting Objective Function. Self-BLEU: Zhu et al. 2018, Texygen.
BLEU: Papineni et al. 2002, here for sentences, so an order without a match counts 1 / (2 x n-grams) in
place of 0 (NIST smoothing's first step).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def words(text: str) -> tuple[str, ...]:
    """Lower-case words and punctuation marks."""
    return tuple(_WORD.findall(text.lower()))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of different n-grams among all n-grams of the texts; None where there is no n-gram."""
    counts = Counter(gram for text in texts for gram in _ngrams(words(text), n).elements())
    return len(counts) / counts.total() if counts else None


def self_bleu(texts: Sequence[str], order: int = 4) -> float | None:
    """Mean BLEU of each text against all others: 1 where all are equal; None for fewer than two.

    Orders that a text is too short for are left out of its mean.
    """
    tokens = [t for t in map(words, texts) if t]
    if len(tokens) < 2:
        return None
    grams = [[_ngrams(t, n) for n in range(1, order + 1)] for t in tokens]
    # The two largest counts of each n-gram give the largest count among the *other* texts.
    best: list[dict[tuple[str, ...], tuple[int, int, int]]] = [{} for _ in range(order)]
    for i, by_order in enumerate(grams):
        for n, counts in enumerate(by_order):
            for gram, count in counts.items():
                first, owner, second = best[n].get(gram, (0, -1, 0))
                if count > first:
                    best[n][gram] = (count, i, first)
                elif count > second:
                    best[n][gram] = (first, owner, count)
    lengths = [len(t) for t in tokens]
    scores = []
    for i, by_order in enumerate(grams):
        logs = []
        for n, counts in enumerate(by_order):
            if counts:
                found = ((c, best[n][gram]) for gram, c in counts.items())
                hits = sum(min(c, second if owner == i else first) for c, (first, owner, second) in found)
                logs.append(math.log((hits or 0.5) / counts.total()))
        mine = lengths[i]
        closest = min(lengths[:i] + lengths[i + 1 :], key=lambda n: (abs(n - mine), n))
        penalty = min(0.0, 1 - closest / mine)
        scores.append(math.exp(penalty + sum(logs) / len(logs)))
    return sum(scores) / len(scores)


def share_entropy(shares: Mapping[str, float]) -> float:
    """Entropy of shares that sum to 1, in nats: 0 where one has all."""
    return -sum(s * math.log(s) for s in shares.values() if s > 0) + 0.0

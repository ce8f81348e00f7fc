"""Clusters of persona descriptions (fig. 4, tables 6 and 7): mask, embed, HDBSCAN, name, map.

Departures from the paper [ours]: PCA reduces the embeddings before HDBSCAN, since density means little in
hundreds of dimensions; the traits that set clusters apart name them (class-based TF-IDF), not a model;
descriptions that belong to no cluster are counted as noise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from selfemo.errors import DataError
from selfemo.stages.traits import TRAITS

MAPPED = 12
"""Clusters on the map (fig. 4)."""
NOISE = -1
"""The cluster number of a description that belongs to no cluster."""
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to (n, d) unit vectors."""
_MASK = "someone"
_TERMS = 3
_COMPONENTS = 15


class PersonaBook(Protocol):
    """Holds personas and keeps their clusters; a run's store is one."""

    @property
    def path(self) -> Path: ...

    def personas(self) -> Iterable[tuple[str, str, str, str]]:
        """(data set, scope, speaker, description) of each record of an expert."""

    def profiles(self) -> Iterable[tuple[str, str, str, str]]:
        """(data set, scope, speaker, description) of each profile."""

    def prompt_personas(self) -> Iterable[tuple[str, str]]:
        """(speaker, description) of the personas in prompts."""

    def set_clusters(self, rows: Iterable[tuple[str, int, str, float, float]]) -> None:
        """Keep (description, cluster or NOISE, name, x, y) of each description."""


@dataclass(frozen=True)
class Cluster:
    """One cluster: its name, the number of its descriptions, and the most central of them."""

    number: int
    name: str
    size: int
    example: str


@dataclass(frozen=True)
class Clustering:
    """Clusters by falling size; for each description its cluster (or NOISE) and its point on the map."""

    descriptions: tuple[str, ...]
    assigned: tuple[int, ...]
    clusters: tuple[Cluster, ...]
    points: NDArray[np.float32]
    """(n, 2) map coordinates."""

    @property
    def noise(self) -> int:
        return sum(a == NOISE for a in self.assigned)


def mask_names(text: str, names: Iterable[str]) -> str:
    """Replace speakers' names, and each word of a name, by "someone".

    Common words that are also names ("Will", "Joy") are masked only where they are capitalised.
    """
    words = {w for n in names for w in [n, *n.split()] if len(w) > 1 and w[0].isupper()}
    if not words:
        return text
    ordered = "|".join(re.escape(w) for w in sorted(words, key=lambda w: (-len(w), w)))
    return re.sub(rf"(?<!\w)(?:{ordered})(?:['\u2019]s)?(?!\w)", _MASK, text)


def name_clusters(
    texts: Sequence[str], assigned: Sequence[int], typical: Sequence[float] | None = None
) -> dict[int, str]:
    """Name each cluster by the traits that set it apart: "gentle, patient, proud".

    Terms are weighed by TF-IDF with each cluster as one document. Words of `TRAITS` stand before others, and
    within each kind what several descriptions say before what one does. Names are unique: a later (smaller)
    cluster takes more of its terms until its name differs.

    Args:
        typical: (n,) how much the words of each description count; equal where not given.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    numbers = sorted(set(assigned) - {NOISE})
    if not numbers:
        return {}
    mine = [np.flatnonzero(np.asarray(assigned) == n) for n in numbers]
    vectorizer = CountVectorizer(
        stop_words=sorted(ENGLISH_STOP_WORDS | _EMPTY_WORDS), token_pattern=r"[a-z][a-z-]+[a-z]", binary=True
    )
    try:
        found = vectorizer.fit_transform(
            [_DENIED.sub(" ", t) for t, a in zip(texts, assigned, strict=True) if a != NOISE]
        )
    except ValueError:  # all descriptions consist of stop words
        return {n: f"cluster {n + 1}" for n in numbers}
    said = found.toarray()
    places = np.cumsum(np.asarray(assigned) != NOISE) - 1  # the row of a description that is in a cluster
    held = np.stack([said[places[m]].sum(0) for m in mine])
    share = np.ones(len(texts)) if typical is None else np.asarray(typical, dtype=float)
    counts = np.stack([share[m] @ said[places[m]] for m in mine])
    frequency = counts / np.maximum(counts.sum(1, keepdims=True), 1e-9)
    # Grootendorst 2022 (c-TF-IDF): log(1 + mean words per class / frequency of the term over all).
    weight = frequency * np.log1p(counts.sum() / len(numbers) / np.maximum(counts.sum(0), 1e-9))
    terms = vectorizer.get_feature_names_out()
    trait = np.array([t in TRAITS for t in terms])
    named: dict[int, str] = {}
    for row, n in enumerate(numbers):
        order = [t for t in np.lexsort((-weight[row], held[row] < 2, ~trait)) if held[row, t]]
        for k in range(_TERMS, max(_TERMS, len(order)) + 1):
            name = ", ".join(terms[t] for t in order[:k]) or f"cluster {n + 1}"
            if name not in named.values():
                break
        else:
            name = f"{name} ({n + 1})"
        named[n] = name
    return named


_DENIED = re.compile(
    r"\b(?:no|not|never|hardly|rarely|seldom|without)\s+(?:(?:an?|the|very|too|so|be|being)\s+)*[\w-]+"
    r"(?:,?\s+n?or\s+[\w-]+)*",
    re.IGNORECASE,
)
"""A trait that somebody does not have: "never rude", "not a shy or timid"."""
_EMPTY_WORDS = frozenset(
    """someone person people speaker others shows showing tends feel feels feeling feelings emotion emotions
    emotional emotionally often quite react reacts reaction reactions treats treat temperament personality
    stress express expresses expressing like likes being seem seems appears generally sometimes usually way
    ways does doesn don""".split()  # noqa: SIM905
)


def cluster(
    descriptions: Sequence[str], names: Iterable[str], embed: Embed, min_size: int = 0, seed: int = 0
) -> Clustering:
    """Cluster distinct descriptions.

    Args:
        names: the speakers' names, masked before embedding.
        min_size: fewest descriptions of a cluster; 0 takes 1% of all, at least 5.

    Raises: DataError: there are fewer descriptions than two clusters need.
    """
    from sklearn.cluster import HDBSCAN
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    distinct = tuple(dict.fromkeys(descriptions))
    least = min_size or max(5, round(len(distinct) / 100))
    if len(distinct) < 2 * least:
        raise DataError(
            f"{len(distinct)} distinct persona descriptions are too few for clusters of {least}; extract "
            "personas from more conversations, or lower --min-size"
        )
    known = list(names)
    masked = [mask_names(d, known) for d in distinct]
    vectors = embed(masked)
    reduced = PCA(min(_COMPONENTS, *vectors.shape), random_state=seed).fit_transform(vectors)
    labels = HDBSCAN(
        min_cluster_size=least, min_samples=max(2, least // 3), cluster_selection_method="leaf", copy=True
    ).fit_predict(reduced)
    by_size = [n for n, _ in Counter(int(x) for x in labels if x != NOISE).most_common()]
    renumbered = {old: new for new, old in enumerate(by_size)}
    assigned = tuple(renumbered.get(int(x), NOISE) for x in labels)
    typical = np.zeros(len(distinct))
    for n in range(len(by_size)):
        members = [i for i, a in enumerate(assigned) if a == n]
        middle = vectors[members].sum(0)
        typical[members] = np.maximum(0, vectors[members] @ middle / np.linalg.norm(middle))
    named = name_clusters(masked, assigned, typical.tolist())
    clusters = []
    for n in range(len(by_size)):
        members = [i for i, a in enumerate(assigned) if a == n]
        central = members[int(np.argmax(typical[members]))]
        clusters.append(Cluster(n, named[n], len(members), distinct[central]))
    perplexity = min(30.0, max(2.0, (len(reduced) - 1) / 3))
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return Clustering(distinct, assigned, tuple(clusters), points)


def cluster_store(book: PersonaBook, embed: Embed, min_size: int = 0, seed: int = 0) -> Clustering:
    """Cluster the personas of a store, and write the clusters into it (DataError: no persona, or too few)."""
    described = [r[2:] for r in (*book.personas(), *book.profiles())]
    found = [(s, d) for s, d in (*described, *book.prompt_personas()) if d]
    if not found:
        raise DataError(
            "holds no persona; run `selfemo personas extract` first, or name a run folder", book.path
        )
    result = cluster([d for _, d in found], {s for s, _ in found}, embed, min_size, seed)
    names = {c.number: c.name for c in result.clusters}
    book.set_clusters(
        (d, a, names.get(a, ""), float(x), float(y))
        for d, a, (x, y) in zip(result.descriptions, result.assigned, result.points.tolist(), strict=True)
    )
    return result

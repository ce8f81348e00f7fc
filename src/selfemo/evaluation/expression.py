"""Is the emotion that a reply declares found in it by an independent reader? Corrected for chance [ours].

Compared are the top emotion of S and that of what the reader finds in the reply. A policy that declares one
emotion throughout agrees with a reader as often as that emotion is read, which chance does too. So the
measures are

    kappa     (p_o - p_c) / (1 - p_c) (Cohen 1960): p_o is the share of replies that agree, p_c = sum_e
              p(S = e) p(read = e) what chance gives; 0 where S or what is read does not vary
    MI        mutual information in nats: how far what is read depends on S, right or wrong. As counted it is
              above 0 without any dependence, so what is counted too much is taken off

MI: its expectation where both margins are fixed and replies are independent (Vinh, Epps and Bailey 2010) is
taken off, or the mean rise of the bootstrap over conversations where that is more: replies of one
conversation are alike. The interval takes the spread of the bootstrap alone, around that value. The plain
pivotal interval, [2 MI - q.975, 2 MI - q.025], would take the rise of the bootstrap for all there is. Where
many cells hold one reply or none the rise is too small: with seven labels and 50 independent replies that
interval lies above 0 in half of all draws without any dependence, with 100 in a quarter, this one in none
(tests/unit/test_independent_reader.py). MI is not below 0, so neither is the upper end.

Shapes: c conversations, k labels, b resamples; counts are of S (rows) by what is read (columns).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfemo.evaluation.metrics import Interval, cluster_weights, percentile_interval
from selfemo.method.diversity import share_entropy

LEAST = 10
"""Replies that were read, from which on they are judged, and a persona cluster stands by itself: of fewer an
interval says nothing."""
OTHERS = "others"
"""Replies of personas in smaller clusters, or in none."""


@dataclass(frozen=True, slots=True)
class ReadReply:
    """A reply as it is counted.

    Attributes:
        declared, read: the top emotion of S, and of what the reader finds (None: it could not read it).
        cluster: of the answerer's persona; "" where it is in none.
    """

    conversation: str
    declared: str
    read: str | None
    cluster: str = ""


def counts_of(replies: Sequence[ReadReply], labels: Sequence[str]) -> np.ndarray:
    """(c, k, k) counts of the replies that were read, by conversation in order of appearance."""
    read = [(r.conversation, r.declared, r.read) for r in replies if r.read is not None]
    index = {e: i for i, e in enumerate(labels)}
    rows = {c: i for i, c in enumerate(dict.fromkeys(c for c, _, _ in read))}
    counts = np.zeros((len(rows), len(labels), len(labels)))
    for conversation, declared, found in read:
        counts[rows[conversation], index[declared], index[found]] += 1
    return counts


def cohens_kappa(counts: np.ndarray) -> np.ndarray:
    """(...,) from counts (..., k, k), each of one reply at least; whole numbers, so that 0 is exact."""
    n = counts.sum((-2, -1))
    by_chance = (counts.sum(-1) * counts.sum(-2)).sum(-1)
    above = n * np.trace(counts, axis1=-2, axis2=-1) - by_chance
    most = n * n - by_chance
    kappa: np.ndarray = np.divide(above, most, out=np.zeros(np.shape(above)), where=most > 0)
    return kappa


def agreement(counts: np.ndarray) -> np.ndarray:
    """(...,) share of replies in which the emotion that is read is the declared one."""
    share: np.ndarray = np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))
    return share


def agreement_by_chance(counts: np.ndarray) -> float:
    """What `agreement` would be if what is read, as often as it is, did not depend on S; counts (k, k)."""
    return float(counts.sum(1) @ counts.sum(0) / counts.sum() ** 2)


def mutual_information(counts: np.ndarray) -> np.ndarray:
    """(...,) nats, as counted, from counts (..., k, k); exactly 0 where S or what is read does not vary."""
    n = counts.sum((-2, -1))
    apart = counts.sum(-1, keepdims=True) * counts.sum(-2, keepdims=True)
    # Whole numbers divide to exactly 1 where nothing depends.
    ratio = np.divide(n[..., None, None] * counts, apart, out=np.ones(counts.shape), where=counts > 0)
    found: np.ndarray = (counts * np.log(ratio)).sum((-2, -1)) / n
    return found


def expected_information(counts: np.ndarray) -> float:
    """Mean of `mutual_information` over all tables (k, k) with the same margins: replies are shuffled."""
    from sklearn.metrics.cluster import expected_mutual_information

    table = counts[counts.sum(1) > 0][:, counts.sum(0) > 0].astype(np.int64)
    return float(expected_mutual_information(table, int(table.sum()))) if min(table.shape) > 1 else 0.0


def one_against_rest(counts: np.ndarray, label: int) -> np.ndarray:
    """(..., 2, 2) counts of a label and of all others."""
    both, said, read = counts[..., label, label], counts[..., label, :].sum(-1), counts[..., label].sum(-1)
    rest = counts.sum((-2, -1)) - said - read + both
    return np.stack([np.stack([both, said - both], -1), np.stack([read - both, rest], -1)], -2)


def _resampled(counts: np.ndarray, resamples: int) -> np.ndarray:
    """(b, k, k) counts of bootstrap resamples of the conversations."""
    drawn: np.ndarray = cluster_weights(len(counts), resamples) @ counts.reshape(len(counts), -1)
    return drawn.reshape(-1, *counts.shape[1:])


def information_interval(counts: np.ndarray, drawn: np.ndarray) -> Interval:
    """Mutual information corrected for chance, as the head of this file says.

    Args:
        counts: (c, k, k); drawn: (b, k, k) resamples of it.
    """
    found, draws = float(mutual_information(counts.sum(0))), mutual_information(drawn)
    value = found - max(expected_information(counts.sum(0)), float(draws.mean()) - found)
    spread = percentile_interval(0.0, draws - draws.mean())
    return Interval(value, value - spread.high, max(0.0, value - spread.low))


def expression_record(
    replies: Sequence[ReadReply], labels: Sequence[str], resamples: int, *, clustered: bool = False
) -> dict[str, Any]:
    """How far a reader finds the declared emotions of some replies; [value, low, high] is a 95% interval.

    Args:
        replies: of one label set.
        clustered: whether their personas were clustered.

    Returns:
        replies, unread, conversations; where LEAST or more were read also kappa, mutual_information,
        agreement, by_chance, declared and read (shares, with their entropy in nats), by_emotion, by_cluster.
    """
    record: dict[str, Any] = {
        "replies": len(replies),
        "unread": sum(r.read is None for r in replies),
        "conversations": len({r.conversation for r in replies}),
    }
    counts = counts_of(replies, labels)
    if counts.sum() >= LEAST:
        total, drawn = counts.sum(0), _resampled(counts, resamples)
        record |= {
            "kappa": percentile_interval(float(cohens_kappa(total)), cohens_kappa(drawn)).as_list(),
            "mutual_information": information_interval(counts, drawn).as_list(),
            "agreement": percentile_interval(float(agreement(total)), agreement(drawn)).as_list(),
            "by_chance": agreement_by_chance(total),
            "declared": _shares(total.sum(1), labels),
            "read": _shares(total.sum(0), labels),
            "by_emotion": {e: _of_emotion(total, drawn, i) for i, e in enumerate(labels)},
            "by_cluster": _by_cluster(replies, labels, resamples) if clustered else {},
        }
    return record


def _shares(counts: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    share = dict(zip(labels, (counts / counts.sum()).tolist(), strict=True))
    return {"share": share, "entropy": share_entropy(share)}


def _of_emotion(total: np.ndarray, drawn: np.ndarray, label: int) -> dict[str, Any]:
    (hit, missed), (false, rest) = one_against_rest(total, label).tolist()
    kappa = cohens_kappa(one_against_rest(total, label))
    return {
        "n": int(hit + missed),
        "recall": hit / (hit + missed) if hit + missed else None,
        "elsewhere": false / (false + rest) if false + rest else None,
        "kappa": percentile_interval(float(kappa), cohens_kappa(one_against_rest(drawn, label))).as_list(),
    }


def _by_cluster(replies: Sequence[ReadReply], labels: Sequence[str], resamples: int) -> dict[str, Any]:
    """n and kappa of each cluster of LEAST replies or more, by falling n, and of OTHERS."""
    sizes = Counter(r.cluster for r in replies if r.read is not None)
    large = [c for c, n in sizes.most_common() if c and n >= LEAST]
    members: Mapping[str, list[ReadReply]] = {c: [] for c in (*large, OTHERS)}
    for r in replies:
        if r.read is not None:
            members[r.cluster if r.cluster in large else OTHERS].append(r)
    found = {}
    for name, mine in members.items():
        if mine:
            counts = counts_of(mine, labels)
            kappa, draws = cohens_kappa(counts.sum(0)), cohens_kappa(_resampled(counts, resamples))
            found[name] = {"n": len(mine), "kappa": percentile_interval(float(kappa), draws).as_list()}
    return found

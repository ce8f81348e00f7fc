"""Blind A/B by a reader: of two replies to one prompt and one given S, which shows S better [ours]?

The reader is told neither S nor which checkpoint wrote what. The reply in which it finds S with the larger
probability, sum_e S(e) q(e | H, r), is the better one. Both replies have the same S, given as in given.py, so
that a checkpoint wins nothing by what it declares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfemo.evaluation.metrics import paired_difference
from selfemo.evaluation.readers import Found, Reply


def _shown(reply: Reply, found: Found) -> float | None:
    read = found[reply.prompt.id]
    return None if read is None else math.fsum(w * read.get(e, 0.0) for e, w in reply.declared.items())


def compare_blind(
    early: Sequence[Reply], late: Sequence[Reply], found: Mapping[str, Found], names: tuple[str, str]
) -> dict[str, dict[str, Any]]:
    """By data set: pairs, early, late, ties (numbers of prompts), difference (late - early, of the
    probability of S, with its 95% interval), p_value, conversations. Prompts whose reply is missing or could
    not be read on one side are not compared.

    Args:
        early, late: replies to a given S, one a prompt.
        found: what the reader finds, by name.
        names: of both in `found`.
    """
    mine, groups = {r.prompt.id: r for r in early}, dict[str, list[tuple[Reply, Reply]]]()
    for r in late:
        if (other := mine.get(r.prompt.id)) is not None and other.declared == r.declared:
            groups.setdefault(r.prompt.dataset, []).append((other, r))
    records = {}
    for dataset, pairs in groups.items():
        shown = [
            (a, b, r.prompt.conversation_id, other.text == r.text)
            for other, r in pairs
            if (a := _shown(other, found[names[0]])) is not None
            and (b := _shown(r, found[names[1]])) is not None
        ]
        if not shown:
            continue
        before, after, conversations, _ = (list(x) for x in zip(*shown, strict=True))
        change = paired_difference(before, after, conversations)
        late_better, early_better = (
            sum(not same and s * (b - a) > 0 for a, b, _, same in shown) for s in (1, -1)
        )
        records[dataset] = {
            "pairs": len(shown),
            "early": early_better,
            "late": late_better,
            "ties": len(shown) - early_better - late_better,
            "difference": change.difference.as_list(),
            "p_value": change.p_value,
            "conversations": change.clusters,
        }
    return records

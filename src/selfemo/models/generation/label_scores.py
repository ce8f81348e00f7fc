"""The probability of each label where a completion names an emotion (branches.py)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from selfemo.method.types import EmotionDistribution, LabelSet
from selfemo.models.generation.branches import branch_logp
from selfemo.models.packing import shared_prefix
from selfemo.models.policy import Policy


def label_probabilities(
    policy: Policy, places: Sequence[tuple[Hashable, Sequence[int], str]], labels: LabelSet
) -> list[EmotionDistribution]:
    """The probability of each label at each place (`LabelPlace`), normalised over the set.

    A label whose tokens begin another's (sad, sadly) has the probability of its own tokens less that of
    the longer ones.
    """
    encoded = {
        written: [policy.plain_ids(f"{written} {e}") for e in labels]
        for written in dict.fromkeys(w for _, _, w in places)
    }
    heads = [encoded[written] for _, _, written in places]
    asked = [(key, ids, head) for (key, ids, _), head in zip(places, heads, strict=True)]
    # The tokens that all labels begin with are left out: they cancel.
    common = [min(shared_prefix(head[0], h) for h in head[1:]) for head in heads]
    found = branch_logp(policy, asked, common)
    return [
        _normalised([sum(b) for b in branches], head, labels)
        for branches, head in zip(found, heads, strict=True)
    ]


def _normalised(
    logp: Sequence[float], heads: Sequence[Sequence[int]], labels: LabelSet
) -> EmotionDistribution:
    largest = max(logp)
    whole = [math.exp(lp - largest) for lp in logp]
    own = list(whole)
    for i, short in enumerate(heads):
        longer = [j for j, h in enumerate(heads) if len(h) > len(short) and h[: len(short)] == short]
        own[i] = max(0.0, whole[i] - sum(whole[j] for j in longer))
    return EmotionDistribution(dict(zip(labels, own, strict=True)))

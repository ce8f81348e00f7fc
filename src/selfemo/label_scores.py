"""How probable each label is in the place where a completion names an emotion.

One forward pass over a prefix tree: the prompts of a conversation share their past, and the labels are
the leaves. For inference alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch

from selfemo.engines.local import score_tokens
from selfemo.models import Policy
from selfemo.packing import bins, group_by_key, micro_batches, pack, shared_prefix
from selfemo.types import EmotionDistribution, LabelSet

_TREE_TOKENS = 2048
_BATCH_TOKENS = 4096
"""Tokens of one forward pass; bounds memory."""


@torch.no_grad()
def label_probabilities(
    policy: Policy, places: Sequence[tuple[Hashable, Sequence[int], str]], labels: LabelSet
) -> list[EmotionDistribution]:
    """The probability of each label, normalised over the set.

    A label whose tokens begin another's (sad, sadly) has the probability of its own tokens less that of
    the longer ones.

    Args:
        places: (key, prompt ids, what is written so far, ending in "E:" or "S:"); places of one key
            share their beginning and are computed as one tree.
    """
    if not places:
        return []
    heads = [[_encode(policy, f"{written} {e}") for e in labels] for _, _, written in places]
    full = [[[*ids, *h] for h in head] for (_, ids, _), head in zip(places, heads, strict=True)]
    # The tokens that all labels begin with are left out: they cancel.
    common = [
        len(ids) + min(shared_prefix(head[0], h) for h in head[1:])
        for (_, ids, _), head in zip(places, heads, strict=True)
    ]
    extra = [sum(map(len, head)) for head in heads]
    trees = group_by_key(
        [ids for _, ids, _ in places], [key for key, _, _ in places], _TREE_TOKENS, extra
    )
    sizes = [len(pack([s for i in tree for s in full[i]])) for tree in trees]
    rows = trees
    if policy.row_cost_is_exact:
        rows = [[i for t in row for i in trees[t]] for row in bins(sizes, _TREE_TOKENS)]
        sizes = [len(pack([s for i in row for s in full[i]])) for row in rows]
    found: list[EmotionDistribution | None] = [None] * len(places)
    for batch in micro_batches(sizes, max(_BATCH_TOKENS, max(sizes))):
        chosen = [rows[r] for r in batch]
        scores = score_tokens(
            policy,
            [pack([s for i in row for s in full[i]]) for row in chosen],
            [[common[i] for i in row for _ in labels] for row in chosen],
            entropy=False,
        )
        logp = (scores.logp * scores.mask).sum(-1).double().tolist()
        for n, i in enumerate(i for row in chosen for i in row):
            found[i] = _normalised(logp[n * len(labels) : (n + 1) * len(labels)], heads[i], labels)
    return [d for d in found if d is not None]


def _encode(policy: Policy, text: str) -> list[int]:
    return list(policy.tokenizer(text, add_special_tokens=False).input_ids)


def _normalised(
    logp: Sequence[float], heads: Sequence[Sequence[int]], labels: LabelSet
) -> EmotionDistribution:
    largest = max(logp)
    whole = [math.exp(lp - largest) for lp in logp]
    own = list(whole)
    for i, short in enumerate(heads):
        longer = [
            j for j, h in enumerate(heads) if len(h) > len(short) and h[: len(short)] == short
        ]
        own[i] = max(0.0, whole[i] - sum(whole[j] for j in longer))
    return EmotionDistribution(dict(zip(labels, own, strict=True)))

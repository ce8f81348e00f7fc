"""The probability of each label where a completion names an emotion.

One forward pass over a prefix tree: the prompts of a conversation share their past, and the labels are
the leaves. For inference alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import torch

from selfemo.method.types import EmotionDistribution, LabelSet
from selfemo.models.packing import bins, group_by_key, micro_batches, pack, shared_prefix
from selfemo.models.policy import Policy

_TREE_TOKENS = 2048
_BATCH_TOKENS = 4096
"""Tokens of one forward pass; bounds memory."""


@torch.no_grad()
def label_probabilities(
    policy: Policy, places: Sequence[tuple[Hashable, Sequence[int], str]], labels: LabelSet
) -> list[EmotionDistribution]:
    """The probability of each label at each place (`LabelPlace`), normalised over the set.

    A label whose tokens begin another's (sad, sadly) has the probability of its own tokens less that of
    the longer ones.
    """
    if not places:
        return []
    heads = [[policy.plain_ids(f"{written} {e}") for e in labels] for _, _, written in places]
    full = [[[*ids, *h] for h in head] for (_, ids, _), head in zip(places, heads, strict=True)]
    # The tokens that all labels begin with are left out: they cancel.
    common = [
        len(ids) + min(shared_prefix(head[0], h) for h in head[1:])
        for (_, ids, _), head in zip(places, heads, strict=True)
    ]
    # A sequence's last token predicts nothing and is left out: labels of one token add nothing to the tree.
    seen = [[s[:-1] for s in sequences] for sequences in full]
    extra = [sum(len(h) - 1 for h in head) for head in heads]
    trees = group_by_key([ids for _, ids, _ in places], [key for key, _, _ in places], _TREE_TOKENS, extra)
    sizes = [len(pack([s for i in tree for s in seen[i]])) for tree in trees]
    rows = trees
    if policy.attention == "tree":
        rows = [[i for t in row for i in trees[t]] for row in bins(sizes, _TREE_TOKENS)]
        sizes = [len(pack([s for i in row for s in seen[i]])) for row in rows]
    found: list[EmotionDistribution | None] = [None] * len(places)
    for batch in micro_batches(sizes, max(_BATCH_TOKENS, max(sizes))):
        members = [i for r in batch for i in rows[r]]
        packs = [pack([s for i in rows[r] for s in seen[i]]) for r in batch]
        with policy.autocast():
            packed = policy.rows(packs)
            hidden = policy.hidden(packed)
            width = packed.input_ids.shape[1]
            paths = [path + b * width for b, p in enumerate(packs) for path in p.paths]
            ends = [(i, s) for i in members for s in full[i]]
            predictors = [path[common[i] - 1 :] for path, (i, _) in zip(paths, ends, strict=True)]
            unique, inverse = np.unique(np.concatenate(predictors), return_inverse=True)
            chosen = hidden.flatten(0, 1)[torch.from_numpy(unique).to(policy.device)]
            logp = torch.log_softmax(policy.logits(chosen), -1)
        targets = [token for i, s in ends for token in s[common[i] :]]
        token_logp = logp.cpu()[torch.from_numpy(inverse), torch.tensor(targets)].double().tolist()
        rest = iter(token_logp)
        sums = [sum(next(rest) for _ in s[common[i] :]) for i, s in ends]
        for n, i in enumerate(members):
            found[i] = _normalised(sums[n * len(labels) : (n + 1) * len(labels)], heads[i], labels)
    return [d for d in found if d is not None]


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

"""Log-probabilities of given continuations of prompts, in one forward pass over prefix trees.

The prompts of a conversation share their past, and the branches of a prompt share the prompt. For inference
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import torch

from selfemo.models.packing import bins, group_by_key, micro_batches, pack
from selfemo.models.policy import Policy
from selfemo.models.transfer import to_device

Branches = tuple[Hashable, Sequence[int], Sequence[Sequence[int]]]
"""(key, prompt ids, branches): places of one key share a prefix tree, a branch is the ids of one continuation
of the prompt."""
BranchLogp = Callable[[Sequence[Branches], Sequence[int]], list[list[list[float]]]]
"""`branch_logp` by some model: from (places, starts) to the log-probabilities."""
_TREE_TOKENS = 2048
_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Tokens of one forward pass by device; bounds memory."""
_PREDICTORS = {"cpu": 1024, "cuda": 4096}
"""Tokens whose logits are held at a time; bounds memory where replies are scored."""


@torch.no_grad()
def branch_logp(
    policy: Policy, places: Sequence[Branches], starts: Sequence[int], *, fp32_head: bool = False
) -> list[list[list[float]]]:
    """The log-probability (nats) of each token of each branch of each place, from the place's start on.

    Args:
        starts: for each place, the number of leading tokens of its branches that are not scored.
        fp32_head: compute the logits in fp32, whatever the policy does: for few tokens a place.
    """
    if not places:
        return []
    full = [[[*ids, *b] for b in branches] for _, ids, branches in places]
    first = [len(ids) + start for (_, ids, _), start in zip(places, starts, strict=True)]
    # A sequence's last token predicts nothing and is left out: branches of one token add nothing to the tree.
    seen = [[s[:-1] for s in sequences] for sequences in full]
    extra = [sum(len(b) - 1 for b in branches) for _, _, branches in places]
    trees = group_by_key([ids for _, ids, _ in places], [key for key, _, _ in places], _TREE_TOKENS, extra)
    sizes = [len(pack([s for i in tree for s in seen[i]])) for tree in trees]
    rows = trees
    if policy.joins_trees:
        rows = [[i for t in row for i in trees[t]] for row in bins(sizes, _TREE_TOKENS)]
        sizes = [len(pack([s for i in row for s in seen[i]])) for row in rows]
    found: list[list[list[float]]] = [[] for _ in places]
    for batch in micro_batches(sizes, max(_on(policy, _BATCH_TOKENS), max(sizes))):
        members = [i for r in batch for i in rows[r]]
        packs = [pack([s for i in rows[r] for s in seen[i]]) for r in batch]
        with policy.inference():
            packed = policy.rows(packs)
            width = packed.input_ids.shape[1]
            paths = [path + b * width for b, p in enumerate(packs) for path in p.paths]
            ends = [(i, s) for i in members for s in full[i]]
            predictors = [path[first[i] - 1 :] for path, (i, _) in zip(paths, ends, strict=True)]
            targets = np.array([token for i, s in ends for token in s[first[i] :]])
            unique, inverse = np.unique(np.concatenate(predictors), return_inverse=True)
            hidden = policy.hidden_of(packed, unique)
            token_logp = _token_logp(policy, hidden, inverse, targets, fp32_head)
        rest = iter(token_logp)
        for i, s in ends:
            found[i].append([next(rest) for _ in s[first[i] :]])
    return found


def _token_logp(
    policy: Policy, hidden: torch.Tensor, inverse: np.ndarray, targets: np.ndarray, fp32_head: bool
) -> list[float]:
    """log p of each target (t,) by its predictor's hidden state, at `inverse` (t,) of (u, d)."""
    found, step = np.empty(len(targets)), _on(policy, _PREDICTORS)
    for low in range(0, len(hidden), step):
        mine = np.flatnonzero((inverse >= low) & (inverse < low + step))
        at, token = (to_device(x, policy.device) for x in (inverse[mine] - low, targets[mine]))
        logp = torch.log_softmax(policy.logits(hidden[low : low + step], fp32=fp32_head), -1)
        found[mine] = logp[at, token].double().cpu().numpy()
    return [float(x) for x in found]


def _on(policy: Policy, sizes: Mapping[str, int]) -> int:
    return sizes.get(policy.device.type, sizes["cpu"])

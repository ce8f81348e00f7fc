"""The probability of each label where a completion names an emotion (branches.py).

The few logits of labels are computed in fp32, also where the model computes in bf16: its 8 bits often give
the two best labels one logit. What is left is the noise of bf16 hidden states, which depends on the other
prompts of a batch. Where it could decide (`NEAR`), the place is read again in fp32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from selfemo.method.types import EmotionDistribution, LabelSet
from selfemo.models.generation.branches import BranchLogp, branch_logp
from selfemo.models.packing import shared_prefix
from selfemo.models.policy import Encoder, Policy

NEAR = 0.2
"""Two best labels whose log-probabilities are this near (nats) are told apart in fp32: on MELD bf16 moved
their difference by 0.12 at the most (docs/evaluation.md)."""
Place = tuple[Hashable, Sequence[int], str]


def label_probabilities(
    policy: Policy, places: Sequence[Place], labels: LabelSet
) -> list[EmotionDistribution]:
    """The probability of each label at each place (`LabelPlace`), normalised over the set.

    A label whose tokens begin another's (sad, sadly) has the probability of its own tokens less that of
    the longer ones.
    """
    found = _read(policy, places, labels)
    if policy.dtype != "bf16" or not policy.bf16_products:
        return found
    near = [i for i, distribution in enumerate(found) if _near(distribution)]
    with _as_loaded(policy):
        again = _read(_in_fp32(policy), [places[i] for i in near], labels)
    for i, distribution in zip(near, again, strict=True):
        found[i] = distribution
    return found


def _near(distribution: EmotionDistribution) -> bool:
    """Whether the second best label is within NEAR of the best."""
    best, second, *_ = *sorted(distribution.values(), reverse=True), 0.0
    return second >= best * math.exp(-NEAR)


def _in_fp32(policy: Policy) -> Policy:
    """The same model (its weights are fp32) without autocast; flex has no kernel in fp32 for large heads."""
    return replace(
        policy, dtype="fp32", attention="dense" if policy.attention == "flex" else policy.attention
    )


def _as_loaded(policy: Policy) -> Any:
    """Compiled layers are not compiled once more for the few places that are read again."""
    return torch.compiler.set_stance("force_eager") if policy.compiled else contextlib.nullcontext()


def _read(policy: Policy, places: Sequence[Place], labels: LabelSet) -> list[EmotionDistribution]:
    return read_labels(policy, places, labels, partial(branch_logp, policy, fp32_head=True))


def read_labels(
    reader: Encoder, places: Sequence[Place], labels: LabelSet, score: BranchLogp
) -> list[EmotionDistribution]:
    """`label_probabilities` by any model that scores branches."""
    encoded = {
        written: [reader.plain_ids(f"{written} {e}" if written else e) for e in labels]
        for written in dict.fromkeys(w for _, _, w in places)
    }
    heads = [encoded[written] for _, _, written in places]
    asked = [(key, ids, head) for (key, ids, _), head in zip(places, heads, strict=True)]
    # The tokens that all labels begin with are left out: they cancel.
    common = [min(shared_prefix(head[0], h) for h in head[1:]) for head in heads]
    found = score(asked, common)
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

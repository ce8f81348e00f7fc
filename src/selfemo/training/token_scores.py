"""Log-probability and entropy of completion tokens in packed rows.

Shapes: n sequences, l padded completion length, u distinct predicting tokens, v vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from selfemo.models.packing import Pack
from selfemo.models.policy import LOGITS, Policy
from selfemo.models.transfer import to_device

_LENGTH_STEP = 32
"""Rows are padded to a multiple of it, so that kernels compiled for few shapes are used again."""


@dataclass(frozen=True)
class TokenScores:
    """Log-probability and entropy (nats) of completion tokens, (n, l), with the mask of real tokens."""

    logp: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor


def inputs(prompt: Sequence[int], completion: Sequence[int]) -> list[int]:
    """What the model must see to predict each token of a completion."""
    return [*prompt, *completion][:-1]


def score_tokens(
    policy: Policy,
    packs: Sequence[Pack],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    temperature: float = 1.0,
    entropy: bool = True,
) -> TokenScores:
    """Score the tokens of the completions that each pack was made for, in the order of its paths.

    A packed sequence is the input: a prompt with its completion but for the last token, which predicts
    nothing (`inputs`).

    Logits are computed once for each distinct token that predicts a scored one; beyond `LOGITS` of them
    chunk by chunk, and again in the backward pass, so that a large vocabulary does not set the size of
    micro-batches. The policy is the softmax of logits / temperature, as in sampling. Without `entropy` that
    field is zeros.
    """
    rows = policy.rows(packs, _LENGTH_STEP)
    s = rows.input_ids.shape[1]
    predictors: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for b, (p, some) in enumerate(zip(packs, completions, strict=True)):
        for path, completion in zip(p.paths, some, strict=True):
            predictors.append(path[len(path) - len(completion) :] + b * s)
            targets.append(np.asarray(completion, dtype=np.int64))
    unique, inverse = np.unique(np.concatenate(predictors), return_inverse=True)
    lengths = [len(t) for t in targets]
    columns = np.arange(max(lengths)) < np.array(lengths)[:, None]
    # All is there before the forward pass is queued: a copy behind it would wait for it.
    token, predicting, at, mask = (
        to_device(x, policy.device) for x in (np.concatenate(targets), unique, inverse, columns)
    )
    with policy.autocast():
        hidden = policy.hidden(rows).flatten(0, 1)[predicting]
    score = functools.partial(_score, policy, temperature, entropy)
    chunk = max(1, LOGITS // policy.vocabulary)
    if len(unique) <= chunk:
        flat, entropies = score(hidden, at, token)
    else:
        parts, where = [], []
        for first in range(0, len(unique), chunk):
            inside = np.flatnonzero((inverse >= first) & (inverse < first + chunk))
            where.append(inside)
            index = to_device(inside, policy.device)
            part = hidden[first : first + chunk]
            parts.append(checkpoint(score, part, at[index] - first, token[index], use_reentrant=False))
        order = to_device(np.argsort(np.concatenate(where)), policy.device)
        flat, entropies = (torch.cat(x)[order] for x in zip(*parts, strict=True))
    return TokenScores(_pad(flat, lengths), _pad(entropies, lengths), mask)


def _score(
    policy: Policy,
    temperature: float,
    entropy: bool,
    hidden: torch.Tensor,
    at: torch.Tensor,
    token: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(t,) log-probability and entropy of each `token`, from the hidden states (u, d); `at` indexes them."""
    with policy.autocast():
        logits = policy.logits(hidden)
    if temperature != 1:
        logits = logits / temperature
    lse = torch.logsumexp(logits, -1)
    flat = logits[at, token] - lse[at]
    with torch.no_grad():
        if not entropy:
            return flat, torch.zeros_like(flat)
        # H = lse - E[logit]: one temporary of logit size instead of three.
        expected = torch.softmax(logits, -1).mul_(logits).sum(-1)
        return flat, (lse - expected)[at]


def _pad(flat: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    parts = torch.split(flat, list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

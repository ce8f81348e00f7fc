"""Log-probability and entropy of completion tokens in packed rows.

Shapes: n sequences, l padded completion length, u distinct predicting tokens, v vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from selfemo.models.packing import Pack
from selfemo.models.policy import LOGITS, Policy
from selfemo.models.transfer import to_device

_LENGTH_STEP = 32
"""Rows are padded to a multiple of it, so that kernels compiled for few shapes are used again."""
_ROWS = 32
"""Rows of logits at a time, on a CPU."""


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
    token, at, mask = (to_device(x, policy.device) for x in (np.concatenate(targets), inverse, columns))
    with policy.autocast():
        hidden = policy.hidden_of(rows, unique)
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
    flat, entropies = _Scores.apply(logits, at, token, temperature, entropy)
    return flat, entropies


class _Scores(torch.autograd.Function):
    """(t,) log-probability and entropy of tokens under the softmax of logits / temperature, logits (u, v).

    The backward pass makes the gradient of the logits in their place, so nothing else may need them. Both
    work on as many rows at a time as a core's cache holds: with a large vocabulary a pass over all costs as
    much as the products of a layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        at: torch.Tensor,
        token: torch.Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        whole, mean = logits.new_empty(len(logits)), logits.new_zeros(len(logits))
        for part, lse, expected in zip(*map(_split, (logits, whole, mean)), strict=True):
            scaled = part / temperature if temperature != 1 else part
            torch.logsumexp(scaled, -1, out=lse)
            if entropy:  # lse - E[logit]: one temporary of logit size instead of three
                torch.sum(torch.softmax(scaled, -1).mul_(scaled), -1, out=expected)
        ctx.save_for_backward(logits, at, token, whole)
        ctx.temperature = temperature
        flat = logits[at, token] / temperature - whole[at]
        entropies = (whole - mean)[at] if entropy else torch.zeros_like(flat)
        ctx.mark_non_differentiable(entropies)
        return flat, entropies

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[Any, ...]:
        logits, at, token, whole = ctx.saved_tensors
        grad = grad / ctx.temperature
        share = torch.zeros_like(whole).index_add_(0, at, grad).neg_()
        for part, lse, weight in zip(*map(_split, (logits, whole, share)), strict=True):
            part.div_(ctx.temperature).sub_(lse[:, None]).exp_().mul_(weight[:, None])
        logits.index_put_((at, token), grad, accumulate=True)
        return logits, None, None, None, None


def _split(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.split(_ROWS if x.device.type == "cpu" else max(1, len(x)))


def _pad(flat: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    parts = torch.split(flat, list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

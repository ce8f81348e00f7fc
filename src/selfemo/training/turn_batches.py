"""Batches and label weights for classifiers of turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from selfemo.seeds import rng

_BUCKET = 16
"""Batches that are filled from one sorted part of an epoch, so that their rows are of similar length."""


def label_weights(gold: Iterable[tuple[int, Sequence[int]]], sizes: Sequence[int]) -> torch.Tensor:
    """(s, k) of each label of s label sets: n / (k n_label), 1 on average over turns; 0 where it never
    occurs.

    Args:
        gold: (number of the label set, labels of some turns), -1 where a turn has none.
        sizes: (s,) labels of each set.
    """
    table = np.zeros((len(sizes), max(sizes)))
    for which, labels in gold:
        for g in labels:
            if g >= 0:
                table[which, g] += 1
    n = table.sum(1, keepdims=True)
    weights = np.divide(n, np.array(sizes)[:, None] * table, out=np.zeros_like(table), where=table > 0)
    return torch.tensor(weights, dtype=torch.float32)


def turn_losses(
    logits: torch.Tensor, gold: torch.Tensor, which: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """(n,) cross-entropy of each turn, 0 where it has no label.

    Args:
        logits: (n, k).
        gold: (n,) labels, -1 where there is none.
        which: (n,) number of each turn's label set.
        weights: of `label_weights`.
    """
    each = torch.nn.functional.cross_entropy(logits, gold, ignore_index=-1, reduction="none")
    return each if weights is None else each * weights.to(each.device)[which, gold.clamp(min=0)]


def shuffled_batches(
    lengths: Sequence[int], counts: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Indices of the items of each optimiser step of an epoch: each once, a count of about `batch_size`.

    Items are shuffled, sorted by length within parts of _BUCKET batches, and the batches shuffled again.

    Args:
        counts: what each item counts towards the size of a batch.
    """
    draw = rng(seed, "epoch", epoch)
    order = draw.permutation(len(lengths)).tolist()
    batches: list[list[int]] = []
    part: list[int] = []
    held = 0
    for k, i in enumerate(order):
        part.append(i)
        held += counts[i]
        if held >= _BUCKET * batch_size or k == len(order) - 1:
            batches += _filled(sorted(part, key=lambda i: lengths[i]), counts, batch_size)
            part, held = [], 0
    return [batches[i] for i in draw.permutation(len(batches))]


def _filled(order: Sequence[int], counts: Sequence[int], batch_size: int) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    held = 0
    for i in order:
        # One item more only where that comes nearer to the size.
        if batches[-1] and held + counts[i] / 2 > batch_size:
            batches.append([])
            held = 0
        batches[-1].append(i)
        held += counts[i]
    return batches

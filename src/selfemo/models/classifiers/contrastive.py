"""Supervised prototypical contrastive learning (SPCL, Song et al. 2022).

    s(x, y)   = (1 + cos(x, y)) / 2
    P(i)      other turns of the batch with the label of i, and the prototype of that label
    N(i)      turns of the batch with another label, and the prototypes of the other labels
    loss(i)   = -log( 1/|P| sum over P of exp(s/T) / sum over P and N of exp(s/T) )

    prototype    of a label: the mean of some vectors drawn from the queue of its latest ones; while these are
                 too few, its centre
    centre       of a label: the mean of all its training vectors, as the model is when an epoch begins
    difficulty   of a turn: its distance (1 - cos) / 2 from its own centre, over the sum of those from all

A batch has few turns of a rare label, or none; by its prototype such a label is in each step all the same.
Facts are from caskcsg/SPCL: spcl_loss.py and util_methods.py.

[ours]: a class is a label of a label set, and turns and prototypes of other label sets are neither positive
nor negative; the queue forgets its oldest vector (the repository: a random one).

Shapes: n turns, d dimensions, c classes, k labels of one set.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_EASY = 0.3
"""A turn with a lower loss counts for nothing in a step, as in the repository."""


def similarity(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """0 to 1: (1 + cos) / 2."""
    normal = torch.nn.functional.normalize
    return (1 + normal(x, dim=-1) @ normal(y, dim=-1).T) / 2


def spcl_loss(
    x: Float[Tensor, "n d"],
    classes: Int[Tensor, " n"],
    prototypes: Float[Tensor, "c d"],
    sets: Int[Tensor, " c"],
    temperature: float,
) -> Float[Tensor, ""]:
    """The mean loss of turns, of those that are not easy; 0 if all are.

    Args:
        classes: of each turn.
        prototypes: of each class; NaN of a class without training turns, which is left out.
        sets: the number of each class's label set.
    """
    n, c = len(x), len(prototypes)
    there = ~prototypes.isnan().any(-1)
    known = prototypes.nan_to_num()
    scores = similarity(x, torch.cat([x, known])) / temperature
    of = torch.cat([classes, torch.arange(c, device=classes.device)])
    among = sets[classes][:, None] == sets[of][None, :]
    among = among & torch.cat([torch.ones(n, dtype=torch.bool, device=x.device), there])
    among = among & ~torch.eye(n, n + c, dtype=torch.bool, device=x.device)
    positive = among & (classes[:, None] == of[None, :])
    least = torch.finfo(scores.dtype).min
    of_positive = scores.masked_fill(~positive, least).logsumexp(-1)
    of_all = scores.masked_fill(~among, least).logsumexp(-1)
    losses = of_all - of_positive + positive.sum(-1).log()
    hard = losses > _EASY
    return (losses * hard).sum() / hard.sum().clamp(min=1)


def class_centres(x: Float[Tensor, "n d"], classes: Int[Tensor, " n"], count: int) -> Float[Tensor, "c d"]:
    """The mean vector of each class; NaN of one without a turn."""
    sums = x.new_zeros(count, x.shape[1]).index_add_(0, classes, x)
    return sums / torch.bincount(classes, minlength=count)[:, None]


class Queue:
    """The latest vectors of each class. It begins with the centres, and lives for one epoch, as in the
    repository: so a training that goes on from the state after an epoch needs no state of it."""

    def __init__(self, centres: Float[Tensor, "c d"], size: int, support: int, draw: np.random.Generator):
        self.centres, self.support, self.draw = centres, support, draw
        self.held = [deque([centre], maxlen=size) for centre in centres]

    def push(self, x: Float[Tensor, "n d"], classes: Int[Tensor, " n"]) -> None:
        for vector, k in zip(x.detach(), classes.tolist(), strict=True):
            self.held[k].append(vector)

    def prototypes(self) -> Float[Tensor, "c d"]:
        """Of each class the mean of `support` vectors drawn without replacement, or its centre."""
        found = []
        for centre, held in zip(self.centres, self.held, strict=True):
            if len(held) < self.support:
                found.append(centre)
                continue
            taken = self.draw.choice(len(held), self.support, replace=False)
            found.append(torch.stack([held[i] for i in taken]).mean(0))
        return torch.stack(found)


def difficulty(x: np.ndarray, labels: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) how hard each turn of a label set is: 0 at its own centre.

    Args:
        x: (n, d) vectors.
        labels: (n,) the label of each turn.
        centres: (k, d) of the labels; NaN of a label without a turn, which is left out.
    """
    there = ~np.isnan(centres).any(1)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True).clip(1e-12) for v in (x, np.nan_to_num(centres))]
    distances = ((1 - unit[0] @ unit[1].T) / 2).clip(0) + 1e-8
    own: np.ndarray = distances[np.arange(len(x)), labels]
    return own / distances[:, there].sum(1)


def curriculum(n: int, epoch: int, epochs: int, draw: np.random.Generator) -> np.ndarray:
    """Ranks (0 is the easiest of n turns) of those that an epoch trains on, in order of rank.

    From rank 0 to n - 1 the probability of a turn goes linearly from 1 - epoch / epochs to epoch / epochs:
    about half of the turns, of which the hard ones come late. The model has no say in the ranks.
    """
    share = epoch / epochs
    return np.flatnonzero(draw.random(n) < np.linspace(1 - share, share, n))

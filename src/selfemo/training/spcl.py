"""Training by prototypical contrast and a curriculum (models/classifiers/contrastive.py).

Each epoch begins with a look at the training turns: their vectors give the centres of the labels and the
order by difficulty. The heads learn from vectors without gradient: the encoder learns by contrast alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from selfemo.config.encoders import SpclConfig
from selfemo.method.types import Conversation
from selfemo.models.classifiers.centres import CentreReader
from selfemo.models.classifiers.contrastive import Queue, class_centres, curriculum, difficulty, spcl_loss
from selfemo.progress import Reporter, StopRequest
from selfemo.seeds import derive, rng
from selfemo.training.classifier import fit_classifier
from selfemo.training.turn_encoder import epoch_batches, labelled_rows


class _Course:
    """What an epoch takes from the model as it begins.

    Attributes:
        rows: of the turns to train on.
        classes: (n,) the class of each of them.
        ranked: of each label set, its turns from easy to hard.
        queue: of the epoch.
        fresh: whether centres and order are of the model as it is.
    """

    def __init__(self, reader: CentreReader, train: Sequence[Conversation], reporter: Reporter, seed: int):
        self.reader, self.train, self.seed = reader, train, seed
        self.rows = labelled_rows(reader, train, reporter)
        which = np.array([w for (w, _), _ in self.rows])
        self.labels = np.array([gold for _, (gold,) in self.rows])
        self.classes = torch.tensor(np.array(reader.starts)[which] + self.labels, device=reader.model.device)
        self.ranked = [np.flatnonzero(which == i) for i in range(len(reader.label_sets))]
        self.queue: Queue
        self.fresh = False

    def look(self) -> None:
        """Compute the centres, and the order by difficulty."""
        reader = self.reader
        tables = reader.vectors(self.train, lambda states: states)
        read = [(item, row) for c, table in zip(self.train, tables, strict=True)
                for item, row in zip(c.turns, table, strict=True)]  # fmt: skip
        x = np.array([row for turn, row in read if turn.emotion is not None])
        vectors = torch.tensor(x, device=self.classes.device)
        reader.centres = class_centres(vectors, self.classes, len(reader.centres))
        centres = reader.centres.cpu().numpy()
        for i, (start, labels) in enumerate(zip(reader.starts, reader.label_sets, strict=True)):
            mine = np.sort(self.ranked[i])
            hard = difficulty(x[mine], self.labels[mine], centres[start : start + len(labels)])
            self.ranked[i] = mine[np.argsort(hard, kind="stable")]
        self.fresh = True

    def begin(self, epoch: int) -> None:
        if not self.fresh:
            self.look()
        config = self.reader.spcl
        self.queue = Queue(
            self.reader.centres, config.queue, config.support, rng(self.seed, "support", epoch)
        )
        self.fresh = False

    def batches(self, epoch: int) -> list[list[int]]:
        taken = [
            ranked[curriculum(len(ranked), epoch, self.reader.spcl.epochs, rng(self.seed, "ranks", i, epoch))]
            for i, ranked in enumerate(self.ranked)
        ]
        rows = np.concatenate(taken)
        size = self.reader.spcl.batch_size
        batches = epoch_batches([self.rows[i] for i in rows], size, self.seed, epoch)
        return [rows[batch].tolist() for batch in batches]

    def backward(self, batch: list[int]) -> float:
        reader = self.reader
        members, y = [self.rows[i] for i in batch], self.classes[batch]
        x = reader.states([item for item, _ in members])
        prototypes = self.queue.prototypes()
        contrast = spcl_loss(x, y, prototypes, reader.sets, reader.spcl.temperature)
        self.queue.push(x, y)
        logits = reader.model.heads(x.detach(), reader.sets[y])
        gold = torch.tensor(self.labels[batch], device=y.device)
        loss = contrast + torch.nn.functional.cross_entropy(logits, gold)
        loss.backward()
        return float(loss.detach())


def train_spcl(
    config: SpclConfig,
    train: Sequence[Conversation],
    score: Callable[[CentreReader], float],
    *,
    seed: int,
    states: Path,
    device: str,
    reporter: Reporter,
    stop: StopRequest,
    label: str = "SPCL",
) -> CentreReader:
    """Train an encoder by contrast with prototypes of the labels.

    Args:
        score: of the reader as it is, on held-out turns; the epoch with the best one is kept.

    Raises: as `fit_classifier`; DataError: no turn has a label; EngineError: the encoder has no mask token.
    """
    torch.manual_seed(derive(seed, "heads"))
    reader = CentreReader.untrained(config, list(dict.fromkeys(c.label_set for c in train)), device)
    course = _Course(reader, train, reporter, seed)

    def scored() -> float:
        course.look()
        return score(reader)

    fit_classifier(
        reader.model, config, course.batches, course.backward, scored, seed=seed, states=states, label=label,
        reporter=reporter, stop=stop, factors=[(list(reader.model.heads.parameters()), config.head_lr)],
        begin=course.begin,
    )  # fmt: skip
    course.look()
    return reader

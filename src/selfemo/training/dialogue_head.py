"""Training of a network over the turns of conversations, on features that do not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from selfemo.config import FitConfig
from selfemo.errors import DataError
from selfemo.method.types import LabelSet
from selfemo.models.classifiers.dialogues import Dialogue, DialogueClassifier, Dialogues, Network
from selfemo.models.loading import pick_device
from selfemo.progress import Reporter, StopRequest
from selfemo.seeds import derive
from selfemo.training.classifier import fit_classifier
from selfemo.training.turn_batches import label_weights, shuffled_batches, turn_losses

Labelled = tuple[Dialogue, Sequence[int]]
"""A conversation, and the gold label of each of its turns; -1 where it has none."""


def train_head(
    build: Callable[[int], Network],
    config: FitConfig,
    train: Sequence[Labelled],
    label_sets: Sequence[LabelSet],
    score: Callable[[DialogueClassifier], float],
    *,
    class_weights: bool,
    seed: int,
    states: Path,
    label: str,
    device: str,
    reporter: Reporter,
    stop: StopRequest,
) -> DialogueClassifier:
    """Train a network and its heads by cross-entropy on the top gold label of each turn, batches of
    conversations.

    Args:
        build: makes the network from the size of a turn's features.
        config: its batch_size counts conversations.
        score: of the classifier as it is, on held-out turns; the epoch with the best one is kept.

    Raises: as `fit_classifier`; DataError: no turn has a label.
    """
    members = [m for m in train if max(m[1], default=-1) >= 0]
    if not members:
        raise DataError("no turn of the training conversations has a gold emotion")
    torch.manual_seed(derive(seed, "heads"))
    network = build(members[0][0].features.shape[1])
    model = DialogueClassifier(network, label_sets).to(pick_device(device))
    weights = None
    if class_weights:
        weights = label_weights(((d.which, gold) for d, gold in members), [len(s) for s in label_sets])
    lengths = [len(gold) for _, gold in members]

    def backward(part: list[int]) -> float:
        dialogues = Dialogues.of([members[i][0] for i in part], model.device)
        gold = torch.tensor([g for i in part for g in members[i][1]], device=model.device)
        loss = turn_losses(model(dialogues), gold, dialogues.which, weights).sum() / (gold >= 0).sum()
        loss.backward()
        return float(loss.detach())

    fit_classifier(
        model, config,
        lambda epoch: shuffled_batches(lengths, [1] * len(members), config.batch_size, seed, epoch), backward,
        lambda: score(model), seed=seed, states=states, label=label, reporter=reporter, stop=stop,
    )  # fmt: skip
    return model

"""Training of an encoder that reads the emotion of turns (models/classifiers/reader.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from selfemo.config.encoders import EncoderConfig
from selfemo.errors import DataError
from selfemo.method.types import Conversation
from selfemo.models.classifiers.reader import Item, TurnReader, micro_batches
from selfemo.progress import Reporter, StopRequest
from selfemo.seeds import derive
from selfemo.training.classifier import fit_classifier
from selfemo.training.turn_batches import label_weights, shuffled_batches, turn_losses

Labelled = tuple[Item, tuple[int, ...]]
"""A row, and the gold label of each turn that is read in it; -1 where it has none."""


def train_encoder(
    config: EncoderConfig,
    train: Sequence[Conversation],
    score: Callable[[TurnReader], float],
    *,
    seed: int,
    states: Path,
    device: str,
    reporter: Reporter,
    stop: StopRequest,
    label: str = "encoder",
) -> TurnReader:
    """Train an encoder and the heads on it by cross-entropy on the top gold label of each turn.

    Args:
        score: of the reader as it is, on held-out turns; the epoch with the best one is kept.

    Raises: as `fit_classifier`; DataError: no turn has a label.
    """
    torch.manual_seed(derive(seed, "heads"))
    reader = TurnReader.new(config, list(dict.fromkeys(c.label_set for c in train)), device)
    rows = labelled_rows(reader, train, reporter)
    reader.shares = label_shares(rows, reader)
    weights = class_weights(rows, reader) if config.class_weights else None

    def backward(batch: list[int]) -> float:
        members = [rows[i] for i in batch]
        total = sum(g >= 0 for _, gold in members for g in gold)
        loss = 0.0
        for part in micro_batches([len(row.ids) for (_, row), _ in members], config.micro_tokens):
            items, gold = [members[k][0] for k in part], [g for k in part for g in members[k][1]]
            logits, y = reader.logits(items), torch.tensor(gold, device=reader.model.device)
            which = torch.tensor([w for w, row in items for _ in row.places], device=y.device)
            each = turn_losses(logits, y, which, weights)
            value = each.sum() / total
            value.backward()
            loss += float(value.detach())
        return loss

    heads = [p for n, p in reader.model.named_parameters() if not n.startswith("core.")]
    fit_classifier(
        reader.model, config, lambda epoch: epoch_batches(rows, config.batch_size, seed, epoch), backward,
        lambda: score(reader), seed=seed, states=states, label=label, reporter=reporter, stop=stop,
        factors=[(heads, config.head_lr)],
    )  # fmt: skip
    return reader


def labelled_rows(
    reader: TurnReader, conversations: Sequence[Conversation], reporter: Reporter
) -> list[Labelled]:
    """The rows to train on, in the order of the conversations (DataError: no turn has a label)."""
    rows = [r for c in conversations for r in _labelled(reader, c)]
    if not rows:
        raise DataError("no turn of the training conversations has a gold emotion")
    if cut := sum(row.cut for (_, row), _ in rows):
        reporter.say(
            f"{cut} turns are longer than {reader.config.max_tokens} tokens: what is behind is not seen"
        )
    return rows


def _labelled(reader: TurnReader, conversation: Conversation) -> list[Labelled]:
    """The rows of a conversation in which a labelled turn is read."""
    labels = conversation.label_set
    gold = [-1 if t.emotion is None else labels.index(t.emotion.top(labels)) for t in conversation.turns]
    found = [(item, tuple(gold[p.turn] for p in item[1].places)) for item in reader.items(conversation)]
    return [(item, of) for item, of in found if max(of, default=-1) >= 0]


def class_weights(rows: Sequence[Labelled], reader: TurnReader) -> torch.Tensor:
    """(s, k) of each label of s label sets; see `label_weights`."""
    return label_weights(((which, gold) for (which, _), gold in rows), [len(s) for s in reader.label_sets])


def label_shares(rows: Sequence[Labelled], reader: TurnReader) -> list[list[float]]:
    """The share of each label of each label set among the labelled turns."""
    found = []
    for k, labels in enumerate(reader.label_sets):
        counts = Counter(g for (which, _), gold in rows if which == k for g in gold if g >= 0)
        found.append([counts[i] / max(1, counts.total()) for i in range(len(labels))])
    return found


def epoch_batches(rows: Sequence[Labelled], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the rows of each optimiser step: about `batch_size` labelled turns; see
    `shuffled_batches`."""
    turns = [sum(g >= 0 for g in gold) for _, gold in rows]
    return shuffled_batches([len(row.ids) for (_, row), _ in rows], turns, batch_size, seed, epoch)

"""Training of an encoder that reads the emotion of turns (models/classifiers/reader.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from selfemo.config.encoders import EncoderConfig
from selfemo.errors import DataError
from selfemo.method.types import Conversation
from selfemo.models.classifiers.reader import Item, TurnReader, micro_batches
from selfemo.progress import Reporter, StopRequest
from selfemo.seeds import derive, rng
from selfemo.training.classifier import fit_classifier

Labelled = tuple[Item, tuple[int, ...]]
"""A row, and the gold label of each turn that is read in it; -1 where it has none."""
_BUCKET = 16
"""Batches that are filled from one sorted part of an epoch, so that their rows are of similar length."""


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
    weights = class_weights(rows, reader) if config.class_weights else None

    def backward(batch: list[int]) -> float:
        members = [rows[i] for i in batch]
        total = sum(g >= 0 for _, gold in members for g in gold)
        loss = 0.0
        for part in micro_batches([len(row.ids) for (_, row), _ in members], config.micro_tokens):
            items, gold = [members[k][0] for k in part], [g for k in part for g in members[k][1]]
            logits, y = reader.logits(items), torch.tensor(gold, device=reader.model.device)
            each = torch.nn.functional.cross_entropy(logits, y, ignore_index=-1, reduction="none")
            if weights is not None:
                which = [w for w, row in items for _ in row.places]
                each = each * weights.to(each.device)[which, y.clamp(min=0)]
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
    """(s, k) weights of the labels of s label sets: n / (k n_label), 1 on average over turns; 0 of none."""
    table = np.zeros((len(reader.label_sets), max(map(len, reader.label_sets))))
    for (which, _), gold in rows:
        for g in gold:
            if g >= 0:
                table[which, g] += 1
    sizes = np.array([[len(s)] for s in reader.label_sets])
    n = table.sum(1, keepdims=True)
    weights = np.divide(n, sizes * table, out=np.zeros_like(table), where=table > 0)
    return torch.tensor(weights, dtype=torch.float32)


def epoch_batches(rows: Sequence[Labelled], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the rows of each optimiser step of an epoch: each once, about `batch_size` labelled turns.

    Rows are shuffled, sorted by length within parts of _BUCKET batches, and the batches shuffled again.
    """
    draw = rng(seed, "epoch", epoch)
    order = draw.permutation(len(rows)).tolist()
    turns = [sum(g >= 0 for g in gold) for _, gold in rows]
    batches: list[list[int]] = []
    part: list[int] = []
    held = 0
    for k, i in enumerate(order):
        part.append(i)
        held += turns[i]
        if held >= _BUCKET * batch_size or k == len(order) - 1:
            batches += _filled(sorted(part, key=lambda i: len(rows[i][0][1].ids)), turns, batch_size)
            part, held = [], 0
    return [batches[i] for i in draw.permutation(len(batches))]


def _filled(order: Sequence[int], turns: Sequence[int], batch_size: int) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    held = 0
    for i in order:
        # One row more only where that comes nearer to the size.
        if batches[-1] and held + turns[i] / 2 > batch_size:
            batches.append([])
            held = 0
        batches[-1].append(i)
        held += turns[i]
    return batches

"""SPCL trains: better than the most frequent label, the same after a stop, several label sets, past only."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfemo.config.encoders import SpclConfig
from selfemo.data import load
from selfemo.evaluation.baselines.base import choice_score, tops
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution
from selfemo.models.classifiers.centres import CentreReader
from selfemo.progress import Quiet, Stopped, StopRequest
from selfemo.training.spcl import train_spcl

EMORYNLP = LABEL_SETS["emorynlp"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with the tokenizer of MiniLM."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from selfemo.models.encoders import BUILTIN, MINILM

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN[MINILM].folder(MINILM))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def talks() -> list[Conversation]:
    return [c for c in load("sample").conversations if c.split == "train"][:8]


def settings(encoder: Path, **also: object) -> SpclConfig:
    return SpclConfig.model_validate(
        {"encoder": str(encoder), "lr": 3e-3, "head_lr": 3.0, "epochs": 8, "batch_size": 16, "window": 1,
         "max_tokens": 64, "queue": 16, "support": 4, "patience": 0, **also}
    )  # fmt: skip


def trained(config: SpclConfig, talks: list[Conversation], states: Path, stop_after: int = 0) -> CentreReader:
    stop, seen = StopRequest(), []

    def score(reader: CentreReader) -> float:
        seen.append(choice_score(reader, talks))
        stop.asked = len(seen) == stop_after
        return seen[-1]

    return train_spcl(config, talks, score, seed=3, states=states, device="cpu", reporter=Quiet(), stop=stop)


def share_right(reader: CentreReader, talks: list[Conversation]) -> float:
    pairs = [
        (gold, int(row.argmax()))
        for c, table in zip(talks, reader.read(talks), strict=True)
        for gold, row in zip(tops(c), table, strict=True)
    ]
    return float(np.mean([gold == said for gold, said in pairs if gold >= 0]))


@pytest.mark.parametrize("reads", ["centres", "head"])
def test_it_learns_more_than_the_most_frequent_label(
    encoder: Path, talks: list[Conversation], tmp_path: Path, reads: str
) -> None:
    reader = trained(settings(encoder, reads=reads), talks, tmp_path / "states")
    counted = Counter(g for c in talks for g in tops(c) if g >= 0)
    assert share_right(reader, talks) > max(counted.values()) / counted.total() + 0.1
    assert all(t.sum(1) == pytest.approx(1, abs=1e-5) for t in reader.read(talks))
    # A later turn that changes leaves what is read of earlier ones.
    c = talks[0]
    other = replace(c, turns=(*c.turns[:-1], replace(c.turns[-1], text="I hate you all!")))
    before, after = reader.read([c])[0], reader.read([other])[0]
    assert after[:-1] == pytest.approx(before[:-1], abs=1e-5)
    assert not np.allclose(after[-1], before[-1], atol=1e-5)


def test_a_stopped_training_ends_as_an_uninterrupted_one(
    encoder: Path, talks: list[Conversation], tmp_path: Path
) -> None:
    config = settings(encoder, epochs=4)
    whole = trained(config, talks, tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(config, talks, tmp_path / "parts", stop_after=2)
    assert (tmp_path / "parts").exists()
    resumed = trained(config, talks, tmp_path / "parts")
    for a, b in zip(whole.read(talks), resumed.read(talks), strict=True):
        assert np.array_equal(a, b)


def test_one_model_reads_several_label_sets(encoder: Path, talks: list[Conversation], tmp_path: Path) -> None:
    """A label that never occurs in training gets no probability; one of another set has no part at all."""

    def relabelled(c: Conversation) -> Conversation:
        names = [None if g < 0 else EMORYNLP.labels[g % 3] for g in tops(c)]
        turns = [
            replace(t, emotion=n and EmotionDistribution({n: 1.0}))
            for t, n in zip(c.turns, names, strict=True)
        ]
        return replace(c, id=f"{c.id}-e", dataset="e", label_set=EMORYNLP, turns=tuple(turns))

    both = [*talks[:3], *map(relabelled, talks[3:6])]
    reader = trained(settings(encoder, epochs=2), both, tmp_path / "states")
    assert reader.sets.tolist() == [0] * 7 + [1] * 7
    for c, table in zip(both, reader.read(both), strict=True):
        assert table.sum(1) == pytest.approx(1, abs=1e-5)
        if c.dataset == "e":
            assert (table[:, 3:] == 0).all() and (table[:, :3] > 0).all()

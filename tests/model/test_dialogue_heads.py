"""Heads over features of a fine-tuned encoder: one fine-tune for all seeds and heads, and what is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfemo.errors import ConfigError
from selfemo.evaluation.baselines import baseline
from selfemo.evaluation.baselines.base import Task, tops
from selfemo.evaluation.baselines.heads import Head
from selfemo.progress import StopRequest
from selfemo.training import turn_encoder
from tests.conftest import toy_conversations
from tests.support.runs import Watcher

HEADS: dict[str, dict[str, Any]] = {
    "dialogue-rnn": {"lr": 5e-3}, "dialogue-gcn": {"lr": 5e-3}, "dag-erc": {"lr": 2e-3},
    "cosmic": {"lr": 5e-3},
}  # fmt: skip
TUNE = {"epochs": 3, "lr": 1e-3, "batch_size": 10, "pooling": "mean"}


def head(name: str, **more: Any) -> Head[Any]:
    kind = baseline(name)
    settings = {"epochs": 6, "batch_size": 4, "fine_tune": TUNE, **HEADS[name], **more}
    found: Any = kind(kind.kind.model_validate(settings))
    return found


def task(folder: Path, seed: int = 0) -> Task:
    return Task(
        toy_conversations(12), toy_conversations(3, "dev"), seed, folder / f"states-{seed}",
        folder / "shared", "cpu", Watcher(), StopRequest(),
    )  # fmt: skip


def test_all_heads_and_seeds_share_one_fine_tune_and_beat_the_majority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The majority label has a fifth of the toy's turns."""
    tuned = []
    once = turn_encoder.train_encoder
    monkeypatch.setattr(turn_encoder, "train_encoder", lambda *a, **k: tuned.append(1) or once(*a, **k))
    held = toy_conversations(5, "test")
    gold = np.concatenate([tops(c) for c in held])
    read = {}
    for name in HEADS:
        found = head(name).train(task(tmp_path)).read(held)
        assert [len(p) for p in found] == [5] * 5 and np.allclose(np.concatenate(found).sum(1), 1, atol=1e-5)
        read[name] = np.concatenate(found)
        assert (read[name].argmax(1) == gold).mean() > 0.5, name
    again = np.concatenate(head("dag-erc").train(task(tmp_path, 1)).read(held))
    assert not np.allclose(again, read["dag-erc"])
    assert len(tuned) == 1

    kept = next((tmp_path / "shared").glob("encoder-*"))
    given = head("dag-erc", features=str(kept))
    given.check()
    assert given.backbone == head("dag-erc").backbone, "a folder is named by the encoder in it"
    assert np.allclose(np.concatenate(given.train(task(tmp_path)).read(held)), read["dag-erc"], atol=1e-5)
    assert len(tuned) == 1

    settings = kept / "reader.json"
    settings.write_text(settings.read_text().replace('"window": 0', '"window": 4'))
    with pytest.raises(ConfigError, match=r"sees more than the turn that it reads"):
        given.check()


def test_features_of_an_encoder_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_encoder, "train_encoder", lambda *a, **k: pytest.fail("fine-tuned"))
    of = head("dialogue-gcn", fine_tune={"epochs": 0, "pooling": "mean"}, epochs=1)
    of.train(task(tmp_path))
    (file,) = (tmp_path / "shared").glob("features-*.npz")
    # Fifteen toy conversations have five texts, of five turns each.
    assert np.square(np.load(file)["rows"]).mean(1) == pytest.approx(np.ones(25), abs=1e-4)

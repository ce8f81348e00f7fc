"""Training of classifiers: the best epoch, patience, what a stopped training goes on with, damaged states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfemo.config import FitConfig
from selfemo.errors import EngineError, NotFiniteError
from selfemo.progress import Quiet, Stopped, StopRequest
from selfemo.training.classifier import best_epoch, fit_classifier


class Job:
    """A small network with dropout on fixed numbers; batches of an epoch are shuffled by its number."""

    def __init__(self, states: Path, scores: list[float] | None = None, **settings: Any):
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
        self.x, self.y = torch.randn(24, 4), torch.randint(0, 2, (24,))
        self.states, self.stop, self.steps = states, StopRequest(), 0
        self.config = FitConfig(**{"lr": 0.05, "epochs": 4, "warmup": 0.25, **settings})
        self.scores = scores
        self.seen: list[dict[str, torch.Tensor]] = []
        self.on_step: Callable[[int], None] = lambda step: None
        self.on_score: Callable[[int], None] = lambda epoch: None

    def backward(self, batch: list[int]) -> float:
        self.steps += 1
        self.on_step(self.steps)
        loss = nn.functional.cross_entropy(self.model(self.x[batch]), self.y[batch])
        loss.backward()
        return float(loss.detach())

    def score(self) -> float:
        assert not self.model.training, "scores are computed without dropout"
        self.seen.append({n: p.clone() for n, p in self.model.named_parameters()})
        self.on_score(len(self.seen))
        if self.scores is not None:
            return self.scores[len(self.seen) - 1]
        return float((self.model(self.x).argmax(-1) == self.y).float().mean())

    def batches(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[:10], order[10:20], order[20:]]

    def run(self, **more: Any) -> list[dict[str, float]]:
        return fit_classifier(
            self.model, self.config, self.batches, self.backward, self.score, seed=3, states=self.states,
            label="toy", stop=self.stop, **{"reporter": Quiet(), **more},
        )  # fmt: skip

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("stopped_at", [1, 4, 6, 7, 11])
def test_a_stopped_training_ends_as_an_uninterrupted_one(tmp_path: Path, stopped_at: int) -> None:
    """Three steps an epoch: the stop comes in the middle of the first one, of others, and in a last step."""
    whole = Job(tmp_path / "whole")
    history = whole.run()

    first = Job(tmp_path / "states")
    first.on_step = lambda step: setattr(first.stop, "asked", step == stopped_at)
    with pytest.raises(Stopped):
        first.run()
    assert first.steps == stopped_at
    second = Job(tmp_path / "states")
    assert second.run() == history and same(second.weights(), whole.weights())
    assert second.steps == 12 - 3 * (stopped_at // 3), "epochs that ended are not trained again"
    assert not (tmp_path / "states").exists(), "the state goes when training ends"


def test_a_stop_between_epochs_keeps_the_epoch_before(tmp_path: Path) -> None:
    whole = Job(tmp_path / "whole")
    history = whole.run()
    first = Job(tmp_path / "states")
    first.on_score = lambda epoch: setattr(first.stop, "asked", epoch == 2)
    with pytest.raises(Stopped):
        first.run()
    assert json.loads((tmp_path / "states" / "epochs.json").read_text()) == history[:2]
    second = Job(tmp_path / "states")
    assert second.run() == history and same(second.weights(), whole.weights()) and second.steps == 6


def test_a_training_killed_before_its_state_is_noted_trains_that_epoch_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the best weights of an epoch and its entry in the history, at the worst."""
    whole = Job(tmp_path / "whole", scores=[0.1, 0.5, 0.4, 0.3])
    history = whole.run()
    first = Job(tmp_path / "states", scores=[0.1, 0.5])
    calls = []

    def killed(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*_)

    from selfemo.training import classifier

    real = classifier.write_json
    monkeypatch.setattr(classifier, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    monkeypatch.undo()
    second = Job(tmp_path / "states", scores=[0.5, 0.4, 0.3])
    assert second.run() == history and same(second.weights(), whole.weights())


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.7, 0.7, 0.2], 1), ([0.4, 0.4, 0.4, 0.4], 0)])
def test_the_best_epoch_is_kept_and_the_first_of_equals(
    tmp_path: Path, scores: list[float], best: int
) -> None:
    job = Job(tmp_path / "states", scores)
    history = job.run()
    assert [h["score"] for h in history] == scores and best_epoch(history) == best
    assert same(job.weights(), job.seen[best])
    assert not same(job.seen[best], job.seen[-1])


@pytest.mark.parametrize(("warmup", "warned"), [(0.25, True), (0.4, False), (0.0, False)])
def test_a_warm_up_of_a_few_steps_is_told(tmp_path: Path, warmup: float, warned: bool) -> None:
    """Of twelve steps: three, nearly five, and none, which is a choice."""
    said: list[str] = []

    class Says(Quiet):
        def say(self, line: str) -> None:
            said.append(line)

    Job(tmp_path, warmup=warmup).run(reporter=Says())
    told = [line for line in said if "warm-up" in line]
    assert [line.startswith("toy: only 3.0 of 12 steps are warm-up") for line in told] == [True] * warned


@pytest.mark.parametrize(
    ("patience", "epochs"), [(0, 6), (1, 3), (2, 6), (3, 6)]
)  # the best ones: 2, then 4 (from 1)
def test_patience_ends_a_training(tmp_path: Path, patience: int, epochs: int) -> None:
    job = Job(tmp_path / "states", [0.1, 0.5, 0.4, 0.6, 0.2, 0.1], epochs=6, patience=patience)
    assert len(job.run()) == epochs
    assert same(job.weights(), job.seen[1 if patience == 1 else 3])


def test_a_training_that_patience_ended_is_not_resumed(tmp_path: Path) -> None:
    """Stopped just where patience would end it: going on trains nothing more."""
    job = Job(tmp_path / "states", [0.5, 0.4], epochs=6, patience=1)
    job.on_score = lambda epoch: setattr(job.stop, "asked", epoch == 2)
    history = job.run()
    assert len(history) == 2 and job.steps == 6


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    job = Job(tmp_path / "states")
    job.on_step = lambda step: job.x.fill_(float("nan")) if step == 5 else None
    with pytest.raises(NotFiniteError, match=r"toy: loss nan .* at step 5; lower lr"):
        job.run()
    assert all(torch.isfinite(p).all() for p in job.model.parameters()), "no step was made with it"
    assert json.loads((tmp_path / "states" / "epochs.json").read_text())[0]["loss"] > 0


def test_a_factor_of_the_learning_rate_is_of_its_parameters_alone(tmp_path: Path) -> None:
    """With factor 0 the last layer stays; the first one learns."""
    job = Job(tmp_path / "states", weight_decay=0.0)
    before = job.weights()
    job.run(factors=[(list(job.model[3].parameters()), 0.0)])
    after = job.weights()
    assert torch.equal(before["3.weight"], after["3.weight"])
    assert not torch.equal(before["0.weight"], after["0.weight"])


@pytest.mark.parametrize("file", ["epoch-2.safetensors", "epoch-2.sha256", "best.safetensors", "epochs.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_state_is_named(tmp_path: Path, file: str, how: str) -> None:
    states = tmp_path / "states"
    job = Job(states)
    job.on_step = lambda step: setattr(job.stop, "asked", step == 8)
    with pytest.raises(Stopped):
        job.run()
    assert {f.name for f in states.iterdir()} == {
        "epoch-2.safetensors", "epoch-2.sha256", "best.safetensors", "epochs.json",
    }  # fmt: skip
    if how == "gone":
        (states / file).unlink()
    else:
        held = (states / file).read_bytes()
        (states / file).write_bytes(held[: len(held) // 3])
    again = Job(states)
    if (file, how) == ("epochs.json", "gone"):  # nothing says that there is a state
        assert len(again.run()) == 4 and again.steps == 12
        return
    with pytest.raises(EngineError) as told:
        again.run()
    assert file.partition(".")[0] in str(told.value) and f"delete {states} to begin anew" in str(told.value)
    assert again.steps == 0

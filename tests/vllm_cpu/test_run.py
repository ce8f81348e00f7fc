"""Whole runs whose RL samples by vLLM: what is trained on, interrupted runs, adapters, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfemo.config import Config
from selfemo.errors import EngineError
from selfemo.models.generation.vllm_here import Here
from tests.support.runs import SHORT, Watcher, evolve, settings

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
VLLM = ('sampling.backend="vllm"', "sampling.token_budget=4096")
TWO_STAGE = ('grpo.credit="causal"', "selfplay.max_turns=2", "grpo.kl_coef=0.01")


def run_settings(model: Path, data: Path, *more: str) -> Config:
    own = ("sft.epochs=0", "flywheel.prompts=12", "flywheel.refit=none")
    return settings(model, data, *SHORT, *VLLM, *own, *more)


def rounds(run: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in read if r["stage"] == "iteration-1-rl"]


@pytest.mark.parametrize("more", [(), TWO_STAGE, ("model.lora.rank=4",)], ids=["whole", "two-stage", "lora"])
def test_rl_trains_on_what_vllm_drew_with_the_present_weights(
    taught: Path, data: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    evolve(tmp_path / "run", run_settings(taught, data, "grpo.lr=1e-3", *more)).close()
    found = rounds(tmp_path / "run")
    assert len(found) == 2
    for r in found:
        assert 0 <= r["mismatch"] <= r["mismatch_p99"] < 1e-3 and r["mismatch_clipped"] == 0
        assert 0 <= r["vllm_gap"] < 1e-3 and r["grad_norm"] > 0
    assert any(r["r1"] > 0 for r in found), "the cold start taught the format"


def test_a_run_that_died_goes_on_as_if_it_had_not(taught: Path, data: Path, tmp_path: Path) -> None:
    config = run_settings(taught, data, *TWO_STAGE)
    evolve(tmp_path / "whole", config).close()

    def dies(stage: str, note: str) -> None:
        if stage == "iteration-1-rl":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(tmp_path / "cut", config, Watcher(on_advance=dies))
    evolve(tmp_path / "cut", None).close()
    for a, b in zip(rounds(tmp_path / "whole"), rounds(tmp_path / "cut"), strict=True):
        assert {k: a[k] for k in ("r1", "prompts", "tokens")} == {
            k: b[k] for k in ("r1", "prompts", "tokens")
        }
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_a_stale_copy_ends_the_run_which_then_goes_on(
    taught: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_settings(taught, data, "grpo.lr=1e-2", "guard.kl=warn")
    taken: list[int] = []
    take = Here.take

    def once(self: Here, weights: Any) -> None:
        """All of the start; nothing of what the first optimiser steps made of it."""
        taken.append(1)
        if len(taken) <= 2:
            take(self, weights)

    with monkeypatch.context() as patch:
        patch.setattr(Here, "take", once)
        with pytest.raises(EngineError, match="does not compute with the weights"):
            evolve(tmp_path / "run", config)
    assert len(taken) == 3
    evolve(tmp_path / "run", None).close()
    assert len(rounds(tmp_path / "run")) == 2

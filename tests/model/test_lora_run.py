"""LoRA through a whole run: trained, interrupted, resumed and used."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo import SelfEmo
from selfemo.config import Config
from selfemo.runs.store import Store
from tests.support.runs import SHORT, Silent, Watcher, assert_same_run, begun, evolve, photographed, settings

pytestmark = pytest.mark.slow
STAGES = ("cold-start", "iteration-1-rl", "iteration-1-refit")


@pytest.fixture(scope="module")
def config(finished: Path, data: Path) -> Config:
    """From a checkpoint that keeps the format: adapters of rank 2 on random weights never learn it."""
    pytest.importorskip("peft")
    base = finished / "checkpoints" / "cold-start"
    return settings(
        base, data, *SHORT, "sft.epochs=1", "sft.lr=1e-3", "flywheel.prompts=8",
        "grpo.prompts_per_step=4", "grpo.mini_batch=2", "model.lora={rank=2}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lora")
    photographed(home, config).close()
    return home / "whole"


def test_every_stage_trains_and_its_checkpoint_is_used(trained: Path) -> None:
    store = Store(trained / "store.sqlite")
    (row,) = store.rows("SELECT count(*), sum(failure IS NULL) FROM rollouts")
    assert row[0] >= 32 and row[1] > 0, "the adapters keep the format that the base has learned"
    store.close()
    checkpoints = [trained / "checkpoints" / n for n in STAGES[:2]]
    cold, rl = ((c / "model.safetensors").read_bytes() for c in checkpoints)
    assert cold != rl, "RL moved the adapters on"
    model = SelfEmo(trained / "checkpoints" / "iteration-1", max_tokens=64)
    answer = model.respond([("Ann", "Hooray, we won it!")], persona="Plain.")
    assert answer.failure is None and answer.reply


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_stage_resumes_to_the_same_run(trained: Path, tmp_path: Path, stage: str) -> None:
    folder = begun(trained, stage, tmp_path / "run")

    def interrupt(at: str, note: str) -> None:
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(folder, None, Watcher(on_advance=interrupt))
    evolve(folder, None, Silent()).close()
    assert_same_run(folder, trained)

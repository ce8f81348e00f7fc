"""The steps of experiments/gpu, at tiny size, and the tables from their committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments import tables
from experiments.gpu import rl_alone

from tests.conftest import toy_conversations, write_jsonl


@pytest.mark.slow
def test_rl_alone_runs_and_writes_each_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [*toy_conversations(8), *toy_conversations(4, "dev")])
    monkeypatch.setattr(rl_alone, "RATES", {arm: rates[:1] for arm, rates in rl_alone.RATES.items()})
    monkeypatch.setattr(rl_alone, "SEEDS", (0, 1))
    settings = [f"model.id={tiny_model}", "model.device=cpu", "sft.max_samples=4", "sft.label_samples=4",
                "sft.epochs=20", "sft.lr=5e-3", "flywheel.prompts=8", "grpo.prompts_per_step=4",
                "grpo.mini_batch=4"]  # fmt: skip
    sets = [x for s in settings for x in ("--set", s)]
    rl_alone.main(["--data", str(data), "--out", str(tmp_path / "out"), "--tiny", *sets, "--seconds", "900"])
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "failed" not in result
    names = [r["run"] for r in result["runs"]]
    assert names[0] == "start" and len(names) == 8, names
    n = len(result["utterances"]["half"])
    assert set(result["utterances"]["half"]) == {"tuning", "claim"}
    for run in result["runs"]:
        assert len(run["hits"]) == len(run["nll_at_t"]) == n
        scored = [s for half in ("tuning", "claim") for s in run[half].values()]
        assert sum(s["n"] for s in scored) == n
        assert sum(s["accuracy"] * s["n"] for s in scored) == pytest.approx(sum(run["hits"]))
    assert set(result["chosen"]) == {"mean", "ce", "std"}


def test_tables_come_from_the_committed_results() -> None:
    result = tables.read("rl_alone")
    runs = tables.chosen_runs(result)
    assert {arm: len(mine) for arm, mine in runs.items()} == {"mean": 3, "ce": 3, "std": 3, "plain": 1}
    start = [r for r in result["runs"] if r["run"] == tables.START]
    change = tables.compared(result, start, runs["mean"], "hits")
    claim = [i for i, half in enumerate(result["utterances"]["half"]) if half == "claim"]
    expected = sum(sum(r["hits"][i] for r in runs["mean"]) / 3 - start[0]["hits"][i] for i in claim) / len(
        claim
    )
    assert change.difference.value == pytest.approx(expected)
    written = tables.rl_alone()
    assert written.count("RL, divided by the mean") >= 6 and f"{expected:+.3f} [" in written

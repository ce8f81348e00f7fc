"""The command line of a step of experiments/gpu at tiny size."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import toy_conversations, write_jsonl


def arguments(tiny_model: Path, tmp_path: Path, *more: str) -> list[str]:
    """On toy conversations; `more` are settings."""
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [*toy_conversations(8), *toy_conversations(4, "dev")])
    settings = [f"model.id={tiny_model}", "model.device=cpu", "sft.max_samples=4", "sft.label_samples=4",
                "sft.epochs=20", "sft.lr=5e-3", "flywheel.prompts=8", "grpo.prompts_per_step=4",
                "grpo.mini_batch=4", *more]  # fmt: skip
    sets = [x for s in settings for x in ("--set", s)]
    return ["--data", str(data), "--out", str(tmp_path / "out"), "--tiny", *sets, "--seconds", "900"]

"""examples/trl_selfgrpo.py with vLLM in its process: what vLLM draws is drawn with the trained weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_selfgrpo.py"


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_two_steps_of_the_example(untied: Path, tmp_path: Path, lora: bool) -> None:
    command = [
        sys.executable, str(EXAMPLE), "--model", str(untied), "--out", str(tmp_path / "out"), "--steps", "2",
        "--batch", "4", "--group", "4", "--vllm", "colocate", *(["--lora"] if lora else []),
    ]  # fmt: skip
    own = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=570, env=own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (state,) = (tmp_path / "out").glob("checkpoint-2/trainer_state.json")
    logs = [r for r in json.loads(state.read_text())["log_history"] if "loss" in r]
    assert len(logs) == 2
    for r in logs:  # of the weights before each step, by vLLM and by the trainer
        assert r["sampling/sampling_logp_difference/max"] < 0.5, r

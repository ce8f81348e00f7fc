"""examples/trl_selfgrpo.py with vLLM in its process: what vLLM draws is drawn with the trained weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo.models.generation.branches import branch_logp
from selfemo.models.loading import load_policy

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_selfgrpo.py"


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_two_steps_of_the_example(taught: Path, data: Path, tmp_path: Path, lora: bool) -> None:
    """The second step draws with weights that the first has moved far: old ones would show."""
    command = [
        sys.executable, str(EXAMPLE), "--model", str(taught), "--data", str(data), "--out",
        str(tmp_path / "out"), "--steps", "2", "--batch", "16", "--group", "8", "--vllm", "colocate", "--lr",
        "0.05", *(["--lora"] if lora else []),
    ]  # fmt: skip
    own = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=570, env=own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (state,) = (tmp_path / "out").glob("checkpoint-2/trainer_state.json")
    logs = [r for r in json.loads(state.read_text())["log_history"] if "loss" in r]
    assert len(logs) == 2
    assert logs[0]["grad_norm"] > 0, "a step without a signal moves nothing"
    for r in logs:  # of the weights before each step, by vLLM and by the trainer
        assert r["sampling/sampling_logp_difference/max"] < 0.5, r
    before, after = (read(folder) for folder in (taught, tmp_path / "out"))
    assert lora or max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1, "weights that stayed"


def read(model: Path) -> list[float]:
    """The log-probabilities of a text."""
    policy = load_policy(str(model), "cpu", "fp32")
    ((found,),) = branch_logp(policy, [(0, [40], [list(range(41, 60))])], [0])
    return found

"""A run whose store and weights were recorded: what a change of the code must not change.

The arithmetic is kept from the processor (one thread, no vector extensions), so a digest holds on any x86-64
machine for the version of torch that it was recorded with. A change that is meant to alter results records
anew:

    python -m tests.reliability.test_recorded
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from selfemo.config import to_toml

PLAIN = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41", "DNNL_MAX_CPU_ISA": "SSE41",
    "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip
SETTINGS = (
    "model.threads=1", "flywheel.replay=0.5", "grpo.prompts_per_step=4", "grpo.mini_batch=2",
    "flywheel.prompts=8", "flywheel.iterations=2",
)  # fmt: skip
RUNS = {
    "early": ("sft.epochs=12",),  # no completion keeps the format yet: failures are what is stored
    "trained": ("sft.epochs=40",),  # self-play goes on from turn to turn, and refits have samples
}
BUILD = "import pathlib, sys; from tests import conftest as c; c.build_tiny_model(pathlib.Path(sys.argv[1]))"
COLUMNS = {
    "prompts": "id, stage, step, iteration, episode, turn, parent, dataset, conversation, label_set, "
    "answerer, persona, scenario, history, target, skipped",
    "rollouts": "stage, step, iteration, prompt, member, text, tokens, failure, emotion, self_emotion, "
    "reply, r1, r2, advantage, mean_logprob, entropy, best, gate",
    "samples": "stage, step, iteration, source, prompt, completion, emotion, reward, fingerprint, used",
    "predictions": "evaluation, prompt, dataset, conversation, gold, predicted, believed, failure, r1, text",
    "metrics": "stage, step, record",
    "stages": "name, status, step, checkpoint, info",
}
RECORDED: dict[str, dict[str, dict[str, str]]] = {
    "2.13.0+cpu": {
        "early": {
            "tiny model": "711af5cc66515f66",
            "prompts": "f9991debe0cc8d06",
            "rollouts": "4b374fc949d04371",
            "samples": "e330330f6e7a0f36",
            "predictions": "568f45fa84322740",
            "metrics": "d054d1ce8781fa11",
            "stages": "1c86458ad7473226",
            "cold-start": "fbfb8f904dce579e",
            "iteration-1": "212be051e5d0d01a",
            "iteration-1-rl": "212be051e5d0d01a",
            "iteration-2": "0de9f66231fc1c83",
            "iteration-2-rl": "0de9f66231fc1c83",
        },
        "trained": {
            "tiny model": "711af5cc66515f66",
            "prompts": "eb30902642507c8a",
            "rollouts": "1306e203e8fa42ea",
            "samples": "c2df3b2c6cf91a82",
            "predictions": "f0173ecb18a47df4",
            "metrics": "6856412cd989f78f",
            "stages": "24b6baffcf6f549c",
            "cold-start": "23ed45b21e43634a",
            "iteration-1": "2abf74400c42eee1",
            "iteration-1-rl": "f51931b105a1b28c",
            "iteration-2": "2d9ccd90f93c143f",
            "iteration-2-rl": "5162dcb6c5b535b4",
        },
    }
}
"""Digests by the version of torch and the run, each of the first 16 digits of a SHA-256."""


def digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]


def recorded_run(home: Path, data: Path, name: str) -> Path:
    """A run of the command on a model that is built for it, both in processes with plain arithmetic."""
    from tests.support.runs import settings

    env, model = {**os.environ, **PLAIN}, home / "tiny"
    subprocess.run([sys.executable, "-c", BUILD, str(model)], check=True, env=env)
    (home / "c.toml").write_text(to_toml(settings(model, data, *SETTINGS, *RUNS[name])))
    command = [sys.executable, "-m", "selfemo.cli", "evolve", "-c", "c.toml", "--out", "run"]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return home / "run"


def digests(run: Path) -> dict[str, str]:
    """Of the model that a run began with, each table of its store and each checkpoint's weights."""
    found = {"tiny model": digest([(run.parent / "tiny" / "model.safetensors").read_bytes()])}
    with closing(sqlite3.connect(run / "store.sqlite")) as db:
        for table, columns in COLUMNS.items():
            order = "1, 2" if table == "predictions" else "rowid"
            rows = db.execute(f"SELECT {columns} FROM {table} ORDER BY {order}")
            found[table] = digest(json.dumps(r).encode() + b"\n" for r in rows)
    for weights in sorted(run.glob("checkpoints/[!.]*/model.safetensors")):
        found[weights.parent.name] = digest([weights.read_bytes()])
    return found


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="recorded on x86-64")
@pytest.mark.parametrize("name", [pytest.param("early", marks=pytest.mark.extended), "trained"])
def test_a_run_gives_what_was_recorded(data: Path, tmp_path: Path, name: str) -> None:
    recorded = RECORDED.get(torch.__version__, {}).get(name)
    if recorded is None:
        pytest.skip(f"no digests of this run were recorded for torch {torch.__version__}")
    found = digests(recorded_run(tmp_path, data, name))
    if found["tiny model"] != recorded["tiny model"]:
        pytest.fail("the model that the run begins with is already another one")
    assert found == recorded


def main() -> None:
    from tests.conftest import toy_conversations, write_jsonl

    found: dict[str, dict[str, str]] = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "toy.jsonl"
            write_jsonl(data, [*toy_conversations(10), *toy_conversations(3, "test")])
            found[name] = digests(recorded_run(Path(folder), data, name))
    print(json.dumps({torch.__version__: found}, indent=4))


if __name__ == "__main__":
    main()

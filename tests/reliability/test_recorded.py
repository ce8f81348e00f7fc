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
            "rollouts": "17d2f56807ae8376",
            "samples": "e330330f6e7a0f36",
            "predictions": "c9880e3f6194a875",
            "metrics": "fc508b4fb4209313",
            "stages": "a4897245e235ad99",
            "cold-start": "ba2d3633ad40a6de",
            "iteration-1": "a3deb21c98dd97f2",
            "iteration-1-rl": "a3deb21c98dd97f2",
            "iteration-2": "b9c1d9d026c7faa0",
            "iteration-2-rl": "b9c1d9d026c7faa0",
        },
        "trained": {
            "tiny model": "711af5cc66515f66",
            "prompts": "0d6bc8772c074aa0",
            "rollouts": "8bc5d9b4deddda80",
            "samples": "97cf5659747f4ce2",
            "predictions": "c98f08aeabc764c1",
            "metrics": "5a428c201c6e483d",
            "stages": "1a6bb7c244e77b0a",
            "cold-start": "967b5f158f4a1d07",
            "iteration-1": "e2f8190dffbddd00",
            "iteration-1-rl": "e1d4bcf3c1a4e04d",
            "iteration-2": "e34d7854c7d9caa4",
            "iteration-2-rl": "0e3c336eb56196aa",
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

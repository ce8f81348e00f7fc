"""What must not change a result: the process, its hash seed, the number of workers or threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selfemo.config import GrpoConfig, to_toml
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.progress import Quiet
from selfemo.runs.store import Store
from tests.support.engines import assert_same_gradients, engine, gradients, rl_items
from tests.support.experts import extract, records
from tests.support.runs import SHORT, assert_same_run, begun, content, evolve, settings


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_in_any_process(
    tiny_model: Path, data: Path, short: Path, tmp_path: Path
) -> None:
    folder, toml = tmp_path / "run", tmp_path / "c.toml"
    toml.write_text(to_toml(settings(tiny_model, data, *SHORT)))
    command = [sys.executable, "-m", "selfemo.cli", "evolve", "-c", toml, "--out", folder]
    env = {**os.environ, "PYTHONHASHSEED": "77777"}
    subprocess.run(command, check=True, capture_output=True, env=env)
    assert os.environ.get("PYTHONHASHSEED") != env["PYTHONHASHSEED"], "that of the other run"
    assert_same_run(folder, short)
    for name in ("cold-start", "iteration-1-rl", "iteration-1"):
        assert (folder / "checkpoints" / name / "model.safetensors").exists()
    other = begun(short, "iteration-1-rl", tmp_path / "other", settings(tiny_model, data, *SHORT, "seed=1"))
    evolve(other, None, Quiet()).close()
    assert content(other)["rollouts"] != content(short)["rollouts"]


def test_threads_change_no_sample_and_gradients_by_rounding_alone(tiny_model: Path) -> None:
    before = torch.get_num_threads()
    items, found = rl_items(8, 2), []
    try:
        for threads in (1, 2):
            e = engine(tiny_model, threads=threads)
            assert torch.get_num_threads() == threads
            requests = [Request(i.prompt_ids, 4, seed=k) for k, i in enumerate(items[::2])]
            samples = e.sampler.generate(requests, SamplingSettings(16))
            e.begin_stage(GrpoConfig())
            e.set_reference()
            e.rl_backward(items, GrpoConfig(kl_coef=0.1))
            ids = [[s.token_ids for s in group] for group in samples]
            found.append((ids, gradients(e.policy.core)))
    finally:
        torch.set_num_threads(before)
    assert found[0][0] == found[1][0]
    assert_same_gradients(found[0][1], found[1][1])


def test_the_number_of_workers_changes_no_record(expert, tmp_path: Path) -> None:
    url, found = expert(latency=0.01), []
    for workers in (1, 16):
        with Store(tmp_path / f"{workers}.sqlite") as store:
            extract(store, 30, url, concurrency=workers)
            found.append(records(store))
    assert found[0] == found[1] and len(found[0]) == 60

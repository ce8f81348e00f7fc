"""A run that goes wrong: what was planted is seen, told, stored and acted upon, and never saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfemo.config import Config
from selfemo.errors import GuardError
from selfemo.method.prompts import conversation_prompts
from selfemo.progress import Quiet, Stopped, StopRequest
from selfemo.runs.evolve import cold_start
from selfemo.runs.evolve import rl as rl_stage
from selfemo.runs.folder import RunFolder
from selfemo.runs.inputs import run_inputs
from selfemo.training import open_trainer
from selfemo.training.engine import LocalEngine
from tests.conftest import toy_conversations, write_jsonl
from tests.support.runs import content, evolve, settings

SHORT = ("sft.epochs=1", "flywheel.iterations=1", "save.every_steps=1", "sampling.max_new_tokens=8",
         "evaluation.max_new_tokens=8")  # fmt: skip


class Said(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Poison:
    """Makes the gradient of some backward passes NaN, as an overflow would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, at: set[int]):
        real, self.calls = getattr(LocalEngine, method), 0

        def backward(engine, *args):
            measures = real(engine, *args)
            if self.calls in at:
                engine.policy.core.model.norm.weight.grad[0] = float("nan")
            self.calls += 1
            return measures

        monkeypatch.setattr(LocalEngine, method, backward)


def metrics(run: RunFolder, stage: str) -> list[dict]:
    return [m for m in run.store.metrics() if m["stage"] == stage]


def all_finite(folder: Path) -> int:
    files = list(folder.rglob("*.safetensors"))
    for path in files:
        assert all(torch.isfinite(t.float()).all() for t in load_file(path).values()), path
    return len(files)


def cold(run: RunFolder) -> dict:
    trainer = open_trainer(run.config, run.path, run.stop)
    return cold_start(run, trainer, run_inputs(run.config)[1])


def rl(run: RunFolder, start: str = "start") -> dict:
    """The RL stage from a checkpoint (kl_coef and rates as configured)."""
    trainer, train = open_trainer(run.config, run.path, run.stop), run_inputs(run.config)[1]
    prompts = [p for c in train for p in conversation_prompts(c)]
    rl_stage(run, trainer, prompts, train, [], start, 1)
    return json.loads(run.store.stage("iteration-1-rl")["info"])


def test_a_nan_step_under_warn_is_left_out_and_told(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, "sft_backward", {1})
    said = Said()
    run = RunFolder(tmp_path / "run", settings(tiny_model, data, *SHORT, "guard.numbers=warn"), said)
    assert cold(run)["alarms"] == {"numbers": 1}
    record = metrics(run, "cold-start")[1]
    assert record["not_finite"] == 1 and record["alarms"] == ["numbers"]
    assert record["grad_norm"] is None and record["loss"] > 0
    assert any("not finite" in line and "(warn)" in line for line in said.lines)
    assert all_finite(run.path)
    run.close()


@pytest.mark.parametrize("stage", ["cold-start", "iteration-1-rl"])
def test_a_nan_step_under_stop_saves_the_state_and_says_how_to_go_on(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    sft = stage == "cold-start"
    config = settings(tiny_model, data, *SHORT, "save.every_steps=0")
    # The whole run leaves the same step out and only warns: what a stop and a resume must come to.
    method, do = ("sft_backward", cold) if sft else ("rl_backward", rl)
    with monkeypatch.context() as m:
        Poison(m, method, {2})
        calm = RunFolder(tmp_path / "calm", config.model_copy(update={"guard": config.guard.model_copy(
            update={"numbers": "warn"})}))  # fmt: skip
        do(calm)
    with monkeypatch.context() as m:
        Poison(m, method, {2})
        run = RunFolder(tmp_path / "run", config)
        with pytest.raises(GuardError, match=rf"{stage}: .*not finite.*step \d is saved.*--resume"):
            do(run)
        run.close()
    run = RunFolder(tmp_path / "run", overrides=["guard.numbers=warn"])
    do(run)
    assert content(run.path) == content(calm.path)
    a, b = (r.path / "checkpoints" / stage / "model.safetensors" for r in (run, calm))
    assert a.read_bytes() == b.read_bytes() and all_finite(run.path) == 1
    run.close()
    calm.close()


def test_a_rollback_goes_on_with_half_the_rate_and_survives_a_kill(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tiny_model, data, *SHORT, "sft.epochs=3", "guard.numbers=rollback",
                      "save.every_steps=2")  # fmt: skip
    with monkeypatch.context() as m:
        Poison(m, "sft_backward", {3})  # step 3; the state is that after step 2
        said = Said()
        whole = RunFolder(tmp_path / "whole", config, said)
        info = cold(whole)
    assert info["rollbacks"] == [{"to": 2, "at": 4, "kinds": ["numbers"]}]
    assert any("goes back to step 2, with 0.5 of the learning rate" in s for s in said.lines)
    plain = RunFolder(tmp_path / "plain", settings(tiny_model, data, *SHORT, "sft.epochs=3"))
    cold(plain)
    rates, usual = ([m["lr"] for m in metrics(r, "cold-start")] for r in (whole, plain))
    assert rates[:2] == usual[:2] and rates[2:] == [0.5 * r for r in usual[2:]]
    assert not any("alarms" in m for m in metrics(whole, "cold-start")), "the bad step is rewound"

    class Killed(Quiet):
        def say(self, text: str) -> None:
            if "goes back" in text:
                raise KeyboardInterrupt

    with monkeypatch.context() as m:
        Poison(m, "sft_backward", {3})
        run = RunFolder(tmp_path / "run", config, Killed())
        with pytest.raises(KeyboardInterrupt):
            cold(run)
        run.close()
    run = RunFolder(tmp_path / "run", None)
    assert cold(run) == info and content(run.path) == content(whole.path)
    a, b = (r.path / "checkpoints/cold-start/model.safetensors" for r in (run, whole))
    assert a.read_bytes() == b.read_bytes()
    for r in (run, whole, plain):
        r.close()


def test_kl_that_explodes_is_rolled_back_and_in_the_end_stopped(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    """No planting: a learning rate of 0.3 really throws the policy away from its reference."""
    wild = ("grpo.lr=0.3", "grpo.kl_coef=0.001", "guard.max_kl=1", "grpo.lam_max=1")
    config = settings(tiny_model, data, *SHORT, *wild, "guard.kl=rollback", "guard.max_rollbacks=2")
    run = RunFolder(tmp_path / "run", config)
    # An untrained model fails every group: give the update something to do.
    cold(run)
    with pytest.raises(GuardError, match=r"KL to the reference is .*rolled back 2 times"):
        rl(run, "cold-start")
    row = run.store.stage("iteration-1-rl")
    assert [r["kinds"] for r in json.loads(row["info"])["rollbacks"]] == [["kl"], ["kl"]]
    assert all_finite(run.path)
    run.close()


def test_a_policy_that_says_one_thing_only_is_seen(tiny_model: Path, tmp_path: Path) -> None:
    """Cold start on one emotion alone: the trained policy recognises nothing else."""
    from dataclasses import replace

    from tests.conftest import dist

    data = tmp_path / "joy.jsonl"
    turned = [
        replace(c, turns=tuple(replace(t, emotion=dist(joy=1)) for t in c.turns))
        for c in [*toy_conversations(10), *toy_conversations(2, "test")]
    ]
    write_jsonl(data, turned)
    own = ("flywheel.iterations=1", "flywheel.refit=none", "guard.window=2", "guard.collapse=stop")
    with pytest.raises(GuardError, match=r"100\.0% of the completions of 2 rounds recognise 'joy'"):
        evolve(tmp_path / "run", settings(tiny_model, data, *own))
    assert list((tmp_path / "run/checkpoints/.iteration-1-rl-partial").glob("step-2.safetensors"))


def test_guard_settings_are_checked() -> None:
    from pydantic import ValidationError

    for bad in ({"guard": {"kl": "explode"}}, {"guard": {"window": 1}}, {"guard": {"max_kl": 0}}):
        with pytest.raises(ValidationError):
            Config.model_validate(bad)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        # One token is no E line, so nothing can be read and R1 is 0 throughout.
        (["sampling.max_new_tokens=1"], "0% can be read, 100% are cut by sampling.max_new_tokens = 1)"),
        # As good as greedy: the completions of a prompt are copies.
        (["sampling.temperature=0.001", "sampling.max_new_tokens=40"], "a higher sampling.temperature"),
    ],
)
def test_rounds_whose_rewards_teach_nothing_are_told_once_and_summed_up(
    tiny_model: Path, data: Path, tmp_path: Path, how: list[str], says: str
) -> None:
    config = settings(tiny_model, data, *SHORT, "sft.epochs=40", "grpo.kl_coef=0", "grpo.lam_max=0", *how)
    said = Said()
    run = RunFolder(tmp_path / "run", config, said)
    start = "start"
    if says.startswith("a higher"):
        cold(run)
        start = "cold-start"
    before = len(said.lines)
    rl(run, start)
    rounds = metrics(run, "iteration-1-rl")
    assert [m["silent"] for m in rounds] == [1.0] * 3
    first, last = said.lines[before:]
    assert first.startswith(
        "iteration-1-rl, round 1 of 3: the rewards teach nothing: in all groups (6) the 4"
    )
    assert says in first and "The policy stays as it is" in first
    assert last.startswith("iteration-1-rl: in 3 of 3 rounds the rewards taught nothing")
    weights = [load_file(f / "model.safetensors") for f in (run.path / "checkpoints/iteration-1-rl",
               tiny_model if start == "start" else run.path / "checkpoints" / start)]  # fmt: skip
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0]), "as it said"
    run.close()


def test_a_resumed_stage_tells_its_silent_rounds_once(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, data, *SHORT, "sampling.max_new_tokens=1")
    stop = StopRequest()

    class Stopping(Said):
        def say(self, text: str) -> None:
            stop.asked |= "teach nothing" in text

    run = RunFolder(tmp_path / "run", config, Stopping(), stop)
    with pytest.raises(Stopped):
        rl(run)
    run.close()
    resumed = Said()
    run = RunFolder(tmp_path / "run", reporter=resumed)
    rl(run)
    run.close()
    assert not [line for line in resumed.lines if "teach nothing" in line]
    assert any("in 3 of 3 rounds the rewards taught nothing" in line for line in resumed.lines)

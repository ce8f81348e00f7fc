"""Step 1 of experiments/gpu, at tiny size on the CPU: its rows, its refusals, and its tables."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.ours import SETTINGS, Done, Side, apart, random_groups, update
from experiments import tables
from experiments.gpu import engine, provenance

from selfemo.config import load
from selfemo.method.types import RawCompletion
from tests.conftest import toy_conversations, write_jsonl

MICRO = ["grpo.micro_tokens=300", "sft.micro_tokens=100"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows, and one of a setting that does not exist."""
    variants = {
        "unknown": (["model.nonsense=1"], ["update-400"]),
        "micro": (MICRO, ["update-400", "rl-step", "round", "sft"]),
        "flex": (["model.attention=flex"], ["update-400"]),
        "slots": (["model.decoder=slots"], ["rollouts-400", "round", "greedy", "labels"]),
    }
    monkeypatch.setattr(engine, "VARIANTS", variants)
    monkeypatch.setattr(engine, "LARGE_VARIANTS", {"micro": ["update-400"]})
    monkeypatch.setattr(engine, "MISMATCHES", ("baseline", "slots"))
    rows = ("update-400", "rollouts-400", "rl-step", "round", "labels")
    monkeypatch.setattr(engine, "AGAINST_TRL", {"135m": rows, "0.6b": ("update-1000",)})


@pytest.fixture
def settings() -> Iterator[None]:
    before = dict(SETTINGS)
    yield
    SETTINGS.update(before)


def arguments(model: Path | str, tmp_path: Path, *more: str) -> list[str]:
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [*toy_conversations(16), *toy_conversations(4, "dev")])
    where = ["--data", str(data), "--model", str(model), "--out", str(tmp_path / "out")]
    return [*where, "--tiny", "--device", "cpu", "--dtype", "fp32", "--seconds", "900", *more]


def written(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_changes_stand_against_the_baseline_and_the_engine_against_trl(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = ["--work", str(tmp_path / "work")]
    before = dict(SETTINGS)
    engine.main(arguments(tiny_model, tmp_path, *work))
    assert before == SETTINGS
    result = written(tmp_path)
    rows = result["rows"]
    assert list(rows) == result["planned"]
    failed = {name: r["failed"] for name, r in rows.items() if "failed" in r}
    assert list(failed) == ["135m/unknown/update-400"], failed
    assert "model.nonsense: unknown key" in failed["135m/unknown/update-400"]
    assert rows["cuda tests"].keys() >= ({"tests"} if torch.cuda.is_available() else {"not_run"})

    for name, r in rows.items():
        model, kind, of = name.split("/") if "/" in name else ("", "", "")
        if kind not in ("micro", "flex", "slots", "trl") or (kind, of) == ("trl", "labels"):
            continue
        repeats = engine.TINY[model].repeats
        assert len(r["ours"]) == len(r["theirs"]) == len(r["ratios"]) == repeats, name
        assert len(r["first"]) == 2 and min(r["ours"] + r["theirs"]) > 0, name
        assert r["peak_gib"] == [None, None], name
        if kind != "trl":
            trains = of.startswith(("update", "sft"))  # compared once more: token by token, and by gradient
            assert r["agree"] and len(r["agreement"]) == repeats + 1 + trains, (name, r["agreement"])
            if trains:
                assert 0 <= r["agreement"][-1]["log-probability"] < 1e-5, name
                assert 0 <= r["agreement"][-1]["gradient"] < 1e-3, name
            assert all(len(a) > 1 for a in r["agreement"]), f"{name}: nothing was compared"
    update = rows["135m/micro/update-400"]
    tokens = engine.TINY["135m"].short + 8 * 96 - 8  # a sequence's last token is no input
    ours, theirs = update["details"]["tokens"]
    assert theirs == [2 * tokens] * 2, "the baseline packs each group once"
    assert min(ours) > 2 * theirs[0], "micro-batches of 300 tokens hold the prompt again and again"
    assert {"loss", "gradient norm"} < update["agreement"][0].keys()
    drawn = rows["135m/slots/rollouts-400"]
    assert drawn["agreement"][0]["tokens in common"] == 1 and drawn["details"]["tokens"][0][0] > 0
    parts = rows["135m/micro/round"]["details"]["parts"]
    assert all(set(p) == {"sampling", "rewards", "packing", "update"} and min(p.values()) > 0 for p in parts)
    beside = rows["135m/trl/round"]["details"]["parts of a round, s"]
    assert sum(beside[0].values()) == pytest.approx(rows["135m/trl/round"]["ours"][0] * 8, rel=0.2)
    assert rows["135m/trl/update-400"]["checked"].startswith("loss and gradient norm")
    assert rows["135m/trl/update-400"]["goal"] == 4.5 and rows["135m/trl/rl-step"]["goal"] == 6.0
    for name in ("baseline", "slots"):
        m = rows[f"135m/mismatch/{name}"]["mismatch"]
        assert 0 < m["mismatch"] <= m["mismatch_p99"] < 1e-3 and m["tokens"] > 0
        assert m["mismatch_clipped"] == 0

    monkeypatch.setattr("experiments.engine_tables.RESULTS", tmp_path / "results")
    assert tables.engine() == "not run\n"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "engine.json").write_text(json.dumps(result))
    lines = tables.engine().splitlines()
    speed = [n / s for n, s in zip(drawn["details"]["tokens"][0], drawn["ours"], strict=True)]
    (line,) = [x for x in lines if x.startswith("| 135m | slots | rollouts-400 |")]
    assert f"({min(speed):.1f}-{max(speed):.1f}) tokens/s" in line and "| yes (" in line
    assert any(x.startswith("| 135m | unknown | update-400 | failed: ") for x in lines)
    (line,) = [x for x in lines if x.startswith("| 135m | rl-step |")]
    assert " | 6.0 | " in line

    # An earlier result is gone on with: what is there stays, what is missing is made.
    del rows["135m/micro/sft"]
    rows["135m/micro/update-400"]["mark"] = "of the earlier result"
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(result))
    after = [*work, "--after", str(earlier), "--only", "135m/micro/*", "--only", "135m/unknown/*"]
    engine.main(arguments(tiny_model, tmp_path, *after))
    again = written(tmp_path)["rows"]
    assert again.keys() == {*rows, "135m/micro/sft"}
    assert again["135m/micro/update-400"] == rows["135m/micro/update-400"]
    assert again["135m/unknown/update-400"]["row_s"] != rows["135m/unknown/update-400"]["row_s"]
    assert again["135m/trl/update-400"] == rows["135m/trl/update-400"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "another card"),
        ("torch", "1.0"),
        ("sources", "of other code"),
        ("settings", {"dtype": "bf16"}),
    ],
)
@pytest.mark.usefixtures("small", "settings")
def test_a_result_of_something_else_is_not_gone_on_with(tmp_path: Path, key: str, value: Any) -> None:
    args = engine.options().parse_args(arguments("none", tmp_path))
    step = engine.Step(args, tmp_path)
    earlier = json.loads(json.dumps({**step.results, "rows": {"cuda tests": {"mark": 1}}}))
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps({**earlier, key: value}))
    with pytest.raises(ValueError, match=f"other {key} than this run"):
        step.go_on_from(file)
    assert step.results["rows"] == {}
    file.write_text(json.dumps({**earlier, "commit": "another, of the same source"}))
    step.go_on_from(file)
    assert step.results["rows"] == {"cuda tests": {"mark": 1}}


def step_of(tmp_path: Path, rows: dict[str, Any], seconds: float = 100.0) -> engine.Step:
    args: argparse.Namespace = engine.options().parse_args(arguments("none", tmp_path))
    args.seconds = seconds
    args.out.mkdir()
    step = engine.Step(args, tmp_path)
    step.rows = rows
    return step


def raising(error: BaseException) -> Any:
    def make() -> dict[str, Any]:
        raise error

    return make


@pytest.mark.usefixtures("small", "settings")
def test_a_row_that_fails_is_kept_and_each_row_is_written_when_it_is_made(tmp_path: Path) -> None:
    rows = {
        "a": lambda: {"tests": {"passed": 1}},
        "b": raising(RuntimeError("first line\nCUDA error: out of luck")),
        "c": lambda: {"tests": {"passed": 3}},
        "d": raising(KeyboardInterrupt()),
    }
    with pytest.raises(KeyboardInterrupt):
        step_of(tmp_path, rows).run()
    found = written(tmp_path)["rows"]
    assert list(found) == ["a", "b", "c"] and found["c"]["tests"] == {"passed": 3}
    assert found["b"]["failed"] == "CUDA error: out of luck"


@pytest.mark.usefixtures("small", "settings")
def test_no_row_begins_that_would_not_end_in_time(tmp_path: Path) -> None:
    made: list[str] = []

    def row(name: str) -> Any:
        return lambda: made.append(name) or {"tests": {}}

    step = step_of(tmp_path, {name: row(name) for name in ("m/x/new", "m/x/slow", "m/x/quick")}, seconds=60)
    step.results["rows"] = {"m/y/slow": {"row_s": 80.0}, "m/y/quick": {"row_s": 1.0}}
    step.run()
    assert made == ["m/x/new", "m/x/quick"]


def test_an_unknown_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.main(arguments("none", tmp_path, "--only", "135m/fex/*"))
    assert "no row 135m/fex/*" in capsys.readouterr().err


def completion(ids: tuple[int, ...], logprobs: tuple[float, ...]) -> RawCompletion:
    return RawCompletion("", ids, logprobs, logprobs)


def test_what_differs_by_more_than_rounding_does_not_agree() -> None:
    one = Done(measures={"loss": 1.0})
    assert engine.agreement(one, Done(measures={"loss": 1.0001}), "fp32")["agree"]
    assert not engine.agreement(one, Done(measures={"loss": 1.01}), "fp32")["agree"]
    assert engine.agreement(one, Done(measures={"loss": 1.01}), "bf16")["agree"]
    assert not engine.agreement(one, Done(measures={"loss": float("nan")}), "bf16")["agree"]
    assert engine.agreement(Done(lines=["a"] * 20), Done(lines=["a"] * 19 + ["b"]), "bf16")["agree"]
    assert not engine.agreement(Done(lines=["a"] * 20), Done(lines=["a"] * 17 + ["b"] * 3), "bf16")["agree"]
    ids = tuple(range(10))
    same = Done(completions=[completion(ids, (-1.0,) * 10)])
    late = Done(completions=[completion((*ids[:9], 99), (-1.0,) * 9 + (-5.0,))])
    assert engine.agreement(same, late, "fp32") == {
        "tokens in common": 0.9, "log-probability": 0.0, "agree": True,
    }  # fmt: skip
    far = Done(completions=[completion(ids, (-1.1,) * 10)])
    assert not engine.agreement(same, far, "bf16")["agree"], "the same tokens by other probabilities"
    other = Done(completions=[completion((7, *ids[1:]), (-1.0,) * 10)])
    assert not engine.agreement(same, other, "bf16")["agree"]
    assert not engine.agreement(Done(), Done(), "fp32")["agree"], "nothing was compared"


def test_the_counts_of_the_cuda_tests_come_from_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "..F\nFAILED tests/model/test_cuda.py::test_x - AssertionError\n1 failed, 7 passed in 31.2s\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answers = iter([said, "no tests ran\n"])
    monkeypatch.setattr(
        engine.subprocess, "run", lambda *a, **kw: subprocess.CompletedProcess(a, 1, next(answers), "broken")
    )
    assert engine.cuda_tests() == {
        "tests": {"failed": 1, "passed": 7}, "failures": ["tests/model/test_cuda.py::test_x"],
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="broken"):
        engine.cuda_tests()
    assert engine.outcomes("8 skipped in 4.56s") == {"skipped": 8}
    assert engine.outcomes("===== 3 passed, 2 warnings in 61.10s (0:01:01) =====") == {"passed": 3}


def test_the_digest_tells_what_the_source_is(tmp_path: Path) -> None:
    for name, text in (("a.py", "x = 1"), ("deep/b.toml", "y = 2"), ("data.json", "{}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    first = provenance.digest((tmp_path,))
    (tmp_path / "data.json").write_text("{1}")
    assert provenance.digest((tmp_path,)) == first
    (tmp_path / "a.py").write_text("x = 2")
    second = provenance.digest((tmp_path,))
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert len({first, second, provenance.digest((tmp_path,))}) == 3
    found, more = provenance.provenance(), provenance.provenance(tmp_path)
    assert tuple(found) == provenance.KEYS and found["torch"] == torch.__version__
    assert [k for k in found if found[k] != more[k]] == ["sources"]


def test_the_package_knows_every_setting_of_the_table() -> None:
    for name, (overrides, works) in engine.VARIANTS.items():
        changed = engine.filled(overrides, engine.FULL["135m"])
        assert load([], [*engine.BASELINE, *changed]) != load([], list(engine.BASELINE)), name
        assert works
    assert set(engine.LARGE_VARIANTS) | set(engine.MISMATCHES[1:]) <= set(engine.VARIANTS)


@pytest.mark.slow
def test_a_side_that_computes_something_else_is_found(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completions that see each other: the loss of an update is the same, log-probabilities are not."""
    overrides = ("model.attention=dense", "grpo.micro_tokens=100000")
    a, b = (Side(str(tiny_model), *overrides) for _ in range(2))
    items = random_groups(40, 2, 300)
    assert engine.same(apart(a, b, items))["agree"]
    rows = a.engine.policy.rows

    def causal(*args: Any) -> Any:
        made = rows(*args)
        return replace(made, mask=torch.ones_like(made.mask).tril())

    monkeypatch.setattr(a.engine.policy, "rows", causal)
    losses = [update(s, items, 0.0)(0).measures["loss"] for s in (a, b)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6), "the loss does not tell"
    found = engine.same(apart(a, b, items))
    assert not found["agree"] and found["log-probability"] > 1e-3, found

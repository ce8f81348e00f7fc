"""The step "baselines" of experiments/gpu at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experiments.gpu import baselines, provenance
from experiments.gpu.baselines import ARMS, FILE, Arm

from selfemo.config import load
from selfemo.evaluation.baseline_jobs import settings_class
from selfemo.progress import StopRequest
from selfemo.reports.tables import measured
from tests.conftest import toy_conversations, write_jsonl


def arguments(tmp_path: Path, *more: str) -> list[str]:
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [*toy_conversations(6), *toy_conversations(4, "dev")])
    return ["--data", str(data), "--out", str(tmp_path / "out"), "--tiny", "--seconds", "900", *more]


def results(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text())
    return found


def of_arms(*names: str) -> list[str]:
    return [x for n in names for x in ("--arm", n)]


def test_runs_are_written_with_what_was_said_and_are_not_made_again(tmp_path: Path) -> None:
    call = arguments(tmp_path, "--work", str(tmp_path / "work"))
    baselines.main([*call, *of_arms("majority")])
    first = results(tmp_path)
    assert set(provenance.KEYS) <= set(first) and "failed" not in first
    (run,) = first["runs"]
    (data,) = run["predicted"]
    assert run["run"] == f"majority, {data}, seed 0" and run["split"] == "dev, claim half"
    gold, said = first["utterances"][data]["gold"], run["predicted"][data]
    assert len(gold) == len(said) == len(run["nll"][data]) == run["scores"][data]["n"] == 10
    right = sum(g == k for g, k in zip(gold, said, strict=True))
    assert run["scores"][data]["accuracy"][0] == pytest.approx(right / 10)
    assert run["scores"][data]["nll_at_t"] == pytest.approx(sum(run["nll"][data]) / 10, abs=1e-4)
    job = tmp_path / "work" / f"majority-{data}" / "job-0"
    assert measured(job).saw == "-"

    run["mark"] = "of the earlier result"
    (tmp_path / "earlier.json").write_text(json.dumps(first))
    baselines.main([*call, *of_arms("majority", "prior"), "--after", str(tmp_path / "earlier.json")])
    again = results(tmp_path)
    assert [r["baseline"] for r in again["runs"]] == ["majority", "prior"] and again["runs"][0] == run
    assert [made["runs"] for made in again["earlier"]] == [[run["run"]]]
    with pytest.raises(ValueError, match=r"runs with other settings \(evaluation.resamples: 20, here 30\)"):
        baselines.main([*call, *of_arms("majority"), "--set", "evaluation.resamples=30"])


def test_what_cannot_be_made_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = Arm("nothing", "simple", "nothing", (0,), {}, {})
    monkeypatch.setattr(baselines, "ARMS", {**ARMS, "nothing": unknown})
    call = arguments(tmp_path)
    broken = ["--set", "baseline.window=1"]  # the majority has no window
    with pytest.raises(Exception, match="unknown key"):
        baselines.main([*call, *of_arms("majority"), *broken])
    baselines.main([*call, *of_arms("nothing", "encoder roberta-large"), "--seed", "0"])
    baselines.main([*call, *of_arms("prior"), "--seconds", "1"])
    found = results(tmp_path)
    told = capsys.readouterr().out
    assert "nothing: left out, no baseline 'nothing' in this version" in told
    assert "roberta-large: left out, no weights: give --weights roberta-large=FOLDER" in told
    (late,) = found["left_out"].items()
    assert late[0].startswith("prior, ") and late[1] == "no time" and not found["runs"]
    for wrong in ("mpnet", "other=FOLDER"):
        with pytest.raises(SystemExit):
            baselines.main([*call, "--weights", wrong])
        assert "write NAME=FOLDER; names are mpnet, roberta-large, causal" in capsys.readouterr().err


def test_a_run_that_fails_does_not_end_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = baselines.run_baseline

    def failing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "majority":
            raise RuntimeError("no such thing")
        return made(name, *rest, **more)

    monkeypatch.setattr(baselines, "run_baseline", failing)
    baselines.main(arguments(tmp_path, *of_arms("majority", "prior")))
    found = results(tmp_path)
    assert [r["baseline"] for r in found["runs"]] == ["prior"]
    assert "RuntimeError: no such thing" in found["failed"][0]


def test_a_clock_asks_for_a_stop_where_the_rest_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for foretell, stops_at in ((True, 64), (False, 101)):
        now[0], stop = 0.0, StopRequest()
        with baselines.Clock(stop, 100.0, foretell).bar("it", 1000) as advance:
            for k in range(1, 102):
                now[0] = float(k)
                advance()
                if stop.asked:
                    break
        assert k == stops_at, "a second a step: 1,000 do not fit into 100 s"


@pytest.mark.parametrize("arm", ARMS.values(), ids=lambda a: a.name)
def test_the_settings_of_each_arm_exist(arm: Arm) -> None:
    weights = {n: at or "FOLDER" for n, at in FILE["weights"].items()}
    for tiny in ({}, arm.tiny):
        config = load([], arm.overrides(weights, tiny), settings_class(arm.baseline))
        assert config.data.evaluated_on == "dev, claim half"


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_runs_at_tiny_size(arm: str, tmp_path: Path, tiny_model: Path) -> None:
    more = ["--weights", f"causal={tiny_model}", "--set", "device=cpu"]
    if "roberta-large" in arm:
        more += ["--weights", "roberta-large=builtin:all-minilm-l6-v2"]
    baselines.main(arguments(tmp_path, *of_arms(arm), *more))
    found = results(tmp_path)
    assert "failed" not in found and not found["left_out"]
    (run,) = found["runs"]
    assert run["arm"].startswith(arm) and run["sees_later"] is arm.endswith("later turns")
